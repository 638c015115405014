//! What `verify` and `freeze` check of a cache.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use schemas::shard::list_shards;
use schemas::{CacheState, Manifest, ShardEntry, ShardReader};

use crate::cache::{Key, check_same_source};
use crate::error::Error;
use crate::journal::{Replay, list_segments};
use crate::plan::{Plan, Survey};

/// The state of a cache, every byte of it read.
#[derive(Debug)]
pub struct Audit {
    /// What the cache says of itself.
    pub manifest: Manifest,
    /// The shards that are whole.
    pub shards: Vec<ShardEntry>,
    /// Rows in them.
    pub num_rows: u64,
    /// Their keys.
    pub keys: HashSet<Key>,
    /// Replies that are only in the journal.
    pub num_journalled: u64,
    /// Comparison with the data set, where one was given.
    pub coverage: Option<Survey>,
    /// What is wrong, one sentence each; missing rows are not among them.
    pub problems: Vec<String>,
    /// Shards whose content is not what was committed.
    pub damaged: Vec<PathBuf>,
}

impl Audit {
    /// Reads every shard of the cache in `folder` and compares digests, row counts and keys. A frozen cache is held
    /// to its manifest, an open one to the names of its shards. With a plan, the rows are compared with its data set.
    ///
    /// # Errors
    /// [`Error`] where there is no cache or the data set cannot be read; what is wrong with shards is among
    /// [`problems`](Self::problems).
    pub fn of(folder: &Path, plan: Option<&Plan>) -> Result<Self, Error> {
        let manifest = Manifest::open(folder)?;
        let mut audit = Self {
            manifest,
            shards: Vec::new(),
            num_rows: 0,
            keys: HashSet::new(),
            num_journalled: 0,
            coverage: None,
            problems: Vec::new(),
            damaged: Vec::new(),
        };
        let mut num_repeated = 0;
        for path in audit.paths(folder)? {
            match audit.shard(&path) {
                Ok(num) => num_repeated += num,
                Err(error) => {
                    audit.problems.push(error.to_string());
                    if is_damage(&error) {
                        audit.damaged.push(path);
                    }
                }
            }
        }
        if num_repeated > 0 {
            audit
                .problems
                .push(format!("{num_repeated} rows are there more than once"));
        }
        audit.check_frozen();
        audit.num_journalled = num_journalled(folder, &audit.keys)?;
        audit.coverage = plan.map(|plan| plan.survey(&audit.keys)).transpose()?;
        Ok(audit)
    }

    /// What to do about damaged shards: a run counts the rows of every shard in the folder as there.
    pub fn hint(&self) -> Option<String> {
        let paths: Vec<String> = self
            .damaged
            .iter()
            .map(|path| format!("`{}`", path.display()))
            .collect();
        (!paths.is_empty()).then(|| {
            format!(
                "remove {} and run again: its rows are asked for",
                paths.join(", ")
            )
        })
    }

    /// Shards that count: those of the manifest where it is frozen, those of the folder where it is open.
    fn paths(&mut self, folder: &Path) -> Result<Vec<PathBuf>, Error> {
        let present = list_shards(folder)?;
        let CacheState::Frozen { shards, .. } = self.manifest.state() else {
            return Ok(present);
        };
        let listed: Vec<PathBuf> = shards
            .iter()
            .map(|entry| folder.join(&entry.file))
            .collect();
        for path in present.iter().filter(|path| !listed.contains(path)) {
            tracing::warn!("`{}` is not part of the frozen cache", path.display());
        }
        Ok(listed)
    }

    /// Reads one shard; returns how many of its keys were there before.
    fn shard(&mut self, path: &Path) -> Result<u64, Error> {
        let reader = ShardReader::open_unverified(path)?;
        check_same_source(path, reader.manifest(), &self.manifest)?;
        let entry = reader.entry()?;
        if !entry
            .file
            .ends_with(&format!("-{}.parquet", entry.sha256.short()))
        {
            let expected = entry
                .file
                .rsplit('-')
                .next()
                .unwrap_or_default()
                .trim_end_matches(".parquet");
            return Err(schemas::Error::CorruptShard {
                path: path.to_owned(),
                found: entry.sha256,
                expected: format!("sha256:{expected}..."),
            }
            .into());
        }
        let keys = reader.keys()?;
        let num_keys = keys.len() as u64;
        if num_keys != entry.num_rows {
            let problem = format!(
                "its footer counts {} rows, it has {num_keys}",
                entry.num_rows
            );
            return Err(schemas::Error::InvalidShard {
                path: path.to_owned(),
                problem,
            }
            .into());
        }
        let before = self.keys.len() as u64;
        self.keys.extend(keys);
        self.num_rows += entry.num_rows;
        self.shards.push(entry);
        Ok(num_keys - (self.keys.len() as u64 - before))
    }

    fn check_frozen(&mut self) {
        if let CacheState::Frozen { shards, .. } = self.manifest.state() {
            let differing = self.shards.iter().filter(|entry| !shards.contains(entry));
            let problems =
                differing.map(|entry| format!("`{}` is not what the manifest says", entry.file));
            self.problems.extend(problems.collect::<Vec<_>>());
        }
    }
}

fn is_damage(error: &Error) -> bool {
    matches!(
        error,
        Error::Schemas(schemas::Error::CorruptShard { .. } | schemas::Error::InvalidShard { .. })
    )
}

/// Replies in the journal of `folder` whose keys are not `committed`.
///
/// # Errors
/// As [`Replay::read`].
pub(crate) fn num_journalled(
    folder: &Path,
    committed: &HashSet<Key>,
) -> Result<u64, schemas::Error> {
    let mut keys: HashSet<Key> = HashSet::new();
    for path in list_segments(folder)? {
        let records = Replay::read(&path)?.records;
        keys.extend(
            records
                .iter()
                .map(|record| (record.id, record.draw))
                .filter(|key| !committed.contains(key)),
        );
    }
    Ok(keys.len() as u64)
}
