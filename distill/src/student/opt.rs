//! The OPT decoder (Zhang et al., arXiv 2205.01068) as `transformers` computes it.
//!
//! Parameters, the residual stream, layer normalisation and softmax are f32. With [`Precision::Bf16`] the matrix
//! products and the activation between them are computed in bf16 from weights cast on the fly.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `n` = b·s rows, `d` hidden width, `h` heads, `k` head width.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, module};
use serde_json::{Value, json};

use super::activation::Activation;
use super::architecture::{Architecture, ClassifierNaming, Naming};
use super::decoder::{CausalPass, Decoder, KeyValues, last_token};
use super::fields::Fields;
use super::layers::{Embedding, LayerNorm, Linear, to_f32, to_precision};
use super::special_tokens::SpecialTokens;
use super::trunk::Trunk;
use super::{BackboneOutput, StudentError, TokenBatch};
use crate::device::Precision;
use crate::dropout::Dropout;

/// The first row of the position embedding that a position uses: the rows before are left from padding ids.
const POSITION_OFFSET: u32 = 2;
/// Added to the variance in layer normalisation; no field of the configuration changes it.
const LAYER_NORM_EPSILON: f64 = 1e-5;

/// A decoder's shape: every value has been checked.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are the configuration's own"
)]
pub struct OptConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width within the layers.
    pub layer_width: usize,
    /// Width of word embedding and hidden states, which is projected where it is not `layer_width`.
    pub embedding_width: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Width between the two feed-forward matrices.
    pub feed_forward_size: usize,
    /// The longest sequence.
    pub max_positions: usize,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Dropout on both residual branches, in `[0, 1)`.
    pub dropout: f64,
    /// Dropout on attention probabilities, in `[0, 1)`.
    pub attention_dropout: f64,
    /// Whether layers are normalised before their parts, and not after.
    pub norm_before: bool,
    /// Whether the norm after the last layer is left out where layers are normalised before.
    pub without_final_norm: bool,
    /// Whether the layers' linear maps have biases.
    pub has_bias: bool,
    /// Whether norms have weights and biases.
    pub norms_are_affine: bool,
    /// Whether the language-model head is the word embedding.
    pub ties_word_embeddings: bool,
    /// Beginning, end and padding.
    pub special_tokens: SpecialTokens,
}

impl OptConfig {
    /// Reads the fields of `config.json`; what it leaves out has the default of `transformers`.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self, StudentError> {
        let layerdrop = fields.number_or("layerdrop", 0.0)?;
        if layerdrop != 0.0 {
            return Err(fields.refuse("layerdrop", layerdrop, "0"));
        }
        let hidden_size = fields.size("hidden_size")?;
        let defaults = SpecialTokens {
            beginning: Some(2),
            ends: vec![2],
            padding: Some(1),
        };
        let config = Self {
            vocab_size: fields.size("vocab_size")?,
            layer_width: hidden_size,
            embedding_width: fields.size_or("word_embed_proj_dim", hidden_size)?,
            num_layers: fields.size("num_hidden_layers")?,
            num_heads: fields.size("num_attention_heads")?,
            feed_forward_size: fields.size("ffn_dim")?,
            max_positions: fields.size("max_position_embeddings")?,
            activation: fields.activation_or("activation_function", Activation::Relu)?,
            dropout: fields.dropout_or("dropout", 0.1)?,
            attention_dropout: fields.dropout_or("attention_dropout", 0.0)?,
            norm_before: fields.flag_or("do_layer_norm_before", true)?,
            without_final_norm: fields.flag_or("_remove_final_layer_norm", false)?,
            has_bias: fields.flag_or("enable_bias", true)?,
            norms_are_affine: fields.flag_or("layer_norm_elementwise_affine", true)?,
            ties_word_embeddings: fields.flag_or("tie_word_embeddings", true)?,
            special_tokens: SpecialTokens::from_fields(fields, defaults)?,
        };
        fields.check_heads("num_attention_heads", config.num_heads, hidden_size)?;
        Ok(config)
    }
}

