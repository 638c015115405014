//! The options of a multiple-choice row.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where a row's options are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Choices {
    /// One field for each option, as WinoGrande's `option1` and `option2`.
    Fields(Vec<String>),
    /// One field that holds a list of texts, as HellaSwag's `endings`; rows may have lists of different lengths.
    List(String),
}

impl Choices {
    /// The fields that hold options.
    pub fn fields(&self) -> &[String] {
        match self {
            Self::Fields(fields) => fields,
            Self::List(field) => std::slice::from_ref(field),
        }
    }

    /// The field that holds a list, which a row carries as the text of a JSON array.
    pub fn list(&self) -> Option<&str> {
        match self {
            Self::List(field) => Some(field),
            Self::Fields(_) => None,
        }
    }

    /// The options of a row with these fields, two or more.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn options(&self, row: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
        let text = |field: &String| row.get(field).cloned().unwrap_or_default();
        let options: Vec<String> = match self {
            Self::Fields(fields) => fields.iter().map(text).collect(),
            Self::List(field) => serde_json::from_str(&text(field))
                .map_err(|_| format!("`{field}` is not a list of texts"))?,
        };
        if options.len() < 2 {
            return Err(format!(
                "there are {} options; a choice has two",
                options.len()
            ));
        }
        if options.iter().any(String::is_empty) {
            return Err("an option is empty".to_owned());
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn options_are_fields_or_a_list() {
        let fields = Choices::Fields(vec!["b".into(), "a".into()]);
        let options = fields.options(&row(&[("a", "one"), ("b", "two")])).unwrap();
        assert_eq!(options, ["two", "one"]);
        let list = Choices::List("o".into());
        let options = list
            .options(&row(&[("o", "[\"x\", \"y\", \"z\"]")]))
            .unwrap();
        assert_eq!(options, ["x", "y", "z"]);
    }

    #[test]
    fn fewer_than_two_are_no_choice() {
        let list = Choices::List("o".into());
        for (text, problem) in [
            ("x, y", "`o` is not a list of texts"),
            ("[1, 2]", "`o` is not a list of texts"),
            ("[\"x\"]", "there are 1 options; a choice has two"),
            ("[\"x\", \"\"]", "an option is empty"),
        ] {
            assert_eq!(list.options(&row(&[("o", text)])).unwrap_err(), problem);
        }
    }
}
