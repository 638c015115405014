//! How the rows of a task look in files: which column holds what, and under which names it was published.

use std::collections::BTreeMap;
use std::path::Path;

use super::delimited::Headerless;
use super::label;
use super::row::{Column, Row, Value, bad_row};
use super::superglue;
use crate::error::Error;
use crate::example::{Example, Split};
use crate::task::{LabelKind, Task};

/// What is done to the values of a row before they become fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// The columns are the fields.
    Plain,
    /// WiC: the word's span is marked in both sentences.
    WordInContext,
}

/// The layout of a task's files.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The field columns in the order of the task's fields.
    pub(super) fields: Vec<Column>,
    pub(super) label: Column,
    /// Names for files without a header line.
    pub(super) headerless: Option<Headerless>,
    pub(super) shape: Shape,
    /// Whether a regression label of -1 says that there is none, as in the published test splits.
    pub(super) minus_one_is_none: bool,
}

impl Layout {
    /// The layout of a task of one's own: columns are called as fields and label are.
    pub(super) fn named(task: &Task) -> Self {
        Self {
            fields: task
                .fields()
                .iter()
                .map(|field| Column {
                    is_list: task.list_field() == Some(field),
                    ..Column::new(field, &[field], true)
                })
                .collect(),
            label: Column::new(task.label_field(), &[task.label_field()], false),
            headerless: None,
            shape: Shape::Plain,
            minus_one_is_none: false,
        }
    }

    /// What to ask a reader for: fields, label, and the offsets of a marked span.
    pub(super) fn columns(&self) -> Vec<Column> {
        let mut columns = self.fields.clone();
        columns.push(self.label.clone());
        if self.shape == Shape::WordInContext {
            columns.extend(superglue::SPANS.map(|name| Column::new(name, &[name], true)));
        }
        columns
    }

    /// The example of a row that was read with [`columns`](Self::columns).
    pub(super) fn example(
        &self,
        task: &Task,
        split: &Split,
        path: &Path,
        mut row: Row,
    ) -> Result<Example, Error> {
        let bad = |column: Option<&str>, problem: String| bad_row(path, row.line, column, problem);
        let spans = row.values.split_off(self.fields.len() + 1);
        let label = row.values.pop().expect("the label follows the fields");
        let mut fields = BTreeMap::new();
        for (column, value) in self.fields.iter().zip(row.values) {
            let text = value
                .map(Value::into_text)
                .ok_or_else(|| bad(Some(&column.field), "it is null".into()))?;
            fields.insert(column.field.clone(), text);
        }
        if fields.values().all(|text| text.trim().is_empty()) {
            return Err(bad(None, "every field is empty".into()));
        }
        if self.shape == Shape::WordInContext {
            superglue::mark_spans(&mut fields, &spans)
                .map_err(|(column, problem)| bad(Some(column), problem))?;
        }
        let options = option_names(task, &fields).map_err(|problem| bad(None, problem))?;
        let label = label::parse(
            task.label(),
            label.as_ref(),
            self.minus_one_is_none,
            &options,
        )
        .map_err(|problem| bad(Some(&self.label.field), problem))?;
        Ok(Example::new(fields, label, split.clone()))
    }
}

/// What a label may call the options of a multiple-choice row.
fn option_names(task: &Task, fields: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
    let LabelKind::Choice(choices) = task.label() else {
        return Ok(Vec::new());
    };
    let num_options = choices.options(fields)?.len();
    let names = task.choice_names();
    if names.is_empty() {
        return Ok((0..num_options).map(|index| index.to_string()).collect());
    }
    if names.len() < num_options {
        return Err(format!(
            "there are {num_options} options, and `choice_names` has {}",
            names.len()
        ));
    }
    Ok(names[..num_options].to_vec())
}
