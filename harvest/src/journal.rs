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

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use schemas::{Error, Manifest, TeacherRecord};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cache::Key;

use crate::reserve::Reserve;

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
    /// What it says.
    #[serde(flatten)]
    pub(crate) record: TeacherRecord,
}

/// A part of a reply and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PartLine {
    pub(crate) key: Key,
    pub(crate) part: String,
    pub(crate) line: Line,
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
    pub(crate) fn append_part(&self, part: &Part) -> Result<(), Error> {
        self.has_parts.store(true, Ordering::Relaxed);
        self.write(&line(part)).map(|_| ())
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
                let Part { part, record } = serde_json::from_slice(json).map_err(invalid)?;
                self.parts.push(PartLine {
                    key: (record.id, record.draw),
                    part,
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
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use schemas::{
        DatasetIdentity, ExampleId, Provenance, SignalKind, SignalSpec, SignalValue,
        TeacherIdentity,
    };

    use super::*;

    fn manifest() -> Manifest {
        let teacher = TeacherIdentity {
            kind: "t".into(),
            model: "m".into(),
            settings: serde_json::json!({}),
        };
        let dataset = DatasetIdentity {
            task: "t".into(),
            fields: vec!["a".into()],
            prompt: None,
        };
        let signal = SignalSpec::new("said", SignalKind::Text, "a text").unwrap();
        Manifest::new(teacher, dataset, 1, vec![signal])
    }

    fn record(number: u8, text: &str) -> TeacherRecord {
        TeacherRecord {
            id: ExampleId::from([number; 16]),
            draw: 0,
            signals: BTreeMap::from([("said".to_owned(), SignalValue::Text(text.to_owned()))]),
            provenance: Provenance::default(),
        }
    }

    /// The replies of a segment.
    fn records_of(replay: &Replay) -> Vec<TeacherRecord> {
        let lines = replay.records.iter().map(|(_, line)| *line);
        let records: Vec<TeacherRecord> = replies(&replay.path, lines)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        for (record, (key, _)) in records.iter().zip(&replay.records) {
            assert_eq!((record.id, record.draw), *key);
        }
        records
    }

    /// A segment with these records, its bytes, and where each line ends.
    fn written(records: &[TeacherRecord]) -> (tempfile::TempDir, PathBuf, Vec<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let segment = Segment::create(folder.path(), 0, &manifest()).unwrap();
        let length = || std::fs::metadata(&segment.path).unwrap().len() as usize;
        let mut ends = vec![length()];
        for record in records {
            segment.append(record).unwrap();
            ends.push(length());
        }
        segment.sync().unwrap();
        let path = segment.path.clone();
        (folder, path, ends)
    }

    #[test]
    fn what_was_appended_is_replayed() {
        let records = [record(1, "one\ntwo"), record(2, "")];
        let (_folder, path, _) = written(&records);
        let replay = Replay::read(&path).unwrap();
        assert_eq!(replay.manifest, Some(manifest()));
        assert_eq!(records_of(&replay), records);
        assert_eq!((replay.num_torn_bytes, replay.num_damaged_bytes), (0, 0));
        let folder = tempfile::tempdir().unwrap();
        let segment = Segment::create(folder.path(), 0, &manifest()).unwrap();
        let lines = records
            .each_ref()
            .map(|record| segment.append(record).unwrap());
        let read = |lines: &[Line]| -> Vec<TeacherRecord> {
            let replies = segment.replies(lines.iter().copied()).unwrap();
            replies.map(Result::unwrap).collect()
        };
        assert_eq!(
            read(&[lines[1], lines[0]]),
            [records[1].clone(), records[0].clone()]
        );
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(number(PREFIX, name), Some(0));
        assert_eq!(stem(PREFIX, 7), "part-000007");
    }

    /// A line as [`line`] writes it, of any JSON.
    fn rewrite(path: &Path, line_number: usize, edit: impl Fn(&str) -> String) {
        let bytes = std::fs::read(path).unwrap();
        let mut lines: Vec<Vec<u8>> = bytes
            .split_inclusive(|&byte| byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        let edited = edit(std::str::from_utf8(json(&lines[line_number]).unwrap()).unwrap());
        lines[line_number] = line(&serde_json::from_str::<serde_json::Value>(&edited).unwrap());
        std::fs::write(path, lines.concat()).unwrap();
    }

    #[test]
    fn another_version_is_refused_by_number() {
        let (_folder, path, _) = written(&[record(1, "one")]);
        rewrite(&path, 0, |json| {
            json.replace("\"format_version\":1", "\"format_version\":2")
        });
        let error = Replay::read(&path).unwrap_err();
        assert!(
            matches!(
                error,
                Error::FormatVersion {
                    found: 2,
                    supported: 1,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_whole_line_that_is_no_reply_is_an_error() {
        let (_folder, path, _) = written(&[record(1, "one"), record(2, "two")]);
        rewrite(&path, 2, |json| json.replace("\"draw\"", "\"turn\""));
        let error = Replay::read(&path).unwrap_err();
        assert!(
            matches!(error, Error::InvalidJournal { line: 3, .. }),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_whole_before_the_end_is_damage() {
        let records = [record(1, "one"), record(2, "two"), record(3, "three")];
        for (damaged_line, kept) in [(0, &[][..]), (1, &records[1..]), (3, &records[..2])] {
            let (_folder, path, ends) = written(&records);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[ends[damaged_line] - 2] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let replay = Replay::read(&path).unwrap();
            assert_eq!(records_of(&replay), kept);
            let is_last = damaged_line == 3;
            assert_eq!(
                (replay.num_torn_bytes > 0, replay.num_damaged_bytes > 0),
                (is_last, !is_last)
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_torn_tail_costs_only_the_torn_line(texts in proptest::collection::vec(".{0,40}", 1..6), share in any::<proptest::sample::Index>()) {
            let records: Vec<_> = texts.iter().zip(0..).map(|(text, number)| record(number, text)).collect();
            let (_folder, path, ends) = written(&records);
            let cut = share.index(*ends.last().unwrap());
            OpenOptions::new().write(true).open(&path).unwrap().set_len(cut as u64).unwrap();
            let replay = Replay::read(&path).unwrap();
            let num_whole = ends.iter().filter(|&&end| end <= cut).count();
            prop_assert_eq!(&records_of(&replay)[..], &records[..num_whole.saturating_sub(1)]);
            let last_end = ends.iter().copied().filter(|&end| end <= cut).max().unwrap_or(0);
            prop_assert_eq!((replay.num_torn_bytes, replay.num_damaged_bytes), ((cut - last_end) as u64, 0));
        }

        #[test]
        fn a_flipped_bit_never_changes_a_record(texts in proptest::collection::vec(".{0,40}", 1..6), share in any::<proptest::sample::Index>(), bit in 0..8_u32) {
            let records: Vec<_> = texts.iter().zip(0..).map(|(text, number)| record(number, text)).collect();
            let (_folder, path, _) = written(&records);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = share.index(bytes.len());
            bytes[at] ^= 1 << bit;
            std::fs::write(&path, bytes).unwrap();
            let replay = Replay::read(&path).unwrap();
            prop_assert!(replay.num_torn_bytes + replay.num_damaged_bytes > 0);
            prop_assert!(records_of(&replay).iter().all(|record| records.contains(record)));
            // A flipped line feed joins two lines, and both are lost; nothing loses more unless the header is hit.
            if replay.manifest.is_some() {
                prop_assert!(replay.records.len() + 2 >= records.len());
            }
        }
    }
}
