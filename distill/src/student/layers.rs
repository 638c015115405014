//! Layers that students are built of; parameters are grouped as the published checkpoints group them.
//!
//! Shape suffixes: `n` rows (batch times positions), `i` input width, `o` output width,
//! `v` table rows, `d` hidden width.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, FloatDType, Int, Tensor, module};

use super::lora::Adapter;
use crate::device::Precision;
use crate::dropout::{Dropout, Mask};
use crate::kernels;
use crate::kernels::norm::Norm;

/// BERT draws its weights from N(0, 0.02²) (Devlin et al., arXiv 1810.04805, appendix A.2).
const INITIAL_DEVIATION: f64 = 0.02;

fn normal() -> Initializer {
    Initializer::Normal {
        mean: 0.0,
        std: INITIAL_DEVIATION,
    }
}

/// `y = x W + bias`, the weight stored as `[input, output]`; with an adapter, what it adds.
#[derive(Module, Debug)]
pub struct Linear {
    pub(super) weight: Param<Tensor<2>>,
    pub(super) bias: Option<Param<Tensor<1>>>,
    pub(super) adapter: Option<Adapter>,
}

impl Linear {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self {
            weight: normal().init([input, output], device),
            bias: Some(Initializer::Zeros.init([output], device)),
            adapter: None,
        }
    }

    pub(super) fn without_bias(input: usize, output: usize, device: &Device) -> Self {
        Self {
            weight: normal().init([input, output], device),
            bias: None,
            adapter: None,
        }
    }

    /// `[n, i]` to `[n, o]`; the product is computed and returned in `precision`.
    pub(super) fn forward(&self, input_ni: Tensor<2>, precision: Precision) -> Tensor<2> {
        let added_no = self
            .adapter
            .as_ref()
            .map(|adapter| adapter.forward(input_ni.clone(), precision));
        let input_ni = to_precision(input_ni, precision);
        let weight_io = to_precision(self.weight.val(), precision);
        let bias_o = self
            .bias
            .as_ref()
            .map(|bias| to_precision(bias.val(), precision));
        let output_no = match bias_o {
            Some(bias_o) if kernels::fits(&input_ni) => {
                kernels::linear::linear(input_ni, weight_io, bias_o)
            }
            bias_o => module::linear(input_ni, weight_io, bias_o),
        };
        match added_no {
            Some(added_no) => output_no + added_no,
            None => output_no,
        }
    }
}

/// Casts to the compute precision; free when the tensor has it already.
pub(super) fn to_precision<const D: usize>(tensor: Tensor<D>, precision: Precision) -> Tensor<D> {
    tensor.cast(match precision {
        Precision::F32 => FloatDType::F32,
        Precision::Bf16 => FloatDType::BF16,
    })
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

    /// Ids `[b, s]` to vectors `[b, s, d]`, in f32 also where the table is stored in bf16.
    pub(super) fn forward(&self, ids_bs: Tensor<2, Int>) -> Tensor<3> {
        module::embedding(self.weight.val(), ids_bs).cast(FloatDType::F32)
    }

    /// The table in f32, `[v, d]`.
    pub(super) fn table(&self) -> Tensor<2> {
        self.weight.val().cast(FloatDType::F32)
    }

    /// The first rows of the table in f32, `[rows, d]`.
    pub(super) fn first_rows(&self, rows: usize) -> Tensor<2> {
        self.weight.val().narrow(0, 0, rows).cast(FloatDType::F32)
    }

    /// The table as the output layer of a language model: `[n, d]` to a score for each of its rows, f32 `[n, v]`.
    pub(super) fn scores(&self, hidden_nd: Tensor<2>, precision: Precision) -> Tensor<2> {
        let weight_dv = to_precision(self.weight.val(), precision).transpose();
        let scores_nv = to_precision(hidden_nd, precision).matmul(weight_dv);
        to_f32(scores_nv, precision)
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
        if self.fits(&input_nd) {
            return self.fused(input_nd, None, None);
        }
        module::layer_norm(
            input_nd,
            self.weight.val(),
            Some(self.bias.val()),
            self.epsilon,
        )
    }

    /// The norm of `dropout(input) + residual`, all `[n, d]`, in f32.
    pub(super) fn forward_residual(
        &self,
        input_nd: Tensor<2>,
        dropout: &Dropout,
        residual_nd: Tensor<2>,
    ) -> Tensor<2> {
        if self.fits(&input_nd) {
            let mask = dropout.mask(&input_nd);
            return self.fused(input_nd, mask, Some(residual_nd));
        }
        self.forward(dropout.forward(input_nd) + residual_nd)
    }

    /// Frozen parameters may be stored in another format.
    fn fits(&self, input_nd: &Tensor<2>) -> bool {
        kernels::fits(input_nd) && kernels::fits(&self.weight.val())
    }

    fn fused(
        &self,
        input_nd: Tensor<2>,
        dropout: Option<Mask>,
        residual_nd: Option<Tensor<2>>,
    ) -> Tensor<2> {
        let norm = Norm {
            centred: true,
            epsilon: self.epsilon,
            dropout,
        };
        let (weight_d, bias_d) = (self.weight.val(), self.bias.val());
        norm.forward(input_nd, residual_nd, weight_d, Some(bias_d))
    }
}

/// `x / √(mean(x²) + ε) · weight` over the last axis (Zhang and Sennrich, arXiv 1910.07467).
#[derive(Module, Debug)]
pub(super) struct RmsNorm {
    weight: Param<Tensor<1>>,
    epsilon: f64,
}

impl RmsNorm {
    pub(super) fn new(width: usize, epsilon: f64, device: &Device) -> Self {
        Self {
            weight: Initializer::Ones.init([width], device),
            epsilon,
        }
    }

    /// `[.., d]` to `[.., d]`, in f32.
    pub(super) fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        if kernels::fits(&input) && kernels::fits(&self.weight.val()) {
            let norm = Norm {
                centred: false,
                epsilon: self.epsilon,
                dropout: None,
            };
            let shape = input.shape();
            let rows_nd = input.flatten(0, D - 2);
            let normed_nd = norm.forward(rows_nd, None, self.weight.val(), None);
            return normed_nd.reshape(shape);
        }
        let mean_square = (input.clone() * input.clone()).mean_dim(D - 1);
        let scale = mean_square.add_scalar(self.epsilon).sqrt().recip();
        input * scale * self.weight.val().unsqueeze::<D>()
    }
}
