//! A cache that this process writes: lock, committed shards, recovery of the journal.

mod locks;
mod source;

use std::collections::HashSet;
use std::fs::{DirEntry, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use schemas::{DatasetIdentity, ExampleId, Manifest, ShardWriter, TeacherIdentity, TeacherRecord};

use crate::config::CacheConfig;
use crate::error::Error;
use crate::failures::Failures;
use crate::journal::{self, Replay, list_segments};
use crate::lease::Lease;
use crate::parts::Parts;
use crate::pipeline::expected_manifest;
use crate::place::Place;
use crate::plan::Plan;
use crate::reserve;
use crate::stop::Stop;
use crate::survey::Known;
use crate::teacher::{Description, batch};

use locks::take_locks;

pub use source::check_same_source;

/// What a reply is for: an example and a draw.
pub type Key = (ExampleId, u32);

/// A worker that is silent for this long has died, and another may take its place.
pub(crate) const LEASE_LIFETIME: Duration = Duration::from_secs(90);

/// Rows handed to the shard writer at a time, at most.
const ROWS_PER_WRITE: usize = 256;
/// Bytes of signals handed to it at a time, about.
const BYTES_PER_WRITE: usize = 4 << 20;

/// A cache, locked against other writers for as long as this value lives.
#[derive(Debug)]
pub struct Cache {
    place: Place,
    _locks: Vec<File>,
    manifest: Option<Manifest>,
    failures: Failures,
    next_number: u32,
}

impl Cache {
    /// Locks the cache at `place`, which is made where there is none. Replies that are only in the journal are left
    /// there until [`recover`](Self::recover). A lease that is lost later requests `stop`.
    ///
    /// # Errors
    /// [`Error::Locked`]; [`Error::Schemas`] where something in it cannot be read.
    pub fn lock_or_create(place: Place, stop: &Stop) -> Result<Self, Error> {
        for folder in [Some(place.work.as_path()), place.store.local()]
            .into_iter()
            .flatten()
        {
            std::fs::create_dir_all(folder)
                .map_err(|source| schemas::Error::io(folder, "create", source))?;
        }
        Self::lock(place, stop)
    }

    /// Locks the cache at `place`, as [`lock_or_create`](Self::lock_or_create) does, but makes none.
    ///
    /// # Errors
    /// As [`lock_or_create`](Self::lock_or_create).
    pub fn lock(place: Place, stop: &Stop) -> Result<Self, Error> {
        let locks = take_locks(&place)?;
        let mut place = place;
        place.lease = Lease::take(&place.store, place.slice, LEASE_LIFETIME, stop)?.map(Arc::new);
        remove_leftovers(&place)?;
        if place.slice.is_none() {
            // No slice is at work while the whole is locked: what one left behind is taken over.
            for folder in place.slice_folders()? {
                batch::take_over(&folder, &place.work).map_err(|source| {
                    schemas::Error::io(&folder, "take batches over from", source)
                })?;
            }
        }
        Ok(Self {
            manifest: read_manifest(&place)?,
            failures: Failures::open(&place)?,
            next_number: next_number(&place)?,
            _locks: locks,
            place,
        })
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What the cache says of itself; `None` where it is new.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Checks that the cache is what a teacher and a plan make.
    ///
    /// # Errors
    /// [`Error::DifferentSource`].
    pub fn check_source(
        &self,
        plan: &Plan,
        teacher: &Description,
        config: &CacheConfig,
    ) -> Result<(), Error> {
        let Some(manifest) = &self.manifest else {
            return Ok(());
        };
        let expected = expected_manifest(manifest, plan, teacher, config)?;
        check_same_source(&self.place.store.location(), manifest, &expected)
    }

    /// Rows that failed.
    pub fn failures(&mut self) -> &mut Failures {
        &mut self.failures
    }

    /// Keys of committed rows, and of failed ones unless those are to be asked about again. Rows that are both are
    /// taken off the list of failures.
    ///
    /// # Errors
    /// [`Error::Schemas`] about the first shard that cannot be read.
    pub fn known(&mut self, retry_failures: bool) -> Result<Known, Error> {
        let mut known = Known::default();
        let failures = &mut self.failures;
        each_key(&self.place, |key| {
            failures.resolve(&key);
            known.committed(key)
        })?;
        if !retry_failures {
            // A worker of the whole has taken the lists of slices over.
            if self.place.slice.is_some() {
                for key in Failures::of_all_workers(&self.place)? {
                    known.failed(key)?;
                }
            }
            for key in self.failures.keys() {
                known.failed(key)?;
            }
        }
        Ok(known)
    }

    /// A shard number that is free; numbers only grow.
    pub(crate) fn take_number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Replies that a run which did not end left in the journal. Adopts the journal's description where the process
    /// died before it had written a manifest.
    ///
    /// # Errors
    /// [`Error::DifferentSource`] where the journal is not of this cache.
    pub fn replay(&mut self) -> Result<Vec<Replay>, Error> {
        let mut replays = Vec::new();
        let mut segments = list_segments(&self.place.work)?;
        if self.place.slice.is_none() {
            // No slice is at work while the whole is locked: what one left behind is taken over.
            for folder in self.place.slice_folders()? {
                segments.extend(list_segments(&folder)?);
            }
        }
        for path in segments {
            let replay = Replay::read(&path)?;
            if replay.num_torn_bytes > 0 {
                tracing::warn!(
                    "`{}`: left out {} bytes of an unfinished line",
                    path.display(),
                    replay.num_torn_bytes
                );
            }
            match (&self.manifest, &replay.manifest) {
                (Some(ours), Some(theirs)) => {
                    check_same_source(&path.to_string_lossy(), theirs, ours)?;
                }
                (None, Some(theirs)) => self.manifest = Some(theirs.clone()),
                (_, None) => {}
            }
            replays.push(replay);
        }
        self.leave_committed(&mut replays)?;
        Ok(replays)
    }

    /// Takes out replies that a shard has already: the process died between committing it and removing its segment.
    fn leave_committed(&self, replays: &mut [Replay]) -> Result<(), Error> {
        let records = replays.iter().flat_map(|replay| &replay.records);
        let mut journalled: HashSet<Key> = records.map(|(key, _)| *key).collect();
        if !journalled.is_empty() {
            each_key(&self.place, |key| {
                journalled.remove(&key);
                Ok(())
            })?;
        }
        for replay in replays {
            // Removed when it is taken: a reply that two segments have is committed once.
            replay.records.retain(|(key, _)| journalled.remove(key));
        }
        Ok(())
    }

    /// Commits what [`replay`](Self::replay) found, one shard a segment, carries over parts of replies, and removes the
    /// segments; damaged ones are set aside. Returns how many rows there were.
    ///
    /// # Errors
    /// [`Error::Schemas`] where a shard cannot be written, in which case the journal stays.
    pub fn recover(&mut self, replays: Vec<Replay>) -> Result<u64, Error> {
        let mut num_recovered = 0;
        for replay in replays {
            if let Some(manifest) = self.manifest.clone().filter(|_| !replay.records.is_empty()) {
                publish(&self.place, &manifest)?;
                let number = self.take_number();
                num_recovered += replay.records.len() as u64;
                let lines = replay.records.iter().map(|(_, line)| *line);
                let records = journal::replies(&replay.path, lines)?;
                commit(&self.place, number, &manifest, records)?;
                self.manifest = Some(manifest.reopened());
            }
            if let Some(manifest) = &replay.manifest {
                let parts = Parts::open(&self.place.work, &manifest.teacher, &manifest.dataset)?;
                parts.carry(&replay.path, replay.parts)?;
            }
            if replay.num_damaged_bytes > 0 {
                journal::set_aside(&replay.path)?;
            } else {
                journal::remove(&replay.path)?;
            }
        }
        Ok(num_recovered)
    }

    /// Parts of replies that no shard took, without those of rows that are committed.
    ///
    /// # Errors
    /// As [`Parts::open`].
    pub(crate) fn parts(
        &self,
        teacher: &TeacherIdentity,
        dataset: &DatasetIdentity,
    ) -> Result<Arc<Parts>, Error> {
        let parts = Parts::open(&self.place.work, teacher, dataset)?;
        if self.place.slice.is_none() {
            for folder in self.place.slice_folders()? {
                parts.absorb(&Parts::open(&folder, teacher, dataset)?)?;
            }
        }
        if !parts.is_empty() {
            each_key(&self.place, |key| {
                parts.forget_row(&key);
                Ok(())
            })?;
            parts.compact()?;
        }
        Ok(Arc::new(parts))
    }
}

/// The manifest of a cache; `None` where it is new.
pub(crate) fn read_manifest(place: &Place) -> Result<Option<Manifest>, Error> {
    match place.store.manifest() {
        Ok(manifest) => Ok(Some(manifest)),
        Err(schemas::Error::NotACache { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Example and draw of every committed row, shard by shard.
///
/// # Errors
/// [`Error::Schemas`] about the first shard that cannot be read.
pub fn each_key(
    place: &Place,
    mut take: impl FnMut(Key) -> Result<(), schemas::Error>,
) -> Result<(), Error> {
    for name in place.store.shards()? {
        for key in place.store.open_shard(&name)?.keys()? {
            take(key)?;
        }
    }
    Ok(())
}

/// Writes `manifest` in its open form unless it stands there already. Of several workers that start a cache at once,
/// one makes the manifest and the others compare theirs.
pub(crate) fn publish(place: &Place, manifest: &Manifest) -> Result<(), Error> {
    place.confirm_lease()?;
    let open = manifest.clone().reopened();
    let present = if let Some(present) = read_manifest(place)? {
        present
    } else {
        let mut is_made = false;
        open.write_with(|name, json| {
            is_made = place.store.create(name, json)?;
            Ok(())
        })?;
        if is_made {
            return Ok(());
        }
        place.store.manifest()?
    };
    if present == open {
        return Ok(());
    }
    check_same_source(&place.store.location(), &present, &open)?;
    Ok(place.store.write_manifest(&open)?)
}

/// Writes one shard with `records`; returns its name and size.
pub(crate) fn commit(
    place: &Place,
    number: u32,
    manifest: &Manifest,
    records: impl IntoIterator<Item = Result<TeacherRecord, schemas::Error>>,
) -> Result<(String, u64), Error> {
    let folder = place.outgoing()?;
    let stem = journal::stem(&place.prefix(), number);
    let mut writer = ShardWriter::create(&folder, &stem, manifest)?;
    let mut batch = Vec::new();
    let mut num_bytes = 0;
    for record in records {
        let record = record?;
        num_bytes += record.num_bytes();
        batch.push(record);
        if batch.len() >= ROWS_PER_WRITE || num_bytes >= BYTES_PER_WRITE {
            writer.write(&batch)?;
            batch.clear();
            num_bytes = 0;
        }
    }
    writer.write(&batch)?;
    place.check_lease()?;
    let entry = writer.finish()?;
    if !place.is_own_store() {
        place.put_shard(&entry.file, &folder.join(&entry.file))?;
    }
    Ok((entry.file, entry.num_bytes))
}

fn entries(folder: &Path) -> Result<Vec<DirEntry>, schemas::Error> {
    std::fs::read_dir(folder)
        .and_then(Iterator::collect)
        .map_err(|source| schemas::Error::io(folder, "list", source))
}

/// A number that no shard of this worker and no segment has, not even one that was set aside.
fn next_number(place: &Place) -> Result<u32, Error> {
    let prefix = place.prefix();
    let segments = entries(&place.work)?;
    let of_segments = segments
        .iter()
        .filter_map(|entry| journal::number(journal::PREFIX, &entry.file_name().to_string_lossy()));
    // With those that are barred, whose names are taken for good.
    let files = place.store.list()?;
    let of_shards = files
        .iter()
        .filter_map(|file| journal::number(&prefix, &file.name));
    Ok(of_segments
        .chain(of_shards)
        .max()
        .map_or(0, |number| number + 1))
}

/// Removes temporary files of a process that died; under the lock nobody else can own one. A shard that did not reach
/// the store is written again from its segment.
fn remove_leftovers(place: &Place) -> Result<(), Error> {
    let remove = |path: &Path| {
        std::fs::remove_file(path).map_err(|source| schemas::Error::io(path, "remove", source))
    };
    for entry in entries(&place.work)? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_temporary = [".shard-", ".manifest-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            && name.ends_with(".tmp");
        let is_leftover = is_temporary || name == reserve::FILE;
        if is_leftover && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            remove(&entry.path())?;
        }
    }
    if !place.is_own_store() {
        for entry in entries(&place.outgoing()?)? {
            remove(&entry.path())?;
        }
    }
    Ok(())
}
