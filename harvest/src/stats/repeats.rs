//! Rows whose value equals another row's.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};

use serde::Serialize;

/// Distinct values that are remembered, one 64-bit digest each: at most 600 MB with the table around them. Two
/// different values among as many share a digest with a probability of about 1 in 130,000.
const MAX_DISTINCT: usize = 1 << 24;

/// Counts values that were there before.
#[derive(Debug, Default)]
pub struct RepeatCounter {
    /// Whether the value of a digest was there twice.
    seen: HashMap<u64, bool>,
    num_repeated: u64,
    is_cut: bool,
}

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Repeats {
    /// Rows whose value at least one other row has.
    pub num_rows: u64,
    /// Different values; those beyond the first 16,777,216 are not compared.
    pub num_distinct: u64,
    /// Whether there were more values than are compared, so that both numbers are lower bounds.
    pub is_lower_bound: bool,
}

impl RepeatCounter {
    /// Adds a value by its bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        let digest = hasher.finish();
        let num_distinct = self.seen.len();
        match self.seen.get_mut(&digest) {
            Some(is_twice) => {
                self.num_repeated += if *is_twice { 1 } else { 2 };
                *is_twice = true;
            }
            None if num_distinct < MAX_DISTINCT => {
                self.seen.insert(digest, false);
            }
            None => self.is_cut = true,
        }
    }

    /// What was counted.
    pub fn finish(self) -> Repeats {
        Repeats {
            num_rows: self.num_repeated,
            num_distinct: self.seen.len() as u64,
            is_lower_bound: self.is_cut,
        }
    }
}
