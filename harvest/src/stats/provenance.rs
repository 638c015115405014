//! How the replies of a cache came to be.

use std::collections::BTreeMap;

use schemas::Provenance;
use serde::Serialize;

use super::count;
use super::spread::{Spread, SpreadSummary};

/// What the servers said about the replies.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ProvenanceStats {
    /// Rows of each served model; `(not told)` where the server said nothing.
    pub served_models: BTreeMap<String, u64>,
    /// Rows of each fingerprint.
    pub fingerprints: BTreeMap<String, u64>,
    /// Rows of each finish reason.
    pub finish_reasons: BTreeMap<String, u64>,
    /// Tokens of requests.
    pub tokens_in: Option<SpreadSummary>,
    /// Tokens of replies.
    pub tokens_out: Option<SpreadSummary>,
    /// All tokens of requests.
    pub total_tokens_in: u64,
    /// All tokens of replies.
    pub total_tokens_out: u64,
    /// Cost of all rows, in the currency of the configured price; absent where no row has one.
    pub total_cost: Option<f64>,
    /// Requests sent for a row.
    pub tries: Option<SpreadSummary>,
    /// Milliseconds of the successful request.
    pub latency_ms: Option<SpreadSummary>,
    /// When the first and the last reply came, in milliseconds since 1970, UTC.
    pub answered_at: Option<(i64, i64)>,
}

const NOT_TOLD: &str = "(not told)";

#[derive(Debug, Default)]
pub(super) struct Collector {
    served_models: BTreeMap<String, u64>,
    fingerprints: BTreeMap<String, u64>,
    finish_reasons: BTreeMap<String, u64>,
    tokens_in: Spread,
    tokens_out: Spread,
    total_tokens: [u64; 2],
    total_cost: Option<f64>,
    tries: Spread,
    latency_ms: Spread,
    answered_at: Option<(i64, i64)>,
}

impl Collector {
    pub(super) fn add(&mut self, row: &Provenance) {
        for (counts, value) in [
            (&mut self.served_models, &row.served_model),
            (&mut self.fingerprints, &row.fingerprint),
            (&mut self.finish_reasons, &row.finish_reason),
        ] {
            count(counts, value.as_deref().unwrap_or(NOT_TOLD));
        }
        for (index, (spread, value)) in [
            (&mut self.tokens_in, row.tokens_in),
            (&mut self.tokens_out, row.tokens_out),
        ]
        .into_iter()
        .enumerate()
        {
            if let Some(value) = value {
                spread.add(f64::from(value));
                self.total_tokens[index] += u64::from(value);
            }
        }
        if let Some(cost) = row.cost {
            *self.total_cost.get_or_insert(0.0) += cost;
        }
        self.tries.add(f64::from(row.tries));
        if let Some(latency) = row.latency_ms.filter(|latency| latency.is_finite()) {
            self.latency_ms.add(f64::from(latency));
        }
        if let Some(at) = row.answered_at {
            let (first, last) = self.answered_at.unwrap_or((at, at));
            self.answered_at = Some((first.min(at), last.max(at)));
        }
    }

    pub(super) fn finish(self) -> ProvenanceStats {
        ProvenanceStats {
            served_models: self.served_models,
            fingerprints: self.fingerprints,
            finish_reasons: self.finish_reasons,
            tokens_in: self.tokens_in.summary(),
            tokens_out: self.tokens_out.summary(),
            total_tokens_in: self.total_tokens[0],
            total_tokens_out: self.total_tokens[1],
            total_cost: self.total_cost,
            tries: self.tries.summary(),
            latency_ms: self.latency_ms.summary(),
            answered_at: self.answered_at,
        }
    }
}

impl ProvenanceStats {
    /// One model name can be served from several quantisations.
    pub(super) fn warnings(&self) -> Vec<String> {
        let several = |what: &str, counts: &BTreeMap<String, u64>| {
            (counts.len() > 1).then(|| {
                let rows: Vec<String> = counts
                    .iter()
                    .map(|(name, num)| format!("{name} ({num} rows)"))
                    .collect();
                format!("more than one {what} answered: {}", rows.join(", "))
            })
        };
        [
            several("served model", &self.served_models),
            several("fingerprint", &self.fingerprints),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
