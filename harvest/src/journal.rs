//! Append-only record of every completed reply, so that no reply is asked for twice.
//!
//! Each shard that is being filled has a segment, `part-<number>.journal`. Its first line describes the cache, every
//! further line is one reply, or with a key `part` a part of one: eight hexadecimal digits of the CRC-32 of what
//! follows, a space, JSON, a line feed. A line is handed to the operating system in one call before anything else happens with the reply, so it survives the
//! death of the process. It survives a power cut from the next [`Segment::sync`] on, which a run does every few
//! seconds; the shard itself is synchronised before its segment is removed.
//!
//! A line that was being written when the machine went down is torn, and only the end of a segment can be. Anything
//! else that cannot be read is damage: the segment is kept as `part-<number>.journal.damaged`.

mod replay;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use schemas::{Error, Manifest, TeacherRecord};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cache::Key;
use crate::reserve::Reserve;

pub use replay::Replay;

const EXTENSION: &str = "journal";
/// Extension of a segment that was set aside.
const DAMAGED: &str = "journal.damaged";

/// What the names of segments start with, and those of shards that are no slice's.
pub(crate) const PREFIX: &str = "part-";

/// File name stem of the shard or segment with this number.
pub(crate) fn stem(prefix: &str, number: u32) -> String {
    format!("{prefix}{number:06}")
}

/// The number in the name of a shard or segment, set aside or not, that this program named.
pub(crate) fn number(prefix: &str, name: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    digits.split(['-', '.']).next()?.parse().ok()
}

/// A part of a reply that needs several requests, in a journal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Which part it is.
    pub(crate) part: String,
    /// What it says; without any signal, that what was kept before is of no use.
    #[serde(flatten)]
    pub(crate) record: TeacherRecord,
}

impl Part {
    pub(crate) fn is_forgotten(&self) -> bool {
        self.record.signals.is_empty()
    }
}

/// A part of a reply and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PartLine {
    pub(crate) key: Key,
    pub(crate) part: String,
    pub(crate) line: Line,
    /// Whether the line says that the part is of no use.
    pub(crate) is_forgotten: bool,
}

/// Where a reply stands in its segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    offset: u64,
    num_bytes: usize,
}

impl Line {
    /// The line that starts at `offset`.
    pub(crate) fn at(offset: u64, num_bytes: usize) -> Self {
        Self { offset, num_bytes }
    }

    /// Bytes of the line.
    pub fn num_bytes(self) -> usize {
        self.num_bytes
    }
}

/// Reads single lines of a journal.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::io(path, "read", source))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            buffer: Vec::new(),
        })
    }

    /// The bytes of a line.
    pub(crate) fn bytes(&mut self, line: Line) -> Result<&[u8], Error> {
        self.buffer.resize(line.num_bytes, 0);
        self.file
            .seek(SeekFrom::Start(line.offset))
            .and_then(|_| self.file.read_exact(&mut self.buffer))
            .map_err(|source| Error::io(&self.path, "read", source))?;
        Ok(&self.buffer)
    }

    /// What a line says.
    pub(crate) fn parse<T: DeserializeOwned>(&mut self, line: Line) -> Result<T, Error> {
        let content = json(self.bytes(line)?).map(serde_json::from_slice);
        match content {
            Some(Ok(content)) => Ok(content),
            _ => Err(Error::InvalidJournal {
                path: self.path.clone(),
                line: 0,
                problem: format!(
                    "what stands at byte {} is not what was written",
                    line.offset
                ),
            }),
        }
    }
}

/// The journal of one shard that is being filled.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    file: Mutex<File>,
    for_sync: File,
    has_parts: AtomicBool,
    /// Given up when the disk is full.
    reserve: Option<Arc<Reserve>>,
}

impl Segment {
    /// Starts the segment of shard `number` in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`], also where the file is there already.
    pub fn create(folder: &Path, number: u32, manifest: &Manifest) -> Result<Self, Error> {
        Self::create_with(folder, number, manifest, None)
    }