static NAMING: Naming = Naming {
    prefixes: &["model.decoder.", "decoder."],
    base: ("OPTModel", "decoder."),
    classifier: Some(ClassifierNaming {
        class: "OPTForSequenceClassification",
        prefix: "model.decoder.",
        head: "score",
        renamed: &[],
    }),
    causal: Some(("OPTForCausalLM", "model.decoder.")),
    parts: &[],
    optional: &[],
    outside: &[],
};

impl Architecture for OptConfig {
    fn hidden_size(&self) -> usize {
        self.embedding_width
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
        &NAMING
    }

    fn to_hugging_face(&self) -> Value {
        let mut config = json!({
            "model_type": "opt",
            "vocab_size": self.vocab_size,
            "hidden_size": self.layer_width,
            "word_embed_proj_dim": self.embedding_width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "ffn_dim": self.feed_forward_size,
            "max_position_embeddings": self.max_positions,
            "activation_function": self.activation.name(),
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "layerdrop": 0.0,
            "do_layer_norm_before": self.norm_before,
            "_remove_final_layer_norm": self.without_final_norm,
            "enable_bias": self.has_bias,
            "layer_norm_elementwise_affine": self.norms_are_affine,
            "tie_word_embeddings": self.ties_word_embeddings,
            "init_std": 0.02,
            "dtype": "float32",
        });
        let fields = config
            .as_object_mut()
            .expect("a configuration is an object");
        self.special_tokens.insert_into(fields);
        config
    }
}

/// A decoder; fields are named as in published checkpoints.
#[derive(Module, Debug)]
pub struct Opt {
    embed_tokens: Embedding,
    embed_positions: Embedding,
    project_in: Option<Linear>,
    layers: Vec<Layer>,
    final_layer_norm: Option<Norm>,
    project_out: Option<Linear>,
}

#[derive(Module, Debug)]
struct Layer {
    self_attn: Attention,
    self_attn_layer_norm: Norm,
    fc1: Linear,
    fc2: Linear,
    final_layer_norm: Norm,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
    norm_before: bool,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    dropout: Dropout,
    num_heads: usize,
}

/// A layer norm, with or without weight and bias.
#[derive(Module, Debug)]
enum Norm {
    Affine(LayerNorm),
    Plain(PlainNorm),
}

/// `(x − mean) / √(variance + ε)`.
#[derive(Module, Debug)]
struct PlainNorm {
    width: usize,
}

/// One architecture's parts, made on one device.
struct Parts<'a> {
    config: &'a OptConfig,
    device: &'a Device,
}

impl Parts<'_> {
    fn linear(&self, input: usize, output: usize) -> Linear {
        if self.config.has_bias {
            Linear::new(input, output, self.device)
        } else {
            Linear::without_bias(input, output, self.device)
        }
    }

    fn norm(&self) -> Norm {
        let width = self.config.layer_width;
        if self.config.norms_are_affine {
            Norm::Affine(LayerNorm::new(width, LAYER_NORM_EPSILON, self.device))
        } else {
            Norm::Plain(PlainNorm { width })
        }
    }

    fn layer(&self) -> Layer {
        let (width, between) = (self.config.layer_width, self.config.feed_forward_size);
        Layer {
            self_attn: Attention {
                q_proj: self.linear(width, width),
                k_proj: self.linear(width, width),
                v_proj: self.linear(width, width),
                out_proj: self.linear(width, width),
                dropout: Dropout::new(self.config.attention_dropout),
                num_heads: self.config.num_heads,
            },
            self_attn_layer_norm: self.norm(),
            fc1: self.linear(width, between),
            fc2: self.linear(between, width),
            final_layer_norm: self.norm(),
            dropout: Dropout::new(self.config.dropout),
            activation: self.config.activation,
            norm_before: self.config.norm_before,
        }
    }
}

