//! What is kept on disk about a batch, so that a process that dies at any point submits no row twice.
//!
//! One batch is `<name>.json`, its [`Record`], beside `<name>.requests.jsonl` until it has ended and
//! `<name>.output.jsonl` and `<name>.errors.jsonl` from then on. Every file is written under another name, synchronised
//! and renamed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use schemas::manifest::write_atomically;
use schemas::{ExampleId, Sha256Digest, TeacherIdentity};
use serde::{Deserialize, Serialize};

use crate::teacher::{ErrorClass, Request, TeacherError};

const VERSION: u32 = 1;

/// Folder of all batches below the state folder of a worker.
const FOLDER: &str = "batches";
/// Extension of a record.
const RECORD: &str = "json";
const LOCK_FILE: &str = ".lock";

/// A row of a batch: an example, a draw, and what was asked, since the same example may be asked something else later.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) struct Row {
    pub(super) key: (ExampleId, u32),
    question: u64,
}

impl Row {
    pub(super) fn of(request: &Request) -> Self {
        let image = request.image.as_deref().unwrap_or_default();
        let question = format!("{}\0{}\0{image}", request.prompt.len(), request.prompt);
        let short = Sha256Digest::of(question.as_bytes()).hex();
        Self {
            key: (request.id, request.draw),
            question: u64::from_str_radix(&short[..16], 16).expect("a digest is hexadecimal"),
        }
    }

    /// What the server sends back to tell whose answer a line is.
    pub(super) fn custom_id(&self) -> String {
        format!("{}-{}", self.key.0, self.key.1)
    }
}

/// The example and draw that a line's `custom_id` names.
pub(super) fn parse_custom_id(text: &str) -> Option<(ExampleId, u32)> {
    let (id, draw) = text.split_once('-')?;
    Some((id.parse().ok()?, draw.parse().ok()?))
}

impl From<Row> for String {
    fn from(row: Row) -> Self {
        format!("{}-{:016x}", row.custom_id(), row.question)
    }
}

impl TryFrom<String> for Row {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parsed = || {
            let (custom_id, question) = text.rsplit_once('-')?;
            Some(Self {
                key: parse_custom_id(custom_id)?,
                question: u64::from_str_radix(question, 16).ok()?,
            })
        };
        parsed().ok_or("expected <example id>-<draw>-<digest>")
    }
}

/// How far a batch is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(super) enum Stage {
    /// The request file is written; nothing was sent, or it is not known to have arrived.
    Prepared,
    /// The server has the request file under this id.
    Uploaded { file: String },
    /// The batch is about to be created; whether the server has it already is not known.
    Creating { file: String },
    /// The server has the batch under this id.
    Created { batch: String },
    /// It has ended, and what it brought is on this disk.
    Collected { ended: Ended },
}

impl Stage {
    /// Whether the server may have the batch.
    pub(super) fn is_submitted(&self) -> bool {
        !matches!(self, Self::Prepared | Self::Uploaded { .. })
    }

    /// Whether the server may have the batch and its results are not here.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self, Self::Creating { .. } | Self::Created { .. })
    }
}

/// How a batch ended.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Ended {
    /// The server's word: `completed`, `expired`, `failed` or `cancelled`.
    pub(super) status: String,
    /// When, in milliseconds since 1970, UTC.
    pub(super) at: Option<i64>,
    /// Why the server refused the file, where it did.
    #[serde(default)]
    pub(super) problems: Vec<Problem>,
}

/// One reason for which a server refuses a request file.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Problem {
    #[serde(default)]
    pub(super) code: Option<String>,
    #[serde(default)]
    pub(super) message: Option<String>,
    /// Line of the request file, from 1.
    #[serde(default)]
    pub(super) line: Option<usize>,
}

/// All that is known about a batch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) name: String,
    /// In the order of the request file.
    pub(super) rows: Vec<Row>,
    #[serde(flatten)]
    pub(super) stage: Stage,
}

impl Record {
    pub(super) fn prepared(name: String, rows: Vec<Row>) -> Self {
        Self {
            version: VERSION,
            name,
            rows,
            stage: Stage::Prepared,
        }
    }
}

/// The folder with the batches of one teacher, locked against other processes.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    _lock: File,
}

impl Store {
    /// The batches of the teacher with this identity below `state_folder`. Several teachers that fill one cache ask
    /// about the same examples, so each has a folder of its own.
    ///
    /// # Errors
    /// A [`TeacherError`] where another process has the folder, or a record cannot be read.
    pub(super) fn open(
        state_folder: &Path,
        identity: &TeacherIdentity,
    ) -> Result<(Self, Vec<Record>), TeacherError> {
        let identity = serde_json::to_vec(identity).expect("an identity has a JSON form");
        let folder = state_folder
            .join(FOLDER)
            .join(&Sha256Digest::of(&identity).hex()[..16]);
        let lock = lock(&folder)?;
        let store = Self {
            folder,
            _lock: lock,
        };
        let records = store.records()?;
        Ok((store, records))
    }

    /// What is known about every batch; sweeps up what processes that died left behind.
    pub(super) fn records(&self) -> Result<Vec<Record>, TeacherError> {
        let mut records: Vec<Record> = Vec::new();
        for path in self.files()? {
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension == Some("tmp") {
                // Under the lock nobody else can own one.
                fs::remove_file(&path).map_err(|error| on_disk("remove", &path, &error))?;
            } else if extension == Some(RECORD) {
                records.push(read_record(&path)?);
            }
        }
        for path in self.files()? {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some((batch, "requests.jsonl" | "output.jsonl" | "errors.jsonl")) =
                name.and_then(|name| name.split_once('.'))
            else {
                continue;
            };
            if !records.iter().any(|record| record.name == batch) {
                // A process died before it wrote the record, so nothing was sent; or after it removed the record.
                remove_if_there(&path)?;
            }
        }
        Ok(records)
    }

