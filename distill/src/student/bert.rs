//! The BERT encoder (Devlin et al., arXiv 1810.04805) as `transformers` computes it.
//!
//! Parameters, the residual stream, layer normalisation and softmax are f32. With
//! [`Precision::Bf16`] the matrix products and the activation between them are computed in bf16 from
//! weights cast on the fly, so that the optimiser keeps f32 master weights.
//!
//! Shape suffixes: `b` batch rows, `s` and `t` sequence positions (query and key), `n` = b·s rows,
//! `d` hidden width, `h` heads, `k` head width.

use burn::module::Module;
use burn::tensor::{Device, Tensor, activation};
use serde_json::{Value, json};

use super::activation::Activation;
use super::architecture::{Architecture, ClassifierNaming, Naming};
use super::fields::Fields;
use super::layers::{Embedding, LayerNorm, Linear, to_f32, to_precision};
use super::roberta;
use super::trunk::{Trunk, padding_score};
use super::{BackboneOutput, StudentError, TokenBatch};
use crate::device::Precision;
use crate::dropout::Dropout;

/// A BERT encoder's shape: every value has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Hidden width d.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Width between the two feed-forward matrices.
    pub intermediate_size: usize,
    /// Rows of the position embedding.
    pub max_positions: usize,
    /// Which of them a token reads.
    pub position_rows: PositionRows,
    /// Rows of the segment embedding.
    pub num_token_types: usize,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Dropout on embeddings and on both residual branches, in `[0, 1)`.
    pub hidden_dropout: f64,
    /// Dropout on attention probabilities, in `[0, 1)`.
    pub attention_dropout: f64,
    /// Added to the variance in layer normalisation.
    pub layer_norm_epsilon: f64,
    /// Id that padding carries.
    pub pad_token_id: u32,
}

/// Which row of the position embedding a token reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionRows {
    /// Row i at place i of the sequence.
    InOrder,
    /// RoBERTa: padding reads the row of its own id, other tokens the rows after that one, in order.
    AfterPadding,
}

impl BertConfig {
    /// Reads the fields of `config.json`; what it leaves out has the default of `transformers`.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self, StudentError> {
        fields.expect("position_embedding_type", &json!("absolute"), "absolute")?;
        fields.expect("is_decoder", &json!(false), "false")?;
        fields.expect("add_cross_attention", &json!(false), "false")?;
        let config = Self {
            vocab_size: fields.size("vocab_size")?,
            hidden_size: fields.size("hidden_size")?,
            num_layers: fields.size("num_hidden_layers")?,
            num_heads: fields.size("num_attention_heads")?,
            intermediate_size: fields.size("intermediate_size")?,
            max_positions: fields.size("max_position_embeddings")?,
            position_rows: PositionRows::InOrder,
            num_token_types: fields.size_or("type_vocab_size", 2)?,
            activation: fields.activation_or("hidden_act", Activation::Gelu)?,
            hidden_dropout: fields.dropout_or("hidden_dropout_prob", 0.1)?,
            attention_dropout: fields.dropout_or("attention_probs_dropout_prob", 0.1)?,
            layer_norm_epsilon: fields.number_or("layer_norm_eps", 1e-12)?,
            pad_token_id: fields.optional_id("pad_token_id")?.unwrap_or(0),
        };
        fields.check_heads("num_attention_heads", config.num_heads, config.hidden_size)?;
        Ok(config)
    }

    fn head_size(&self) -> usize {
        self.hidden_size / self.num_heads
    }
}

static NAMING: Naming = Naming {
    prefixes: &["bert."],
    base: ("BertModel", ""),
    classifier: Some(ClassifierNaming {
        class: "BertForSequenceClassification",
        prefix: "bert.",
        head: "classifier",
        renamed: &[],
    }),
    causal: None,
    parts: &[("self_attention", "self"), ("layer_norm", "LayerNorm")],
    optional: &["pooler."],
    outside: &[],
};

impl Architecture for BertConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn keep_layers(&mut self, num_layers: usize) {
        self.num_layers = num_layers;
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_positions(&self) -> usize {
        self.max_positions
    }

    fn pad_token_id(&self) -> Option<u32> {
        Some(self.pad_token_id)
    }

    fn is_causal(&self) -> bool {
        false
    }

    fn naming(&self) -> &'static Naming {
        &NAMING
    }

    fn to_hugging_face(&self) -> Value {
        json!({
            "model_type": "bert",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "type_vocab_size": self.num_token_types,
            "hidden_act": self.activation.name(),
            "hidden_dropout_prob": self.hidden_dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "layer_norm_eps": self.layer_norm_epsilon,
            "pad_token_id": self.pad_token_id,
            "position_embedding_type": "absolute",
            "initializer_range": 0.02,
            "dtype": "float32",
        })
    }
}

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
    pub(super) fn forward(
        &self,
        input: Tensor<2>,
        residual_nd: Tensor<2>,
        precision: Precision,
    ) -> Tensor<2> {
        let projected_nd = to_f32(self.dense.forward(input, precision), precision);
        self.layer_norm
            .forward(self.dropout.forward(projected_nd) + residual_nd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: &Value) -> Result<BertConfig, StudentError> {
        let mut raw = json!({
            "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 24,
        });
        let fields = raw.as_object_mut().unwrap();
        for (key, value) in changes.as_object().unwrap() {
            fields.insert(key.clone(), value.clone());
        }
        BertConfig::from_fields(&Fields::new(
            "config.json",
            raw.as_object().unwrap().clone(),
        ))
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = parse(&json!({})).unwrap();
        assert_eq!(config.activation, Activation::Gelu);
        assert_eq!(config.num_token_types, 2);
        assert_eq!(config.head_size(), 8);
        assert!((config.hidden_dropout - 0.1).abs() < f64::EPSILON);
        assert!((config.layer_norm_epsilon - 1e-12).abs() < f64::EPSILON);
    }

    #[test]
    fn unsupported_values_are_refused_by_name() {
        for (changes, expected) in [
            (
                json!({"hidden_act": "mish"}),
                "config.json: `hidden_act` is `mish`, supported: gelu, gelu_python, gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh",
            ),
            (
                json!({"position_embedding_type": "relative_key"}),
                "config.json: `position_embedding_type` is `relative_key`, supported: absolute",
            ),
            (
                json!({"is_decoder": true}),
                "config.json: `is_decoder` is `true`, supported: false",
            ),
            (
                json!({"num_attention_heads": 5}),
                "config.json: `num_attention_heads` is `5 for hidden_size 32`, supported: a divisor of hidden_size",
            ),
            (
                json!({"hidden_dropout_prob": 1.0}),
                "config.json: `hidden_dropout_prob` is `1.0`, supported: 0 up to, but not, 1",
            ),
        ] {
            assert_eq!(parse(&changes).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn written_configuration_reads_back_equal() {
        let config = parse(&json!({"hidden_act": "gelu_new", "pad_token_id": 3})).unwrap();
        let written = config.to_hugging_face().as_object().unwrap().clone();
        assert_eq!(
            BertConfig::from_fields(&Fields::new("round trip", written)).unwrap(),
            config
        );
    }
}
