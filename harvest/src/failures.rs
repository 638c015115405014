//! Rows that failed: `failures.parquet` in the cache, and until a run ends `failures.journal` in the work folder.
//!
//! A failed row is not asked about again unless that is asked for, and leaves the list once it is answered. The list is
//! in memory while a run lasts; a run stops before it grows without bound, see `run.max_failure_share`.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array as _, AsArray as _, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit, TimestampMillisecondType, UInt32Type};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::ExampleId;
use schemas::parquet_file;
use serde::{Deserialize, Serialize};

use crate::cache::Key;
use crate::error::Error;
use crate::journal::{json, line};
use crate::place::Place;
use crate::store::Store;
use crate::teacher::exchange::unix_milliseconds;
use crate::teacher::{ErrorClass, Request, TeacherError};

/// Characters of an example's text that are shown with its failure.
const MAX_TEXT_CHARS: usize = 120;

/// Failures that are kept for the end of a run; the file has all.
const NUM_SHOWN: usize = 20;

/// Name of the journal in the work folder.
const JOURNAL: &str = "failures.journal";

/// One row that failed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The example's id.
    pub id: ExampleId,
    /// The draw.
    pub draw: u32,
    /// The class of the last error.
    pub class: ErrorClass,
    /// The last error.
    pub message: String,
    /// Requests sent.
    pub tries: u32,
    /// The prompt, shortened.
    pub text: String,
    /// When it failed: milliseconds since 1970, UTC.
    pub failed_at: Option<i64>,
}

impl Failure {
    /// The failure of a request, now.
    pub fn new(request: &Request, error: &TeacherError) -> Self {
        Self {
            id: request.id,
            draw: request.draw,
            class: error.class,
            message: error.message.clone(),
            tries: error.tries,
            text: shorten(&request.prompt, MAX_TEXT_CHARS),
            failed_at: unix_milliseconds(std::time::SystemTime::now()),
        }
    }

    fn key(&self) -> Key {
        (self.id, self.draw)
    }
}

/// The list of a worker.
#[derive(Debug)]
pub struct Failures {
    place: Place,
    listed: BTreeMap<Key, Failure>,
    /// Whether the file in the cache is not the list.
    changed: bool,
    journal: Option<File>,
    /// Rows that failed since the list was opened.
    new: HashSet<Key>,
    /// Lists of slices, which a worker of the whole takes over.
    other_lists: Vec<String>,
    /// Journals of slices, likewise.
    other_journals: Vec<PathBuf>,
    num_new: u64,
    first_new: Vec<Failure>,
}

impl Failures {
    /// Reads the list of a cache, that of a run which did not end included.
    ///
    /// # Errors
    /// [`Error::Schemas`] where it cannot be read.
    pub fn open(place: &Place) -> Result<Self, Error> {
        let mut failures = Self {
            place: place.clone(),
            listed: read(place, &place.failures_file())?,
            changed: false,
            journal: None,
            new: HashSet::new(),
            other_lists: Vec::new(),
            other_journals: Vec::new(),
            num_new: 0,
            first_new: Vec::new(),
        };
        if place.slice.is_none() {
            failures.take_over_slices()?;
        }
        for failure in read_journal(&failures.journal_path())? {
            failures.changed = true;
            failures.listed.insert(failure.key(), failure);
        }
        Ok(failures)
    }

    /// The whole is locked, so no slice is at work.
    fn take_over_slices(&mut self) -> Result<(), Error> {
        let own = self.place.failures_file();
        for entry in self.place.store.list()? {
            if is_list(&entry.name) && entry.name != own {
                self.listed.extend(read(&self.place, &entry.name)?);
                self.other_lists.push(entry.name);
            }
        }
        for folder in self.place.slice_folders()? {
            let path = folder.join(JOURNAL);
            let found = read_journal(&path)?;
            if !found.is_empty() {
                let found = found.into_iter().map(|failure| (failure.key(), failure));
                self.listed.extend(found);
                self.other_journals.push(path);
            }
        }
        self.changed = !(self.other_lists.is_empty() && self.other_journals.is_empty());
        Ok(())
    }

