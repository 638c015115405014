//! Parameters of a BERT encoder, grouped as the published checkpoints group them.
//!
//! Shape suffixes: `n` rows (batch times positions), `i` input width, `o` output width,
//! `v` table rows, `d` hidden width.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, FloatDType, Int, Tensor, module};

use crate::device::Precision;

/// BERT draws its weights from N(0, 0.02²) (Devlin et al., arXiv 1810.04805, appendix A.2).
const INITIAL_DEVIATION: f64 = 0.02;

fn normal() -> Initializer {
    Initializer::Normal {
        mean: 0.0,
        std: INITIAL_DEVIATION,
    }
}

/// `y = x W + bias`, the weight stored as `[input, output]`.
#[derive(Module, Debug)]
pub(super) struct Linear {
    pub(super) weight: Param<Tensor<2>>,
    pub(super) bias: Param<Tensor<1>>,
}

impl Linear {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self {
            weight: normal().init([input, output], device),
            bias: Initializer::Zeros.init([output], device),
        }
    }

    /// `[n, i]` to `[n, o]`; the product is computed and returned in `precision`.
    pub(super) fn forward(&self, input_ni: Tensor<2>, precision: Precision) -> Tensor<2> {
        module::linear(
            to_precision(input_ni, precision),
            to_precision(self.weight.val(), precision),
            Some(to_precision(self.bias.val(), precision)),
        )
    }
}

/// Casts to the compute precision; free when the tensor has it already.
pub(super) fn to_precision<const D: usize>(tensor: Tensor<D>, precision: Precision) -> Tensor<D> {
    match precision {
        Precision::F32 => tensor,
        Precision::Bf16 => tensor.cast(FloatDType::BF16),
    }
}

/// Casts a result of `precision` to f32; free when it is f32 already.
pub(super) fn to_f32<const D: usize>(tensor: Tensor<D>, precision: Precision) -> Tensor<D> {
    match precision {
        Precision::F32 => tensor,
        Precision::Bf16 => tensor.cast(FloatDType::F32),
    }
}

/// A table of vectors `[v, d]`.
#[derive(Module, Debug)]
pub(super) struct Embedding {
    pub(super) weight: Param<Tensor<2>>,
}

impl Embedding {
    pub(super) fn new(rows: usize, width: usize, device: &Device) -> Self {
        Self {
            weight: normal().init([rows, width], device),
        }
    }

    /// Ids `[b, s]` to vectors `[b, s, d]`.
    pub(super) fn forward(&self, ids_bs: Tensor<2, Int>) -> Tensor<3> {
        module::embedding(self.weight.val(), ids_bs)
    }
}

/// `(x − mean) / √(variance + ε) · weight + bias` over the last axis (Ba et al., arXiv 1607.06450).
#[derive(Module, Debug)]
pub(super) struct LayerNorm {
    pub(super) weight: Param<Tensor<1>>,
    pub(super) bias: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    pub(super) fn new(width: usize, epsilon: f64, device: &Device) -> Self {
        Self {
            weight: Initializer::Ones.init([width], device),
            bias: Initializer::Zeros.init([width], device),
            epsilon,
        }
    }

    /// `[n, d]` to `[n, d]`, in f32.
    pub(super) fn forward(&self, input_nd: Tensor<2>) -> Tensor<2> {
        module::layer_norm(
            input_nd,
            self.weight.val(),
            Some(self.bias.val()),
            self.epsilon,
        )
    }
}
