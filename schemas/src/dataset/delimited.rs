//! Delimited text: CSV and TSV, with a header line unless the layout says otherwise. Blank lines are passed over.
//!
//! In CSV a value that starts with `"` ends at the next lone `"`, holds commas and line ends, and writes `"` as `""`
//! (RFC 4180). In TSV there is no quoting: a `"` is a plain character and a value holds neither tab nor line end, as
//! in the files of GLUE.

use std::collections::VecDeque;
use std::path::Path;

use super::lines::{Line, Lines};
use super::row::{Column, Row, Rows, Value, bad_row};
use crate::error::Error;

/// A quoted value that is not closed within this size is taken for a stray quote.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// The two delimited formats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    Csv,
    Tsv,
}

/// The columns of a file that may come without a header line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Headerless {
    /// The names of its columns.
    pub(super) names: &'static [&'static str],
    /// Whether the first line of a file is a row already.
    pub(super) is_row: fn(&[String]) -> bool,
}

/// Opens a delimited file.
pub(super) fn open(
    path: &Path,
    dialect: Dialect,
    headerless: Option<Headerless>,
    columns: &[Column],
) -> Result<Rows, Error> {
    let mut records = Records {
        lines: Lines::open(path)?,
        again: VecDeque::new(),
        dialect,
    };
    let Some(first) = records.next().transpose()? else {
        return Ok(Box::new(std::iter::empty()));
    };
    let (header, mut row_already) = match headerless {
        Some(layout) if (layout.is_row)(&first.cells) => {
            let names = layout.names.iter().map(|name| (*name).to_owned());
            (names.collect(), Some(first))
        }
        _ => (first.cells, None),
    };
    let indices = columns
        .iter()
        .map(|column| column.find(path, &header))
        .collect::<Result<Vec<_>, _>>()?;
    let path = path.to_owned();
    let rows = std::iter::from_fn(move || row_already.take().map(Ok).or_else(|| records.next()));
    Ok(Box::new(rows.map(move |record| {
        let mut record = record?;
        if record.cells.len() != header.len() {
            let problem = format!(
                "it has {} columns, the header has {}",
                record.cells.len(),
                header.len()
            );
            return Err(bad_row(&path, record.line, None, problem));
        }
        let mut take = |index: usize| Value::Text(std::mem::take(&mut record.cells[index]));
        Ok(Row {
            line: record.line,
            values: indices.iter().map(|index| index.map(&mut take)).collect(),
        })
    })))
}

/// The cells of one row.
struct Record {
    line: u64,
    cells: Vec<String>,
}

struct Records {
    lines: Lines,
    /// Lines that a stray quote had swallowed.
    again: VecDeque<Line>,
    dialect: Dialect,
}

impl Iterator for Records {
    type Item = Result<Record, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_line() {
                Err(error) => return Some(Err(error)),
                Ok(None) => return None,
                Ok(Some(line)) if line.is_blank() && !self.blank_is_a_row(&line) => {}
                Ok(Some(line)) => return Some(self.record(&line)),
            }
        }
    }
}

impl Records {
    fn next_line(&mut self) -> Result<Option<Line>, Error> {
        match self.again.pop_front() {
            Some(line) => Ok(Some(line)),
            None => self.lines.next_line(),
        }
    }

    /// A line of tabs alone has cells, all of them empty.
    fn blank_is_a_row(&self, line: &Line) -> bool {
        self.dialect == Dialect::Tsv
            && line
                .text(self.lines.path())
                .is_ok_and(|text| text.contains('\t'))
    }

    fn record(&mut self, first: &Line) -> Result<Record, Error> {
        let path = self.lines.path().to_owned();
        let text = first.text(&path)?;
        let cells = match self.dialect {
            Dialect::Tsv => text.split('\t').map(str::to_owned).collect(),
            Dialect::Csv => self
                .csv_cells(&path, text)?
                .map_err(|problem| bad_row(&path, first.number, None, problem))?,
        };
        Ok(Record {
            line: first.number,
            cells,
        })
    }

    /// The cells of a record that starts with the line `first`; the inner error says what is wrong with its quotes.
    fn csv_cells(
        &mut self,
        path: &Path,
        first: &str,
    ) -> Result<Result<Vec<String>, String>, Error> {
        let mut text = first.to_owned();
        let mut more: Vec<Line> = Vec::new();
        let mut cells = split_csv(&text);
        while let Err(Quoting::Open(_)) = cells {
            let next = if text.len() < MAX_RECORD_BYTES {
                self.next_line()?
            } else {
                None
            };
            let Some(next) = next else { break };
            let added = next.text(path).map(|next| {
                text.push('\n');
                text.push_str(next);
                next.contains('"')
            });
            more.push(next);
            match added {
                Ok(true) => cells = split_csv(&text),
                // Without another quote the value is open still.
                Ok(false) => {}
                Err(_) => break,
            }
        }
        Ok(cells.map_err(|quoting| {
            // The quote is at fault, not the lines after it: they are read again as rows of their own.
            for line in more.into_iter().rev() {
                self.again.push_front(line);
            }
            match quoting {
                Quoting::Open(cell) => format!("cell {cell}: the quote is not closed"),
                Quoting::Stray(cell) => format!("cell {cell}: text follows the closing quote"),
            }
        }))
    }
}

/// What is wrong with the quotes of a CSV record, and in which cell, from 1.
enum Quoting {
    Open(usize),
    Stray(usize),
}

fn split_csv(text: &str) -> Result<Vec<String>, Quoting> {
    let mut cells = Vec::new();
    let mut rest = text;
    loop {
        let (cell, after) = if let Some(quoted) = rest.strip_prefix('"') {
            quoted_cell(quoted, cells.len() + 1)?
        } else {
            let (cell, after) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
            (cell.to_owned(), after)
        };
        cells.push(cell);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(cells),
            None => return Err(Quoting::Stray(cells.len())),
        }
    }
}

/// The value behind an opening quote, and the text behind the closing one.
fn quoted_cell(text: &str, number: usize) -> Result<(String, &str), Quoting> {
    let mut cell = String::new();
    let mut rest = text;
    loop {
        let at = rest.find('"').ok_or(Quoting::Open(number))?;
        cell.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                cell.push('"');
                rest = after;
            }
            None => return Ok((cell, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::split_csv;

    #[test]
    fn csv_cells() {
        let cells = |text: &str| split_csv(text).ok();
        let owned = |cells: &[&str]| Some(cells.iter().map(|cell| (*cell).to_owned()).collect());
        assert_eq!(cells("a,,c"), owned(&["a", "", "c"]));
        assert_eq!(
            cells(r#""a,b","say ""x""",5" pipe"#),
            owned(&["a,b", "say \"x\"", "5\" pipe"])
        );
        assert_eq!(cells("\"two\nlines\","), owned(&["two\nlines", ""]));
        assert_eq!(cells("\"open"), None);
        assert_eq!(cells("\"a\"b"), None);
    }
}
