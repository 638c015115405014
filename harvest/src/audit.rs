//! What `verify` and `freeze` check of a cache.

use std::collections::HashSet;
use std::io::ErrorKind;

use schemas::{CacheState, Manifest, ShardEntry};

use crate::cache::{Key, check_same_source};
use crate::error::Error;
use crate::failures::Failures;
use crate::journal::{Replay, list_segments};
use crate::place::Place;
use crate::plan::Plan;
use crate::survey::{Known, Survey};

/// The state of a cache, every byte of it read.
#[derive(Debug)]
pub struct Audit {
    /// What the cache says of itself.
    pub manifest: Manifest,
    /// The shards that are whole.
    pub shards: Vec<ShardEntry>,
    /// Rows in them.
    pub num_rows: u64,
    /// Replies that are only in the journals of this machine.
    pub num_journalled: u64,
    /// Rows that failed.
    pub num_failed: u64,
    /// Comparison with the data set, where one was given.
    pub coverage: Option<Survey>,
    /// What is wrong, one sentence each; missing rows are not among them.
    pub problems: Vec<String>,
    /// Shards whose content is not what was committed.
    pub damaged: Vec<String>,
}

impl Audit {
    /// Reads every shard of the cache at `place` and compares digests, row counts and keys. A frozen cache is held
    /// to its manifest, an open one to the names of its shards. With a plan, the rows are compared with its data set.
    ///
    /// # Errors
    /// [`Error`] where there is no cache or the data set cannot be read; what is wrong with shards is among
    /// [`problems`](Self::problems).
    pub fn of(place: &Place, plan: Option<&Plan>) -> Result<Self, Error> {
        let mut audit = Self {
            manifest: place.store.manifest()?,
            shards: Vec::new(),
            num_rows: 0,
            num_journalled: 0,
            num_failed: 0,
            coverage: None,
            problems: Vec::new(),
            damaged: Vec::new(),
        };
        let mut known = Known::default();
        let mut unsettled = Unsettled::read(place)?;
        for name in audit.names(place)? {
            if let Err(error) = audit.shard(place, &name, &mut known, &mut unsettled) {
                audit.problems.push(error.to_string());
                if is_damage(&error) {
                    audit.damaged.push(format!("{}/{name}", place.store));
                }
            }
        }
        let (num_repeated, first) = known.repeated()?;
        if num_repeated > 0 {
            let first: Vec<String> = first
                .iter()
                .map(|(id, draw)| format!("{id} draw {draw}"))
                .collect();
            audit.problems.push(format!(
                "{num_repeated} rows are there more than once: {}",
                first.join(", ")
            ));
        }
        audit.check_frozen();
        audit.num_journalled = unsettled.journalled.len() as u64;
        audit.num_failed = unsettled.failed.len() as u64;
        for key in unsettled.failed {
            known.failed(key)?;
        }
        audit.coverage = plan.map(|plan| plan.survey(&mut known)).transpose()?;
        Ok(audit)
    }

    /// What to do about damaged shards: a run counts the rows of every shard in the folder as there.
    pub fn hint(&self) -> Option<String> {
        let paths: Vec<String> = self
            .damaged
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        (!paths.is_empty()).then(|| {
            format!(
                "remove {} and run again: its rows are asked for",
                paths.join(", ")
            )
        })
    }

    /// Shards that count: those of the manifest where it is frozen, those of the store where it is open.
    fn names(&self, place: &Place) -> Result<Vec<String>, Error> {
        let present = place.store.shards()?;
        let CacheState::Frozen { shards, .. } = self.manifest.state() else {
            return Ok(present);
        };
        let listed: Vec<String> = shards.iter().map(|entry| entry.file.clone()).collect();
        for name in present.iter().filter(|name| !listed.contains(name)) {
            tracing::warn!("`{name}` is not part of the frozen cache");
        }
        Ok(listed)
    }

    fn shard(
        &mut self,
        place: &Place,
        name: &str,
        known: &mut Known,
        unsettled: &mut Unsettled,
    ) -> Result<(), Error> {
        let reader = place.store.open_shard(name)?;
        check_same_source(name, reader.manifest(), &self.manifest)?;
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
                path: name.into(),
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
                path: name.into(),
                problem,
            }
            .into());
        }
        for key in keys {
            unsettled.committed(&key);
            known.committed(key)?;
        }
        self.num_rows += entry.num_rows;
        self.shards.push(entry);
        Ok(())
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

/// What workers know of a cache besides its shards. It is read before them, so that what moves into a shard meanwhile is
/// found there.
#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    /// Rows whose replies are only in the journals of this machine.
    pub(crate) journalled: HashSet<Key>,
    /// Rows that failed.
    pub(crate) failed: HashSet<Key>,
}

impl Unsettled {
    /// Reads the journals and the lists of failures. It takes no lock: a run may go on meanwhile.
    ///
    /// # Errors
    /// As [`Replay::read`] and [`Failures::of_all_workers`].
    pub(crate) fn read(place: &Place) -> Result<Self, Error> {
        Ok(Self {
            journalled: journalled(place)?,
            failed: Failures::of_all_workers(place)?.into_iter().collect(),
        })
    }

    /// Takes out a row that a shard has: its segment is about to be removed, or another worker has answered it since
    /// it failed.
    pub(crate) fn committed(&mut self, key: &Key) {
        self.journalled.remove(key);
        self.failed.remove(key);
    }
}

fn journalled(place: &Place) -> Result<HashSet<Key>, Error> {
    let mut keys = HashSet::new();
    let mut folders = place.slice_folders()?;
    if place.work.is_dir() {
        folders.push(place.work.clone());
    }
    for folder in folders {
        for path in list_segments(&folder)? {
            match Replay::read(&path) {
                Ok(replay) => keys.extend(replay.records.into_iter().map(|(key, _)| key)),
                // A run has committed it since.
                Err(schemas::Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use schemas::{ExampleId, Provenance, TeacherRecord};

    use super::*;
    use crate::journal::Segment;
    use crate::sample::manifest;

    #[test]
    fn a_journal_that_a_run_removes_meanwhile_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::local(folder.path());
        let record = TeacherRecord {
            id: ExampleId::from([1; 16]),
            draw: 0,
            signals: [("said".to_owned(), schemas::SignalValue::Text("x".into()))].into(),
            provenance: Provenance::default(),
        };
        let is_over = AtomicBool::new(false);
        let num_read = std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..2_000 {
                    let segment = Segment::create(folder.path(), number, &manifest("m")).unwrap();
                    segment.append(&record).unwrap();
                    segment.remove().unwrap();
                }
                is_over.store(true, Ordering::Relaxed);
            });
            let mut num_read = 0;
            while !is_over.load(Ordering::Relaxed) {
                let mut unsettled = Unsettled::read(&place).unwrap();
                unsettled.committed(&(record.id, 0));
                assert!(unsettled.journalled.is_empty());
                num_read += 1;
            }
            num_read
        });
        assert!(num_read > 0);
    }
}
