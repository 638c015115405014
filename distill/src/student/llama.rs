//! The LLaMA decoder (Touvron et al., arXiv 2302.13971 and 2307.09288; LLaMA 3: arXiv 2407.21783) as `transformers`
//! computes it, with the additions of Qwen2 and Qwen3.
//!
//! Parameters, the residual stream, norms, rotation and softmax are f32. With [`Precision::Bf16`] the matrix products
//! and the activation between them are computed in bf16 from weights cast on the fly.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `n` = b·s rows, `d` hidden width, `h` heads, `g` heads of
//! keys and values, `k` head width.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde_json::{Value, json};

use super::activation::Activation;
use super::architecture::{Architecture, ClassifierNaming, Naming};
use super::decoder::{CausalPass, Decoder, KeyValues, last_token};
use super::fields::Fields;
use super::layers::{Embedding, Linear, RmsNorm, to_f32, to_precision};
use super::rotary::{Rotary, RotaryTables};
use super::special_tokens::SpecialTokens;
use super::trunk::Trunk;
use super::{BackboneOutput, StudentError, TokenBatch, qwen};
use crate::device::Precision;
use crate::dropout::Dropout;

/// The model types that this decoder computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `llama`: LLaMA 1, 2, 3, 3.1 and 3.2, and what shares their configuration.
    Llama,
    /// `qwen2`: Qwen2 and Qwen2.5.
    Qwen2,
    /// `qwen3`, without the mixtures of experts.
    Qwen3,
}

/// A decoder's shape: every value has been checked.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "which maps have a bias is one choice each"
)]
pub struct LlamaConfig {
    /// Whose names and defaults.
    pub family: Family,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Hidden width d.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Heads of queries.
    pub num_heads: usize,
    /// Heads of keys and values; divides `num_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_size: usize,
    /// Width between the feed-forward matrices.
    pub intermediate_size: usize,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// Activation of the feed-forward part's gate.
    pub activation: Activation,
    /// Dropout on attention probabilities, in `[0, 1)`.
    pub attention_dropout: f64,
    /// Added to the mean square in normalisation.
    pub rms_norm_epsilon: f64,
    /// How positions are told apart.
    pub rotary: Rotary,
    /// Whether queries, keys and values have biases.
    pub query_key_value_bias: bool,
    /// Whether the attention's output has a bias.
    pub attention_output_bias: bool,
    /// Whether the feed-forward matrices have biases.
    pub feed_forward_bias: bool,
    /// Whether the language-model head is the word embedding.
    pub ties_word_embeddings: bool,
    /// Beginning, end and padding.
    pub special_tokens: SpecialTokens,
}

impl LlamaConfig {
    /// Reads the fields of a `llama` configuration; what it leaves out has the default of `transformers`.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self, StudentError> {
        let num_heads = fields.size("num_attention_heads")?;
        let shared = Self::shared(
            fields,
            Family::Llama,
            fields.size_or("num_key_value_heads", num_heads)?,
            fields.optional_size("head_dim")?,
        )?;
        let attention_bias = fields.flag_or("attention_bias", false)?;
        let defaults = SpecialTokens {
            beginning: Some(1),
            ends: vec![2],
            padding: None,
        };
        Ok(Self {
            query_key_value_bias: attention_bias,
            attention_output_bias: attention_bias,
            feed_forward_bias: fields.flag_or("mlp_bias", false)?,
            special_tokens: SpecialTokens::from_fields(fields, defaults)?,
            ..shared
        })
    }

    /// What is read alike in all families: no biases, and special tokens without defaults.
    pub(super) fn shared(
        fields: &Fields,
        family: Family,
        num_key_value_heads: usize,
        head_size: Option<usize>,
    ) -> Result<Self, StudentError> {
        let num_heads = fields.size("num_attention_heads")?;
        let hidden_size = fields.size("hidden_size")?;
        let max_positions = fields.size("max_position_embeddings")?;
        let head_size = if let Some(size) = head_size {
            size
        } else {
            fields.check_heads("num_attention_heads", num_heads, hidden_size)?;
            hidden_size / num_heads
        };
        if !head_size.is_multiple_of(2) {
            return Err(fields.refuse("head_dim", head_size, "an even number"));
        }
        if !num_heads.is_multiple_of(num_key_value_heads) {
            let value = format!("{num_key_value_heads} for num_attention_heads {num_heads}");
            let supported = "a divisor of num_attention_heads";
            return Err(fields.refuse("num_key_value_heads", value, supported));
        }
        Ok(Self {
            family,
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            num_layers: fields.size("num_hidden_layers")?,
            num_heads,
            num_key_value_heads,
            head_size,
            intermediate_size: fields.size("intermediate_size")?,
            max_positions,
            activation: fields.activation_or("hidden_act", Activation::Silu)?,
            attention_dropout: fields.dropout_or("attention_dropout", 0.0)?,
            rms_norm_epsilon: fields.number_or("rms_norm_eps", 1e-6)?,
            rotary: Rotary::from_fields(fields, head_size, max_positions)?,
            query_key_value_bias: false,
            attention_output_bias: false,
            feed_forward_bias: false,
            ties_word_embeddings: fields.flag_or("tie_word_embeddings", false)?,
            special_tokens: SpecialTokens::from_fields(fields, SpecialTokens::default())?,
        })
    }
}

