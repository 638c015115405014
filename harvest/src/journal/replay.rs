//! What a segment holds that a run left behind.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use schemas::{Error, Manifest, TeacherRecord};

use super::{Line, Part, PartLine, json};
use crate::cache::Key;

/// What a segment holds.
#[derive(Debug)]
pub struct Replay {
    /// The segment.
    pub path: PathBuf,
    /// What the cache holds; `None` where not even the first line is whole, in which case nobody can tell whose the
    /// records are, and there is none.
    pub manifest: Option<Manifest>,
    /// The replies whose lines are whole, and where they stand.
    pub records: Vec<(Key, Line)>,
    /// Parts of replies.
    pub(crate) parts: Vec<PartLine>,
    num_bytes: u64,
    /// Bytes after the last whole line: what was being written when the machine went down.
    pub num_torn_bytes: u64,
    /// Bytes of other lines that are not whole, or that follow a first line that is not.
    pub num_damaged_bytes: u64,
}

impl Replay {
    /// Reads the segment at `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::FormatVersion`] and [`Error::InvalidManifest`] about the first line;
    /// [`Error::InvalidJournal`] where a whole line is no reply, as one of another version may be. Lines that are not
    /// whole are no error; they are left out and counted.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let read_error = |source| Error::io(path, "read", source);
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(read_error)?);
        let mut replay = Self {
            path: path.to_owned(),
            manifest: None,
            records: Vec::new(),
            parts: Vec::new(),
            num_bytes: 0,
            num_torn_bytes: 0,
            num_damaged_bytes: 0,
        };
        let mut line = Vec::new();
        let mut number = 0;
        while reader.read_until(b'\n', &mut line).map_err(read_error)? > 0 {
            number += 1;
            replay.add(number, &line)?;
            line.clear();
        }
        Ok(replay)
    }

    /// Adds line `number`, counted from 1.
    fn add(&mut self, number: u64, line: &[u8]) -> Result<(), Error> {
        let at = Line::at(self.num_bytes, line.len());
        self.num_bytes += line.len() as u64;
        let Some(json) = json(line) else {
            self.num_torn_bytes += line.len() as u64;
            return Ok(());
        };
        // What is not whole and has a whole line behind it was not torn by the end of a process.
        self.num_damaged_bytes += std::mem::take(&mut self.num_torn_bytes);
        if number == 1 {
            self.manifest = Some(Manifest::parse(&self.path, json)?);
        } else if self.manifest.is_some() {
            let invalid = |error: serde_json::Error| Error::InvalidJournal {
                path: self.path.clone(),
                line: number,
                problem: error.to_string(),
            };
            if json.starts_with(b"{\"part\":") {
                let part: Part = serde_json::from_slice(json).map_err(invalid)?;
                self.parts.push(PartLine {
                    key: (part.record.id, part.record.draw),
                    is_forgotten: part.is_forgotten(),
                    part: part.part,
                    line: at,
                });
            } else {
                let record: TeacherRecord = serde_json::from_slice(json).map_err(invalid)?;
                self.records.push(((record.id, record.draw), at));
            }
        } else {
            self.num_damaged_bytes += line.len() as u64;
        }
        Ok(())
    }
}
