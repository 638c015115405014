//! `config.json` of OPT.

use serde_json::{Value, json};

use crate::student::StudentError;
use crate::student::activation::Activation;
use crate::student::architecture::{
    Architecture, ClassifierNaming, Naming, Sizes, refuse_in_decoders,
};
use crate::student::fields::Fields;
use crate::student::special_tokens::SpecialTokens;

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
    pub(in crate::student) fn from_fields(fields: &Fields) -> Result<Self, StudentError> {
        refuse_in_decoders(fields)?;
        fields.expect_none("sliding_window", "null")?;
        fields.expect_number("layerdrop", 0.0, "0")?;
        // Of models that were trained with other software.
        fields.expect_number("activation_dropout", 0.0, "0")?;
        fields.expect("learned_embeddings", &json!(true), "true")?;
        fields.expect("scale_embeddings", &json!(false), "false")?;
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
    fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.embedding_width,
            num_layers: self.num_layers,
            vocab: self.vocab_size,
            max_positions: self.max_positions,
        }
    }

    fn keep_layers(&mut self, num_layers: usize) {
        self.num_layers = num_layers;
    }

    fn pad_token_id(&self) -> Option<u32> {
        self.special_tokens.padding
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::super::Opt;
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
                json!({"activation_dropout": 0.1}),
                "config.json: `activation_dropout` is `0.1`, supported: 0",
            ),
            (
                json!({"learned_embeddings": false}),
                "config.json: `learned_embeddings` is `false`, supported: true",
            ),
            (
                json!({"scale_embeddings": true}),
                "config.json: `scale_embeddings` is `true`, supported: false",
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
