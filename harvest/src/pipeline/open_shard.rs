//! A shard that is being filled: its journal segment and the replies so far.

use std::path::Path;
use std::sync::Arc;

use schemas::{Error, Manifest, TeacherRecord};

use crate::cache::commit;
use crate::journal::Segment;

/// Rows `n * rows_per_shard ..` of the requests of a run, in the order of the data set: which reply comes first does
/// not decide which shard it lands in, so an undisturbed run of a deterministic teacher writes the same bytes again.
#[derive(Debug)]
pub(super) struct OpenShard {
    number: u32,
    segment: Arc<Segment>,
    rows: Vec<(u64, TeacherRecord)>,
    num_sent: usize,
    num_settled: usize,
}

impl OpenShard {
    pub(super) fn new(number: u32, segment: Segment) -> Self {
        Self {
            number,
            segment: Arc::new(segment),
            rows: Vec::new(),
            num_sent: 0,
            num_settled: 0,
        }
    }

    pub(super) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(super) fn num_sent(&self) -> usize {
        self.num_sent
    }

    /// A request of this shard was sent.
    pub(super) fn sent(&mut self) {
        self.num_sent += 1;
    }

    /// A request of this shard was answered, or will never be.
    pub(super) fn settle(&mut self, row: Option<(u64, TeacherRecord)>) {
        self.num_settled += 1;
        self.rows.extend(row);
    }

    /// Whether no reply is outstanding.
    pub(super) fn is_settled(&self) -> bool {
        self.num_settled == self.num_sent
    }

    /// Writes the shard and removes its journal segment; returns the number of rows. Blocks on the disk.
    pub(super) fn commit(mut self, folder: &Path, manifest: &Manifest) -> Result<u64, Error> {
        self.rows.sort_unstable_by_key(|(position, _)| *position);
        let records: Vec<TeacherRecord> = self.rows.into_iter().map(|(_, record)| record).collect();
        if !records.is_empty() {
            let entry = commit(folder, self.number, manifest, &records)?;
            tracing::debug!("committed {} with {} rows", entry.file, entry.num_rows);
        }
        self.segment.remove()?;
        Ok(records.len() as u64)
    }
}
