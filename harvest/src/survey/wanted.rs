//! The join of a data set's rows with what a cache knows.

use std::collections::BTreeMap;

use schemas::ExampleId;

use super::bits::Bits;
use super::known::{self, Known};
use crate::cache::Key;
use crate::spill::{NUM_PARTS, Spill};

/// Digest of what a row's request says, 128 bits.
pub(crate) type RequestDigest = [u8; 16];

/// Rows of a data set as they are read: id, digest of the request, position.
#[derive(Debug, Default)]
pub(super) struct Rows {
    by_id: Spill<40>,
    num_positions: u64,
    blocks: Blocks,
}

/// A hash of the ids of each block of rows, to tell whether the data set changed since.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Blocks {
    whole: Vec<u64>,
    open: u64,
    num_open: usize,
}

impl Blocks {
    /// Rows of a block.
    pub(super) const ROWS: usize = 64;

    pub(super) fn add(&mut self, id: ExampleId) {
        let (_, low) = id.as_bytes().split_last_chunk::<8>().expect("16 bytes");
        let mixed = (self.open ^ u64::from_be_bytes(*low)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.open = mixed.rotate_left(31);
        self.num_open += 1;
        if self.num_open == Self::ROWS {
            self.close();
        }
    }

    /// Ends the last block.
    pub(super) fn close(&mut self) {
        if self.num_open > 0 {
            self.whole.push(self.open);
            self.open = 0;
            self.num_open = 0;
        }
    }

    /// Whether the block at `index` has these ids.
    pub(super) fn holds(&self, index: usize, ids: impl Iterator<Item = ExampleId>) -> bool {
        let mut block = Self::default();
        ids.for_each(|id| block.add(id));
        block.close();
        self.whole.get(index) == block.whole.first()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.whole.len()
    }
}

/// What is to be asked, copied and left alone.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// One bit for each position and draw: to be asked.
    pub(super) pending: Bits,
    pub(super) num_positions: u64,
    pub(super) blocks: Blocks,
    /// Rows that get the reply of another one, whose request is the same: source to targets.
    pub(super) copies: BTreeMap<Key, Vec<ExampleId>>,
    pub(super) num_rows: u64,
    pub(super) num_duplicates: u64,
    pub(super) num_present: u64,
    pub(super) num_failed: u64,
    pub(super) num_copies: u64,
}

impl Rows {
    pub(super) fn add(
        &mut self,
        id: ExampleId,
        digest: RequestDigest,
    ) -> Result<(), schemas::Error> {
        let position = self.num_positions;
        let mut record = [0; 40];
        record[..16].copy_from_slice(id.as_bytes());
        record[16..24].copy_from_slice(&position.to_be_bytes());
        record[24..].copy_from_slice(&digest);
        self.pass_over(id);
        self.by_id.push(record)
    }

    /// A position that no request is for: rows of another slice.
    pub(super) fn pass_over(&mut self, id: ExampleId) {
        self.num_positions += 1;
        self.blocks.add(id);
    }

    pub(super) fn join(mut self, known: &mut Known, draws: u32) -> Result<Wanted, schemas::Error> {
        self.blocks.close();
        let mut wanted = Wanted {
            pending: Bits::new(self.num_positions * u64::from(draws)),
            num_positions: self.num_positions,
            blocks: std::mem::take(&mut self.blocks),
            ..Wanted::default()
        };
        let mut by_digest = Spill::<40>::default();
        let (mut rows, mut keys) = (Vec::new(), Vec::new());
        // One bit for each position and draw, as long as rows are compared.
        let mut present = Bits::new(self.num_positions * u64::from(draws));
        for part in 0..NUM_PARTS {
            self.by_id.part(part, &mut rows)?;
            known.keys.part(part, &mut keys)?;
            rows.sort_unstable();
            keys.sort_unstable();
            let mut keys = keys.iter().map(known::unpack).peekable();
            for same in rows.chunk_by(|a, b| a[..16] == b[..16]) {
                wanted.num_rows += 1;
                wanted.num_duplicates += same.len() as u64 - 1;
                let row = Row::unpack(&same[0]);
                while keys.next_if(|((id, _), _)| *id < row.id).is_some() {}
                let mut settled = vec![None; draws as usize];
                while let Some(((_, draw), is_committed)) =
                    keys.next_if(|((id, _), _)| *id == row.id)
                {
                    if let Some(settled) = settled.get_mut(draw as usize) {
                        // A row can have failed before it was committed; what is committed counts.
                        *settled = Some(settled.unwrap_or(false) | is_committed);
                    }
                }
                let first = row.position * u64::from(draws);
                for (bit, settled) in (first..).zip(settled) {
                    match settled {
                        None => wanted.pending.set(bit),
                        Some(true) => present.set(bit),
                        Some(false) => wanted.num_failed += 1,
                    }
                }
                by_digest.push(row.by_digest())?;
            }
        }
        drop(self);
        wanted.num_present = present.num_set();
        wanted.share(by_digest, &present, draws)?;
        Ok(wanted)
    }
}

impl Wanted {
    /// Of rows whose requests say the same, one is asked about and the others copy its reply.
    fn share(
        &mut self,
        mut by_digest: Spill<40>,
        present: &Bits,
        draws: u32,
    ) -> Result<(), schemas::Error> {
        let mut rows = Vec::new();
        for part in 0..NUM_PARTS {
            by_digest.part(part, &mut rows)?;
            rows.sort_unstable();
            let same = rows.chunk_by(|a, b| a[..16] == b[..16]);
            for same in same.filter(|same| same.len() > 1) {
                let same: Vec<Row> = same.iter().map(Row::unpack_by_digest).collect();
                for draw in 0..draws {
                    self.share_draw(&same, present, draw, draws);
                }
            }
        }
        Ok(())
    }

    fn share_draw(&mut self, same: &[Row], present: &Bits, draw: u32, draws: u32) {
        let bit = |row: &Row| row.position * u64::from(draws) + u64::from(draw);
        let committed = same.iter().find(|row| present.get(bit(row)));
        let first_pending = same.iter().find(|row| self.pending.get(bit(row)));
        let Some(source) = committed.or(first_pending) else {
            return;
        };
        for row in same {
            if row.id != source.id && self.pending.get(bit(row)) {
                self.pending.clear(bit(row));
                self.num_copies += 1;
                self.copies
                    .entry((source.id, draw))
                    .or_default()
                    .push(row.id);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Row {
    id: ExampleId,
    position: u64,
    digest: RequestDigest,
}

impl Row {
    fn unpack(record: &[u8; 40]) -> Self {
        let (id, rest) = record.split_first_chunk::<16>().expect("40 bytes");
        let (position, rest) = rest.split_first_chunk::<8>().expect("24 bytes");
        Self {
            id: ExampleId::from(*id),
            position: u64::from_be_bytes(*position),
            digest: rest.try_into().expect("16 bytes"),
        }
    }

    /// Digest, position, id.
    fn by_digest(&self) -> [u8; 40] {
        let mut record = [0; 40];
        record[..16].copy_from_slice(&self.digest);
        record[16..24].copy_from_slice(&self.position.to_be_bytes());
        record[24..].copy_from_slice(self.id.as_bytes());
        record
    }

    fn unpack_by_digest(record: &[u8; 40]) -> Self {
        let (digest, rest) = record.split_first_chunk().expect("40 bytes");
        let (position, id) = rest.split_first_chunk::<8>().expect("24 bytes");
        Self {
            digest: *digest,
            position: u64::from_be_bytes(*position),
            id: ExampleId::from(<[u8; 16]>::try_from(id).expect("16 bytes")),
        }
    }
}
