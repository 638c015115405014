//! The BERT encoder (Devlin et al., arXiv 1810.04805) as `transformers` computes it.
//!
//! Parameters, the residual stream, layer normalisation and softmax are f32. With
//! [`Precision::Bf16`] the matrix products and the activation between them are computed in bf16 from
//! weights cast on the fly, so that the optimiser keeps f32 master weights.
//!
//! Shape suffixes: `b` batch rows, `s` and `t` sequence positions (query and key), `n` = b·s rows,
//! `d` hidden width, `h` heads, `k` head width.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Int, Tensor, activation};

use super::layers::{Embedding, LayerNorm, Linear, to_f32, to_precision};
use super::{Activation, BertConfig, EncoderOutput, FreshBertConfig, StudentError, TextTokenizer};
use super::{TokenBatch, weights};
use crate::device::Precision;

/// Added to the attention score of a padding key: its exponential is exactly zero in f32.
const PADDING_SCORE: f32 = -1e9;

/// A BERT encoder with its pooler.
#[derive(Module, Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "fields are named as in published checkpoints"
)]
pub struct Encoder {
    embeddings: Embeddings,
    encoder: LayerStack,
    pooler: Pooler,
    #[module(skip)]
    config: BertConfig,
    #[module(skip)]
    precision: Precision,
}

#[derive(Module, Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "fields are named as in published checkpoints"
)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct LayerStack {
    layer: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    attention: Attention,
    intermediate: Intermediate,
    output: ResidualProjection,
}

#[derive(Module, Debug)]
struct Attention {
    self_attention: SelfAttention,
    output: ResidualProjection,
}

#[derive(Module, Debug)]
struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct Intermediate {
    dense: Linear,
}

/// `layer_norm(dropout(dense(x)) + residual)`, the end of both halves of a layer.
#[derive(Module, Debug)]
struct ResidualProjection {
    dense: Linear,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct Pooler {
    dense: Linear,
}

/// What every layer of one forward pass shares.
struct Pass {
    batch: usize,
    positions: usize,
    num_heads: usize,
    head_size: usize,
    activation: Activation,
    precision: Precision,
    /// 0 for a real key, [`PADDING_SCORE`] for padding.
    padding_score_b11t: Tensor<4>,
}

impl Encoder {
    /// A student without pretraining: weights N(0, 0.02²), biases 0, layer norms 1 and 0.
    ///
    /// The values follow from [`Device::seed`] alone.
    ///
    /// # Errors
    ///
    /// [`StudentError::UnsupportedConfig`] as in [`FreshBertConfig::resolve`].
    pub fn fresh(
        config: &FreshBertConfig,
        vocab_size: usize,
        device: &Device,
    ) -> Result<Self, StudentError> {
        let encoder = Self::uninitialised(config.resolve(vocab_size)?, device);
        weights::initialise(&encoder);
        Ok(encoder)
    }

    /// An encoder whose parameters are drawn when first read, unless they are loaded before.
    pub(super) fn uninitialised(config: BertConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        let norm = || LayerNorm::new(width, config.layer_norm_epsilon, device);
        let hidden_dropout = || DropoutConfig::new(config.hidden_dropout).init();
        let residual = |input| ResidualProjection {
            dense: Linear::new(input, width, device),
            layer_norm: norm(),
            dropout: hidden_dropout(),
        };
        let layer = || Layer {
            attention: Attention {
                self_attention: SelfAttention {
                    query: Linear::new(width, width, device),
                    key: Linear::new(width, width, device),
                    value: Linear::new(width, width, device),
                    dropout: DropoutConfig::new(config.attention_dropout).init(),
                },
                output: residual(width),
            },
            intermediate: Intermediate {
                dense: Linear::new(width, config.intermediate_size, device),
            },
            output: residual(config.intermediate_size),
        };
        Self {
            embeddings: Embeddings {
                word_embeddings: Embedding::new(config.vocab_size, width, device),
                position_embeddings: Embedding::new(config.max_positions, width, device),
                token_type_embeddings: Embedding::new(config.num_token_types, width, device),
                layer_norm: norm(),
                dropout: hidden_dropout(),
            },
            encoder: LayerStack {
                layer: std::iter::repeat_with(layer)
                    .take(config.num_layers)
                    .collect(),
            },
            pooler: Pooler {
                dense: Linear::new(width, width, device),
            },
            precision: Precision::F32,
            config,
        }
    }

    /// The same encoder computing its matrix products in `precision`; parameters stay f32.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The encoder's sizes.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Checks that every id and length that `tokenizer` produces has an embedding.
    ///
    /// # Errors
    ///
    /// [`StudentError::VocabularyMismatch`] or [`StudentError::TooLong`].
    pub fn check_tokenizer(&self, tokenizer: &TextTokenizer) -> Result<(), StudentError> {
        if tokenizer.vocab_size() > self.config.vocab_size {
            return Err(StudentError::VocabularyMismatch {
                tokenizer: tokenizer.vocab_size(),
                encoder: self.config.vocab_size,
            });
        }
        if tokenizer.max_length() > self.config.max_positions {
            return Err(StudentError::TooLong {
                max_length: tokenizer.max_length(),
                max_positions: self.config.max_positions,
            });
        }
        Ok(())
    }

