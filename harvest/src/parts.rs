//! Parts of replies whose other parts failed or never came: paid for, and kept until their rows are whole.
//!
//! While a row is being asked about, its parts lie in the segment of its shard. What a shard did not take is carried
//! over to `parts.journal`, whose first line says which teacher and data set it belongs to.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::manifest::sync_folder;
use schemas::{DatasetIdentity, Error, Sha256Digest, TeacherIdentity, TeacherRecord};
use serde::{Deserialize, Serialize};

use crate::cache::Key;
use crate::journal::{Line, Lines, Part, PartLine, Segment, json, line};
use crate::teacher::{ErrorClass, Paid, Reply, Request, TeacherError, holds};

const FILE: &str = "parts.journal";

#[derive(PartialEq, Serialize, Deserialize)]
struct Header {
    /// Digest of teacher and data set.
    source: Sha256Digest,
}

/// Parts that no shard took. They are on the disk; where they stand is in memory.
#[derive(Debug)]
pub struct Parts {
    path: PathBuf,
    header: Vec<u8>,
    kept: Mutex<HashMap<Key, Vec<(String, Line)>>>,
    failure: Mutex<Option<Error>>,
}

impl Parts {
    /// Reads what was carried over in `folder` for this teacher and data set. A file of another source is set aside.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidJournal`].
    pub fn open(
        folder: &Path,
        teacher: &TeacherIdentity,
        dataset: &DatasetIdentity,
    ) -> Result<Self, Error> {
        let source = serde_json::json!({"teacher": teacher, "dataset": dataset});
        let source = Sha256Digest::of(source.to_string().as_bytes());
        let parts = Self {
            path: folder.join(FILE),
            header: line(&Header { source }),
            kept: Mutex::default(),
            failure: Mutex::default(),
        };
        parts.read()?;
        Ok(parts)
    }

    /// Whether parts were carried over in `folder`.
    pub(crate) fn is_in(folder: &Path) -> bool {
        folder.join(FILE).exists()
    }

    fn read(&self) -> Result<(), Error> {
        let read_error = |source| Error::io(&self.path, "read", source);
        let mut reader = match File::open(&self.path) {
            Ok(file) => BufReader::with_capacity(1 << 20, file),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(read_error(source)),
        };
        let mut bytes = Vec::new();
        let (mut number, mut offset, mut end) = (0, 0, 0);
        while reader.read_until(b'\n', &mut bytes).map_err(read_error)? > 0 {
            number += 1;
            if number == 1 && bytes != self.header {
                return self.set_aside();
            }
            // A line that is not whole was being written when the process died.
            if let Some(json) = json(&bytes).filter(|_| number > 1) {
                let part: Part =
                    serde_json::from_slice(json).map_err(|error| Error::InvalidJournal {
                        path: self.path.clone(),
                        line: number,
                        problem: error.to_string(),
                    })?;
                self.insert(PartLine {
                    key: (part.record.id, part.record.draw),
                    line: Line::at(offset, bytes.len()),
                    is_forgotten: part.is_forgotten(),
                    part: part.part,
                });
            }
            offset += bytes.len() as u64;
            if bytes.last() == Some(&b'\n') {
                end = offset;
            }
            bytes.clear();
        }
        if end < offset {
            // Whatever is added next starts on a line of its own.
            let cut = OpenOptions::new().write(true).open(&self.path);
            cut.and_then(|file| file.set_len(end))
                .map_err(|source| Error::io(&self.path, "write", source))?;
        }
        Ok(())
    }

    fn set_aside(&self) -> Result<(), Error> {
        let aside = (1..=u32::MAX)
            .map(|number| match number {
                1 => self.path.with_extension("journal.other"),
                number => self.path.with_extension(format!("journal.other-{number}")),
            })
            .find(|aside| !aside.exists())
            .expect("some number is free");
        std::fs::rename(&self.path, &aside)
            .map_err(|source| Error::io(&self.path, "rename", source))?;
        tracing::warn!(
            "`{}` is of another teacher; it stays as `{}`",
            self.path.display(),
            aside.display()
        );
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<Key, Vec<(String, Line)>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, of: PartLine) {
        let mut kept = self.kept();
        let parts = kept.entry(of.key).or_default();
        parts.retain(|(name, _)| *name != of.part);
        if !of.is_forgotten {
            parts.push((of.part, of.line));
        } else if parts.is_empty() {
            kept.remove(&of.key);
        }
    }

