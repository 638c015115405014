//! Features and class logits.

use serde::Serialize;

use super::rank::{EffectiveRank, RankCollector};
use super::repeats::{RepeatCounter, Repeats};
use super::spread::{Spread, SpreadSummary};

/// What is known of the vectors of one signal.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct VectorStats {
    /// Elements of a vector.
    pub width: usize,
    /// Euclidean norms of the finite vectors.
    pub norms: Option<SpreadSummary>,
    /// Elements that are not a number. A writer refuses them, so there are none; they are counted, not assumed.
    pub num_nan: u64,
    /// Elements that are infinite; as above.
    pub num_infinite: u64,
    /// Vectors of zeros.
    pub num_zero: u64,
    /// Vectors that another row has bit by bit.
    pub repeats: Repeats,
    /// Dimensions that have one value in all rows.
    pub num_constant: usize,
    /// The first sixteen of them, from 0.
    pub first_constant: Vec<usize>,
    /// How many dimensions the vectors use; absent with fewer than two finite rows.
    pub effective_rank: Option<EffectiveRank>,
    /// Mean cosine over all pairs of different rows, vectors of zeros left out; absent with fewer than two rows.
    pub mean_cosine: Option<f64>,
}

#[derive(Debug)]
pub(super) struct Collector {
    width: usize,
    norms: Spread,
    num_nan: u64,
    num_infinite: u64,
    num_zero: u64,
    repeats: RepeatCounter,
    first: Vec<f32>,
    is_constant: Vec<bool>,
    rank: RankCollector,
    sum_of_units: Vec<f64>,
    num_units: u64,
}

impl Collector {
    pub(super) fn new(width: usize, num_expected: u64) -> Self {
        Self {
            width,
            norms: Spread::default(),
            num_nan: 0,
            num_infinite: 0,
            num_zero: 0,
            repeats: RepeatCounter::default(),
            first: Vec::new(),
            is_constant: vec![true; width],
            rank: RankCollector::new(width, num_expected),
            sum_of_units: vec![0.0; width],
            num_units: 0,
        }
    }

    pub(super) fn add(&mut self, vector: &[f32]) {
        let bytes: Vec<u8> = vector
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.repeats.add(&bytes);
        if self.first.is_empty() {
            self.first = vector.to_vec();
        }
        for (is_constant, (value, first)) in self
            .is_constant
            .iter_mut()
            .zip(vector.iter().zip(&self.first))
        {
            *is_constant &= value.to_bits() == first.to_bits();
        }
        let num_nan = vector.iter().filter(|value| value.is_nan()).count() as u64;
        let num_infinite = vector.iter().filter(|value| value.is_infinite()).count() as u64;
        self.num_nan += num_nan;
        self.num_infinite += num_infinite;
        if num_nan + num_infinite > 0 {
            return;
        }
        let squares = vector.iter().map(|value| f64::from(*value).powi(2));
        let norm = squares.sum::<f64>().sqrt();
        self.norms.add(norm);
        self.rank.add(vector);
        if norm == 0.0 {
            self.num_zero += 1;
            return;
        }
        self.num_units += 1;
        for (sum, value) in self.sum_of_units.iter_mut().zip(vector) {
            *sum += f64::from(*value) / norm;
        }
    }

    pub(super) fn finish(self) -> VectorStats {
        let constant: Vec<usize> = (0..self.width)
            .filter(|index| self.is_constant[*index] && !self.first.is_empty())
            .collect();
        // The square of a sum of n unit vectors is n plus the cosines of all ordered pairs.
        let num_units = self.num_units as f64;
        let square: f64 = self.sum_of_units.iter().map(|sum| sum * sum).sum();
        VectorStats {
            width: self.width,
            norms: self.norms.summary(),
            num_nan: self.num_nan,
            num_infinite: self.num_infinite,
            num_zero: self.num_zero,
            repeats: self.repeats.finish(),
            num_constant: constant.len(),
            first_constant: constant.into_iter().take(16).collect(),
            effective_rank: self.rank.finish(),
            mean_cosine: (self.num_units > 1)
                .then(|| (square - num_units) / (num_units * (num_units - 1.0))),
        }
    }
}

impl VectorStats {
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.num_nan + self.num_infinite > 0 {
            warnings.push(format!(
                "{} elements are not a number and {} are infinite",
                self.num_nan, self.num_infinite
            ));
        }
        if self.num_zero > 0 {
            warnings.push(format!("{} vectors are all zeros", self.num_zero));
        }
        warnings
    }
}

/// What is known of class logits as distributions.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ClassStats {
    /// Rows whose largest logit is that of each class.
    pub balance: Vec<u64>,
    /// Entropies of the distributions at temperature 1, in nats.
    pub entropy: Option<SpreadSummary>,
}

#[derive(Debug)]
pub(super) struct ClassCollector {
    balance: Vec<u64>,
    entropy: Spread,
}

impl ClassCollector {
    pub(super) fn new(width: usize) -> Self {
        Self {
            balance: vec![0; width],
            entropy: Spread::default(),
        }
    }

    pub(super) fn add(&mut self, logits: &[f32]) {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return;
        }
        // The first of equal ones, as argmax is in NumPy and PyTorch.
        let largest = (0..logits.len())
            .rev()
            .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
            .expect("a signal is at least one wide");
        self.balance[largest] += 1;
        let logprobs = log_softmax(logits);
        self.entropy
            .add(logprobs.iter().map(|lp| -lp.exp() * lp).sum());
    }

    pub(super) fn finish(self) -> ClassStats {
        ClassStats {
            balance: self.balance,
            entropy: self.entropy.summary(),
        }
    }
}

/// Natural log-probabilities of finite logits.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted: Vec<f64> = logits
        .iter()
        .map(|logit| f64::from(*logit) - f64::from(largest))
        .collect();
    let log_sum = shifted.iter().map(|value| value.exp()).sum::<f64>().ln();
    shifted.into_iter().map(|value| value - log_sum).collect()
}
