//! The allowance for rows that cannot be used.

use crate::error::Error;

/// Skipped rows that are kept for the report; the count goes on beyond.
const MAX_LISTED: usize = 100;

/// How many bad rows a run may skip, and which it did.
///
/// One value serves a whole run, so that the allowance covers all splits together.
#[derive(Debug, Default)]
pub struct SkipBadRows {
    allowance: u64,
    num_skipped: u64,
    listed: Vec<Error>,
}

impl SkipBadRows {
    /// Allows `allowance` bad rows; 0 stops at the first.
    pub fn new(allowance: u64) -> Self {
        Self {
            allowance,
            num_skipped: 0,
            listed: Vec::new(),
        }
    }

    /// The rows that were skipped, the first hundred of them, each an [`Error::BadRow`].
    pub fn skipped(&self) -> &[Error] {
        &self.listed
    }

    /// How many rows were skipped.
    pub fn num_skipped(&self) -> u64 {
        self.num_skipped
    }

    /// Passes over a bad row while the allowance lasts; gives back every other error.
    pub(super) fn pass_over(&mut self, error: Error) -> Result<(), Error> {
        if !matches!(error, Error::BadRow { .. }) || self.num_skipped == self.allowance {
            return Err(error);
        }
        self.num_skipped += 1;
        if self.listed.len() < MAX_LISTED {
            self.listed.push(error);
        }
        Ok(())
    }
}
