//! Text-only students: one module per architecture, Hugging Face directories in and out.
//!
//! A student's [`Backbone`] turns token ids into hidden states and one pooled vector per row. It comes
//! from a Hugging Face directory ([`Backbone::from_pretrained`]) or fresh from a configuration
//! ([`Backbone::fresh`]), and goes back to a directory that `transformers` loads
//! ([`save::save_pretrained`]).
//!
//! A [`LanguageModel`] is a causal backbone with the layer that predicts the next token.
//!
//! # Training and evaluation
//!
//! Dropout acts only where a backward pass is possible: the module's parameters lie on a device
//! opened with [`Device::autodiff`](burn::tensor::Device::autodiff) and the module is in training
//! state. [`Module::valid`](burn::module::Module::valid) returns a copy without either, which is
//! what evaluation uses: no dropout, no recorded graph.
//!
//! # Adding an architecture
//!
//! A folder with the module, whose fields are named as in published checkpoints, and its
//! [`Trunk`](trunk::Trunk), beside a configuration with [`Architecture`](architecture::Architecture); a
//! variant in [`Backbone`] and in [`BackboneConfig`]; a fixture from `scripts/fixtures`.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `d` hidden width.

mod activation;
pub mod architecture;
mod attention;
pub mod backbone;
pub mod bert;
pub mod causal;
pub mod chat;
pub mod checkpointing;
pub mod deberta_v2;
mod decoder;
mod error;
mod fields;
mod fresh;
pub mod generation;
mod layers;
mod layout;
pub mod llama;
pub mod lora;
pub mod opt;
pub mod parity;
pub mod peft;
pub mod pretrained;
mod qwen;
pub mod roberta;
mod rotary;
pub mod sampling;
pub mod save;
mod special_tokens;
mod tensor_file;
pub mod tokenizer;
pub mod trunk;
pub mod weights;

use burn::tensor::{Int, Tensor};

pub use architecture::BackboneConfig;
pub use backbone::Backbone;
pub use causal::LanguageModel;
pub use decoder::Cache;
pub use error::StudentError;
pub use fresh::FreshBertConfig;
pub use lora::LoraConfig;
pub use pretrained::{LoadReport, PretrainedFiles};
pub use rotary::Rotary;
pub use special_tokens::SpecialTokens;
pub use tokenizer::{Encoding, TextTokenizer, WordPieceOptions};

/// One padded batch of token ids.
///
/// The three tensors have one shape, `[batch, sequence]`, and lie on the backbone's device.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    /// Token ids `[b, s]`, each below the vocabulary size.
    pub token_ids_bs: Tensor<2, Int>,
    /// Segment ids `[b, s]`: 0 for the first text, 1 for the second.
    pub type_ids_bs: Tensor<2, Int>,
    /// 1 where a token is real, 0 where it is padding, `[b, s]`. Padding may stand on either side.
    pub attention_mask_bs: Tensor<2, Int>,
}

/// What a backbone makes of one [`TokenBatch`], in f32 whatever the compute precision.
#[derive(Debug, Clone)]
pub struct BackboneOutput {
    /// Last hidden states `[b, s, d]`; positions under padding carry no meaning.
    pub hidden_bsd: Tensor<3>,
    /// One vector per row `[b, d]`: for encoders the pooler's, for causal language models the last
    /// real token's hidden state.
    pub pooled_bd: Tensor<2>,
}
