//! The BERT encoder (Devlin et al., arXiv 1810.04805) as `transformers` computes it.
//!
//! Parameters, the residual stream, layer normalisation and softmax are f32. With
//! [`Precision::Bf16`] the matrix products and the activation between them are computed in bf16 from
//! weights cast on the fly, so that the optimiser keeps f32 master weights.
//!
//! Shape suffixes: `b` batch rows, `s` and `t` sequence positions (query and key), `n` = b·s rows,
//! `d` hidden width, `h` heads, `k` head width.

mod config;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

pub use config::{BertConfig, PositionRows};

use super::activation::Activation;
use super::attention::attend;
use super::layers::{Embedding, LayerNorm, Linear, to_f32, to_precision};
use super::roberta;
use super::trunk::{Trunk, padding_score};
use super::{BackboneOutput, TokenBatch};
use crate::device::Precision;
use crate::dropout::Dropout;

/// A BERT encoder with its pooler; fields are named as in published checkpoints.
#[derive(Module, Debug)]
pub struct Bert {
    embeddings: Embeddings,
    encoder: LayerStack,
    pooler: Pooler,
    #[module(skip)]
    config: BertConfig,
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
pub(super) struct Intermediate {
    pub(super) dense: Linear,
}

/// `layer_norm(dropout(dense(x)) + residual)`, the end of both halves of a layer.
#[derive(Module, Debug)]
pub(super) struct ResidualProjection {
    pub(super) dense: Linear,
    pub(super) layer_norm: LayerNorm,
    pub(super) dropout: Dropout,
}

#[derive(Module, Debug)]
struct Pooler {
    dense: Linear,
}

/// What every layer of one forward pass shares.
#[derive(Debug)]
pub struct Pass {
    batch: usize,
    positions: usize,
    num_heads: usize,
    head_size: usize,
    activation: Activation,
    precision: Precision,
    padding_score_b11t: Tensor<4>,
}

impl Bert {
    /// An encoder whose parameters are drawn when first read, unless they are loaded before.
    pub(super) fn uninitialised(config: &BertConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        let norm = || LayerNorm::new(width, config.layer_norm_epsilon, device);
        let hidden_dropout = || Dropout::new(config.hidden_dropout);
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
                    dropout: Dropout::new(config.attention_dropout),
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
            config: config.clone(),
        }
    }
}

impl Trunk for Bert {
    type Pass = Pass;

    fn pass(&self, batch: &TokenBatch, precision: Precision) -> Pass {
        let [rows, positions] = batch.token_ids_bs.dims();
        Pass {
            batch: rows,
            positions,
            num_heads: self.config.num_heads,
            head_size: self.config.head_size(),
            activation: self.config.activation,
            precision,
            padding_score_b11t: padding_score(&batch.attention_mask_bs),
        }
    }

    fn embed(&self, batch: &TokenBatch, _pass: &Pass) -> Tensor<2> {
        let config = &self.config;
        let [rows, positions] = batch.token_ids_bs.dims();
        let places = &self.embeddings.position_embeddings;
        let places_bsd = match config.position_rows {
            PositionRows::InOrder => places.first_rows(positions).unsqueeze(),
            PositionRows::AfterPadding => places.forward(roberta::position_ids(
                batch.token_ids_bs.clone(),
                config.pad_token_id,
            )),
        };
        let words_bsd = self
            .embeddings
            .word_embeddings
            .forward(batch.token_ids_bs.clone());
        let types = &self.embeddings.token_type_embeddings;
        let types_bsd = match config.num_token_types {
            1 => types.first_rows(1).unsqueeze(),
            _ => types.forward(batch.type_ids_bs.clone()),
        };
        let sum_nd =
            (words_bsd + types_bsd + places_bsd).reshape([rows * positions, config.hidden_size]);
        self.embeddings
            .dropout
            .forward(self.embeddings.layer_norm.forward(sum_nd))
    }

    fn num_layers(&self) -> usize {
        self.encoder.layer.len()
    }

    fn layer(&self, index: usize, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        self.encoder.layer[index].forward(hidden_nd, pass)
    }

    fn finish(&self, hidden_nd: Tensor<2>, _batch: &TokenBatch, pass: &Pass) -> BackboneOutput {
        let width = self.config.hidden_size;
        let hidden_bsd = hidden_nd.reshape([pass.batch, pass.positions, width]);
        let first_bd = hidden_bsd
            .clone()
            .narrow(1, 0, 1)
            .reshape([pass.batch, width]);
        let pooled_bd = self.pooler.dense.forward(first_bd, pass.precision);
        BackboneOutput {
            hidden_bsd,
            pooled_bd: to_f32(pooled_bd, pass.precision).tanh(),
        }
    }

    fn visit_linears(&mut self, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for (index, layer) in self.encoder.layer.iter_mut().enumerate() {
            let at = |name: &str| format!("encoder.layer.{index}.{name}");
            let attention = &mut layer.attention;
            let self_attention = &mut attention.self_attention;
            visit(&at("attention.self.query"), &mut self_attention.query);
            visit(&at("attention.self.key"), &mut self_attention.key);
            visit(&at("attention.self.value"), &mut self_attention.value);
            visit(&at("attention.output.dense"), &mut attention.output.dense);
            visit(&at("intermediate.dense"), &mut layer.intermediate.dense);
            visit(&at("output.dense"), &mut layer.output.dense);
        }
    }
}

impl Layer {
    fn forward(&self, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let attended_nd = self.attention.forward(hidden_nd, pass);
        let raised = self
            .intermediate
            .dense
            .forward(attended_nd.clone(), pass.precision);
        let raised = pass.activation.forward(raised);
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
        let project =
            |linear: &Linear| pass.split_heads(linear.forward(hidden_nd.clone(), pass.precision));
        let context_bhsk = attend(
            project(&self.query),
            [project(&self.key), project(&self.value)],
            pass.padding_score_b11t.clone(),
            &self.dropout,
            pass.precision,
        );
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
    pub(super) fn forward(
        &self,
        input: Tensor<2>,
        residual_nd: Tensor<2>,
        precision: Precision,
    ) -> Tensor<2> {
        let projected_nd = to_f32(self.dense.forward(input, precision), precision);
        self.layer_norm
            .forward_residual(projected_nd, &self.dropout, residual_nd)
    }
}
