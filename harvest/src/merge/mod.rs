//! Joins caches of one source.
//!
//! Everything is planned from the keys of the rows before anything is written: a shard whose rows are nowhere else is
//! copied byte by byte, one with rows that are elsewhere is written anew without them, and rows that contradict each
//! other are refused unless one side is preferred. The target only ever gains shards, each by one atomic put, and a
//! row that it has already is not added again; so a merge that was killed is completed by repeating it. Sources are
//! only read.
//!
//! Memory: the keys of all rows of the sources (about 60 bytes a row) and, where rows collide, 16 bytes for each row
//! of two shards.

mod error;
mod rows;

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use schemas::{CacheState, Manifest, Sha256Digest, ShardEntry, ShardWriter};

use crate::cache::{Key, check_same_source};
use crate::error::Error;
use crate::store::Store;

pub use error::MergeError;
use rows::{Digests, digests_of};

/// Conflicting rows that are listed.
const NUM_LISTED: usize = 5;

/// Rows handed to the shard writer at a time.
const ROWS_PER_WRITE: usize = 1024;

/// Which of two rows with the same key and other signals is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Prefer {
    /// That of the target, then that of the source named first.
    First,
    /// That of the source named last.
    Last,
}

/// What a merge did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Rows that the sources have, repeated ones counted each time.
    pub num_source_rows: u64,
    /// Rows added to the target.
    pub num_added: u64,
    /// Rows left out because an equal one is there.
    pub num_equal: u64,
    /// Rows left out because another one is preferred.
    pub num_outvoted: u64,
    /// Shards copied byte by byte.
    pub num_copied: u64,
    /// Shards written anew.
    pub num_rewritten: u64,
}

/// One shard of a source.
struct Planned<'a> {
    store: &'a Store,
    name: String,
    /// What a frozen manifest says of it.
    entry: Option<ShardEntry>,
    num_rows: u64,
    /// Whether its own description is that of the target, so that its bytes may be taken as they are.
    fits: bool,
    /// Whether the target has this very file.
    is_present: bool,
    left_out: HashSet<Key>,
}

/// Adds to `into` every row of the caches `from` that it does not have.
///
/// # Errors
/// [`MergeError`] where the caches are of different sources or rows contradict each other, in which case nothing was
/// written; [`Error::Schemas`] where something cannot be read or written.
pub fn merge(into: &Store, from: &[Store], prefer: Option<Prefer>) -> Result<Summary, Error> {
    let (present, target) = describe_target(into, from)?;
    let mut merge = Merge {
        prefer,
        target,
        shards: Vec::new(),
        owners: HashMap::new(),
        conflicts: Conflicts::default(),
        summary: Summary::default(),
    };
    for store in from {
        merge.survey(store)?;
    }
    merge.subtract(into)?;
    merge.conflicts.refuse()?;
    merge.write(into, present.as_ref())?;
    Ok(merge.summary)
}

