//! The DeBERTa-v2 and v3 encoder (He et al., arXiv 2006.03654 and 2111.09543) as `transformers` computes it.
//!
//! An attention score is the sum of content with content, content with position and position with content.
//! Precision is as in [`super::bert`].
//!
//! Shape suffixes: `b` batch rows, `s` and `t` sequence positions (query and key), `n` = b·s rows, `d` hidden width,
//! `h` heads, `k` head width, `r` distances, `u` rows of the relative embedding, `e` embedding width.

mod config;
mod relative;

use burn::module::{Initializer, Module, Param};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, activation, module};

pub use config::{ConvolutionConfig, DebertaV2Config, Distances, RelativeConfig};
use relative::{RelativeRows, shift};

use super::activation::Activation;
use super::bert::{Intermediate, ResidualProjection};
use super::layers::{Embedding, LayerNorm, Linear, to_f32, to_precision};
use super::trunk::{Trunk, padding_score};
use super::{BackboneOutput, TokenBatch};
use crate::device::Precision;
use crate::dropout::Dropout;

/// An encoder with its pooler; fields are named as in published checkpoints.
#[derive(Module, Debug)]
pub struct DebertaV2 {
    embeddings: Embeddings,
    encoder: LayerStack,
    pooler: Pooler,
    #[module(skip)]
    config: DebertaV2Config,
}

#[derive(Module, Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "fields are named as in published checkpoints"
)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Option<Embedding>,
    token_type_embeddings: Option<Embedding>,
    embed_proj: Option<Linear>,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct LayerStack {
    layer: Vec<Layer>,
    rel_embeddings: Embedding,
    layer_norm: Option<LayerNorm>,
    conv: Option<ConvolutionLayer>,
}

#[derive(Module, Debug)]
struct Layer {
    attention: Attention,
    intermediate: Intermediate,
    output: ResidualProjection,
}

#[derive(Module, Debug)]
struct Attention {
    self_attention: DisentangledAttention,
    output: ResidualProjection,
}