    /// The rows on the lists of all workers of a cache, their unfinished runs left out.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_all_workers(place: &Place) -> Result<Vec<Key>, Error> {
        let mut keys = Vec::new();
        for entry in place.store.list()? {
            if is_list(&entry.name) {
                keys.extend(read(place, &entry.name)?.into_keys());
            }
        }
        Ok(keys)
    }

    fn journal_path(&self) -> PathBuf {
        self.place.work.join(JOURNAL)
    }

    /// The rows on the list.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.listed.keys().copied()
    }

    /// The failure of a row, where it is on the list.
    pub fn find(&self, key: &Key) -> Option<Failure> {
        self.listed.get(key).cloned()
    }

    /// The failure of a row that failed since the list was opened.
    pub(crate) fn find_new(&self, key: &Key) -> Option<Failure> {
        self.find(key).filter(|_| self.new.contains(key))
    }

    /// How many rows are on the list.
    pub fn num_listed(&self) -> u64 {
        self.listed.len() as u64
    }

    /// Takes a row off the list: it was answered.
    pub fn resolve(&mut self, key: &Key) {
        self.changed |= self.listed.remove(key).is_some();
    }

    /// Adds a row; on return the operating system has it.
    ///
    /// # Errors
    /// [`Error::Schemas`].
    pub fn add(&mut self, failure: Failure) -> Result<(), Error> {
        let path = self.journal_path();
        let line = line(&failure);
        let mut write = || -> std::io::Result<()> {
            let file = match &mut self.journal {
                Some(file) => file,
                None => self
                    .journal
                    .insert(OpenOptions::new().create(true).append(true).open(&path)?),
            };
            let end = file.metadata()?.len();
            file.write_all(&line).inspect_err(|_| {
                let _ = file.set_len(end);
            })
        };
        write().map_err(|source| schemas::Error::io(&path, "write", source))?;
        self.changed = true;
        self.num_new += 1;
        if self.first_new.len() < NUM_SHOWN {
            self.first_new.push(failure.clone());
        }
        self.new.insert(failure.key());
        self.listed.insert(failure.key(), failure);
        Ok(())
    }

    /// Rows added since the list was opened.
    pub fn num_new(&self) -> u64 {
        self.num_new
    }

    /// The first twenty of them.
    pub fn first_new(&self) -> &[Failure] {
        &self.first_new
    }

    /// Writes the list into the cache, or removes it where it is empty, and then the journal.
    ///
    /// # Errors
    /// [`Error::Schemas`] where it cannot be written; the journal stays.
    pub fn write(&mut self) -> Result<(), Error> {
        if !self.changed {
            return Ok(());
        }
        self.place.confirm_lease()?;
        let name = self.place.failures_file();
        if self.listed.is_empty() {
            self.place.store.remove(&name)?;
        } else {
            self.place
                .store
                .put(&name, &to_parquet(&self.listed.values()))?;
        }
        for name in self.other_lists.drain(..) {
            self.place.store.remove(&name)?;
        }
        self.journal = None;
        self.changed = false;
        let own = self.journal_path();
        for path in self.other_journals.drain(..).chain([own]) {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != ErrorKind::NotFound => {
                    return Err(schemas::Error::io(&path, "remove", source).into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_list(name: &str) -> bool {
    name.starts_with("failures") && name.ends_with(".parquet")
}

fn read_journal(path: &Path) -> Result<Vec<Failure>, schemas::Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(schemas::Error::io(path, "read", source)),
    };
    // A line that is not whole was being written when the process died: its row is asked about again.
    let end = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    if end < bytes.len() {
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(end as u64))
            .map_err(|source| schemas::Error::io(path, "write", source))?;
    }
    let whole = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .filter_map(json);
    whole
        .enumerate()
        .map(|(number, json)| {
            serde_json::from_slice(json).map_err(|error| schemas::Error::InvalidJournal {
                path: path.to_owned(),
                line: number as u64 + 1,
                problem: error.to_string(),
            })
        })
        .collect()
}

fn schema() -> Arc<Schema> {
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("example_id", DataType::Utf8, false),
        Field::new("draw", DataType::UInt32, false),
        Field::new("class", DataType::Utf8, false),
        Field::new("message", DataType::Utf8, false),
        Field::new("tries", DataType::UInt32, false),
        Field::new("text", DataType::Utf8, false),
        Field::new("failed_at", time, true),
    ]))
}

