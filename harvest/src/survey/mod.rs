//! Which rows are still to be asked about, found without holding the data set in memory.
//!
//! The data set is read once; ids and digests of requests go through temporary files where they are many
//! and are joined part by part with what the cache knows. What is left in memory is one bit for each row and draw, one
//! for each row, and forty bytes for each row that shares its request with another.

pub(crate) mod bits;
mod known;
mod wanted;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use schemas::{Example, ExampleId, Split};

use crate::cache::Key;
use crate::error::Error;
use crate::plan::{NUM_LISTED, Plan};
use crate::teacher::Request;

pub use known::Known;

use bits::Bits;
use wanted::{Blocks, Rows, Wanted};

/// What a data set has and what of it a cache has.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Rows of each split.
    pub rows: Vec<(Split, u64)>,
    /// Rows with the same fields as an earlier one; they are asked about once.
    pub num_duplicates: u64,
    /// Replies that a complete cache has.
    pub num_wanted: u64,
    /// How many of them are missing and did not fail before.
    pub num_missing: u64,
    /// Missing rows that get the reply of another row, whose request says the same.
    pub num_copies: u64,
    /// Rows that failed before and are not asked about again.
    pub num_failed: u64,
    /// The first rows to ask about.
    pub first_missing: Vec<Pending>,
    /// The first request of all.
    pub first: Option<Request>,
    /// Rows of the cache that the data set does not ask for.
    pub num_extra: u64,
    /// Rows that were skipped as bad.
    pub num_skipped: u64,
    /// The first of them, one sentence each.
    pub skipped: Vec<String>,
    wanted: Arc<Wanted>,
}

/// A request and its place in the data set, which orders the rows of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Counts rows and draws in the order of the data set.
    pub position: u64,
    /// The request.
    pub request: Request,
}

impl Plan {
    /// Reads the whole data set once, before anything is paid for, and compares it with what a cache knows.
    ///
    /// # Errors
    /// [`schemas::Error::BadRow`] and the other errors of reading a data set; [`Error::NoRows`] where there is no row
    /// at all.
    pub fn survey(&self, known: &mut Known) -> Result<Survey, Error> {
        let mut survey = Survey::default();
        let mut rows = Rows::default();
        let mut skip = self.allowance();
        for split in self.splits() {
            let mut num_rows = 0;
            for example in self.rows(split, &mut skip)? {
                let example = example?;
                let request = self.request(&example, 0);
                let digest = request.digest();
                if self.slice().is_some_and(|slice| !slice.holds(&digest)) {
                    rows.pass_over(example.id());
                    continue;
                }
                num_rows += 1;
                rows.add(example.id(), digest)?;
                survey.first.get_or_insert(request);
            }
            survey.rows.push((split.clone(), num_rows));
        }
        survey.num_skipped = skip.num_skipped();
        survey.skipped = skip.skipped().iter().map(ToString::to_string).collect();
        let wanted = rows.join(known, self.draws())?;
        if wanted.num_positions == 0 {
            return Err(self.no_rows());
        }
        survey.num_duplicates = wanted.num_duplicates;
        survey.num_wanted = wanted.num_rows * u64::from(self.draws());
        survey.num_missing = wanted.pending.num_set() + wanted.num_copies;
        survey.num_copies = wanted.num_copies;
        survey.num_failed = wanted.num_failed;
        if self.slice().is_none() {
            survey.num_extra = known.num_committed() - wanted.num_present;
        }
        survey.wanted = Arc::new(wanted);
        survey.first_missing = self.some(&survey, survey.wanted.pending.iter().take(NUM_LISTED))?;
        Ok(survey)
    }

    /// Up to `num` of the rows to ask about, drawn at random: the same ones each time.
    ///
    /// # Errors
    /// As [`survey`](Self::survey); [`Error::DatasetChanged`].
    pub fn sample(&self, survey: &Survey, num: usize) -> Result<Vec<Pending>, Error> {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut chosen: Vec<u64> = Vec::new();
        for (seen, position) in survey.wanted.pending.iter().enumerate() {
            if chosen.len() < num {
                chosen.push(position);
            } else {
                let at = random.random_range(0..=seen);
                if let Some(slot) = chosen.get_mut(at) {
                    *slot = position;
                }
            }
        }
        self.some(survey, chosen.into_iter())
    }

    fn some(
        &self,
        survey: &Survey,
        positions: impl Iterator<Item = u64>,
    ) -> Result<Vec<Pending>, Error> {
        let mut chosen = Bits::new(survey.wanted.num_positions * u64::from(self.draws()));
        positions.for_each(|position| chosen.set(position));
        let mut left = chosen.num_set();
        let mut found = Vec::new();
        if left > 0 {
            self.each_of(&survey.wanted, &chosen, |pending| {
                found.push(pending);
                left -= 1;
                left > 0
            })?;
        }
        Ok(found)
    }

    /// Hands every request that is missing to `send`, in the order of the data set, each once, until `send` answers
    /// `false`. `settled` are
    /// keys among the first that were settled since the survey.
    ///
    /// # Errors
    /// As [`survey`](Self::survey); [`Error::DatasetChanged`] where the data set is no longer the one surveyed.
    pub fn each_pending(
        &self,
        survey: &Survey,
        settled: &[Key],
        mut send: impl FnMut(Pending) -> bool,
    ) -> Result<(), Error> {
        self.each_of(&survey.wanted, &survey.wanted.pending, |pending| {
            let key = (pending.request.id, pending.request.draw);
            settled.contains(&key) || send(pending)
        })
    }

    fn each_of(
        &self,
        wanted: &Wanted,
        chosen: &Bits,
        mut send: impl FnMut(Pending) -> bool,
    ) -> Result<(), Error> {
        let mut skip = self.allowance();
        let mut block: Vec<Example> = Vec::with_capacity(Blocks::ROWS);
        let mut num_blocks = 0;
        for split in self.splits() {
            for example in self.rows(split, &mut skip)? {
                block.push(example?);
                if block.len() == Blocks::ROWS {
                    if !self.send_block(wanted, chosen, num_blocks, &block, &mut send)? {
                        return Ok(());
                    }
                    num_blocks += 1;
                    block.clear();
                }
            }
        }
        if !block.is_empty() {
            if !self.send_block(wanted, chosen, num_blocks, &block, &mut send)? {
                return Ok(());
            }
            num_blocks += 1;
        }
        if num_blocks == wanted.blocks.len() {
            Ok(())
        } else {
            Err(self.changed())
        }
    }

    /// Sends what is chosen of a block once all of it was seen to be as surveyed.
    fn send_block(
        &self,
        wanted: &Wanted,
        chosen: &Bits,
        index: usize,
        block: &[Example],
        send: &mut impl FnMut(Pending) -> bool,
    ) -> Result<bool, Error> {
        if !wanted.blocks.holds(index, block.iter().map(Example::id)) {
            return Err(self.changed());
        }
        let first = (index * Blocks::ROWS) as u64;
        for (row, example) in (first..).zip(block) {
            for draw in 0..self.draws() {
                let position = row * u64::from(self.draws()) + u64::from(draw);
                let is_sent = !chosen.get(position)
                    || send(Pending {
                        position,
                        request: self.request(example, draw),
                    });
                if !is_sent {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

impl Survey {
    /// Rows that get the reply of another row: the source and its targets.
    pub fn copies(&self) -> &BTreeMap<Key, Vec<ExampleId>> {
        &self.wanted.copies
    }

    /// Requests to send.
    pub fn num_requests(&self) -> u64 {
        self.num_missing - self.num_copies
    }
}