impl Opt {
    /// A decoder whose parameters are drawn when first read, unless they are loaded before.
    pub(super) fn uninitialised(config: &OptConfig, device: &Device) -> Self {
        let parts = Parts { config, device };
        let (width, embedding) = (config.layer_width, config.embedding_width);
        let projection = |input, output| {
            (width != embedding).then(|| Linear::without_bias(input, output, device))
        };
        let position_rows = config.max_positions + POSITION_OFFSET as usize;
        Self {
            embed_tokens: Embedding::new(config.vocab_size, embedding, device),
            embed_positions: Embedding::new(position_rows, width, device),
            project_in: projection(embedding, width),
            layers: (0..config.num_layers).map(|_| parts.layer()).collect(),
            final_layer_norm: (config.norm_before && !config.without_final_norm)
                .then(|| parts.norm()),
            project_out: projection(width, embedding),
        }
    }
}

impl Norm {
    /// `[n, d]` to `[n, d]`, in f32.
    fn forward(&self, input_nd: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Affine(norm) => norm.forward(input_nd),
            Self::Plain(PlainNorm { width }) => {
                let ones = Tensor::ones([*width], &input_nd.device());
                module::layer_norm(input_nd, ones, None, LAYER_NORM_EPSILON)
            }
        }
    }
}

impl Attention {
    fn forward(
        &self,
        hidden_nd: Tensor<2>,
        pass: &CausalPass,
        earlier: Option<&mut KeyValues>,
    ) -> Tensor<2> {
        let hidden_nd = to_precision(hidden_nd, pass.precision);
        let project = |linear: &Linear| {
            let projected = linear.forward(hidden_nd.clone(), pass.precision);
            pass.heads(projected, self.num_heads)
        };
        let (query, key) = (project(&self.q_proj), project(&self.k_proj));
        let context = pass.attend(query, key, project(&self.v_proj), &self.dropout, earlier);
        to_f32(
            self.out_proj.forward(context, pass.precision),
            pass.precision,
        )
    }
}

impl Layer {
    fn forward(
        &self,
        hidden_nd: Tensor<2>,
        pass: &CausalPass,
        earlier: Option<&mut KeyValues>,
    ) -> Tensor<2> {
        let attended_nd = self.residual(hidden_nd, &self.self_attn_layer_norm, |input_nd| {
            self.self_attn.forward(input_nd, pass, earlier)
        });
        self.residual(attended_nd, &self.final_layer_norm, |input_nd| {
            let raised = self.fc1.forward(input_nd, pass.precision);
            let raised = self.activation.forward(raised);
            to_f32(self.fc2.forward(raised, pass.precision), pass.precision)
        })
    }

    /// `x + dropout(part(norm(x)))`, or `norm(x + dropout(part(x)))`.
    fn residual(
        &self,
        hidden_nd: Tensor<2>,
        norm: &Norm,
        part: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        if self.norm_before {
            let changed_nd = part(norm.forward(hidden_nd.clone()));
            hidden_nd + self.dropout.forward(changed_nd)
        } else {
            let changed_nd = part(hidden_nd.clone());
            norm.forward(hidden_nd + self.dropout.forward(changed_nd))
        }
    }
}

impl Trunk for Opt {
    type Pass = CausalPass;

    fn pass(&self, batch: &TokenBatch, precision: Precision) -> CausalPass {
        let [_, positions] = batch.token_ids_bs.dims();
        CausalPass::new(&batch.attention_mask_bs, positions, precision)
    }

    fn embed(&self, batch: &TokenBatch, pass: &CausalPass) -> Tensor<2> {
        let words_bsd = self.embed_tokens.forward(batch.token_ids_bs.clone());
        let words_nd = words_bsd.flatten(0, 1);
        let words_nd = match &self.project_in {
            Some(project) => to_f32(project.forward(words_nd, pass.precision), pass.precision),
            None => words_nd,
        };
        let rows_bs = pass.position_ids_bs.clone().add_scalar(POSITION_OFFSET);
        words_nd + self.embed_positions.forward(rows_bs).flatten(0, 1)
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&self, index: usize, hidden_nd: Tensor<2>, pass: &CausalPass) -> Tensor<2> {
        self.layers[index].forward(hidden_nd, pass, None)
    }