fn to_parquet<'a>(failures: &(impl Iterator<Item = &'a Failure> + Clone)) -> Vec<u8> {
    let text = |of: fn(&Failure) -> String| -> Arc<StringArray> {
        Arc::new(StringArray::from_iter_values(failures.clone().map(of)))
    };
    let count = |of: fn(&Failure) -> u32| -> Arc<UInt32Array> {
        Arc::new(UInt32Array::from_iter_values(failures.clone().map(of)))
    };
    let times: TimestampMillisecondArray =
        failures.clone().map(|failure| failure.failed_at).collect();
    let schema = schema();
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            text(|failure| failure.id.to_string()),
            count(|failure| failure.draw),
            text(|failure| failure.class.to_string()),
            text(|failure| failure.message.clone()),
            count(|failure| failure.tries),
            text(|failure| failure.text.clone()),
            Arc::new(times.with_timezone("UTC")),
        ],
    )
    .expect("the columns are those of the schema");
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, schema, None).expect("memory takes all that is written");
    writer
        .write(&batch)
        .expect("memory takes all that is written");
    writer.close().expect("memory takes all that is written");
    bytes
}

/// Reads the list in the cache by row; empty where there is none.
fn read(place: &Place, name: &str) -> Result<BTreeMap<Key, Failure>, Error> {
    let listed = read_list(&place.store, name)?;
    Ok(listed
        .into_iter()
        .map(|failure| (failure.key(), failure))
        .collect())
}

/// Reads a list in a cache; empty where there is none.
///
/// # Errors
/// [`Error::BadFailures`] where it is not one; [`Error::Schemas`].
pub(crate) fn read_list(store: &Store, name: &str) -> Result<Vec<Failure>, Error> {
    let Some(bytes) = store.read(name)? else {
        return Ok(Vec::new());
    };
    from_parquet(bytes).map_err(|problem| Error::BadFailures {
        path: Path::new(&store.location()).join(name),
        problem,
    })
}

pub(crate) fn from_parquet(bytes: Vec<u8>) -> Result<Vec<Failure>, String> {
    let bytes = Bytes::from(bytes);
    let metadata = parquet_file::open(&bytes)?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata);
    let mut failures = Vec::new();
    for batch in parquet_file::rows(builder)? {
        failures
            .extend(rows_of(&batch?).ok_or("its columns are not those of a list of failures")??);
    }
    Ok(failures)
}

fn rows_of(batch: &RecordBatch) -> Option<Result<Vec<Failure>, String>> {
    let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
    let count = |name: &str| batch.column_by_name(name)?.as_primitive_opt::<UInt32Type>();
    let (ids, classes, messages, texts) = (
        text("example_id")?,
        text("class")?,
        text("message")?,
        text("text")?,
    );
    let (draws, tries) = (count("draw")?, count("tries")?);
    let times = batch
        .column_by_name("failed_at")?
        .as_primitive_opt::<TimestampMillisecondType>()?;
    let row = |row: usize| -> Result<Failure, String> {
        Ok(Failure {
            id: ids
                .value(row)
                .parse()
                .map_err(|error: schemas::Error| error.to_string())?,
            draw: draws.value(row),
            class: classes.value(row).parse()?,
            message: messages.value(row).to_owned(),
            tries: tries.value(row),
            text: texts.value(row).to_owned(),
            failed_at: times.is_valid(row).then(|| times.value(row)),
        })
    };
    Some((0..batch.num_rows()).map(row).collect())
}

