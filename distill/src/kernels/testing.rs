//! Kernels against what burn's operations compute.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// An input of a kernel.
pub(super) struct Case {
    shape: [usize; 2],
    deviation: f64,
    mean: f64,
    is_tracked: bool,
}

impl Case {
    pub(super) fn random(shape: [usize; 2], deviation: f64) -> Self {
        Self {
            shape,
            deviation,
            mean: 0.0,
            is_tracked: true,
        }
    }

    pub(super) fn around(self, mean: f64) -> Self {
        Self { mean, ..self }
    }

    pub(super) fn frozen(self) -> Self {
        Self {
            is_tracked: false,
            ..self
        }
    }
}

/// Values of the output and the gradients of all inputs that are tracked are within 1e-5 of the largest of them.
pub(super) fn compare<const D: usize>(
    cases: &[Case],
    kernel: impl Fn(&[Tensor<2>]) -> Tensor<D>,
    composed: impl Fn(&[Tensor<2>]) -> Tensor<D>,
) {
    let (actual, expected) = (results(cases, kernel), results(cases, composed));
    for (place, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        assert_eq!(actual.len(), expected.len());
        let largest = expected
            .iter()
            .fold(1e-6_f32, |most, value| most.max(value.abs()));
        for (actual, expected) in actual.iter().zip(expected) {
            let difference = (actual - expected).abs() / largest;
            assert!(difference < 1e-5, "{place}: {actual} is not {expected}");
        }
    }
}

/// Values of the output and the gradients of all inputs that are tracked.
pub(super) fn results<const D: usize>(
    cases: &[Case],
    compute: impl Fn(&[Tensor<2>]) -> Tensor<D>,
) -> Vec<Vec<f32>> {
    let inputs: Vec<Tensor<2>> = (7..)
        .zip(cases)
        .map(|(seed, case)| {
            let input = drawn(case.shape, seed).mul_scalar(case.deviation) + case.mean;
            if case.is_tracked {
                input.require_grad()
            } else {
                input
            }
        })
        .collect();
    let output = compute(&inputs);
    // A gradient that differs from place to place.
    let weights = drawn([output.shape().num_elements(), 1], 6).reshape(output.shape());
    let gradients = (output.clone() * weights).sum().backward();
    let tracked = inputs.iter().zip(cases).filter(|(_, case)| case.is_tracked);
    let pulled = tracked.map(|(input, _)| input.grad(&gradients).unwrap().into_data());
    [output.into_data()]
        .into_iter()
        .chain(pulled)
        .map(|data| data.try_to_vec::<f32>().unwrap())
        .collect()
}

/// From the standard normal distribution. The device's generator is not used: other tests draw from it at the same time.
pub(super) fn drawn(shape: [usize; 2], seed: u64) -> Tensor<2> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // The sum of twelve uniform numbers has variance 1.
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|_| (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
}
