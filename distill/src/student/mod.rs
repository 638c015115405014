//! Text-only students: one file per architecture, Hugging Face directories in and out.
//!
//! A student is an [`Encoder`] that turns token ids into hidden states and one pooled vector per
//! row. It comes from a Hugging Face directory ([`Encoder::from_pretrained`]) or fresh from a
//! configuration ([`Encoder::fresh`]), and goes back to a directory that `transformers` loads
//! ([`save::save_pretrained`]).
//!
//! # Training and evaluation
//!
//! Dropout acts only where a backward pass is possible: the module's parameters lie on a device
//! opened with [`Device::autodiff`](burn::tensor::Device::autodiff) and the module is in training
//! state. [`Module::valid`](burn::module::Module::valid) returns a copy without either, which is
//! what evaluation uses: no dropout, no recorded graph.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `d` hidden width.

pub mod bert;
pub mod config;
mod error;
mod layers;
pub mod pretrained;
pub mod save;
pub mod tokenizer;
pub mod weights;

use burn::tensor::{Int, Tensor};

pub use bert::Encoder;
pub use config::{Activation, BertConfig, FreshBertConfig};
pub use error::StudentError;
pub use pretrained::{LoadReport, PretrainedFiles};
pub use tokenizer::{Encoding, TextTokenizer, WordPieceOptions};

/// One padded batch of token ids.
///
/// The three tensors have one shape, `[batch, sequence]`, and lie on the encoder's device.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    /// Token ids `[b, s]`, each below the vocabulary size.
    pub token_ids_bs: Tensor<2, Int>,
    /// Segment ids `[b, s]`: 0 for the first text, 1 for the second.
    pub type_ids_bs: Tensor<2, Int>,
    /// 1 where a token is real, 0 where it is padding, `[b, s]`.
    pub attention_mask_bs: Tensor<2, Int>,
}

/// What an encoder makes of one [`TokenBatch`], in f32 whatever the compute precision.
#[derive(Debug, Clone)]
pub struct EncoderOutput {
    /// Last hidden states `[b, s, d]`; positions under padding carry no meaning.
    pub hidden_bsd: Tensor<3>,
    /// Pooled first position `[b, d]`: `tanh(W h_0 + bias)`.
    pub pooled_bd: Tensor<2>,
}
