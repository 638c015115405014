//! `config.json` of BERT.

use serde_json::{Value, json};

use crate::student::StudentError;
use crate::student::activation::Activation;
use crate::student::architecture::{Architecture, ClassifierNaming, Naming, Sizes};
use crate::student::fields::Fields;

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
    pub(in crate::student) fn from_fields(fields: &Fields) -> Result<Self, StudentError> {
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
            layer_norm_epsilon: fields.epsilon_or("layer_norm_eps", 1e-12)?,
            pad_token_id: fields.optional_id("pad_token_id")?.unwrap_or(0),
        };
        fields.check_heads("num_attention_heads", config.num_heads, config.hidden_size)?;
        Ok(config)
    }

    pub(super) fn head_size(&self) -> usize {
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
    fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden_size,
            num_layers: self.num_layers,
            vocab: self.vocab_size,
            max_positions: self.max_positions,
        }
    }

    fn keep_layers(&mut self, num_layers: usize) {
        self.num_layers = num_layers;
    }

    fn pad_token_id(&self) -> Option<u32> {
        Some(self.pad_token_id)
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
                json!({"add_cross_attention": true}),
                "config.json: `add_cross_attention` is `true`, supported: false",
            ),
            (
                json!({"type_vocab_size": 0}),
                "config.json: `type_vocab_size` is `0`, supported: 1 or more",
            ),
            (
                json!({"layer_norm_eps": -1e-12}),
                "config.json: `layer_norm_eps` is `-1e-12`, supported: a number above 0",
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
