//! How the next token is taken from the logits: on the host, in double precision, so that the same numbers give the same
//! tokens on every device.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// What makes the distribution that tokens are drawn from. Applied in this order, as `transformers` does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SamplingDocument", into = "SamplingDocument")]
pub struct Sampling {
    temperature: f64,
    top_k: Option<usize>,
    top_p: f64,
}

/// As written in a configuration.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SamplingDocument {
    #[serde(default = "one")]
    temperature: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    top_k: Option<usize>,
    #[serde(default = "one")]
    top_p: f64,
}

fn one() -> f64 {
    1.0
}

impl TryFrom<SamplingDocument> for Sampling {
    type Error = String;

    fn try_from(document: SamplingDocument) -> Result<Self, String> {
        Self::new(document.temperature, document.top_k, document.top_p)
    }
}

impl From<Sampling> for SamplingDocument {
    fn from(sampling: Sampling) -> Self {
        Self {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
        }
    }
}

impl Sampling {
    /// Divides logits by `temperature`, keeps the `top_k` largest, then the fewest that hold `top_p` of the probability
    /// (nucleus sampling, Holtzman et al., arXiv 1904.09751).
    ///
    /// # Errors
    /// A sentence about the number that is out of range.
    pub fn new(temperature: f64, top_k: Option<usize>, top_p: f64) -> Result<Self, String> {
        if !(1e-6..=1e6).contains(&temperature) {
            return Err(format!(
                "temperature is {temperature}; it lies between 1e-6 and 1e6, and without a table `sampling` the \
                 likeliest token is taken"
            ));
        }
        if top_k == Some(0) {
            return Err("top_k is 0; it keeps one token or more".to_owned());
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(format!(
                "top_p is {top_p}; it is a share, over 0 and at most 1"
            ));
        }
        Ok(Self {
            temperature,
            top_k,
            top_p,
        })
    }

    /// The probability of every token; of tokens with equal logits, those of smaller ids are kept first.
    pub fn distribution(&self, logits: &[f32]) -> Vec<f64> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&one, &other| logits[other].total_cmp(&logits[one]).then(one.cmp(&other)));
        order.truncate(self.top_k.unwrap_or(usize::MAX));
        let Some(&first) = order.first() else {
            return Vec::new();
        };
        let largest = f64::from(logits[first]);
        let weight = |token: usize| ((f64::from(logits[token]) - largest) / self.temperature).exp();
        let total: f64 = order.iter().map(|&token| weight(token)).sum();
        // A token is kept while those before it hold less than `top_p`; so the first always is.
        let mut before = 0.0;
        order.retain(|&token| {
            let is_kept = before < self.top_p || self.top_p >= 1.0;
            before += weight(token) / total;
            is_kept
        });
        let kept: f64 = order.iter().map(|&token| weight(token)).sum();
        let mut distribution = vec![0.0; logits.len()];
        for token in order {
            distribution[token] = weight(token) / kept;
        }
        distribution
    }

    /// A token drawn from the distribution.
    pub fn draw(&self, logits: &[f32], random: &mut ChaCha8Rng) -> usize {
        // 53 random bits in [0, 1).
        let uniform = (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let distribution = self.distribution(logits);
        let mut sum = 0.0;
        let mut last = 0;
        for (token, probability) in distribution.into_iter().enumerate() {
            if probability > 0.0 {
                (sum, last) = (sum + probability, token);
                if uniform < sum {
                    break;
                }
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Randomness};

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, -1.0];

    #[test]
    fn the_largest_are_kept_and_share_all_probability() {
        let distribution = Sampling::new(1.0, Some(2), 1.0)
            .unwrap()
            .distribution(&LOGITS);
        assert!((distribution[1] - 0.731_058_578_630_004_9).abs() < 1e-15);
        assert!((distribution[2] - 0.268_941_421_369_995_1).abs() < 1e-15);
        assert_eq!((distribution[0], distribution[3]), (0.0, 0.0));
        // Probabilities are 0.644, 0.237, 0.087, 0.032.
        for (top_p, num_kept) in [
            (0.1, 1),
            (0.64, 1),
            (0.65, 2),
            (0.89, 3),
            (0.99, 4),
            (1.0, 4),
        ] {
            let distribution = Sampling::new(1.0, None, top_p)
                .unwrap()
                .distribution(&LOGITS);
            let num_positive = distribution.iter().filter(|&&p| p > 0.0).count();
            assert_eq!(num_positive, num_kept, "top_p {top_p}");
            assert!((distribution.iter().sum::<f64>() - 1.0).abs() < 1e-15);
        }
    }

    #[test]
    fn draws_follow_the_distribution_and_the_stream() {
        let sampling = Sampling::new(0.7, None, 1.0).unwrap();
        let draws = || {
            let mut random = Randomness::new(5).stream(Purpose::Sampling, b"test");
            (0..4000).map(move |_| sampling.draw(&LOGITS, &mut random))
        };
        assert!(draws().eq(draws()));
        for (token, probability) in sampling.distribution(&LOGITS).into_iter().enumerate() {
            let share = draws().filter(|&drawn| drawn == token).count() as f64 / 4000.0;
            // Five standard errors.
            let bound = 5.0 * (probability * (1.0 - probability) / 4000.0).sqrt();
            assert!(
                (share - probability).abs() < bound,
                "{token}: {share}, not {probability}"
            );
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        for (temperature, top_k, top_p, problem) in [
            (0.0, None, 1.0, "temperature is 0; "),
            (f64::NAN, None, 1.0, "temperature is NaN; "),
            (1.0, Some(0), 1.0, "top_k is 0; "),
            (1.0, None, 0.0, "top_p is 0; "),
            (1.0, None, 1.1, "top_p is 1.1; "),
        ] {
            let error = Sampling::new(temperature, top_k, top_p).unwrap_err();
            assert!(error.starts_with(problem), "{error}");
        }
    }
}