    /// As [`create`](Self::create), with space to write on where the disk is full.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub(crate) fn create_with(
        folder: &Path,
        number: u32,
        manifest: &Manifest,
        reserve: Option<Arc<Reserve>>,
    ) -> Result<Self, Error> {
        let path = folder.join(stem(PREFIX, number)).with_extension(EXTENSION);
        let create = || -> std::io::Result<(File, File)> {
            let file = OpenOptions::new()
                .append(true)
                .create_new(true)
                .open(&path)?;
            let for_sync = file.try_clone()?;
            Ok((file, for_sync))
        };
        let (file, for_sync) = create().map_err(|source| Error::io(&path, "write", source))?;
        let segment = Self {
            path,
            file: Mutex::new(file),
            for_sync,
            has_parts: AtomicBool::new(false),
            reserve,
        };
        segment.write(&line(manifest))?;
        Ok(segment)
    }

    /// Adds a reply; on return the operating system has it.
    ///
    /// # Errors
    /// [`Error::Io`]; a part that was written is cut off again.
    pub fn append(&self, record: &TeacherRecord) -> Result<Line, Error> {
        self.write(&line(record))
    }

    /// Reads replies that were added, in the order of `lines`, one at a time.
    ///
    /// # Errors
    /// [`Error::Io`]; from the iterator also [`Error::InvalidJournal`], where the file is not what was written.
    pub fn replies(
        &self,
        lines: impl IntoIterator<Item = Line>,
    ) -> Result<impl Iterator<Item = Result<TeacherRecord, Error>>, Error> {
        replies(&self.path, lines)
    }

    /// Adds a part of a reply, as [`append`](Self::append) does.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub(crate) fn append_part(&self, part: &Part) -> Result<Line, Error> {
        self.has_parts.store(true, Ordering::Relaxed);
        self.write(&line(part))
    }

    /// Whether parts were added.
    pub(crate) fn has_parts(&self) -> bool {
        self.has_parts.load(Ordering::Relaxed)
    }

    /// Where the parts stand that were added.
    ///
    /// # Errors
    /// As [`Replay::read`].
    pub(crate) fn parts(&self) -> Result<Vec<PartLine>, Error> {
        if !self.has_parts() {
            return Ok(Vec::new());
        }
        Ok(Replay::read(&self.path)?.parts)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, line: &[u8]) -> Result<Line, Error> {
        let file = self.file.lock().expect("no holder panics");
        let write = || -> std::io::Result<Line> {
            let length = file.metadata()?.len();
            (&*file).write_all(line).inspect_err(|_| {
                // Cutting needs no space, so it works on a full disk; if it does not, replay skips the part.
                let _ = file.set_len(length);
            })?;
            Ok(Line {
                offset: length,
                num_bytes: line.len(),
            })
        };
        let written = match &self.reserve {
            Some(reserve) => reserve.write(write),
            None => write(),
        };
        written.map_err(|source| Error::io(&self.path, "write", source))
    }

    /// Makes everything appended so far survive a power cut.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<(), Error> {
        self.for_sync
            .sync_data()
            .map_err(|source| Error::io(&self.path, "synchronise", source))
    }

    /// Removes the segment, once its replies are committed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self) -> Result<(), Error> {
        remove(&self.path)
    }
}

/// Removes a segment whose replies are committed.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    std::fs::remove_file(path).map_err(|source| Error::io(path, "remove", source))
}

/// Keeps a segment of which some lines cannot be read, under a name that no run takes for its own.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn set_aside(path: &Path) -> Result<(), Error> {
    let aside = path.with_extension(DAMAGED);
    std::fs::rename(path, &aside).map_err(|source| Error::io(path, "rename", source))?;
    tracing::warn!(
        "`{}`: it has lines that cannot be read; the others are committed, and it stays as `{}`",
        path.display(),
        aside.display()
    );
    Ok(())
}

pub(crate) fn line(content: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(content).expect("manifests and records have string keys only");
    let mut line = format!("{:08x} ", crc32fast::hash(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    line
}

/// The JSON of a line that is whole.
pub(crate) fn json(line: &[u8]) -> Option<&[u8]> {
    let (digits, rest) = line.split_first_chunk::<8>()?;
    let json = rest.strip_prefix(b" ")?.strip_suffix(b"\n")?;
    (format!("{:08x}", crc32fast::hash(json)).as_bytes() == digits).then_some(json)
}

/// Reads replies that stand in the journal at `path`, in the order of `lines`, one at a time.
///
/// # Errors
/// As [`Segment::replies`].
pub(crate) fn replies(
    path: &Path,
    lines: impl IntoIterator<Item = Line>,
) -> Result<impl Iterator<Item = Result<TeacherRecord, Error>>, Error> {
    let mut file = Lines::open(path)?;
    Ok(lines.into_iter().map(move |line| file.parse(line)))
}

/// The segments in `folder`, ordered by name.
///
/// # Errors
/// [`Error::Io`].
pub fn list_segments(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let is_segment = path
                .extension()
                .is_some_and(|extension| extension == EXTENSION)
                && path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
            // The journals of failures, parts and the budget lie beside them.
            if is_segment {
                segments.push(path);
            }
        }
        segments.sort();
        Ok(segments)
    };
    list().map_err(|source| Error::io(folder, "list", source))
}

#[cfg(test)]
mod tests;
