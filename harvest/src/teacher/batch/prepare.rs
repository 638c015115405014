//! Writes request files within the limits of the server.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::time::SystemTime;

use schemas::Sha256Digest;
use schemas::digest::DigestWriter;
use serde::Serialize;

use super::state::{self, Record, Row, Store};
use crate::teacher::{ErrorClass, TeacherError};

/// Writes rows into as few request files as the limits allow.
#[derive(Debug)]
pub(super) struct Preparer<'a> {
    store: &'a Store,
    url: &'a str,
    max_rows: usize,
    max_bytes: usize,
    current: Option<Growing>,
    records: Vec<Record>,
}

#[derive(Debug)]
struct Growing {
    writer: DigestWriter<BufWriter<File>>,
    num_bytes: usize,
    rows: Vec<Row>,
}

/// A line up to its body, which is there as bytes.
#[derive(Serialize)]
struct Head<'a> {
    custom_id: String,
    method: &'static str,
    url: &'a str,
}

impl<'a> Preparer<'a> {
    pub(super) fn new(store: &'a Store, url: &'a str, max_rows: usize, max_bytes: usize) -> Self {
        Self {
            store,
            url,
            max_rows,
            max_bytes,
            current: None,
            records: Vec::new(),
        }
    }

    /// Adds a row with the JSON body of its request.
    ///
    /// # Errors
    /// Deterministic where the row alone is larger than a file may be.
    pub(super) fn add(&mut self, row: Row, body: &[u8]) -> Result<(), TeacherError> {
        let line = line(row, self.url, body);
        if line.len() > self.max_bytes {
            return Err(TeacherError::new(
                ErrorClass::Deterministic,
                format!(
                    "the row's request has {} bytes, more than a request file may have",
                    line.len()
                ),
            )
            .advise("raise `max_file_mib` of the teacher if the server allows it"));
        }
        let is_full = |file: &Growing| {
            file.rows.len() >= self.max_rows || file.num_bytes + line.len() > self.max_bytes
        };
        if self.current.as_ref().is_some_and(is_full) {
            self.close()?;
        }
        let path = self.store.next_requests();
        let failed = |error: std::io::Error| state::on_disk("write", &path, &error);
        let file = match &mut self.current {
            Some(file) => file,
            none => none.insert(Growing {
                writer: DigestWriter::new(BufWriter::new(File::create(&path).map_err(failed)?)),
                num_bytes: 0,
                rows: Vec::new(),
            }),
        };
        file.writer.write_all(&line).map_err(failed)?;
        file.num_bytes += line.len();
        file.rows.push(row);
        Ok(())
    }

    /// The batches, each of which survives a power cut.
    ///
    /// # Errors
    /// A [`TeacherError`] of the disk.
    pub(super) fn finish(mut self) -> Result<Vec<Record>, TeacherError> {
        self.close()?;
        Ok(self.records)
    }

    fn close(&mut self) -> Result<(), TeacherError> {
        let Some(Growing { writer, rows, .. }) = self.current.take() else {
            return Ok(());
        };
        let next = self.store.next_requests();
        let (writer, digest, _) = writer.finish();
        let file = writer
            .into_inner()
            .map_err(|error| state::on_disk("write", &next, error.error()))?;
        let name = name(&digest);
        state::finish(&file, &next, &self.store.requests(&name))?;
        let record = Record::prepared(name, rows);
        self.store.save(&record)?;
        self.records.push(record);
        Ok(())
    }
}

/// A digest of the request file and the time: the same rows that are asked again are another batch.
fn name(file: &Sha256Digest) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds = since.map_or(0, |since| since.as_nanos());
    let unique = format!("{file} {nanoseconds} {}", std::process::id());
    Sha256Digest::of(unique.as_bytes()).hex()[..16].to_owned()
}

fn line(row: Row, url: &str, body: &[u8]) -> Vec<u8> {
    let head = Head {
        custom_id: row.custom_id(),
        method: "POST",
        url,
    };
    let mut line = serde_json::to_vec(&head).expect("texts have a JSON form");
    line.pop();
    line.extend_from_slice(b",\"body\":");
    // A line break in JSON can only be white space.
    line.extend(body.iter().map(|byte| match byte {
        b'\n' | b'\r' => b' ',
        byte => *byte,
    }));
    line.extend_from_slice(b"}\n");
    line
}