static NAMING: Naming = Naming {
    prefixes: &["model."],
    base: ("LlamaModel", ""),
    classifier: Some(ClassifierNaming {
        class: "LlamaForSequenceClassification",
        prefix: "model.",
        head: "score",
        renamed: &[],
    }),
    causal: Some(("LlamaForCausalLM", "model.")),
    parts: &[],
    optional: &[],
    outside: &[],
};

impl Architecture for LlamaConfig {
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
        self.rotary.reach()
    }

    fn pad_token_id(&self) -> Option<u32> {
        self.special_tokens.padding
    }

    fn is_causal(&self) -> bool {
        true
    }

    fn ties_word_embeddings(&self) -> bool {
        self.ties_word_embeddings
    }

    fn end_token_ids(&self) -> &[u32] {
        &self.special_tokens.ends
    }

    fn naming(&self) -> &'static Naming {
        match self.family {
            Family::Llama => &NAMING,
            Family::Qwen2 => &qwen::QWEN2_NAMING,
            Family::Qwen3 => &qwen::QWEN3_NAMING,
        }
    }

    fn to_hugging_face(&self) -> Value {
        let mut config = json!({
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "hidden_act": self.activation.name(),
            "attention_dropout": self.attention_dropout,
            "rms_norm_eps": self.rms_norm_epsilon,
            "tie_word_embeddings": self.ties_word_embeddings,
            "initializer_range": 0.02,
            "dtype": "float32",
        });
        let fields = config
            .as_object_mut()
            .expect("a configuration is an object");
        let mut insert = |field: &str, value: Value| fields.insert(field.to_owned(), value);
        match self.family {
            Family::Llama => {
                insert("model_type", json!("llama"));
                insert("attention_bias", json!(self.query_key_value_bias));
                insert("mlp_bias", json!(self.feed_forward_bias));
            }
            Family::Qwen2 => {
                insert("model_type", json!("qwen2"));
                insert("use_sliding_window", json!(false));
            }
            Family::Qwen3 => {
                insert("model_type", json!("qwen3"));
                insert("attention_bias", json!(self.query_key_value_bias));
                insert("use_sliding_window", json!(false));
            }
        }
        self.rotary.insert_into(fields);
        self.special_tokens.insert_into(fields);
        config
    }
}

/// A decoder; fields are named as in published checkpoints.
#[derive(Module, Debug)]
pub struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    #[module(skip)]
    config: LlamaConfig,
}

#[derive(Module, Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Qwen3 normalises every head's queries and keys.
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    dropout: Dropout,
    num_heads: usize,
    num_key_value_heads: usize,
}

