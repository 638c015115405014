//! A row as every file format gives it: some columns, each with a value or without.

use std::path::Path;

use crate::error::Error;

/// A column that a reader is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Column {
    /// What the column is called in messages: the field of the task.
    pub(super) field: String,
    /// The names that it has in files; the first that a file has is read.
    pub(super) names: Vec<String>,
    /// Whether a file without it is refused.
    pub(super) required: bool,
    /// Whether it may hold a list of texts, which is carried as the text of a JSON array.
    pub(super) is_list: bool,
}

impl Column {
    pub(super) fn new(field: &str, names: &[&str], required: bool) -> Self {
        Self {
            field: field.to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            required,
            is_list: false,
        }
    }

    /// Where this column is in a file whose columns are `header`; `None` where it is not and need not be.
    pub(super) fn find(&self, path: &Path, header: &[String]) -> Result<Option<usize>, Error> {
        let found = self
            .names
            .iter()
            .find_map(|name| header.iter().position(|column| column == name));
        if found.is_none() && self.required {
            return Err(Error::BadDataset {
                path: path.to_owned(),
                problem: format!("it has no column {}", quoted(&self.names)),
                hint: Some(format!("its columns are {}", header.join(", "))),
            });
        }
        Ok(found)
    }
}

/// Names for a message: `a` or `b`.
pub(super) fn quoted(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(" or ")
}

/// A value, as text.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Value {
    /// Text as it stands.
    Text(String),
    /// A number or a truth value of a typed format, as JSON writes it.
    Bare(String),
}

impl Value {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Bare(text) => text,
        }
    }

    pub(super) fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Bare(text) => text,
        }
    }
}

/// One row: the values of the columns asked for, in their order; `None` where a value is absent or null.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    /// Line (text formats) or row (Parquet), from 1.
    pub(super) line: u64,
    pub(super) values: Vec<Option<Value>>,
}

/// The rows of a file. An [`Error::BadRow`] concerns one row and the next may be read; any other error is the end.
pub(super) type Rows = Box<dyn Iterator<Item = Result<Row, Error>>>;

pub(super) fn bad_row(
    path: &Path,
    line: u64,
    column: Option<&str>,
    problem: impl Into<String>,
) -> Error {
    Error::BadRow {
        path: path.to_owned(),
        line,
        column: column.map(str::to_owned),
        problem: problem.into(),
    }
}
