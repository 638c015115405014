//! The terms of the objective, one file each.
//!
//! Every loss takes float tensors of any precision, casts them to `f32` first and returns a scalar `Tensor<1>`, so a
//! reduction is never done in `bf16`. Teacher-side tensors come first and are constants to the caller: stopping the
//! gradient is the business of [`crate::objective::Objective`], which is the only place that does it.
//!
//! Norms have gradient zero where the norm is zero (a subgradient), never `NaN`.
//!
//! Shape suffixes: `b` batch rows, `c` classes (1 for regression), `k` shared width, `n` any width.

mod cosine;
mod cross_entropy;
mod elementwise;
mod euclid;
mod inner;
mod mean_squared;
mod next_token;
mod norm;
mod softened;

pub use cosine::cosine;
pub use cross_entropy::cross_entropy;
pub use elementwise::elementwise_norm;
pub use euclid::{euclid_mean_squared, euclid_norm};
pub use inner::inner;
pub use mean_squared::{mean_squared, regression};
pub use next_token::{next_token, predicting_states, token_log_probabilities};
pub use softened::{Space, softened_norm, softened_squared};

use burn::tensor::{FloatDType, Tensor};

fn to_f32<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.cast(FloatDType::F32)
}

/// p̄: the mean over the batch, `[b, k] -> [k]`.
fn batch_mean(projection_bk: Tensor<2>) -> Tensor<1> {
    to_f32(projection_bk).mean_dim(0).squeeze_dim(0)
}

#[cfg(test)]
mod testing {
    use burn::tensor::{Device, Tensor};

    pub(super) fn device() -> Device {
        Device::flex().autodiff()
    }

    pub(super) fn matrix<const R: usize, const C: usize>(rows: [[f32; C]; R]) -> Tensor<2> {
        Tensor::from_floats(rows, &device())
    }

    pub(super) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    pub(super) fn assert_near(actual: &[f32], expected: &[f32]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!(
                (a - e).abs() <= 2e-6 * e.abs().max(0.1),
                "{actual:?} is not {expected:?}"
            );
        }
    }
}