/// `down(activation(gate(x)) ∘ up(x))` (Shazeer, arXiv 2002.05202).
#[derive(Module, Debug)]
struct FeedForward {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

/// What every layer of one forward pass shares.
#[derive(Debug)]
pub struct Pass {
    causal: CausalPass,
    rotary: RotaryTables,
}

impl Llama {
    /// A decoder whose parameters are drawn when first read, unless they are loaded before.
    pub(super) fn uninitialised(config: &LlamaConfig, device: &Device) -> Self {
        let layer = || Layer {
            input_layernorm: RmsNorm::new(config.hidden_size, config.rms_norm_epsilon, device),
            self_attn: Attention::uninitialised(config, device),
            post_attention_layernorm: RmsNorm::new(
                config.hidden_size,
                config.rms_norm_epsilon,
                device,
            ),
            mlp: FeedForward::uninitialised(config, device),
        };
        Self {
            embed_tokens: Embedding::new(config.vocab_size, config.hidden_size, device),
            layers: std::iter::repeat_with(layer)
                .take(config.num_layers)
                .collect(),
            norm: RmsNorm::new(config.hidden_size, config.rms_norm_epsilon, device),
            config: config.clone(),
        }
    }
}

impl Attention {
    fn uninitialised(config: &LlamaConfig, device: &Device) -> Self {
        let query_width = config.num_heads * config.head_size;
        let key_width = config.num_key_value_heads * config.head_size;
        let project = |width| {
            linear(
                config.hidden_size,
                width,
                config.query_key_value_bias,
                device,
            )
        };
        let head_norm = || {
            (config.family == Family::Qwen3)
                .then(|| RmsNorm::new(config.head_size, config.rms_norm_epsilon, device))
        };
        Self {
            q_proj: project(query_width),
            k_proj: project(key_width),
            v_proj: project(key_width),
            o_proj: linear(
                query_width,
                config.hidden_size,
                config.attention_output_bias,
                device,
            ),
            q_norm: head_norm(),
            k_norm: head_norm(),
            dropout: Dropout::new(config.attention_dropout),
            num_heads: config.num_heads,
            num_key_value_heads: config.num_key_value_heads,
        }
    }

    fn forward(
        &self,
        hidden_nd: Tensor<2>,
        pass: &Pass,
        earlier: Option<&mut KeyValues>,
    ) -> Tensor<2> {
        let precision = pass.causal.precision;
        let hidden_nd = to_precision(hidden_nd, precision);
        let turned = |linear: &Linear, norm: &Option<RmsNorm>, num_heads: usize| {
            let projected = to_f32(linear.forward(hidden_nd.clone(), precision), precision);
            let heads = pass.causal.heads(projected, num_heads);
            let heads = match norm {
                Some(norm) => norm.forward(heads),
                None => heads,
            };
            to_precision(pass.rotary.turn(heads), precision)
        };
        let query_bshk = turned(&self.q_proj, &self.q_norm, self.num_heads);
        let key_bsgk = turned(&self.k_proj, &self.k_norm, self.num_key_value_heads);
        let value = self.v_proj.forward(hidden_nd.clone(), precision);
        let value_bsgk = pass.causal.heads(value, self.num_key_value_heads);
        let context = pass
            .causal
            .attend(query_bshk, key_bsgk, value_bsgk, &self.dropout, earlier);
        to_f32(self.o_proj.forward(context, precision), precision)
    }
}

impl FeedForward {
    fn uninitialised(config: &LlamaConfig, device: &Device) -> Self {
        let (width, between) = (config.hidden_size, config.intermediate_size);
        let bias = config.feed_forward_bias;
        Self {
            gate_proj: linear(width, between, bias, device),
            up_proj: linear(width, between, bias, device),
            down_proj: linear(between, width, bias, device),
            activation: config.activation,
        }
    }

    fn forward(&self, hidden_nd: Tensor<2>, precision: Precision) -> Tensor<2> {
        let hidden_nd = to_precision(hidden_nd, precision);
        let gate = self.gate_proj.forward(hidden_nd.clone(), precision);
        let raised = self.activation.forward(gate) * self.up_proj.forward(hidden_nd, precision);
        to_f32(self.down_proj.forward(raised, precision), precision)
    }
}

fn linear(input: usize, output: usize, bias: bool, device: &Device) -> Linear {
    if bias {
        Linear::new(input, output, device)
    } else {
        Linear::without_bias(input, output, device)
    }
}

impl Layer {
    fn forward(
        &self,
        hidden_nd: Tensor<2>,
        pass: &Pass,
        earlier: Option<&mut KeyValues>,
    ) -> Tensor<2> {
        let normed_nd = self.input_layernorm.forward(hidden_nd.clone());
        let attended_nd = hidden_nd + self.self_attn.forward(normed_nd, pass, earlier);
        let normed_nd = self.post_attention_layernorm.forward(attended_nd.clone());
        attended_nd + self.mlp.forward(normed_nd, pass.causal.precision)
    }
}

impl Trunk for Llama {
    type Pass = Pass;

    fn pass(&self, batch: &TokenBatch, precision: Precision) -> Pass {
        let [_, positions] = batch.token_ids_bs.dims();
        self.pass_after(&batch.attention_mask_bs, positions, precision)
    }