    fn names(&self, key: &Key) -> Vec<String> {
        let kept = self.kept();
        let parts = kept.get(key).into_iter().flatten();
        parts.map(|(name, _)| name.clone()).collect()
    }

    /// Forgets the parts of a row that hold a signal which does not fit the cache.
    ///
    /// # Errors
    /// As [`Paid::forget`].
    pub(crate) fn forget_signal(
        &self,
        request: &Request,
        signal: &str,
    ) -> Result<(), TeacherError> {
        let names = self.names(&(request.id, request.draw));
        forget_holding(self, names, request, signal)
    }

    /// Keeps parts that stand in the journal at `path`, durably.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn carry(&self, path: &Path, parts: Vec<PartLine>) -> Result<(), Error> {
        if parts.is_empty() {
            return Ok(());
        }
        let mut source = Lines::open(path)?;
        for part in parts {
            let line = self.append(source.bytes(part.line)?)?;
            self.insert(PartLine { line, ..part });
        }
        File::open(&self.path)
            .and_then(|file| file.sync_data())
            .map_err(|source| Error::io(&self.path, "synchronise", source))
    }

    /// Takes over what another folder carried, whose file goes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn absorb(&self, other: &Self) -> Result<(), Error> {
        let kept = std::mem::take(&mut *other.kept());
        let lines = kept.into_iter().flat_map(|(key, parts)| {
            let of_key = move |(part, line)| PartLine {
                key,
                part,
                line,
                is_forgotten: false,
            };
            parts.into_iter().map(of_key)
        });
        self.carry(&other.path, lines.collect())?;
        other.compact()
    }

    /// Adds a line; on return the operating system has it.
    fn append(&self, line: &[u8]) -> Result<Line, Error> {
        let _one_at_a_time = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let write = || -> std::io::Result<Line> {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path)?;
            if file.metadata()?.len() == 0 {
                file.write_all(&self.header)?;
            }
            let offset = file.metadata()?.len();
            file.write_all(line).inspect_err(|_| {
                let _ = file.set_len(offset);
            })?;
            Ok(Line::at(offset, line.len()))
        };
        write().map_err(|source| Error::io(&self.path, "write", source))
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept().is_empty()
    }

    /// Forgets the parts of a row that is whole; the file shrinks with the next [`compact`](Self::compact).
    pub(crate) fn forget_row(&self, key: &Key) {
        self.kept().remove(key);
    }

    /// Writes the file anew with what is left, or removes it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn compact(&self) -> Result<(), Error> {
        let mut kept = self.kept();
        if kept.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(source) if source.kind() != ErrorKind::NotFound => {
                    Err(Error::io(&self.path, "remove", source))
                }
                _ => Ok(()),
            };
        }
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let write_error = |source| Error::io(&self.path, "write", source);
        let mut new = tempfile::Builder::new()
            .prefix(".manifest-")
            .suffix(".tmp")
            .tempfile_in(folder)
            .map_err(write_error)?;
        new.write_all(&self.header).map_err(write_error)?;
        let mut offset = self.header.len() as u64;
        let mut old = Lines::open(&self.path)?;
        for (_, line) in kept.values_mut().flatten() {
            let bytes = old.bytes(*line)?;
            new.write_all(bytes).map_err(write_error)?;
            *line = Line::at(offset, bytes.len());
            offset += bytes.len() as u64;
        }
        new.as_file().sync_all().map_err(write_error)?;
        new.persist(&self.path)
            .map_err(|error| write_error(error.error))?;
        sync_folder(folder).map_err(write_error)
    }

    fn find(&self, part: &str, request: &Request) -> Option<Reply> {
        let line = {
            let kept = self.kept();
            let parts = kept.get(&(request.id, request.draw))?;
            parts.iter().find(|(name, _)| name == part)?.1
        };
        read_part(&self.path, line)
    }

    /// The first error that kept a part from being written, which ends the run: what is paid for from then on is lost.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn not_kept(&self, error: Error) -> TeacherError {
        let refusal = TeacherError::new(ErrorClass::Interrupted, error.to_string());
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        refusal
    }
}

