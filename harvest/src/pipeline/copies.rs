//! Rows whose request is the same as another row's get its reply: it was sent once.

use std::collections::{BTreeMap, HashSet};

use schemas::{ExampleId, Manifest, Provenance, TeacherRecord};

use crate::cache::{Cache, Key, commit, publish};
use crate::error::Error;
use crate::failures::Failure;
use crate::reporter::Reporter;

/// Replies held before a shard is written.
const MAX_ROWS: usize = 2_000;

/// Gives every target the reply of its source where that is committed, and its failure where that failed. Targets of
/// other sources are left for the next run. Returns how many were committed.
///
/// # Errors
/// [`Error::Schemas`] where a shard cannot be read or written.
pub(super) fn make(
    cache: &mut Cache,
    manifest: &Manifest,
    copies: &BTreeMap<Key, Vec<ExampleId>>,
    reporter: &mut Reporter,
) -> Result<u64, Error> {
    let mut num_committed = 0;
    if copies.is_empty() {
        return Ok(num_committed);
    }
    // First: an error below must not leave rows to be asked about whose request has failed.
    for (source, targets) in copies {
        let Some(failure) = cache.failures().find_new(source) else {
            continue;
        };
        for target in targets {
            let failure = Failure {
                id: *target,
                tries: 0,
                message: format!(
                    "as example {}, whose request is the same: {}",
                    source.0, failure.message
                ),
                ..failure.clone()
            };
            reporter.failed(&failure);
            cache.failures().add(failure)?;
        }
    }
    let mut found: HashSet<Key> = HashSet::new();
    let mut pending: Vec<TeacherRecord> = Vec::new();
    for name in cache.place().store.shards()? {
        let shard = cache.place().store.open_shard(&name)?;
        if !shard.keys()?.iter().any(|key| copies.contains_key(key)) {
            continue;
        }
        for record in shard.records()? {
            let record = record?;
            let key = (record.id, record.draw);
            // A source that is there twice is copied once.
            let Some(targets) = copies.get(&key).filter(|_| found.insert(key)) else {
                continue;
            };
            for target in targets {
                cache.failures().resolve(&(*target, record.draw));
                pending.push(copy(&record, *target));
                num_committed += 1;
                if pending.len() >= MAX_ROWS {
                    write(cache, manifest, &mut pending, reporter)?;
                }
            }
        }
    }
    write(cache, manifest, &mut pending, reporter)?;
    Ok(num_committed)
}

/// The reply of another row: nothing was sent for it, and nothing was paid.
fn copy(record: &TeacherRecord, target: ExampleId) -> TeacherRecord {
    TeacherRecord {
        id: target,
        draw: record.draw,
        signals: record.signals.clone(),
        provenance: Provenance {
            tries: 0,
            tokens_in: None,
            tokens_out: None,
            cost: None,
            latency_ms: None,
            ..record.provenance.clone()
        },
    }
}

fn write(
    cache: &mut Cache,
    manifest: &Manifest,
    rows: &mut Vec<TeacherRecord>,
    reporter: &mut Reporter,
) -> Result<(), Error> {
    if !rows.is_empty() {
        // A frozen cache that gains rows is open again.
        publish(cache.place(), manifest)?;
        let number = cache.take_number();
        let num_rows = rows.len() as u64;
        let (file, num_bytes) = commit(cache.place(), number, manifest, rows.drain(..).map(Ok))?;
        reporter.committed(&file, num_rows, num_bytes);
    }
    Ok(())
}
