//! The `[generation]` table: how answers are written and weighed when a student is evaluated.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::student::sampling::Sampling;

/// How answers are written and weighed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationConfig {
    /// Most tokens of one answer.
    pub max_new_tokens: NonZeroUsize,
    /// Answers that are written, or options that are weighed, at the same time.
    pub batch_size: NonZeroUsize,
    /// Tokens are drawn, from the run's seed; left out, the likeliest is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        let count = |value| NonZeroUsize::new(value).expect("a literal over zero");
        Self {
            max_new_tokens: count(64),
            batch_size: count(16),
            sampling: None,
        }
    }
}