fn read_part(path: &Path, line: Line) -> Option<Reply> {
    let read = Lines::open(path).and_then(|mut lines| lines.parse::<Part>(line));
    match read {
        Ok(part) if part.is_forgotten() => None,
        Ok(Part { record, .. }) => Some(Reply {
            signals: record.signals,
            provenance: record.provenance,
        }),
        Err(error) => {
            tracing::warn!("{error}; the part is asked for again");
            None
        }
    }
}

fn part_of(part: &str, request: &Request, reply: &Reply) -> Part {
    Part {
        part: part.to_owned(),
        record: TeacherRecord {
            id: request.id,
            draw: request.draw,
            signals: reply.signals.clone(),
            provenance: reply.provenance.clone(),
        },
    }
}

fn forget_holding(
    paid: &dyn Paid,
    names: Vec<String>,
    request: &Request,
    signal: &str,
) -> Result<(), TeacherError> {
    for name in names {
        let kept = paid.find(&name, request);
        if kept.is_some_and(|reply| holds(&name, &reply, signal)) {
            paid.forget(&name, request)?;
        }
    }
    Ok(())
}

/// Without a shard: what comes is carried over at once.
impl Paid for Parts {
    fn find(&self, part: &str, request: &Request) -> Option<Reply> {
        self.find(part, request)
    }

    fn keep(&self, part: &str, request: &Request, reply: &Reply) -> Result<(), TeacherError> {
        let written = self.append(&line(&part_of(part, request, reply)));
        let line = written.map_err(|error| self.not_kept(error))?;
        self.insert(PartLine {
            key: (request.id, request.draw),
            part: part.to_owned(),
            line,
            is_forgotten: reply.signals.is_empty(),
        });
        Ok(())
    }
}

/// Within a shard, while some of its rows are asked about: what comes goes to its segment.
#[derive(Debug)]
pub(crate) struct SegmentParts {
    pub(crate) segment: Arc<Segment>,
    carried: Arc<Parts>,
    /// What came since, and where it stands in the segment.
    latest: Mutex<HashMap<(Key, String), Line>>,
}

impl SegmentParts {
    pub(crate) fn new(segment: Arc<Segment>, carried: Arc<Parts>) -> Self {
        Self {
            segment,
            carried,
            latest: Mutex::default(),
        }
    }

    /// As [`Parts::forget_signal`].
    pub(crate) fn forget_signal(
        &self,
        request: &Request,
        signal: &str,
    ) -> Result<(), TeacherError> {
        let key = (request.id, request.draw);
        let mut names = self.carried.names(&key);
        let latest = self.latest();
        names.extend(
            latest
                .keys()
                .filter(|(of, _)| *of == key)
                .map(|(_, name)| name.clone()),
        );
        drop(latest);
        forget_holding(self, names, request, signal)
    }

    fn latest(&self) -> MutexGuard<'_, HashMap<(Key, String), Line>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Paid for SegmentParts {
    fn find(&self, part: &str, request: &Request) -> Option<Reply> {
        let key = (request.id, request.draw);
        let line = self.latest().get(&(key, part.to_owned())).copied();
        match line {
            Some(line) => read_part(self.segment.path(), line),
            None => self.carried.find(part, request),
        }
    }

    fn keep(&self, part: &str, request: &Request, reply: &Reply) -> Result<(), TeacherError> {
        let line = self
            .segment
            .append_part(&part_of(part, request, reply))
            .map_err(|error| self.carried.not_kept(error))?;
        let key = (request.id, request.draw);
        self.latest().insert((key, part.to_owned()), line);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
