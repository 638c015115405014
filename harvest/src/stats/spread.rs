//! How numbers are spread: exact moments, and percentiles from a bounded sample.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use serde::Serialize;

/// Values that are kept for the percentiles: 512 KiB.
const SAMPLE_SIZE: usize = 65_536;

/// Collects numbers one at a time.
///
/// Mean and deviation are those of all numbers (Welford's recurrence). Percentiles are exact up to 65,536 numbers and
/// come from a uniform sample of that many beyond (reservoir sampling, seeded, so equal input gives equal output).
#[derive(Clone, Debug)]
pub struct Spread {
    count: u64,
    mean: f64,
    sum_of_squares: f64,
    min: f64,
    max: f64,
    sample: Vec<f64>,
    random: ChaCha8Rng,
}

/// What was collected.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct SpreadSummary {
    /// Numbers.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, as of a whole population.
    pub sd: f64,
    /// The least.
    pub min: f64,
    /// The fifth percentile (nearest rank).
    pub p5: f64,
    /// The median (nearest rank).
    pub p50: f64,
    /// The ninety-fifth percentile (nearest rank).
    pub p95: f64,
    /// The ninety-ninth percentile (nearest rank).
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Default for Spread {
    fn default() -> Self {
        Self {
            count: 0,
            mean: 0.0,
            sum_of_squares: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sample: Vec::new(),
            random: ChaCha8Rng::seed_from_u64(0),
        }
    }
}

impl Spread {
    /// Adds a number, which must be finite.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        let delta = value - self.mean;
        self.mean += delta / self.count as f64;
        self.sum_of_squares += delta * (value - self.mean);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if self.sample.len() < SAMPLE_SIZE {
            self.sample.push(value);
        } else {
            let slot = self.random.next_u64() % self.count;
            if let Some(kept) = usize::try_from(slot)
                .ok()
                .and_then(|slot| self.sample.get_mut(slot))
            {
                *kept = value;
            }
        }
    }

    /// The sum of all numbers.
    pub fn sum(&self) -> f64 {
        self.mean * self.count as f64
    }

    /// The summary; `None` where there are no numbers.
    pub fn summary(mut self) -> Option<SpreadSummary> {
        if self.count == 0 {
            return None;
        }
        self.sample.sort_by(f64::total_cmp);
        let percentile = |percent: usize| {
            let rank = (self.sample.len() * percent).div_ceil(100).max(1);
            self.sample[rank - 1]
        };
        Some(SpreadSummary {
            count: self.count,
            mean: self.mean,
            sd: (self.sum_of_squares / self.count as f64).sqrt(),
            min: self.min,
            p5: percentile(5),
            p50: percentile(50),
            p95: percentile(95),
            p99: percentile(99),
            max: self.max,
        })
    }
}

impl SpreadSummary {
    /// On one line, with six significant digits.
    pub fn line(&self) -> String {
        format!(
            "mean {}, sd {}, min {}, 5% {}, 50% {}, 95% {}, 99% {}, max {}",
            short(self.mean),
            short(self.sd),
            short(self.min),
            short(self.p5),
            short(self.p50),
            short(self.p95),
            short(self.p99),
            short(self.max)
        )
    }
}

/// `value` with about six significant digits.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e15).contains(&size) {
        return format!("{value:.3e}");
    }
    let digits = match size {
        size if size >= 1e5 => 0,
        size if size >= 1e3 => 2,
        size if size >= 1.0 => 4,
        _ => 6,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
    fn moments_and_percentiles_of_one_to_ten() {
        let mut spread = Spread::default();
        for value in [3, 1, 2, 10, 9, 8, 4, 7, 6, 5] {
            spread.add(f64::from(value));
        }
        let summary = spread.summary().unwrap();
        assert!((summary.mean - 5.5).abs() < 1e-12);
        // The variance of 1..=n is (n * n - 1) / 12.
        assert!((summary.sd - 8.25_f64.sqrt()).abs() < 1e-12);
        assert_eq!(
            [
                summary.min,
                summary.p5,
                summary.p50,
                summary.p95,
                summary.max
            ],
            [1.0, 1.0, 5.0, 10.0, 10.0]
        );
        assert_eq!(Spread::default().summary(), None);
    }

    #[test]
    fn the_sample_stays_bounded_and_fair() {
        let mut spread = Spread::default();
        for value in 0..400_000 {
            spread.add(f64::from(value));
        }
        assert_eq!(spread.sample.len(), SAMPLE_SIZE);
        let summary = spread.summary().unwrap();
        // The median of 65,536 draws lies within 0.02 of the middle: ten standard errors.
        assert!((summary.p50 / 400_000.0 - 0.5).abs() < 0.02, "{summary:?}");
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 1.5, 1e-7, 123_456.7, 0.123_456_7, 100.0].map(short);
        assert_eq!(texts, ["0", "1.5", "1.000e-7", "123457", "0.123457", "100"]);
    }
}
