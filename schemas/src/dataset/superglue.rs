//! The tasks of SuperGLUE, as published in JSONL and in the Parquet export on Hugging Face.
//!
//! Both have the same column names; the classes are those of the export, in its order.

use std::collections::BTreeMap;

use super::builtin::Builtin;
use super::row::Value;
use crate::task::Metric;

/// Offsets of WiC's word, in characters: start and end (exclusive) in the first sentence, then in the second.
pub(super) const SPANS: [&str; 4] = ["start1", "end1", "start2", "end2"];

pub(super) const BOOLQ: Builtin = Builtin {
    classes: &["False", "True"],
    second: Some("{passage}"),
    ..Builtin::new(
        "boolq",
        &[("question", &[]), ("passage", &[])],
        "{question}",
    )
};

pub(super) const CB: Builtin = Builtin {
    classes: &["entailment", "contradiction", "neutral"],
    second: Some("{hypothesis}"),
    ..Builtin::new("cb", &[("premise", &[]), ("hypothesis", &[])], "{premise}")
};

pub(super) const COPA: Builtin = Builtin {
    classes: &["choice1", "choice2"],
    second: Some("{choice1} or {choice2}"),
    ..Builtin::new(
        "copa",
        &[
            ("premise", &[]),
            ("question", &[]),
            ("choice1", &[]),
            ("choice2", &[]),
        ],
        "{premise} What was the {question}?",
    )
};

pub(super) const WIC: Builtin = Builtin {
    classes: &["False", "True"],
    second: Some("{sentence2}"),
    metric: Metric::Accuracy,
    word_in_context: true,
    ..Builtin::new(
        "wic",
        &[("word", &[]), ("sentence1", &[]), ("sentence2", &[])],
        "{word}: {sentence1}",
    )
};

/// Puts asterisks around the word in both sentences.
///
/// # Errors
/// The column that is wrong, and what is wrong with it.
pub(super) fn mark_spans(
    fields: &mut BTreeMap<String, String>,
    offsets: &[Option<Value>],
) -> Result<(), (&'static str, String)> {
    let mut numbers = [0; 4];
    for ((number, name), value) in numbers.iter_mut().zip(SPANS).zip(offsets) {
        let text = value
            .as_ref()
            .ok_or_else(|| (name, "it is null".to_owned()))?
            .text();
        *number = text
            .parse::<usize>()
            .map_err(|_| (name, format!("`{text}` is not an offset in characters")))?;
    }
    for (sentence, span) in ["sentence1", "sentence2"].into_iter().zip([0, 2]) {
        let text = fields.get_mut(sentence).expect("WiC has both sentences");
        let (start, end) = (numbers[span], numbers[span + 1]);
        if start >= end {
            return Err((
                SPANS[span + 1],
                format!("the span ends at {end}, where it starts at {start}"),
            ));
        }
        let at = |column: usize, offset: usize| {
            byte_offset(text, offset).ok_or_else(|| {
                let length = text.chars().count();
                let problem =
                    format!("{offset} is outside `{sentence}`, which has {length} characters");
                (SPANS[column], problem)
            })
        };
        let (start, end) = (at(span, start)?, at(span + 1, end)?);
        text.insert(end, '*');
        text.insert(start, '*');
    }
    Ok(())
}

/// Where in `text` the character at `offset` starts; its length for the offset behind the last.
fn byte_offset(text: &str, offset: usize) -> Option<usize> {
    text.char_indices()
        .map(|(at, _)| at)
        .chain([text.len()])
        .nth(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(offsets: [&str; 4]) -> Result<(String, String), (&'static str, String)> {
        let mut fields: BTreeMap<String, String> = [
            ("word", "café"),
            ("sentence1", "Le café – ouvert"),
            ("sentence2", "café"),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into();
        let offsets = offsets.map(|offset| Some(Value::Bare(offset.to_owned())));
        mark_spans(&mut fields, &offsets)?;
        Ok((fields["sentence1"].clone(), fields["sentence2"].clone()))
    }

    #[test]
    fn offsets_count_characters() {
        assert_eq!(
            marked(["3", "7", "0", "4"]),
            Ok(("Le *café* – ouvert".into(), "*café*".into()))
        );
        assert_eq!(
            marked(["10", "16", "0", "4"]).unwrap().0,
            "Le café – *ouvert*"
        );
    }

    #[test]
    fn offsets_outside_are_refused() {
        assert_eq!(
            marked(["3", "7", "0", "5"]),
            Err((
                "end2",
                "5 is outside `sentence2`, which has 4 characters".into()
            ))
        );
        assert_eq!(
            marked(["7", "7", "0", "4"]),
            Err(("end1", "the span ends at 7, where it starts at 7".into()))
        );
        assert_eq!(
            marked(["-3", "7", "0", "4"]),
            Err(("start1", "`-3` is not an offset in characters".into()))
        );
    }
}
