//! Lines of a text file, read one at a time.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::row::bad_row;
use crate::error::Error;

/// A longer line is no row of text: reading on would load the file whole.
const MAX_LINE_BYTES: u64 = 64 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One line without its end (`\n` or `\r\n`).
#[derive(Debug)]
pub(super) struct Line {
    /// Number from 1.
    pub(super) number: u64,
    bytes: Vec<u8>,
}

impl Line {
    /// The line as text.
    pub(super) fn text(&self, path: &Path) -> Result<&str, Error> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let at = error.valid_up_to() + 1;
            bad_row(
                path,
                self.number,
                None,
                format!("invalid UTF-8 at byte {at} of the line"),
            )
        })
    }

    pub(super) fn is_blank(&self) -> bool {
        self.bytes.iter().all(u8::is_ascii_whitespace)
    }
}

/// A streaming reader of lines; a leading byte order mark is passed over.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::io(path, "read", source))?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 16, file),
            number: 0,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next line, `None` at the end of the file.
    pub(super) fn next_line(&mut self) -> Result<Option<Line>, Error> {
        let mut bytes = Vec::new();
        let num_read = (&mut self.reader)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut bytes)
            .map_err(|source| Error::io(&self.path, "read", source))?;
        if num_read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if bytes.pop_if(|last| *last == b'\n').is_some() {
            bytes.pop_if(|last| *last == b'\r');
        } else if num_read as u64 == MAX_LINE_BYTES {
            return Err(Error::BadDataset {
                path: self.path.clone(),
                problem: format!("line {} is longer than 64 MiB", self.number),
                hint: Some("check that the file has the format that its name says".into()),
            });
        }
        if self.number == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(Some(Line {
            number: self.number,
            bytes,
        }))
    }
}