    fn finish(
        &self,
        hidden_nd: Tensor<2>,
        batch: &TokenBatch,
        pass: &CausalPass,
    ) -> BackboneOutput {
        let hidden_nd = match &self.final_layer_norm {
            Some(norm) => norm.forward(hidden_nd),
            None => hidden_nd,
        };
        let hidden_nd = match &self.project_out {
            Some(project) => to_f32(project.forward(hidden_nd, pass.precision), pass.precision),
            None => hidden_nd,
        };
        let hidden_bsd = pass.rows(hidden_nd);
        BackboneOutput {
            pooled_bd: last_token(&hidden_bsd, &batch.attention_mask_bs),
            hidden_bsd,
        }
    }

    fn visit_linears(&mut self, visit: &mut dyn FnMut(&str, &mut Linear)) {
        if let Some(project) = &mut self.project_in {
            visit("project_in", project);
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let at = |name: &str| format!("layers.{index}.{name}");
            visit(&at("self_attn.q_proj"), &mut layer.self_attn.q_proj);
            visit(&at("self_attn.k_proj"), &mut layer.self_attn.k_proj);
            visit(&at("self_attn.v_proj"), &mut layer.self_attn.v_proj);
            visit(&at("self_attn.out_proj"), &mut layer.self_attn.out_proj);
            visit(&at("fc1"), &mut layer.fc1);
            visit(&at("fc2"), &mut layer.fc2);
        }
        if let Some(project) = &mut self.project_out {
            visit("project_out", project);
        }
    }
}

impl Decoder for Opt {
    fn word_embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    fn pass_after(
        &self,
        mask_bt: &Tensor<2, Int>,
        positions: usize,
        precision: Precision,
    ) -> CausalPass {
        CausalPass::new(mask_bt, positions, precision)
    }

    fn layer_after(
        &self,
        index: usize,
        hidden_nd: Tensor<2>,
        pass: &CausalPass,
        earlier: &mut KeyValues,
    ) -> Tensor<2> {
        self.layers[index].forward(hidden_nd, pass, Some(earlier))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: &Value) -> Result<OptConfig, StudentError> {
        let mut raw = json!({
            "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "ffn_dim": 64, "max_position_embeddings": 24,
        });
        let fields = raw.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        OptConfig::from_fields(&Fields::new("config.json", fields.clone()))
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = parse(&json!({"word_embed_proj_dim": null})).unwrap();
        assert_eq!(config.embedding_width, 32);
        assert_eq!(config.activation, Activation::Relu);
        assert!(config.norm_before && !config.without_final_norm);
        assert!(config.has_bias && config.norms_are_affine && config.ties_word_embeddings);
        assert_eq!(config.pad_token_id(), Some(1));
        assert_eq!(config.end_token_ids(), [2]);
    }

    #[test]
    fn unsupported_values_are_refused_by_name() {
        for (changes, expected) in [
            (
                json!({"layerdrop": 0.1}),
                "config.json: `layerdrop` is `0.1`, supported: 0",
            ),
            (
                json!({"num_attention_heads": 5}),
                "config.json: `num_attention_heads` is `5 for hidden_size 32`, supported: a divisor of hidden_size",
            ),
            (
                json!({"activation_function": "mish"}),
                "config.json: `activation_function` is `mish`, supported: gelu, gelu_python, gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh",
            ),
        ] {
            assert_eq!(parse(&changes).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn the_final_norm_follows_the_configuration() {
        for (changes, expected) in [
            (json!({}), true),
            (json!({"_remove_final_layer_norm": true}), false),
            (json!({"do_layer_norm_before": false}), false),
        ] {
            let opt = Opt::uninitialised(&parse(&changes).unwrap(), &Device::flex());
            assert_eq!(opt.final_layer_norm.is_some(), expected, "{changes}");
        }
    }

    #[test]
    fn written_configuration_reads_back_equal() {
        let config = parse(&json!({
            "word_embed_proj_dim": 16, "do_layer_norm_before": false, "enable_bias": false,
            "layer_norm_elementwise_affine": false, "_remove_final_layer_norm": true,
            "activation_function": "gelu", "tie_word_embeddings": false,
        }))
        .unwrap();
        let written = config.to_hugging_face().as_object().unwrap().clone();
        assert_eq!(
            OptConfig::from_fields(&Fields::new("round trip", written)).unwrap(),
            config
        );
    }
}
