//! What a budget's limits have gone to, in an append-only file.
//!
//! `budget.ledger`, or `budget-slice-<index>-of-<total>.ledger` for a slice: a line is eight hexadecimal digits of the CRC-32
//! of what follows, a space, JSON, a line feed. The first line has what was spent when the file was last compacted, at
//! the start of a run and whenever it has grown long; each further one has what was reserved or settled, and is handed
//! to the operating system before anything is sent.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Amount;
use crate::error::Error;
use crate::slice::Slice;

/// Length from which on the file is compacted: what is read at the start stays small.
const LONG: u64 = 4 << 20;

/// One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Entry {
    /// Everything that was settled before.
    Spent { spent: Amount },
    /// About to be sent.
    Reserve { id: u64, most: Amount },
    /// What it took.
    Settle { id: u64, spent: Amount },
}

/// A ledger that this process writes.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    file: File,
    length: u64,
    /// Length after the last compaction, which what is open alone may have made long.
    compacted: u64,
}

/// A ledger's file, for synchronising it while others write.
#[derive(Debug)]
pub(super) struct ForSync {
    path: PathBuf,
    file: File,
}

impl ForSync {
    pub(super) fn sync(&self) -> Result<(), schemas::Error> {
        self.file
            .sync_data()
            .map_err(|source| schemas::Error::io(&self.path, "synchronise", source))
    }
}

impl Ledger {
    /// The ledger of this slice with what it has spent, what ledgers of other divisions have, and whether there was
    /// none: a cache that was begun as one and goes on in slices spends the same budget.
    pub(super) fn open(
        folder: &Path,
        slice: Option<Slice>,
    ) -> Result<(Self, Amount, Amount, bool), Error> {
        std::fs::create_dir_all(folder)
            .map_err(|source| schemas::Error::io(folder, "create", source))?;
        let path = folder.join(name(slice));
        let (spent, is_new) = match std::fs::read(&path) {
            Ok(bytes) => (sum(&path, &bytes)?, false),
            Err(error) if error.kind() == ErrorKind::NotFound => (Amount::ZERO, true),
            Err(source) => return Err(schemas::Error::io(&path, "read", source).into()),
        };
        let others = others(folder, slice)?;
        let (file, length) = replace(&path, spent, &BTreeMap::new())?;
        let ledger = Self {
            path,
            file,
            length,
            compacted: length,
        };
        Ok((ledger, spent, others, is_new))
    }

    /// Adds a line; on return the operating system has it.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<(), schemas::Error> {
        let line = line(entry);
        self.file.write_all(&line).map_err(|source| {
            // Cutting needs no space, so it works on a full disk.
            let _ = self.file.set_len(self.length);
            schemas::Error::io(&self.path, "write", source)
        })?;
        self.length += line.len() as u64;
        Ok(())
    }

    pub(super) fn is_long(&self) -> bool {
        self.length - self.compacted > LONG
    }

    /// Replaces the file with one that says the same.
    pub(super) fn compact(
        &mut self,
        spent: Amount,
        open: &BTreeMap<u64, Amount>,
    ) -> Result<(), schemas::Error> {
        (self.file, self.length) = replace(&self.path, spent, open)?;
        self.compacted = self.length;
        Ok(())
    }

    pub(super) fn for_sync(&self) -> Result<ForSync, schemas::Error> {
        let file = self.file.try_clone();
        Ok(ForSync {
            file: file.map_err(|source| schemas::Error::io(&self.path, "open", source))?,
            path: self.path.clone(),
        })
    }
}

fn name(slice: Option<Slice>) -> String {
    match slice {
        None => "budget.ledger".into(),
        Some(slice) => format!("budget-{}.ledger", slice.label()),
    }
}

/// What the ledgers in `folder` have spent that are of another division than `slice`'s.
fn others(folder: &Path, slice: Option<Slice>) -> Result<Amount, Error> {
    let read_error = |source| schemas::Error::io(folder, "list", source);
    let ours = slice.map_or("budget.ledger".into(), |slice| {
        format!("-of-{}.ledger", slice.total())
    });
    let mut spent = Amount::ZERO;
    for entry in std::fs::read_dir(folder).map_err(read_error)? {
        let entry = entry.map_err(read_error)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ledger = name.starts_with("budget") && name.ends_with(".ledger");
        let is_of_ours = name.ends_with(&ours);
        if is_ledger && !is_of_ours {
            let path = entry.path();
            let bytes =
                std::fs::read(&path).map_err(|source| schemas::Error::io(&path, "read", source))?;
            spent = spent.plus(sum(&path, &bytes)?);
        }
    }
    Ok(spent)
}

/// Puts a ledger in place in one step.
fn replace(
    path: &Path,
    spent: Amount,
    open: &BTreeMap<u64, Amount>,
) -> Result<(File, u64), schemas::Error> {
    let entries = open.iter().map(|(&id, &most)| Entry::Reserve { id, most });
    let lines: Vec<u8> = std::iter::once(Entry::Spent { spent })
        .chain(entries)
        .flat_map(|entry| line(&entry))
        .collect();
    let temporary = path.with_extension("ledger-new");
    let write = || -> std::io::Result<File> {
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&temporary)?;
        file.write_all(&lines)?;
        // Renamed before its content is on the disk, it could be empty after a power cut, as if nothing were spent.
        file.sync_data()?;
        std::fs::rename(&temporary, path)?;
        Ok(file)
    };
    let file = write().map_err(|source| schemas::Error::io(path, "write", source))?;
    Ok((file, lines.len() as u64))
}

/// What the lines come to, with what was reserved and never settled.
fn sum(path: &Path, bytes: &[u8]) -> Result<Amount, Error> {
    let mut spent = Amount::ZERO;
    let mut open = BTreeMap::new();
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n').peekable();
    let mut number = 0;
    while let Some(line) = lines.next() {
        number += 1;
        match parse(line) {
            Some(Entry::Spent { spent: before }) => spent = spent.plus(before),
            Some(Entry::Reserve { id, most }) => {
                open.insert(id, most);
            }
            Some(Entry::Settle { id, spent: settled }) => {
                open.remove(&id);
                spent = spent.plus(settled);
            }
            // The line that was being written when the process died: nothing was sent for it.
            None if lines.peek().is_none() && number > 1 => {}
            None => {
                return Err(Error::BadLedger {
                    path: path.to_owned(),
                    line: number,
                });
            }
        }
    }
    Ok(open.into_values().fold(spent, Amount::plus))
}

fn line(entry: &Entry) -> Vec<u8> {
    let json = serde_json::to_string(entry).expect("numbers have a JSON form");
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).into_bytes()
}

fn parse(line: &[u8]) -> Option<Entry> {
    let (digits, rest) = line.split_first_chunk::<8>()?;
    let json = rest.strip_prefix(b" ")?.strip_suffix(b"\n")?;
    let is_whole = format!("{:08x}", crc32fast::hash(json)).as_bytes() == digits;
    is_whole
        .then(|| serde_json::from_slice(json).ok())
        .flatten()
}