    /// Hidden states and pooled vector of a batch; see [`EncoderOutput`] for the shapes.
    ///
    /// Padding never changes a real position's output.
    ///
    /// # Panics
    ///
    /// The batch is longer than `max_positions`, or an id has no embedding: see
    /// [`Encoder::check_tokenizer`].
    pub fn forward(&self, batch: &TokenBatch) -> EncoderOutput {
        let [rows, positions] = batch.token_ids_bs.dims();
        let width = self.config.hidden_size;
        let pass = self.pass(&batch.attention_mask_bs);
        let mut hidden_nd = self.embeddings.forward(batch);
        for layer in &self.encoder.layer {
            hidden_nd = layer.forward(hidden_nd, &pass);
        }
        let hidden_bsd = hidden_nd.reshape([rows, positions, width]);
        let first_bd = hidden_bsd.clone().narrow(1, 0, 1).reshape([rows, width]);
        let pooled_bd = self.pooler.dense.forward(first_bd, self.precision);
        EncoderOutput {
            hidden_bsd,
            pooled_bd: to_f32(pooled_bd, self.precision).tanh(),
        }
    }

    fn pass(&self, attention_mask_bs: &Tensor<2, Int>) -> Pass {
        let [batch, positions] = attention_mask_bs.dims();
        let padding_score_b11t = attention_mask_bs
            .clone()
            .float()
            .neg()
            .add_scalar(1.0)
            .mul_scalar(PADDING_SCORE)
            .reshape([batch, 1, 1, positions]);
        Pass {
            batch,
            positions,
            num_heads: self.config.num_heads,
            head_size: self.config.head_size(),
            activation: self.config.activation,
            precision: self.precision,
            padding_score_b11t,
        }
    }
}

impl Embeddings {
    /// Sum of word, position and segment vectors, normalised: `[n, d]`.
    fn forward(&self, batch: &TokenBatch) -> Tensor<2> {
        let [rows, positions] = batch.token_ids_bs.dims();
        let words_bsd = self.word_embeddings.forward(batch.token_ids_bs.clone());
        let types_bsd = self
            .token_type_embeddings
            .forward(batch.type_ids_bs.clone());
        let places_1sd = self
            .position_embeddings
            .weight
            .val()
            .narrow(0, 0, positions)
            .unsqueeze::<3>();
        let [_, _, width] = words_bsd.dims();
        let sum_nd = (words_bsd + types_bsd + places_1sd).reshape([rows * positions, width]);
        self.dropout.forward(self.layer_norm.forward(sum_nd))
    }
}

impl Layer {
    fn forward(&self, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let attended_nd = self.attention.forward(hidden_nd, pass);
        let raised = self
            .intermediate
            .dense
            .forward(attended_nd.clone(), pass.precision);
        let raised = match pass.activation {
            Activation::Gelu => activation::gelu(raised),
            Activation::GeluTanh => activation::gelu_approximate(raised),
        };
        self.output.forward(raised, attended_nd, pass.precision)
    }
}

impl Attention {
    fn forward(&self, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let context_nd = self.self_attention.forward(hidden_nd.clone(), pass);
        self.output.forward(context_nd, hidden_nd, pass.precision)
    }
}

impl SelfAttention {
    /// `softmax(q kᵀ / √k + padding) v`, heads side by side: `[n, d]`.
    fn forward(&self, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let hidden_nd = to_precision(hidden_nd, pass.precision);
        let scale = 1.0 / (pass.head_size as f32).sqrt();
        let project = |linear: &Linear| linear.forward(hidden_nd.clone(), pass.precision);
        let query_bhsk = pass.split_heads(project(&self.query).mul_scalar(scale));
        let key_bhtk = pass.split_heads(project(&self.key));
        let value_bhtk = pass.split_heads(project(&self.value));

        let score_bhst = to_f32(query_bhsk.matmul(key_bhtk.swap_dims(2, 3)), pass.precision);
        let score_bhst = score_bhst + pass.padding_score_b11t.clone();
        let probability_bhst = self.dropout.forward(activation::softmax(score_bhst, 3));
        let context_bhsk = to_precision(probability_bhst, pass.precision).matmul(value_bhtk);
        context_bhsk
            .swap_dims(1, 2)
            .reshape([pass.batch * pass.positions, pass.num_heads * pass.head_size])
    }
}

impl Pass {
    fn split_heads(&self, projected_nd: Tensor<2>) -> Tensor<4> {
        projected_nd
            .reshape([self.batch, self.positions, self.num_heads, self.head_size])
            .swap_dims(1, 2)
    }
}

impl ResidualProjection {
    fn forward(&self, input: Tensor<2>, residual_nd: Tensor<2>, precision: Precision) -> Tensor<2> {
        let projected_nd = to_f32(self.dense.forward(input, precision), precision);
        self.layer_norm
            .forward(self.dropout.forward(projected_nd) + residual_nd)
    }
}
