//! A shard that is being filled: its journal segment, and where in it the replies stand.

use std::collections::HashSet;
use std::sync::Arc;

use schemas::Manifest;

use crate::cache::{Key, commit};
use crate::error::Error;
use crate::journal::{Line, Segment};
use crate::parts::Parts;
use crate::place::Place;

/// A shard takes no more requests once its replies reach this size, however few they are.
const MAX_BYTES: usize = 256 << 20;

/// Rows `n * rows_per_shard ..` of the requests of a run, in the order of the data set: which reply comes first does
/// not decide which shard it lands in, so an undisturbed run of a deterministic teacher writes the same bytes again.
/// The replies are on the disk, in the segment; they are read from there, in order, when the shard is written.
#[derive(Debug)]
pub(super) struct OpenShard {
    number: u32,
    segment: Arc<Segment>,
    rows: Vec<(u64, Line)>,
    num_sent: usize,
    num_settled: usize,
    num_bytes: usize,
}

impl OpenShard {
    pub(super) fn new(number: u32, segment: Segment) -> Self {
        Self {
            number,
            segment: Arc::new(segment),
            rows: Vec::new(),
            num_sent: 0,
            num_settled: 0,
            num_bytes: 0,
        }
    }

    pub(super) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Requests of this shard were sent.
    pub(super) fn sent(&mut self, num: usize) {
        self.num_sent += num;
    }

    /// A request of this shard was answered, or will never be.
    pub(super) fn settle(&mut self, row: Option<(u64, Line)>) {
        self.num_settled += 1;
        if let Some((position, line)) = row {
            self.num_bytes += line.num_bytes();
            self.rows.push((position, line));
        }
    }

    /// Whether it takes no more requests.
    pub(super) fn is_full(&self, rows_per_shard: usize) -> bool {
        self.num_sent >= rows_per_shard || self.num_bytes >= MAX_BYTES
    }

    /// Whether no reply is outstanding.
    pub(super) fn is_settled(&self) -> bool {
        self.num_settled == self.num_sent
    }

    /// Writes the shard and removes its journal segment; parts of replies that did not become whole are carried over
    /// before. Blocks on the disk or the store.
    pub(super) fn commit(
        mut self,
        place: &Place,
        manifest: &Manifest,
        parts: &Parts,
    ) -> Result<Committed, Error> {
        self.rows.sort_unstable_by_key(|(position, _)| *position);
        let num_rows = self.rows.len() as u64;
        let mut whole: HashSet<Key> = HashSet::new();
        let forgets = !parts.is_empty() || self.segment.has_parts();
        let mut file = None;
        if num_rows > 0 {
            let replies = self
                .segment
                .replies(self.rows.iter().map(|(_, line)| *line))?;
            let replies = replies.inspect(|reply| {
                if let (true, Ok(record)) = (forgets, reply) {
                    whole.insert((record.id, record.draw));
                }
            });
            file = Some(commit(place, self.number, manifest, replies)?);
        }
        let mut unfinished = self.segment.parts()?;
        unfinished.retain(|part| !whole.contains(&part.key));
        parts.carry(self.segment.path(), unfinished)?;
        for key in &whole {
            parts.forget_row(key);
        }
        self.segment.remove()?;
        Ok(Committed { file, num_rows })
    }
}

/// A shard that is in the cache; none where every row of it failed.
#[derive(Debug)]
pub(super) struct Committed {
    /// Its name and size.
    pub(super) file: Option<(String, u64)>,
    pub(super) num_rows: u64,
}