    fn embed(&self, batch: &TokenBatch, _pass: &Pass) -> Tensor<2> {
        let words_bsd = self.embed_tokens.forward(batch.token_ids_bs.clone());
        words_bsd.flatten(0, 1)
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&self, index: usize, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        self.layers[index].forward(hidden_nd, pass, None)
    }

    fn finish(&self, hidden_nd: Tensor<2>, batch: &TokenBatch, pass: &Pass) -> BackboneOutput {
        let hidden_bsd = pass.causal.rows(self.norm.forward(hidden_nd));
        BackboneOutput {
            pooled_bd: last_token(&hidden_bsd, &batch.attention_mask_bs),
            hidden_bsd,
        }
    }

    fn visit_linears(&mut self, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let at = |name: &str| format!("layers.{index}.{name}");
            let attention = &mut layer.self_attn;
            visit(&at("self_attn.q_proj"), &mut attention.q_proj);
            visit(&at("self_attn.k_proj"), &mut attention.k_proj);
            visit(&at("self_attn.v_proj"), &mut attention.v_proj);
            visit(&at("self_attn.o_proj"), &mut attention.o_proj);
            visit(&at("mlp.gate_proj"), &mut layer.mlp.gate_proj);
            visit(&at("mlp.up_proj"), &mut layer.mlp.up_proj);
            visit(&at("mlp.down_proj"), &mut layer.mlp.down_proj);
        }
    }
}

impl Decoder for Llama {
    fn word_embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    fn pass_after(&self, mask_bt: &Tensor<2, Int>, positions: usize, precision: Precision) -> Pass {
        let [_, total] = mask_bt.dims();
        let causal = CausalPass::new(mask_bt, positions, precision);
        let rotary = self
            .config
            .rotary
            .tables(causal.position_ids_bs.clone(), total);
        Pass { causal, rotary }
    }

    fn layer_after(
        &self,
        index: usize,
        hidden_nd: Tensor<2>,
        pass: &Pass,
        earlier: &mut KeyValues,
    ) -> Tensor<2> {
        self.layers[index].forward(hidden_nd, pass, Some(earlier))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: &Value) -> Result<LlamaConfig, StudentError> {
        let mut raw = json!({
            "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "max_position_embeddings": 24,
        });
        let fields = raw.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        LlamaConfig::from_fields(&Fields::new("config.json", fields.clone()))
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = parse(&json!({"head_dim": null})).unwrap();
        assert_eq!((config.num_key_value_heads, config.head_size), (4, 8));
        assert_eq!(config.activation, Activation::Silu);
        assert!((config.rms_norm_epsilon - 1e-6).abs() < f64::EPSILON);
        assert!(!config.ties_word_embeddings && !config.query_key_value_bias);
        assert_eq!(config.special_tokens.ends, [2]);
        assert_eq!(config.pad_token_id(), None);
    }

    #[test]
    fn unsupported_values_are_refused_by_name() {
        for (changes, expected) in [
            (
                json!({"num_key_value_heads": 3}),
                "config.json: `num_key_value_heads` is `3 for num_attention_heads 4`, supported: a divisor of num_attention_heads",
            ),
            (
                json!({"num_attention_heads": 5}),
                "config.json: `num_attention_heads` is `5 for hidden_size 32`, supported: a divisor of hidden_size",
            ),
            (
                json!({"head_dim": 7}),
                "config.json: `head_dim` is `7`, supported: an even number",
            ),
            (
                json!({"hidden_act": "mish"}),
                "config.json: `hidden_act` is `mish`, supported: gelu, gelu_python, gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh",
            ),
            (
                json!({"eos_token_id": "</s>"}),
                "config.json: `eos_token_id` is `</s>`, supported: a token id, a list of token ids",
            ),
        ] {
            assert_eq!(parse(&changes).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn written_configuration_reads_back_equal() {
        let config = parse(&json!({
            "num_key_value_heads": 2, "head_dim": 6, "attention_bias": true, "mlp_bias": true,
            "tie_word_embeddings": true, "eos_token_id": [5, 6], "pad_token_id": 7,
        }))
        .unwrap();
        let written = config.to_hugging_face().as_object().unwrap().clone();
        assert_eq!(
            LlamaConfig::from_fields(&Fields::new("round trip", written)).unwrap(),
            config
        );
    }
}