/// The manifest that the target has, and the one that it shall have.
fn describe_target(into: &Store, from: &[Store]) -> Result<(Option<Manifest>, Manifest), Error> {
    let present = match into.manifest() {
        Ok(manifest) => Some(manifest),
        Err(schemas::Error::NotACache { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let mut target: Option<(String, Manifest)> = present
        .clone()
        .map(|manifest| (into.location(), manifest.reopened()));
    for store in from {
        if store.location() == into.location() {
            return Err(MergeError::IntoItself {
                location: into.location(),
            }
            .into());
        }
        let manifest = store.manifest()?.reopened();
        match &mut target {
            None => target = Some((store.location(), manifest)),
            Some((location, target)) => {
                check_joinable(location, target, &store.location(), &manifest)?;
                if target.notes != manifest.notes {
                    tracing::warn!(
                        "`{store}` has other notes on licences or prompts; those of `{location}` are kept"
                    );
                }
                target.draws = target.draws.max(manifest.draws);
            }
        }
    }
    let (_, target) = target.ok_or(MergeError::NoSource)?;
    match &present {
        Some(present) if present.draws < target.draws => Err(MergeError::FewerDraws {
            location: into.location(),
            present: present.draws,
            wanted: target.draws,
        }
        .into()),
        _ => Ok((present, target)),
    }
}

/// Caches may differ in the number of draws: theirs are joined.
fn check_joinable(one: &str, first: &Manifest, two: &str, second: &Manifest) -> Result<(), Error> {
    let mut second = second.clone();
    second.draws = first.draws;
    check_same_source(two, &second, first).map_err(|error| match error {
        Error::DifferentSource {
            key,
            cached,
            configured,
            ..
        } => MergeError::DifferentSource {
            one: one.to_owned(),
            two: two.to_owned(),
            key,
            of_one: configured.into(),
            of_two: cached.into(),
        }
        .into(),
        other => other,
    })
}

#[derive(Default)]
struct Conflicts {
    num: u64,
    first: Vec<String>,
    with_target: bool,
}

impl Conflicts {
    fn add(&mut self, key: &Key, one: &Store, two: &Store, with_target: bool) {
        self.num += 1;
        self.with_target |= with_target;
        if self.first.len() < NUM_LISTED {
            self.first
                .push(format!("{} draw {} (`{one}` and `{two}`)", key.0, key.1));
        }
    }

    fn refuse(&self) -> Result<(), Error> {
        if self.num == 0 {
            return Ok(());
        }
        Err(MergeError::Conflicts {
            num: self.num,
            first: self.first.clone(),
            with_target: self.with_target,
        }
        .into())
    }
}

struct Merge<'a> {
    prefer: Option<Prefer>,
    target: Manifest,
    shards: Vec<Planned<'a>>,
    /// The shard whose row of a key is taken.
    owners: HashMap<Key, u32>,
    conflicts: Conflicts,
    summary: Summary,
}

impl<'a> Merge<'a> {
    /// Takes in the keys of a source and finds those that earlier shards have.
    fn survey(&mut self, store: &'a Store) -> Result<(), Error> {
        let manifest = store.manifest()?;
        if store
            .list()?
            .iter()
            .any(|entry| entry.name.ends_with(".journal"))
        {
            tracing::warn!(
                "`{store}` has replies that are only in its journal and are left out: `harvest run` commits them"
            );
        }
        let entries: Vec<(String, Option<ShardEntry>)> = match manifest.state() {
            CacheState::Frozen { shards, .. } => shards
                .iter()
                .map(|entry| (entry.file.clone(), Some(entry.clone())))
                .collect(),
            CacheState::Open => store
                .shards()?
                .into_iter()
                .map(|name| (name, None))
                .collect(),
        };
        for (name, entry) in entries {
            self.survey_shard(store, name, entry)?;
        }
        Ok(())
    }

    fn survey_shard(
        &mut self,
        store: &'a Store,
        name: String,
        entry: Option<ShardEntry>,
    ) -> Result<(), Error> {
        let reader = store.open_shard(&name)?;
        let location = format!("{store}/{name}");
        check_joinable("the manifests", &self.target, &location, reader.manifest())?;
        let keys = reader.keys()?;
        let index = u32::try_from(self.shards.len()).expect("fewer shards than 2^32");
        let mut met: BTreeMap<u32, Vec<Key>> = BTreeMap::new();
        for key in &keys {
            match self.owners.entry(*key) {
                Entry::Vacant(vacant) => {
                    vacant.insert(index);
                }
                Entry::Occupied(owner) if *owner.get() == index => {
                    return Err(schemas::Error::InvalidShard {
                        path: location.into(),
                        problem: format!("it has {} draw {} twice", key.0, key.1),
                    }
                    .into());
                }
                Entry::Occupied(owner) => met.entry(*owner.get()).or_default().push(*key),
            }
        }
        self.summary.num_source_rows += keys.len() as u64;
        self.shards.push(Planned {
            store,
            name,
            entry,
            num_rows: keys.len() as u64,
            fits: reader.manifest().same_source(&self.target),
            is_present: false,
            left_out: HashSet::new(),
        });
        drop(reader);
        self.settle_met(index, met)
    }

    /// Decides about the rows of shard `index` that earlier shards have too.
    fn settle_met(&mut self, index: u32, met: BTreeMap<u32, Vec<Key>>) -> Result<(), Error> {
        let mut ours: Option<Digests> = None;
        for (owner, keys) in met {
            let [first, second] = [owner, index].map(|index| {
                (
                    self.shards[index as usize].store,
                    self.shards[index as usize].name.clone(),
                )
            });
            // The name carries the digest of the bytes.
            let is_same_file = first.1 == second.1;
            let mut theirs = Digests::new();
            if !is_same_file {
                if ours.is_none() {
                    ours = Some(digests_of(second.0, &second.1)?);
                }
                theirs = digests_of(first.0, &first.1)?;
            }
            for key in keys {
                let is_equal = is_same_file
                    || ours.as_ref().and_then(|ours| ours.get(&key)) == theirs.get(&key);
                match self.prefer {
                    _ if is_equal => {
                        self.summary.num_equal += 1;
                        self.leave_out(index, key);
                    }
                    None => self.conflicts.add(&key, first.0, second.0, false),
                    Some(Prefer::First) => {
                        self.summary.num_outvoted += 1;
                        self.leave_out(index, key);
                    }
                    Some(Prefer::Last) => {
                        self.summary.num_outvoted += 1;
                        self.leave_out(owner, key);
                        self.owners.insert(key, index);
                    }
                }
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, index: u32, key: Key) {
        self.shards[index as usize].left_out.insert(key);
    }

    /// Leaves out what the target has.
    fn subtract(&mut self, into: &Store) -> Result<(), Error> {
        for name in into.shards()? {
            let mut met: BTreeMap<u32, Vec<Key>> = BTreeMap::new();
            for key in into.open_shard(&name)?.keys()? {
                if let Some(owner) = self.owners.get(&key) {
                    met.entry(*owner).or_default().push(key);
                }
            }
            let mut present: Option<Digests> = None;
            for (owner, keys) in met {
                let shard = &mut self.shards[owner as usize];
                if shard.name == name {
                    shard.is_present = true;
                    self.summary.num_equal += keys.len() as u64;
                    continue;
                }
                if present.is_none() {
                    present = Some(digests_of(into, &name)?);
                }
                let store = shard.store;
                let source = digests_of(store, &shard.name)?;
                for key in keys {
                    let is_equal =
                        present.as_ref().and_then(|present| present.get(&key)) == source.get(&key);
                    match self.prefer {
                        _ if is_equal => self.summary.num_equal += 1,
                        Some(Prefer::First) => self.summary.num_outvoted += 1,
                        // A shard of the target is never taken away, so its rows cannot be replaced.
                        _ => self.conflicts.add(&key, into, store, true),
                    }
                    self.leave_out(owner, key);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, into: &Store, present: Option<&Manifest>) -> Result<(), Error> {
        let staging = Staging::of(into)?;
        let mut is_open = present.is_some_and(|present| *present == self.target);
        for shard in &self.shards {
            let num_left = shard.num_rows - shard.left_out.len() as u64;
            if shard.is_present || num_left == 0 {
                continue;
            }
            // First the description: shards without one are no cache.
            if !is_open {
                into.write_manifest(&self.target)?;
                is_open = true;
            }
            if shard.fits && shard.left_out.is_empty() {
                shard.copy(into, staging.folder())?;
                self.summary.num_copied += 1;
            } else {
                shard.rewrite(into, staging.folder(), &self.target)?;
                self.summary.num_rewritten += 1;
            }
            self.summary.num_added += num_left;
        }
        if !is_open && present.is_none() {
            into.write_manifest(&self.target)?;
        }
        Ok(())
    }
}

impl Planned<'_> {
    /// Copies the file, checked against its digest before it is put.
    fn copy(&self, into: &Store, staging: &Path) -> Result<(), Error> {
        let mut file = tempfile::Builder::new()
            .prefix(".shard-")
            .suffix(".tmp")
            .tempfile_in(staging)
            .map_err(|source| schemas::Error::io(staging, "create a file in", source))?;
        self.store.copy_to(&self.name, file.as_file_mut())?;
        self.check(file.path())?;
        into.put_file(&self.name, file.path())?;
        Ok(())
    }

    /// Writes the rows that are wanted into a shard of their own.
    fn rewrite(&self, into: &Store, staging: &Path, target: &Manifest) -> Result<(), Error> {
        let reader = match &self.entry {
            Some(entry) => self.store.open_entry(entry)?,
            None => self.store.open_shard_verified(&self.name)?,
        };
        let stem = self.name.rsplit_once('-').map_or("part", |(stem, _)| stem);
        let mut writer = ShardWriter::create(staging, stem, target)?;
        let mut rows = Vec::new();
        for record in reader.records()? {
            let record = record?;
            if self.left_out.contains(&(record.id, record.draw)) {
                continue;
            }
            rows.push(record);
            if rows.len() == ROWS_PER_WRITE {
                writer.write(&rows)?;
                rows.clear();
            }
        }
        writer.write(&rows)?;
        let entry = writer.finish()?;
        if into.local() != Some(staging) {
            into.put_file(&entry.file, &staging.join(&entry.file))?;
        }
        Ok(())
    }

    fn check(&self, copy: &Path) -> Result<(), Error> {
        let found = Sha256Digest::of_file(copy)?;
        let is_whole = match &self.entry {
            Some(entry) => found == entry.sha256,
            None => self.name.ends_with(&format!("-{}.parquet", found.short())),
        };
        if is_whole {
            return Ok(());
        }
        let expected = match &self.entry {
            Some(entry) => entry.sha256.to_string(),
            None => format!("the one in its name, {}", self.name),
        };
        Err(schemas::Error::CorruptShard {
            path: PathBuf::from(format!("{}/{}", self.store, self.name)),
            found,
            expected,
        }
        .into())
    }
}

/// Where files are made before they are put: the folder of a local target, so that putting is renaming.
enum Staging<'a> {
    Target(&'a Path),
    Temporary(tempfile::TempDir),
}

impl<'a> Staging<'a> {
    fn of(into: &'a Store) -> Result<Self, Error> {
        match into.local() {
            Some(folder) => {
                std::fs::create_dir_all(folder)
                    .map_err(|source| schemas::Error::io(folder, "create", source))?;
                Ok(Self::Target(folder))
            }
            None => Ok(Self::Temporary(tempfile::tempdir().map_err(|source| {
                schemas::Error::io(&std::env::temp_dir(), "create a folder in", source)
            })?)),
        }
    }

    fn folder(&self) -> &Path {
        match self {
            Self::Target(folder) => folder,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

#[cfg(test)]
mod tests;
