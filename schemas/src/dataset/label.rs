//! Labels as files write them.

use super::row::Value;
use crate::example::Label;
use crate::task::LabelKind;

/// The label that `value` stands for; `None` where it says that there is none.
///
/// Of a class, text is its name or its index, a number is its index, and a truth value is its name in any case. An
/// absent, null or empty value is no label; neither is -1 for a class, nor for a number where the data set is
/// published so (`minus_one_is_none`). Of a multiple-choice row it is one of `options`, the names of its options.
///
/// # Errors
/// A sentence that says what is wrong.
pub(super) fn parse(
    kind: &LabelKind,
    value: Option<&Value>,
    minus_one_is_none: bool,
    options: &[String],
) -> Result<Option<Label>, String> {
    let Some(value) = value.filter(|value| !value.text().is_empty()) else {
        return Ok(None);
    };
    match kind {
        LabelKind::Classes(classes) => class(classes, value),
        LabelKind::Text => Ok(Some(Label::Text(value.text().to_owned()))),
        LabelKind::Choice(_) => option(options, value),
        LabelKind::Number => match value.text().trim().parse::<f64>() {
            Ok(number) if minus_one_is_none && number.total_cmp(&-1.0).is_eq() => Ok(None),
            Ok(number) if number.is_finite() => Ok(Some(Label::Value(number))),
            _ => Err(format!("`{}` is not a number", value.text())),
        },
    }
}

fn class(classes: &[String], value: &Value) -> Result<Option<Label>, String> {
    let text = value.text();
    let named = |matches: &dyn Fn(&String) -> bool| classes.iter().position(matches);
    let by_name = match value {
        Value::Text(_) => named(&|class| class == text),
        Value::Bare(_) if matches!(text, "true" | "false") => {
            named(&|class| class.eq_ignore_ascii_case(text))
        }
        Value::Bare(_) => None,
    };
    let index = match by_name {
        Some(index) => index,
        None if text.trim() == "-1" => return Ok(None),
        None => text.trim().parse().map_err(|_| {
            format!(
                "`{text}` is not a class: the classes are {}",
                classes.join(", ")
            )
        })?,
    };
    if index >= classes.len() {
        return Err(format!(
            "there is no class {index}: there are {}",
            classes.len()
        ));
    }
    Ok(Some(Label::Class(index as u32)))
}

fn option(names: &[String], value: &Value) -> Result<Option<Label>, String> {
    let text = value.text().trim();
    if text == "-1" {
        return Ok(None);
    }
    match names.iter().position(|name| name == text) {
        Some(index) => Ok(Some(Label::Class(index as u32))),
        None => Err(format!(
            "`{text}` is no option of this row: its options are {}",
            names.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Value {
        Value::Text(value.to_owned())
    }

    fn bare(value: &str) -> Value {
        Value::Bare(value.to_owned())
    }

    #[test]
    fn classes_by_name_index_and_truth() {
        let kind = LabelKind::Classes(vec!["False".into(), "True".into()]);
        let parse = |value: Value| parse(&kind, Some(&value), false, &[]);
        for value in [text("True"), text("1"), bare("1"), bare("true")] {
            assert_eq!(parse(value), Ok(Some(Label::Class(1))));
        }
        for value in [text(""), text("-1"), bare("-1")] {
            assert_eq!(parse(value), Ok(None));
        }
        assert_eq!(
            parse(bare("2")),
            Err("there is no class 2: there are 2".into())
        );
        assert_eq!(
            parse(text("true")),
            Err("`true` is not a class: the classes are False, True".into())
        );
        assert!(parse(bare("1.0")).is_err());
    }

    #[test]
    fn a_number_is_an_index_even_where_a_class_has_its_name() {
        let kind = LabelKind::Classes(vec!["1".into(), "0".into()]);
        assert_eq!(
            parse(&kind, Some(&bare("1")), false, &[]),
            Ok(Some(Label::Class(1)))
        );
        assert_eq!(
            parse(&kind, Some(&text("1")), false, &[]),
            Ok(Some(Label::Class(0)))
        );
    }

    #[test]
    fn numbers() {
        let parse = |value: Value, minus| parse(&LabelKind::Number, Some(&value), minus, &[]);
        assert_eq!(parse(text("3.800"), true), Ok(Some(Label::Value(3.8))));
        assert_eq!(parse(bare("-1.0"), true), Ok(None));
        assert_eq!(parse(bare("-1.0"), false), Ok(Some(Label::Value(-1.0))));
        for wrong in ["good", "nan", "inf"] {
            assert_eq!(
                parse(text(wrong), true),
                Err(format!("`{wrong}` is not a number"))
            );
        }
    }

    #[test]
    fn options_are_called_by_the_names_of_the_task() {
        let kind = LabelKind::Choice(crate::task::Choices::List("o".into()));
        let names = ["A".to_owned(), "B".to_owned()];
        let parse = |value: Value| parse(&kind, Some(&value), false, &names);
        assert_eq!(parse(text("B")), Ok(Some(Label::Class(1))));
        assert_eq!(parse(text("-1")), Ok(None));
        assert_eq!(
            parse(bare("1")),
            Err("`1` is no option of this row: its options are A, B".into())
        );
    }

    #[test]
    fn responses_are_kept_as_they_are() {
        let kind = LabelKind::Text;
        assert_eq!(
            parse(&kind, Some(&text(" so\n")), false, &[]),
            Ok(Some(Label::Text(" so\n".into())))
        );
    }
}
