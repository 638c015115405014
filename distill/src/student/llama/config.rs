//! `config.json` of LLaMA and its kin.

use serde_json::{Value, json};

use crate::student::activation::Activation;
use crate::student::architecture::{
    Architecture, ClassifierNaming, Naming, Sizes, refuse_in_decoders,
};
use crate::student::fields::Fields;
use crate::student::rotary::Rotary;
use crate::student::special_tokens::SpecialTokens;
use crate::student::{StudentError, qwen};

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
    pub(in crate::student) fn from_fields(fields: &Fields) -> Result<Self, StudentError> {
        refuse_in_decoders(fields)?;
        fields.expect_none("sliding_window", "null")?;
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
    pub(in crate::student) fn shared(
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
            rms_norm_epsilon: fields.epsilon_or("rms_norm_eps", 1e-6)?,
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
    fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden_size,
            num_layers: self.num_layers,
            vocab: self.vocab_size,
            max_positions: self.rotary.reach(),
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
                json!({"rms_norm_eps": 0.0}),
                "config.json: `rms_norm_eps` is `0.0`, supported: a number above 0",
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