/// `text` on one line that is [`harmless`], cut after `max_chars` characters.
pub fn shorten(text: &str, max_chars: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = harmless(&line);
    match line.char_indices().nth(max_chars) {
        None => line,
        Some((end, _)) => format!("{}...", &line[..end]),
    }
}

/// `text` with a replacement character for each that a terminal acts upon instead of showing it, and for each mark that
/// turns the direction of what follows: a server or a row may send them to be read as something else.
pub fn harmless(text: &str) -> String {
    let is_harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.replace(is_harmful, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_upon_is_replaced() {
        let evil = "evil\r\n \u{1b}[2J\u{1b}]0;pwn\u{7} \u{202e}txet\u{9b}1m \u{e9}";
        assert_eq!(
            shorten(evil, 100),
            "evil \u{fffd}[2J\u{fffd}]0;pwn\u{fffd} \u{fffd}txet\u{fffd}1m \u{e9}"
        );
        let error = TeacherError::new(ErrorClass::Deterministic, "a\u{1b}[2Jb");
        assert_eq!(error.message, "a\u{fffd}[2Jb");
    }

    fn failure(byte: u8, class: ErrorClass) -> Failure {
        let request = Request::text(ExampleId::from([byte; 16]), u32::from(byte), "a\n text");
        let mut error = TeacherError::new(class, "it said no");
        error.tries = 3;
        Failure::new(&request, &error)
    }

    #[test]
    fn the_list_survives_parquet_and_every_class_its_name() {
        let classes = [
            ErrorClass::Rate,
            ErrorClass::Overload,
            ErrorClass::Transient,
            ErrorClass::Deterministic,
            ErrorClass::Credentials,
            ErrorClass::Quota,
            ErrorClass::Budget,
            ErrorClass::Interrupted,
        ];
        let failures: Vec<Failure> = (1..)
            .zip(classes)
            .map(|(byte, class)| failure(byte, class))
            .collect();
        assert_eq!(
            from_parquet(to_parquet(&failures.iter())).unwrap(),
            failures
        );
    }

    #[test]
    fn a_list_outlives_the_process_and_shrinks_with_answers() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::local(folder.path());
        let mut first = Failures::open(&place).unwrap();
        for byte in 1..=3 {
            first.add(failure(byte, ErrorClass::Transient)).unwrap();
        }
        drop(first);

        let mut second = Failures::open(&place).unwrap();
        assert_eq!((second.num_listed(), second.num_new()), (3, 0));
        second.resolve(&failure(2, ErrorClass::Rate).key());
        second.add(failure(3, ErrorClass::Deterministic)).unwrap();
        second.write().unwrap();
        assert!(!folder.path().join(JOURNAL).exists());

        let mut third = Failures::open(&place).unwrap();
        let classes: Vec<_> = third.listed.values().map(|failure| failure.class).collect();
        assert_eq!(classes, [ErrorClass::Transient, ErrorClass::Deterministic]);
        for byte in [1, 3] {
            third.resolve(&failure(byte, ErrorClass::Rate).key());
        }
        third.write().unwrap();
        assert!(!folder.path().join(place.failures_file()).exists());
    }

    /// Every byte of a list is changed in turn; some of the changes make the Parquet reader itself panic.
    #[test]
    fn a_damaged_list_is_refused_by_name() {
        let listed = [1, 2, 3].map(|byte| failure(byte, ErrorClass::Transient));
        let whole = to_parquet(&listed.iter());
        let undecodable = (0..whole.len()).find_map(|at| {
            let mut damaged = whole.clone();
            damaged[at] = 0xff;
            let problem = from_parquet(damaged.clone()).err()?;
            problem
                .contains("pages cannot be decoded")
                .then_some(damaged)
        });
        let damaged = undecodable.expect("a change reaches the decoder");

        let folder = tempfile::tempdir().unwrap();
        let place = Place::local(folder.path());
        let path = folder.path().join(place.failures_file());
        std::fs::write(&path, damaged).unwrap();
        let error = Failures::open(&place).unwrap_err();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("delete it"));
    }
}
