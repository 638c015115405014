//! How far two values of a signal are from each other.

use std::collections::HashMap;

use schemas::record::{TokenTopK, TopKPosition};
use schemas::{SignalKind, SignalValue};
use serde::Serialize;

use crate::stats::log_softmax;

/// What is measured. Every measure is 0 for equal values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// One minus the cosine of two vectors; 1 where one of them is zeros and the other is not.
    CosineDistance,
    /// The largest absolute difference of two elements.
    MaxAbs,
    /// Kullback-Leibler divergence in nats of the second reply's distribution from the first's. For token top-k it is
    /// the mean over the positions of both, over the tokens that both have at a position and one event for all
    /// others; a position that only one has, and one without a shared token, counts as `ln 2`.
    Kl,
    /// The largest difference of log-probabilities of a token that both have at a position.
    MaxLogprob,
    /// 0 for equal texts or pictures, 1 for others.
    Mismatch,
}

impl Measure {
    /// The measures of a kind of signal.
    pub fn of(kind: &SignalKind) -> Vec<Self> {
        match kind {
            SignalKind::Feature { .. } => vec![Self::CosineDistance, Self::MaxAbs],
            SignalKind::ClassLogits { .. } => vec![Self::Kl, Self::MaxAbs],
            SignalKind::TokenTopK { .. } => vec![Self::Kl, Self::MaxLogprob],
            SignalKind::Text | SignalKind::Image => vec![Self::Mismatch],
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::CosineDistance => "cosine_distance",
            Self::MaxAbs => "max_abs",
            Self::Kl => "kl",
            Self::MaxLogprob => "max_logprob",
            Self::Mismatch => "mismatch",
        }
    }

    /// Differences of two distances that mean nothing: a cold and a cached run of one server differ by about 1e-6 in a
    /// log-probability, and a value beside the boundary of two halves (`f16`) by 1/1024 of itself.
    pub(super) fn tolerance(self, cached: &SignalValue) -> f64 {
        match (self, cached) {
            (Self::CosineDistance | Self::Kl, _) => 1e-5,
            (Self::MaxAbs, SignalValue::Vector(values)) => {
                let largest = values.iter().map(|value| value.abs()).fold(0.0, f32::max);
                f64::from(largest) * 2e-3
            }
            (Self::MaxLogprob, _) => 1e-4,
            _ => 0.0,
        }
    }

    /// The distance of `second` from `first`; both are of the kind that this measure is for.
    pub(super) fn between(self, first: &SignalValue, second: &SignalValue) -> f64 {
        match (self, first, second) {
            (Self::CosineDistance, SignalValue::Vector(a), SignalValue::Vector(b)) => {
                cosine_distance(a, b)
            }
            (Self::MaxAbs, SignalValue::Vector(a), SignalValue::Vector(b)) => a
                .iter()
                .zip(b)
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
                .fold(0.0, f64::max),
            (Self::Kl, SignalValue::Vector(a), SignalValue::Vector(b)) => {
                kl(&log_softmax(a), &log_softmax(b))
            }
            (Self::Kl, SignalValue::TokenTopK(a), SignalValue::TokenTopK(b)) => top_k_kl(a, b),
            (Self::MaxLogprob, SignalValue::TokenTopK(a), SignalValue::TokenTopK(b)) => a
                .positions
                .iter()
                .zip(&b.positions)
                .flat_map(|(a, b)| shared(a, b))
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max),
            (Self::Mismatch, first, second) => f64::from(u8::from(first != second)),
            (measure, ..) => unreachable!("{measure:?} is not for this kind of signal"),
        }
    }
}

fn cosine_distance(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let squares = dot(a, a) * dot(b, b);
    if a == b {
        0.0
    } else if squares == 0.0 {
        1.0
    } else {
        (1.0 - dot(a, b) / squares.sqrt()).max(0.0)
    }
}

/// Of log-probabilities of the same events.
fn kl(a: &[f64], b: &[f64]) -> f64 {
    let terms = a.iter().zip(b).map(|(a, b)| match a.exp() {
        0.0 => 0.0,
        p => p * (a - b),
    });
    terms.sum::<f64>().max(0.0)
}

/// The log-probabilities of the tokens that two positions share.
fn shared(a: &TopKPosition, b: &TopKPosition) -> Vec<(f64, f64)> {
    let others: HashMap<_, f32> = b
        .entries
        .iter()
        .map(|entry| (&entry.token, entry.logprob))
        .collect();
    a.entries
        .iter()
        .filter_map(|entry| {
            let other = others.get(&entry.token)?;
            Some((f64::from(entry.logprob), f64::from(*other)))
        })
        .collect()
}

fn top_k_kl(a: &TokenTopK, b: &TokenTopK) -> f64 {
    let num = a.positions.len().max(b.positions.len());
    if num == 0 {
        return 0.0;
    }
    let both = a.positions.iter().zip(&b.positions);
    let sum: f64 = both.map(|(a, b)| position_kl(a, b)).sum();
    let num_alone = a.positions.len().abs_diff(b.positions.len());
    (sum + num_alone as f64 * std::f64::consts::LN_2) / num as f64
}

fn position_kl(a: &TopKPosition, b: &TopKPosition) -> f64 {
    /// What rounding leaves of no mass at all; its logarithm is finite.
    const LEAST_MASS: f64 = 1e-9;
    let pairs = shared(a, b);
    if pairs.is_empty() {
        let is_empty = a.entries.is_empty() && b.entries.is_empty();
        return if is_empty {
            0.0
        } else {
            std::f64::consts::LN_2
        };
    }
    let (mut of_a, mut of_b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    for side in [&mut of_a, &mut of_b] {
        let mass: f64 = side.iter().map(|logprob| logprob.exp()).sum();
        side.push((1.0 - mass).max(LEAST_MASS).ln());
    }
    kl(&of_a, &of_b)
}