#[derive(Module, Debug)]
struct DisentangledAttention {
    query_proj: Linear,
    key_proj: Linear,
    value_proj: Linear,
    /// `None` where content and positions share their projections.
    pos_key_proj: Option<Linear>,
    pos_query_proj: Option<Linear>,
    pos_dropout: Dropout,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct ConvolutionLayer {
    conv: Convolution,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

/// A convolution over positions: weight `[d, d / groups, kernel]`.
#[derive(Module, Debug)]
struct Convolution {
    weight: Param<Tensor<3>>,
    bias: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct Pooler {
    dense: Linear,
    dropout: Dropout,
}

/// What every layer of one forward pass shares.
#[derive(Debug)]
pub struct Pass {
    batch: usize,
    positions: usize,
    num_heads: usize,
    head_size: usize,
    /// `1 / √(k · parts of a score)`.
    scale: f32,
    content_to_position: bool,
    position_to_content: bool,
    activation: Activation,
    precision: Precision,
    /// 1 for a token, 0 for padding.
    mask_n1: Tensor<2>,
    padding_score_1b1t: Tensor<4>,
    relative: RelativeRows,
}

impl DebertaV2 {
    /// An encoder whose parameters are drawn when first read, unless they are loaded before.
    pub(super) fn uninitialised(config: &DebertaV2Config, device: &Device) -> Self {
        let (width, embedded) = (config.hidden_size, config.embedding_size);
        let table = |rows| Embedding::new(rows, embedded, device);
        let norm = || LayerNorm::new(width, config.layer_norm_epsilon, device);
        let num_rows = config.relative.distances.num_rows();
        Self {
            embeddings: Embeddings {
                word_embeddings: table(config.vocab_size),
                position_embeddings: config
                    .position_biased_input
                    .then(|| table(config.max_positions)),
                token_type_embeddings: (config.num_token_types > 0)
                    .then(|| table(config.num_token_types)),
                embed_proj: (embedded != width)
                    .then(|| Linear::without_bias(embedded, width, device)),
                layer_norm: norm(),
                dropout: Dropout::new(config.hidden_dropout),
            },
            encoder: LayerStack {
                layer: std::iter::repeat_with(|| Layer::new(config, device))
                    .take(config.num_layers)
                    .collect(),
                rel_embeddings: Embedding::new(num_rows, width, device),
                layer_norm: config.relative.normalised.then(norm),
                conv: config
                    .convolution
                    .as_ref()
                    .map(|convolution| ConvolutionLayer {
                        conv: Convolution::new(width, convolution, device),
                        layer_norm: norm(),
                        dropout: Dropout::new(config.hidden_dropout),
                    }),
            },
            pooler: Pooler {
                dense: Linear::new(width, width, device),
                dropout: Dropout::new(config.pooler_dropout),
            },
            config: config.clone(),
        }
    }
}

impl Layer {
    fn new(config: &DebertaV2Config, device: &Device) -> Self {
        let width = config.hidden_size;
        let hidden_dropout = || Dropout::new(config.hidden_dropout);
        let residual = |input| ResidualProjection {
            dense: Linear::new(input, width, device),
            layer_norm: LayerNorm::new(width, config.layer_norm_epsilon, device),
            dropout: hidden_dropout(),
        };
        let square = || Linear::new(width, width, device);
        let relative = &config.relative;
        let own = |is_read: bool| (is_read && !relative.share_projections).then(square);
        Self {
            attention: Attention {
                self_attention: DisentangledAttention {
                    query_proj: square(),
                    key_proj: square(),
                    value_proj: square(),
                    pos_key_proj: own(relative.content_to_position),
                    pos_query_proj: own(relative.position_to_content),
                    pos_dropout: hidden_dropout(),
                    dropout: Dropout::new(config.attention_dropout),
                },
                output: residual(width),
            },
            intermediate: Intermediate {
                dense: Linear::new(width, config.intermediate_size, device),
            },
            output: residual(config.intermediate_size),
        }
    }
}

impl Trunk for DebertaV2 {
    type Pass = Pass;

    fn pass(&self, batch: &TokenBatch, precision: Precision) -> Pass {
        let [rows, positions] = batch.token_ids_bs.dims();
        let config = &self.config;
        let relative = &config.relative;
        let embedding = self.encoder.rel_embeddings.table();
        let embedding = match &self.encoder.layer_norm {
            Some(layer_norm) => layer_norm.forward(embedding),
            None => embedding,
        };
        let device = batch.token_ids_bs.device();
        let mask_bs = &batch.attention_mask_bs;
        Pass {
            batch: rows,
            positions,
            num_heads: config.num_heads,
            head_size: config.head_size(),
            scale: 1.0 / ((config.head_size() * relative.num_parts()) as f32).sqrt(),
            content_to_position: relative.content_to_position,
            position_to_content: relative.position_to_content,
            activation: config.activation,
            precision,
            mask_n1: mask_bs.clone().float().reshape([rows * positions, 1]),
            padding_score_1b1t: padding_score(mask_bs).swap_dims(0, 1),
            relative: RelativeRows::new(embedding, relative.distances, positions, &device),
        }
    }

    fn embed(&self, batch: &TokenBatch, pass: &Pass) -> Tensor<2> {
        self.embeddings.forward(batch, pass)
    }

    fn num_layers(&self) -> usize {
        self.encoder.layer.len()
    }

    fn layer(&self, index: usize, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let layer = &self.encoder.layer[index];
        match (&self.encoder.conv, &self.config.convolution) {
            (Some(convolution), Some(config)) if index == 0 => {
                let output_nd = layer.forward(hidden_nd.clone(), pass);
                convolution.forward(hidden_nd, output_nd, config, pass)
            }
            _ => layer.forward(hidden_nd, pass),
        }
    }

    fn finish(&self, hidden_nd: Tensor<2>, _batch: &TokenBatch, pass: &Pass) -> BackboneOutput {
        let width = self.config.hidden_size;
        let hidden_bsd = hidden_nd.reshape([pass.batch, pass.positions, width]);
        let first_bd = hidden_bsd
            .clone()
            .narrow(1, 0, 1)
            .reshape([pass.batch, width]);
        let first_bd = self.pooler.dropout.forward(first_bd);
        let pooled_bd = self.pooler.dense.forward(first_bd, pass.precision);
        let pooled_bd = to_f32(pooled_bd, pass.precision);
        BackboneOutput {
            hidden_bsd,
            pooled_bd: self.config.pooler_activation.forward(pooled_bd),
        }
    }

    fn visit_linears(&mut self, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for (index, layer) in self.encoder.layer.iter_mut().enumerate() {
            let at = |name: &str| format!("encoder.layer.{index}.{name}");
            let attention = &mut layer.attention;
            let parts = &mut attention.self_attention;
            visit(&at("attention.self.query_proj"), &mut parts.query_proj);
            visit(&at("attention.self.key_proj"), &mut parts.key_proj);
            visit(&at("attention.self.value_proj"), &mut parts.value_proj);
            if let Some(linear) = &mut parts.pos_key_proj {
                visit(&at("attention.self.pos_key_proj"), linear);
            }
            if let Some(linear) = &mut parts.pos_query_proj {
                visit(&at("attention.self.pos_query_proj"), linear);
            }
            visit(&at("attention.output.dense"), &mut attention.output.dense);
            visit(&at("intermediate.dense"), &mut layer.intermediate.dense);
            visit(&at("output.dense"), &mut layer.output.dense);
        }
    }
}

impl Embeddings {
    /// Sum of the vectors, projected and normalised, zero at padding: `[n, d]`.
    fn forward(&self, batch: &TokenBatch, pass: &Pass) -> Tensor<2> {
        let mut sum_bse = self.word_embeddings.forward(batch.token_ids_bs.clone());
        let [rows, positions, width] = sum_bse.dims();
        if let Some(table) = &self.position_embeddings {
            let places_1se = table.first_rows(positions).unsqueeze();
            sum_bse = sum_bse + places_1se;
        }
        if let Some(table) = &self.token_type_embeddings {
            sum_bse = sum_bse + table.forward(batch.type_ids_bs.clone());
        }
        let embedded_ne = sum_bse.reshape([rows * positions, width]);
        let input_nd = match &self.embed_proj {
            Some(linear) => to_f32(linear.forward(embedded_ne, pass.precision), pass.precision),
            None => embedded_ne,
        };
        let masked_nd = self.layer_norm.forward(input_nd) * pass.mask_n1.clone();
        self.dropout.forward(masked_nd)
    }
}

impl Layer {
    fn forward(&self, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let context_nd = self
            .attention
            .self_attention
            .forward(hidden_nd.clone(), pass);
        let attended_nd = self
            .attention
            .output
            .forward(context_nd, hidden_nd, pass.precision);
        let raised = self
            .intermediate
            .dense
            .forward(attended_nd.clone(), pass.precision);
        let raised = pass.activation.forward(raised);
        self.output.forward(raised, attended_nd, pass.precision)
    }
}

impl DisentangledAttention {
    /// `softmax((q kᵀ + q Pkᵀ + k Pqᵀ) / √(k · parts) + padding) v`, heads side by side: `[n, d]`.
    fn forward(&self, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let hidden_nd = to_precision(hidden_nd, pass.precision);
        let project =
            |linear: &Linear| pass.split_heads(linear.forward(hidden_nd.clone(), pass.precision));
        let query_hnk = project(&self.query_proj).mul_scalar(pass.scale);
        let key_hnk = project(&self.key_proj);
        let query_hbsk = pass.split_rows(query_hnk.clone());
        let key_hbtk = pass.split_rows(key_hnk.clone());
        let value_hbtk = pass.split_rows(project(&self.value_proj));

        let mut score_hbst = to_f32(query_hbsk.matmul(key_hbtk.swap_dims(2, 3)), pass.precision)
            + pass.padding_score_1b1t.clone();
        let relative_ud = self.pos_dropout.forward(pass.relative.rows());
        if pass.content_to_position {
            let linear = self.pos_key_proj.as_ref().unwrap_or(&self.key_proj);
            let relative_ud = relative_ud.clone();
            let projected_rd = pass.relative.project(relative_ud, linear, pass.precision);
            // A query at i reads distance i - j for the key at j: distances fall with the place.
            let places_rd = projected_rd.narrow(0, 1, 2 * pass.positions).flip([0]);
            score_hbst = score_hbst + pass.position_score(query_hnk, places_rd);
        }
        if pass.position_to_content {
            let linear = self.pos_query_proj.as_ref().unwrap_or(&self.query_proj);
            let projected_rd = pass.relative.project(relative_ud, linear, pass.precision);
            let places_rd = projected_rd
                .narrow(0, 0, 2 * pass.positions)
                .mul_scalar(pass.scale);
            let score_hbts = pass.position_score(key_hnk, places_rd);
            score_hbst = score_hbst + score_hbts.swap_dims(2, 3);
        }

        let probability_hbst = self.dropout.forward(activation::softmax(score_hbst, 3));
        let context_hbsk = to_precision(probability_hbst, pass.precision).matmul(value_hbtk);
        context_hbsk
            .permute([1, 2, 0, 3])
            .reshape([pass.batch * pass.positions, pass.num_heads * pass.head_size])
    }
}

impl Pass {
    /// `[n, d]` to `[h, n, k]`; heads come first, so that position scores of all rows are one product per head.
    fn split_heads(&self, projected_nd: Tensor<2>) -> Tensor<3> {
        let [rows, _] = projected_nd.dims();
        projected_nd
            .reshape([rows, self.num_heads, self.head_size])
            .swap_dims(0, 1)
    }

    /// `[h, n, k]` to `[h, b, s, k]`.
    fn split_rows(&self, heads_hnk: Tensor<3>) -> Tensor<4> {
        heads_hnk.reshape([self.num_heads, self.batch, self.positions, self.head_size])
    }

    /// What tokens `[h, n, k]` score for the place at every distance `[r, d]`, in f32 `[h, b, s, t]`.
    fn position_score(&self, content_hnk: Tensor<3>, places_rd: Tensor<2>) -> Tensor<4> {
        let [num_places, _] = places_rd.dims();
        let places_hrk = self.split_heads(places_rd);
        let score_hnr = content_hnk.matmul(places_hrk.swap_dims(1, 2));
        let shape = [self.num_heads, self.batch, self.positions, num_places];
        to_f32(shift(score_hnr.reshape(shape)), self.precision)
    }
}

impl Convolution {
    fn new(width: usize, config: &ConvolutionConfig, device: &Device) -> Self {
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        let shape = [width, width / config.num_groups, config.kernel_size];
        Self {
            weight: normal.init(shape, device),
            bias: Initializer::Zeros.init([width], device),
        }
    }
}

impl ConvolutionLayer {
    /// `layer_norm(output + activation(dropout(conv(embedded))))`, zero at padding: `[n, d]`.
    fn forward(
        &self,
        embedded_nd: Tensor<2>,
        output_nd: Tensor<2>,
        config: &ConvolutionConfig,
        pass: &Pass,
    ) -> Tensor<2> {
        let [rows, width] = embedded_nd.dims();
        let embedded_bds = to_precision(embedded_nd, pass.precision)
            .reshape([pass.batch, pass.positions, width])
            .swap_dims(1, 2);
        let half = (config.kernel_size - 1) / 2;
        let convolved_bds = module::conv1d(
            embedded_bds,
            to_precision(self.conv.weight.val(), pass.precision),
            Some(to_precision(self.conv.bias.val(), pass.precision)),
            ConvOptions::new([1], [half], [1], config.num_groups),
        );
        let convolved_nd = convolved_bds.swap_dims(1, 2).reshape([rows, width]);
        let convolved_nd = to_f32(convolved_nd, pass.precision) * pass.mask_n1.clone();
        let activated_nd = config
            .activation
            .forward(self.dropout.forward(convolved_nd));
        self.layer_norm.forward(output_nd + activated_nd) * pass.mask_n1.clone()
    }
}
