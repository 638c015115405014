//! Random streams, split by purpose and position.
//!
//! Every random number of a run follows from the run's seed, what it is for and where in the run it is drawn, never from
//! what was drawn before. So a resumed run draws what the uninterrupted one would have drawn, and two variants of a run
//! share initial weights and data order although one of them draws more.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

/// Domain separation of the stream keys; a change of it changes every run.
const CONTEXT: &[u8] = b"Armada 2026 distill random streams v1";

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights of the student's encoder.
    EncoderWeights,
    /// Initial weights of the student's adapters.
    AdapterWeights,
    /// Initial weights of the student's heads.
    HeadWeights,
    /// Initial weights of the aligner.
    AlignerWeights,
    /// Order of the examples in an epoch of the student.
    StudentOrder,
    /// Order of the examples in an epoch of the aligner alone.
    AlignerOrder,
    /// Order of the batches in an epoch of the student, where rows are batched by length.
    StudentBatches,
    /// Order of the batches in an epoch of the aligner alone, where rows are batched by length.
    AlignerBatches,
    /// Dropout in a step of the student.
    StudentDropout,
    /// Dropout in a step of the aligner.
    AlignerDropout,
    /// Rounding of the optimiser's moments to bf16.
    MomentRounding,
    /// The permutation of the `shuffled` control.
    FeaturePermutation,
    /// The noise of the `noise` control.
    FeatureNoise,
    /// The tokens that are drawn when text is written.
    Sampling,
}

impl Purpose {
    fn name(self) -> &'static [u8] {
        match self {
            Self::EncoderWeights => b"encoder weights",
            Self::AdapterWeights => b"adapter weights",
            Self::HeadWeights => b"head weights",
            Self::AlignerWeights => b"aligner weights",
            Self::StudentOrder => b"student order",
            Self::AlignerOrder => b"aligner order",
            Self::StudentBatches => b"student batches",
            Self::AlignerBatches => b"aligner batches",
            Self::StudentDropout => b"student dropout",
            Self::AlignerDropout => b"aligner dropout",
            Self::MomentRounding => b"moment rounding",
            Self::FeaturePermutation => b"feature permutation",
            Self::FeatureNoise => b"feature noise",
            Self::Sampling => b"sampling",
        }
    }
}

/// The random state of a run: its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Randomness {
    seed: u64,
}

impl Randomness {
    /// All streams of a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// ChaCha8 keyed with the SHA-256 of seed, purpose and position.
    pub fn stream(self, purpose: Purpose, position: &[u8]) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.key(purpose, position))
    }

    /// A seed for a device's own generator.
    pub fn device_seed(self, purpose: Purpose, position: u64) -> u64 {
        self.device_seed_at(purpose, &position.to_le_bytes())
    }

    /// As [`Randomness::device_seed`], for positions of several parts.
    pub fn device_seed_at(self, purpose: Purpose, position: &[u8]) -> u64 {
        let key = self.key(purpose, position);
        let (head, _) = key.split_first_chunk().expect("a digest has 32 bytes");
        u64::from_le_bytes(*head)
    }

    /// A permutation of `0..len` (Fisher and Yates).
    pub fn permutation(self, purpose: Purpose, position: u64, len: usize) -> Vec<usize> {
        self.swapped(purpose, position, len, |last| last + 1)
    }

    /// A permutation of `0..len` that is one cycle (Sattolo, 1986): from length 2 on, nothing stays in its place.
    pub fn cycle(self, purpose: Purpose, position: u64, len: usize) -> Vec<usize> {
        self.swapped(purpose, position, len, |last| last)
    }

    /// `0..len`, each place from the last down to 1 swapped with one below `bound` of it.
    fn swapped(
        self,
        purpose: Purpose,
        position: u64,
        len: usize,
        bound: fn(usize) -> usize,
    ) -> Vec<usize> {
        let mut random = self.stream(purpose, &position.to_le_bytes());
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            order.swap(last, below(&mut random, bound(last)));
        }
        order
    }

    fn key(self, purpose: Purpose, position: &[u8]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for part in [CONTEXT, &self.seed.to_le_bytes(), purpose.name(), position] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}

/// A uniform number under `bound`; values that would favour small numbers are drawn again.
fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    let bound = bound as u64;
    let fair = u64::MAX - u64::MAX % bound;
    loop {
        let drawn = random.next_u64();
        if drawn < fair {
            return (drawn % bound) as usize;
        }
    }
}

/// Fills `values` with independent standard normal numbers (Box and Muller, 1958).
pub fn fill_normal(random: &mut ChaCha8Rng, values: &mut [f32]) {
    // 53 random bits in (0, 1]: the logarithm of zero is not taken.
    let mut uniform = || ((random.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    for pair in values.chunks_mut(2) {
        let radius = (-2.0 * uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * uniform();
        for (value, part) in pair.iter_mut().zip([angle.cos(), angle.sin()]) {
            *value = (radius * part) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_pinned_and_apart() {
        let random = Randomness::new(1);
        let order = random.permutation(Purpose::StudentOrder, 0, 8);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(order, random.permutation(Purpose::StudentOrder, 0, 8));
        let others = [
            random.permutation(Purpose::StudentOrder, 1, 64),
            random.permutation(Purpose::AlignerOrder, 0, 64),
            Randomness::new(2).permutation(Purpose::StudentOrder, 0, 64),
            random.permutation(Purpose::StudentOrder, 0, 64),
        ];
        for (index, one) in others.iter().enumerate() {
            assert!(!others[..index].contains(one));
        }
        assert_ne!(
            random.device_seed(Purpose::StudentDropout, 1),
            random.device_seed(Purpose::StudentDropout, 2)
        );
    }

    #[test]
    fn a_cycle_comes_back_after_all_of_it() {
        for len in [2, 3, 50] {
            let order = Randomness::new(7).cycle(Purpose::FeaturePermutation, 0, len);
            let (mut place, mut num_steps) = (order[0], 1);
            while place != 0 {
                (place, num_steps) = (order[place], num_steps + 1);
            }
            assert_eq!(num_steps, len);
        }
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_deviation_one() {
        let mut values = vec![0.0; 20_001];
        fill_normal(
            &mut Randomness::new(3).stream(Purpose::FeatureNoise, b"x"),
            &mut values,
        );
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let square =
            values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64;
        // Five standard errors.
        assert!(mean.abs() < 0.036, "{mean}");
        assert!((square - 1.0).abs() < 0.05, "{square}");
    }
}
