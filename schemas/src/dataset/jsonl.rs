//! JSON Lines: one object a line. Blank lines are passed over.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::lines::{Line, Lines};
use super::row::{Column, Row, Rows, Value, bad_row, quoted};
use crate::error::Error;

/// Opens a JSONL file.
pub(super) fn open(path: &Path, columns: &[Column]) -> Result<Rows, Error> {
    let mut lines = Lines::open(path)?;
    let columns = columns.to_vec();
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            match lines.next_line() {
                Err(error) => return Some(Err(error)),
                Ok(None) => return None,
                Ok(Some(line)) if line.is_blank() => {}
                Ok(Some(line)) => return Some(parse(lines.path(), &line, &columns)),
            }
        }
    })))
}

fn parse(path: &Path, line: &Line, columns: &[Column]) -> Result<Row, Error> {
    let mut object: Map<String, Json> =
        serde_json::from_str(line.text(path)?).map_err(|error| {
            let full = error.to_string();
            let what = full.split(" at line ").next().unwrap_or_default();
            let problem = if error.is_data() {
                format!("not a JSON object: {what}")
            } else {
                format!("invalid JSON at character {}: {what}", error.column())
            };
            bad_row(path, line.number, None, problem)
        })?;
    let values = columns.iter().map(|column| {
        let found = column
            .names
            .iter()
            .find_map(|name| Some((name, object.remove(name)?)));
        match found {
            None if column.required => Err(bad_row(
                path,
                line.number,
                Some(&column.field),
                format!("the row has no key {}", quoted(&column.names)),
            )),
            None => Ok(None),
            Some((_, list @ Json::Array(_))) if column.is_list => {
                Ok(Some(Value::Text(list.to_string())))
            }
            Some((name, json)) => value(json).map_err(|kind| {
                bad_row(
                    path,
                    line.number,
                    Some(name),
                    format!("it is {kind}, not text"),
                )
            }),
        }
    });
    Ok(Row {
        line: line.number,
        values: values.collect::<Result<_, _>>()?,
    })
}

fn value(json: Json) -> Result<Option<Value>, &'static str> {
    match json {
        Json::Null => Ok(None),
        Json::String(text) => Ok(Some(Value::Text(text))),
        Json::Bool(_) | Json::Number(_) => Ok(Some(Value::Bare(json.to_string()))),
        Json::Array(_) => Err("a list"),
        Json::Object(_) => Err("an object"),
    }
}
