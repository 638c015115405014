//! A cache folder that this process writes: lock, committed shards, recovery of the journal.

use std::collections::HashSet;
use std::fs::{DirEntry, File, TryLockError};
use std::path::{Path, PathBuf};

use schemas::shard::list_shards;
use schemas::{ExampleId, Manifest, ShardEntry, ShardReader, ShardWriter, TeacherRecord};

use crate::error::Error;
use crate::journal::{self, Replay, list_segments};

/// What a reply is for: an example and a draw.
pub type Key = (ExampleId, u32);

const LOCK_FILE: &str = ".lock";

/// Rows handed to the shard writer at a time.
const ROWS_PER_WRITE: usize = 1024;

/// A cache folder, locked against other writers for as long as this value lives.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    _lock: File,
    manifest: Option<Manifest>,
    known: HashSet<Key>,
    next_number: u32,
}

impl Cache {
    /// Locks the cache in `folder`, which is made where there is none, and reads which rows it has. Replies that are
    /// only in the journal are left there until [`recover`](Self::recover).
    ///
    /// # Errors
    /// [`Error::Locked`]; [`Error::Schemas`] where something in the folder cannot be read.
    pub fn lock_or_create(folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder)
            .map_err(|source| schemas::Error::io(folder, "create", source))?;
        Self::lock(folder)
    }

    /// Locks the cache in `folder`, as [`lock_or_create`](Self::lock_or_create) does, but makes none.
    ///
    /// # Errors
    /// As [`lock_or_create`](Self::lock_or_create).
    pub fn lock(folder: &Path) -> Result<Self, Error> {
        let lock = take_lock(folder)?;
        remove_leftovers(folder)?;
        let manifest = match Manifest::open(folder) {
            Ok(manifest) => Some(manifest),
            Err(schemas::Error::NotACache { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock,
            manifest,
            known: keys_of(&list_shards(folder)?)?,
            next_number: next_number(folder)?,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the cache says of itself; `None` where it is new.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Rows in committed shards.
    pub fn known(&self) -> &HashSet<Key> {
        &self.known
    }

    /// A shard number that is free; numbers only grow.
    pub(crate) fn take_number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Hands out the set of committed rows, for a reader of the data set to subtract and extend.
    pub(crate) fn take_known(&mut self) -> HashSet<Key> {
        std::mem::take(&mut self.known)
    }

    /// Replies that a run which did not end left in the journal. Adopts the journal's description where the process
    /// died before it had written a manifest.
    ///
    /// # Errors
    /// [`Error::DifferentSource`] where the journal is not of this cache.
    pub fn replay(&mut self) -> Result<Vec<Replay>, Error> {
        let mut replays = Vec::new();
        for path in list_segments(&self.folder)? {
            let mut replay = Replay::read(&path)?;
            replay
                .records
                .retain(|record| !self.known.contains(&(record.id, record.draw)));
            if replay.num_torn_bytes > 0 {
                tracing::warn!(
                    "`{}`: left out {} bytes of an unfinished line",
                    path.display(),
                    replay.num_torn_bytes
                );
            }
            match (&self.manifest, &replay.manifest) {
                (Some(ours), Some(theirs)) => check_same_source(&path, theirs, ours)?,
                (None, Some(theirs)) => self.manifest = Some(theirs.clone()),
                (_, None) => {}
            }
            replays.push(replay);
        }
        Ok(replays)
    }

    /// Commits what [`replay`](Self::replay) found, one shard a segment, and removes the segments; damaged ones are set
    /// aside. Returns how many rows there were.
    ///
    /// # Errors
    /// [`Error::Schemas`] where a shard cannot be written, in which case the journal stays.
    pub fn recover(&mut self, replays: Vec<Replay>) -> Result<u64, Error> {
        let mut num_recovered = 0;
        for replay in replays {
            if !replay.records.is_empty() {
                let manifest = self
                    .manifest
                    .clone()
                    .expect("a replay with records has a manifest");
                publish(&self.folder, &manifest)?;
                let number = journal::number(&replay.path).unwrap_or(self.next_number);
                commit(&self.folder, number, &manifest, &replay.records)?;
                num_recovered += replay.records.len() as u64;
                self.known
                    .extend(replay.records.iter().map(|record| (record.id, record.draw)));
                self.manifest = Some(manifest.reopened());
            }
            if replay.num_damaged_bytes > 0 {
                journal::set_aside(&replay.path)?;
            } else {
                journal::remove(&replay.path)?;
            }
        }
        Ok(num_recovered)
    }
}

/// Example and draw of every row in these shards.
///
/// # Errors
/// [`schemas::Error`] about the first shard that cannot be read.
pub fn keys_of(shards: &[PathBuf]) -> Result<HashSet<Key>, schemas::Error> {
    let mut keys = HashSet::new();
    for shard in shards {
        keys.extend(ShardReader::open_unverified(shard)?.keys()?);
    }
    Ok(keys)
}

/// Writes `manifest` in its open form unless it stands in the folder already.
pub(crate) fn publish(folder: &Path, manifest: &Manifest) -> Result<(), schemas::Error> {
    let open = manifest.clone().reopened();
    if Manifest::open(folder).is_ok_and(|present| present == open) {
        return Ok(());
    }
    open.write(folder)
}

/// Writes one shard with `records`.
pub(crate) fn commit(
    folder: &Path,
    number: u32,
    manifest: &Manifest,
    records: &[TeacherRecord],
) -> Result<ShardEntry, schemas::Error> {
    let mut writer = ShardWriter::create(folder, &journal::stem(number), manifest)?;
    for records in records.chunks(ROWS_PER_WRITE) {
        writer.write(records)?;
    }
    writer.finish()
}

fn take_lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(LOCK_FILE);
    if !folder.is_dir() {
        return Err(schemas::Error::NotACache {
            path: folder.to_owned(),
        }
        .into());
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|source| schemas::Error::io(&path, "write", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked {
            path: folder.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(schemas::Error::io(&path, "lock", source).into()),
    }
}

fn entries(folder: &Path) -> Result<Vec<DirEntry>, schemas::Error> {
    std::fs::read_dir(folder)
        .and_then(Iterator::collect)
        .map_err(|source| schemas::Error::io(folder, "list", source))
}

/// A number that no shard and no segment has, not even one that was set aside.
fn next_number(folder: &Path) -> Result<u32, schemas::Error> {
    let numbers = entries(folder)?
        .into_iter()
        .filter_map(|entry| journal::number(&entry.path()));
    Ok(numbers.max().map_or(0, |number| number + 1))
}

/// Removes temporary files of a process that died; under the lock nobody else can own one.
fn remove_leftovers(folder: &Path) -> Result<(), Error> {
    for entry in entries(folder)? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = [".shard-", ".manifest-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            && name.ends_with(".tmp");
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            std::fs::remove_file(entry.path())
                .map_err(|source| schemas::Error::io(&entry.path(), "remove", source))?;
        }
    }
    Ok(())
}

/// Checks that what stands at `path` came from the source that `configured` describes.
///
/// # Errors
/// [`Error::DifferentSource`], which names the first key that differs.
pub fn check_same_source(
    path: &Path,
    cached: &Manifest,
    configured: &Manifest,
) -> Result<(), Error> {
    if cached.same_source(configured) {
        return Ok(());
    }
    let sides = [cached, configured].map(|manifest| {
        serde_json::json!({
            "teacher": manifest.teacher, "dataset": manifest.dataset, "draws": manifest.draws, "signals": manifest.signals,
        })
    });
    let (key, cached, configured) =
        difference(String::new(), &sides[0], &sides[1]).unwrap_or_default();
    Err(Error::DifferentSource {
        path: path.to_owned(),
        key,
        cached,
        configured,
    })
}

/// The first place where two JSON values differ, and what stands there.
fn difference(
    key: String,
    one: &serde_json::Value,
    two: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value;
    if one == two {
        return None;
    }
    let join = |part: &str| {
        if key.is_empty() {
            part.to_owned()
        } else {
            format!("{key}.{part}")
        }
    };
    match (one, two) {
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            let null = Value::Null;
            names.into_iter().find_map(|name| {
                difference(
                    join(name),
                    a.get(name).unwrap_or(&null),
                    b.get(name).unwrap_or(&null),
                )
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => (0..a.len())
            .find_map(|index| difference(join(&index.to_string()), &a[index], &b[index])),
        _ => Some((key, one.to_string(), two.to_string())),
    }
}
