//! Dropout with masks that cost little beside the matrix products of a step.

use burn::module::Module;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use rayon::prelude::*;

/// Values of a 16-bit word, of which one decides about an element.
const WORDS: f64 = 65_536.0;

/// Elements that are drawn at a time.
const PIECE: usize = 1024;

/// Elements of a block that one thread draws.
const BLOCK: usize = 1 << 14;

/// Sets elements to zero with some probability and scales the others so that the mean stays (Srivastava et al., 2014).
///
/// Acts only on tensors that a backward pass is possible for. Masks follow from [`Device::seed`].
///
/// On the CPU a mask is drawn with 16 random bits an element, so that a probability is met to 1/65,536; the scale is that
/// of the probability met, so that the mean is exact.
#[derive(Module, Debug)]
pub struct Dropout {
    probability: f64,
}

impl Dropout {
    /// `probability` is in `[0, 1)`.
    pub fn new(probability: f64) -> Self {
        Self { probability }
    }

    /// Any shape to the same.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        if !self.acts_on(&input) {
            return input;
        }
        let device = input.device().inner();
        let mask = if device == Device::flex() {
            let shape = input.shape();
            let mask = Mask::draw(1.0 - self.probability, &device).values(shape.num_elements());
            let data = TensorData::new(mask, shape);
            Tensor::<D>::from_data(data, (&device, DType::F32)).cast(input.dtype())
        } else {
            let keep = 1.0 - self.probability;
            let like = input.clone().inner();
            like.random_like(Distribution::Bernoulli(keep))
                .div_scalar(keep)
        };
        input * Tensor::from_inner(mask)
    }

    /// What an operation on the CPU drops out by itself; none where dropout does not act.
    pub(crate) fn mask<const D: usize>(&self, input: &Tensor<D>) -> Option<Mask> {
        self.acts_on(input)
            .then(|| Mask::draw(1.0 - self.probability, &input.device().inner()))
    }

    fn acts_on<const D: usize>(&self, input: &Tensor<D>) -> bool {
        self.probability != 0.0 && input.device().is_autodiff()
    }
}

/// What elements are multiplied with, zero or the scale, drawn anew wherever it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask {
    seed: [u8; 32],
    /// Of 65,536 words, how many keep an element; 1 at least.
    kept_words: i32,
}

impl Mask {
    /// The device's own generator draws a word of 64 bits an element on one thread; here it only draws a seed.
    #[expect(
        clippy::disallowed_methods,
        reason = "on the CPU alone, which has computed it already"
    )]
    fn draw(keep: f64, device: &Device) -> Self {
        let seed = Tensor::<1, Int>::random([16], Distribution::Uniform(0.0, WORDS), device);
        let mut bytes = [0; 32];
        let words = seed.into_data().convert::<i64>();
        let words = words.as_slice::<i64>().expect("just converted");
        for (place, word) in bytes.chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_le_bytes()[..2]);
        }
        Self::from_seed(bytes, keep)
    }

    fn from_seed(seed: [u8; 32], keep: f64) -> Self {
        Self {
            seed,
            kept_words: (keep * WORDS).round().max(1.0) as i32,
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(keep: f64) -> Self {
        Self::from_seed([3; 32], keep)
    }

    /// The factors of a block; every block has a stream of its own.
    pub(crate) fn factors(&self, block: u64, factors: &mut [f32]) {
        let mut stream = ChaCha8Rng::from_seed(self.seed);
        stream.set_stream(block);
        let scale = (WORDS / f64::from(self.kept_words)) as f32;
        let mut random = [0; 2 * PIECE];
        for factors in factors.chunks_mut(PIECE) {
            stream.fill_bytes(&mut random);
            let (words, _) = random.as_chunks::<2>();
            for (factor, word) in factors.iter_mut().zip(words) {
                let is_kept = i32::from(u16::from_le_bytes(*word)) < self.kept_words;
                *factor = f32::from(u8::from(is_kept)) * scale;
            }
        }
    }

    fn values(&self, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        values
            .par_chunks_mut(BLOCK)
            .enumerate()
            .for_each(|(block, factors)| self.factors(block as u64, factors));
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::{Others, drawing};

    fn dropped(seed: u64, probability: f64) -> Vec<f32> {
        let device = Device::flex().autodiff();
        let ones = Tensor::<2>::ones([64, 128], &device);
        // Other tests draw at the same time.
        let output = drawing(&device, seed, Others::Draw, || {
            Dropout::new(probability).forward(ones)
        });
        output.into_data().as_slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn the_share_and_the_scale_are_right() {
        for probability in [0.1, 0.5, 0.9] {
            let values = dropped(3, probability);
            let keep = 1.0 - probability;
            let kept = values.iter().filter(|&&value| value != 0.0).count();
            let share = kept as f64 / values.len() as f64;
            // Five standard deviations of 8,192 draws.
            let bound = 5.0 * (keep * probability / values.len() as f64).sqrt();
            assert!((share - keep).abs() < bound, "{share} for {keep}");
            let scale = f64::from(values.iter().copied().fold(0.0, f32::max));
            assert!((scale * keep - 1.0).abs() < 1e-4, "{scale} for {keep}");
        }
    }

    #[test]
    fn masks_follow_from_the_seed() {
        assert_eq!(dropped(1, 0.1), dropped(1, 0.1));
        assert_ne!(dropped(1, 0.1), dropped(2, 0.1));
    }

    #[test]
    fn the_gradient_passes_where_the_value_did() {
        let device = Device::flex().autodiff();
        let input = Tensor::<1>::ones([256], &device).require_grad();
        let output = Dropout::new(0.5).forward(input.clone());
        let gradients = output.clone().sum().backward();
        let gradient = input.grad(&gradients).unwrap();
        assert_eq!(gradient.into_data(), output.inner().into_data());
    }

    #[test]
    fn nothing_happens_in_evaluation() {
        let input = Tensor::<1>::ones([16], &Device::flex());
        let output = Dropout::new(0.5).forward(input.clone());
        assert_eq!(output.into_data(), input.into_data());
    }
}
