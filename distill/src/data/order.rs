//! Which rows a step reads: the order of an epoch, cut into batches.

use crate::config::Batching;
use crate::random::{Purpose, Randomness};
use crate::schedule::Pass;

/// Positions to which lengths are rounded up where padded positions are counted, on every device.
pub const LENGTH_BUCKET: usize = 16;

/// Rows that are sorted by length at a time: enough that a batch holds one length, few enough that the order stays
/// random over an epoch.
const WINDOW: usize = 4096;

/// The order of a run's training rows: a pure function of seed, who is trained and epoch. Every row is in one batch of
/// an epoch.
#[derive(Clone, Debug)]
pub struct RowOrder {
    batching: Batching,
    /// Bucket of each row's length.
    positions: Vec<usize>,
    randomness: Randomness,
}

impl RowOrder {
    /// An order of rows with these lengths in tokens; none is longer than `limit`, to which buckets are cut.
    pub fn new(
        batching: Batching,
        lengths: impl Iterator<Item = usize>,
        limit: usize,
        randomness: Randomness,
    ) -> Self {
        let bucket = |length: usize| {
            length
                .next_multiple_of(LENGTH_BUCKET)
                .min(limit)
                .max(length)
        };
        Self {
            batching,
            positions: lengths.map(bucket).collect(),
            randomness,
        }
    }

    /// Number of steps of a pass.
    pub fn num_batches(&self, pass: Pass) -> u64 {
        match self.batching {
            Batching::Rows(rows) => self.positions.len().div_ceil(rows.get()) as u64,
            Batching::Tokens(_) => self.batches(pass).len() as u64,
        }
    }

    /// The rows of each step of a pass.
    pub fn batches(&self, pass: Pass) -> Vec<Vec<usize>> {
        let (rows_purpose, batches_purpose) = if pass.trained.has_student() {
            (Purpose::StudentOrder, Purpose::StudentBatches)
        } else {
            (Purpose::AlignerOrder, Purpose::AlignerBatches)
        };
        let epoch = pass.epoch as u64;
        let num_rows = self.positions.len();
        let mut order = self.randomness.permutation(rows_purpose, epoch, num_rows);
        let budget = match self.batching {
            Batching::Rows(rows) => return order.chunks(rows.get()).map(<[_]>::to_vec).collect(),
            Batching::Tokens(budget) => budget.get(),
        };
        let mut batches = Vec::new();
        for window in order.chunks_mut(WINDOW) {
            // Stable: rows of one bucket stay in their random order.
            window.sort_by_key(|&row| self.positions[row]);
            self.cut(window, budget, &mut batches);
        }
        let places = self
            .randomness
            .permutation(batches_purpose, epoch, batches.len());
        places
            .into_iter()
            .map(|place| std::mem::take(&mut batches[place]))
            .collect()
    }

    /// Cuts rows sorted by length into batches of at most `budget` padded positions, or of one row.
    fn cut(&self, rows: &[usize], budget: usize, batches: &mut Vec<Vec<usize>>) {
        let mut batch: Vec<usize> = Vec::new();
        for &row in rows {
            // The row is the longest of the batch.
            if !batch.is_empty() && (batch.len() + 1) * self.positions[row] > budget {
                batches.push(std::mem::take(&mut batch));
            }
            batch.push(row);
        }
        batches.push(batch);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::schedule::Trained;

    fn pass(trained: Trained, epoch: usize) -> Pass {
        Pass { trained, epoch }
    }

    fn order(batching: Batching, seed: u64, num_rows: usize) -> RowOrder {
        let lengths = (0..num_rows).map(|row| 5 + (row * 37) % 124);
        RowOrder::new(batching, lengths, 128, Randomness::new(seed))
    }

    fn tokens(budget: usize) -> Batching {
        Batching::Tokens(NonZeroUsize::new(budget).unwrap())
    }

    #[test]
    fn every_row_is_in_one_batch_of_an_epoch_and_no_batch_is_over_the_budget() {
        for (batching, most) in [
            (tokens(1024), 1024),
            (tokens(128), 128),
            (Batching::Rows(NonZeroUsize::new(7).unwrap()), 7 * 128),
        ] {
            // More than one window, the last of them short.
            let order = order(batching, 1, 2 * WINDOW + 100);
            for pass in [pass(Trained::Student, 1), pass(Trained::Aligner, 2)] {
                let batches = order.batches(pass);
                assert_eq!(order.num_batches(pass), batches.len() as u64);
                let mut rows = batches.concat();
                rows.sort_unstable();
                assert!(rows.into_iter().eq(0..2 * WINDOW + 100));
                for batch in &batches {
                    let longest = batch.iter().map(|&row| order.positions[row]).max().unwrap();
                    assert!(longest * batch.len() <= most, "{batching:?}");
                }
            }
        }
    }

    #[test]
    fn batches_hold_rows_of_about_one_length_in_a_random_order() {
        let order = order(tokens(1024), 1, WINDOW);
        let batches = order.batches(pass(Trained::Student, 1));
        let positions: usize = order.positions.iter().sum();
        let padded: usize = batches
            .iter()
            .map(|batch| batch.len() * batch.iter().map(|&row| order.positions[row]).max().unwrap())
            .sum();
        assert!(
            padded * 100 < positions * 101,
            "{padded} of {positions} positions"
        );
        let lengths: Vec<usize> = batches
            .iter()
            .map(|batch| order.positions[batch[0]])
            .collect();
        let num_rising = lengths.windows(2).filter(|pair| pair[0] <= pair[1]).count();
        assert!(
            num_rising * 10 < lengths.len() * 8,
            "{num_rising} of {} steps are no shorter than the one before",
            lengths.len()
        );
    }

    #[test]
    fn the_order_follows_from_seed_and_epoch() {
        for batching in [tokens(512), Batching::Rows(NonZeroUsize::new(8).unwrap())] {
            let batches =
                |seed, trained, epoch| order(batching, seed, 300).batches(pass(trained, epoch));
            let first = batches(1, Trained::Student, 1);
            assert_eq!(first, batches(1, Trained::Student, 1));
            assert_eq!(first, batches(1, Trained::Both, 1));
            for other in [
                batches(2, Trained::Student, 1),
                batches(1, Trained::Student, 2),
                batches(1, Trained::Aligner, 1),
            ] {
                assert_ne!(first, other, "{batching:?}");
            }
        }
    }
}