    fn files(&self) -> Result<Vec<PathBuf>, TeacherError> {
        list(&self.folder).map_err(|error| on_disk("list", &self.folder, &error))
    }

    /// Writes the record; on return it survives a power cut.
    pub(super) fn save(&self, record: &Record) -> Result<(), TeacherError> {
        let json = serde_json::to_vec(record).expect("a record has a JSON form");
        write_atomically(&self.record(&record.name), &json)
            .map_err(|error| TeacherError::new(ErrorClass::Transient, error.to_string()))
    }

    /// Removes all that is kept about a batch, the record first: what is left of the others is swept at the next
    /// start.
    pub(super) fn remove(&self, name: &str) -> Result<(), TeacherError> {
        let [output, errors] = self.results(name);
        for path in [self.record(name), self.requests(name), output, errors] {
            remove_if_there(&path)?;
        }
        Ok(())
    }

    fn record(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{RECORD}"))
    }

    /// Where a request file grows until its name is known.
    pub(super) fn next_requests(&self) -> PathBuf {
        self.folder.join("next.tmp")
    }

    /// The request file.
    pub(super) fn requests(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.requests.jsonl"))
    }

    /// The file of answers and that of errors; either may be absent.
    pub(super) fn results(&self, name: &str) -> [PathBuf; 2] {
        ["output", "errors"].map(|kind| self.folder.join(format!("{name}.{kind}.jsonl")))
    }

    /// Where a file is written that is renamed to `path` once it is whole.
    pub(super) fn unfinished(path: &Path) -> PathBuf {
        path.with_extension("tmp")
    }
}

/// Whether a worker left batches below its state folder that may still bring something.
///
/// # Errors
/// The operating system's.
pub(crate) fn has_batches(state_folder: &Path) -> io::Result<bool> {
    for folder in folders(&state_folder.join(FOLDER))? {
        if list(&folder)?.iter().any(|path| is_record(path)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives the batches of a worker that is gone to another one. A record moves in one step, when the files that belong to
/// it are there already, so whoever is killed in between leaves each batch with one of both.
///
/// # Errors
/// The operating system's.
pub(crate) fn take_over(from: &Path, into: &Path) -> io::Result<()> {
    for source in folders(&from.join(FOLDER))? {
        let files = list(&source)?;
        if !files.iter().any(|path| is_record(path)) {
            continue;
        }
        let target = into
            .join(FOLDER)
            .join(source.file_name().unwrap_or_default());
        fs::create_dir_all(&target)?;
        let (records, others): (Vec<_>, Vec<_>) = files.iter().partition(|path| is_record(path));
        let place = |path: &Path| target.join(path.file_name().unwrap_or_default());
        for path in &others {
            if path.extension().is_some_and(|kind| kind == "jsonl") {
                remove_file_if_there(&place(path))?;
                fs::hard_link(path, place(path))
                    .or_else(|_| fs::copy(path, place(path)).map(|_| ()))?;
            }
        }
        for path in records {
            fs::rename(path, place(path))?;
        }
        for path in others.iter().filter(|path| !path.ends_with(LOCK_FILE)) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn is_record(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == RECORD)
}

/// The folders in a folder; whatever else somebody put there is none of ours.
fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = list(folder)?;
    entries.retain(|path| path.is_dir());
    Ok(entries)
}

/// What is in a folder, which need not be there.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_file_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a file that may be absent.
pub(super) fn remove_if_there(path: &Path) -> Result<(), TeacherError> {
    remove_file_if_there(path).map_err(|error| on_disk("remove", path, &error))
}

/// Synchronises an unfinished file and gives it its name.
pub(super) fn finish(file: &File, unfinished: &Path, path: &Path) -> Result<(), TeacherError> {
    let finish = || -> io::Result<()> {
        file.sync_all()?;
        fs::rename(unfinished, path)?;
        match path.parent() {
            #[cfg(unix)]
            Some(folder) => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    finish().map_err(|error| on_disk("write", path, &error))
}

/// A failure of the disk: it may pass, and what is at the server stays there meanwhile.
pub(super) fn on_disk(action: &str, path: &Path, error: &io::Error) -> TeacherError {
    TeacherError::new(
        ErrorClass::Transient,
        format!("cannot {action} `{}`: {error}", path.display()),
    )
    .advise(
        "make room or mend the disk, then run again: submitted batches are awaited, not repeated",
    )
}

fn read_record(path: &Path) -> Result<Record, TeacherError> {
    let bytes = fs::read(path).map_err(|error| on_disk("read", path, &error))?;
    let record: Result<Record, _> = serde_json::from_slice(&bytes);
    let problem = match record {
        Ok(record) if record.version == VERSION => return Ok(record),
        Ok(record) => format!("it has version {}", record.version),
        Err(error) => error.to_string(),
    };
    // Without the record its rows would be submitted and paid for again.
    Err(TeacherError::new(
        ErrorClass::Credentials,
        format!("cannot use the record of a batch `{}`: {problem}", path.display()),
    )
    .advise("use the version of harvest that wrote it; or remove the file, and its rows are submitted and paid for again"))
}

fn lock(folder: &Path) -> Result<File, TeacherError> {
    let path = folder.join(LOCK_FILE);
    let open = || -> io::Result<File> {
        fs::create_dir_all(folder)?;
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
    };
    let file = open().map_err(|error| on_disk("open", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TeacherError::new(
            ErrorClass::Credentials,
            format!("another process uses the batches in `{}`", folder.display()),
        )
        .advise("wait until it has ended, or give this one a cache of its own")),
        Err(TryLockError::Error(error)) => Err(on_disk("lock", &path, &error)),
    }
}
