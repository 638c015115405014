//! What replies show of a teacher besides its signals.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// What was seen, each thing once.
#[derive(Debug, Default)]
pub struct Observed(Mutex<BTreeSet<(&'static str, String)>>);

impl Observed {
    /// Notes what a reply has shown, under a name of one word.
    pub fn note(&self, name: &'static str, text: impl Into<String>) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert((name, text.into()));
    }

    /// Names and texts, in their order.
    pub fn all(&self) -> Vec<(&'static str, String)> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().cloned().collect()
    }
}
