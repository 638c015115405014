//! Activations by the names that `config.json` uses.

use burn::tensor::{Tensor, activation};

use crate::kernels;

/// Activation between the matrices of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)` with the error function: `gelu`.
    Gelu,
    /// The tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415): `gelu_new` or
    /// `gelu_pytorch_tanh`.
    GeluTanh,
    /// `max(x, 0)`: `relu`.
    Relu,
    /// `x σ(x)` (Elfwing et al., arXiv 1702.03118): `silu` or `swish`.
    Silu,
    /// `tanh`.
    Tanh,
}

impl Activation {
    /// Every name that [`Activation::parse`] takes.
    pub(super) const NAMES: &str =
        "gelu, gelu_python, gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh";

    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            "silu" | "swish" => Some(Self::Silu),
            "tanh" => Some(Self::Tanh),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
            Self::Relu => "relu",
            Self::Silu => "silu",
            Self::Tanh => "tanh",
        }
    }

    pub(super) fn forward<const D: usize>(self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu if kernels::fits(&input) => kernels::gelu::gelu(input),
            Self::Gelu => activation::gelu(input),
            Self::GeluTanh => activation::gelu_approximate(input),
            Self::Relu => activation::relu(input),
            Self::Silu => activation::silu(input),
            Self::Tanh => activation::tanh(input),
        }
    }
}
