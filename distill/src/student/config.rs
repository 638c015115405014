//! Sizes and choices of a BERT encoder, from `config.json` or from a run's own settings.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::StudentError;

/// Activation between the two feed-forward matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)` with the error function: `gelu` in `config.json`.
    Gelu,
    /// The tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415): `gelu_new` or
    /// `gelu_pytorch_tanh` in `config.json`.
    GeluTanh,
}

impl Activation {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
        }
    }
}

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
    /// Rows of the position embedding: the longest sequence.
    pub max_positions: usize,
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

/// A small student without pretraining, as written in a run's configuration.
///
/// The vocabulary size comes from the tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshBertConfig {
    /// Hidden width d.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Width between the two feed-forward matrices.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Dropout, hidden and attention alike, in `[0, 1)`.
    #[serde(default = "default_dropout")]
    pub dropout: f64,
}

fn default_dropout() -> f64 {
    0.1
}

impl FreshBertConfig {
    /// The encoder configuration for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    ///
    /// [`StudentError::UnsupportedConfig`] names a size of zero, heads that do not divide the
    /// width, or a dropout outside `[0, 1)`.
    pub fn resolve(&self, vocab_size: usize) -> Result<BertConfig, StudentError> {
        let config = BertConfig {
            vocab_size,
            hidden_size: self.hidden_size,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            intermediate_size: self.intermediate_size,
            max_positions: self.max_positions,
            num_token_types: 2,
            activation: Activation::Gelu,
            hidden_dropout: self.dropout,
            attention_dropout: self.dropout,
            layer_norm_epsilon: 1e-12,
            pad_token_id: 0,
        };
        config.check("fresh student")?;
        Ok(config)
    }
}

/// `config.json` as far as it matters; what a file leaves out has the default of `transformers`.
#[derive(Deserialize)]
struct HuggingFaceConfig {
    #[serde(default = "default_model_type")]
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_type_vocab_size")]
    type_vocab_size: usize,
    #[serde(default = "default_hidden_act")]
    hidden_act: String,
    #[serde(default = "default_dropout")]
    hidden_dropout_prob: f64,
    #[serde(default = "default_dropout")]
    attention_probs_dropout_prob: f64,
    #[serde(default = "default_layer_norm_eps")]
    layer_norm_eps: f64,
    #[serde(default)]
    pad_token_id: Option<u32>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    add_cross_attention: bool,
}

fn default_model_type() -> String {
    "bert".to_owned()
}

fn default_type_vocab_size() -> usize {
    2
}

fn default_hidden_act() -> String {
    "gelu".to_owned()
}

fn default_layer_norm_eps() -> f64 {
    1e-12
}

impl BertConfig {
    /// Reads `config.json` of a Hugging Face directory.
    ///
    /// # Errors
    ///
    /// The file cannot be read, misses a size, or holds a value that this encoder does not
    /// compute; the last names field, value and what is supported.
    pub fn from_file(path: &Path) -> Result<Self, StudentError> {
        let text = std::fs::read_to_string(path).map_err(StudentError::io(path))?;
        let raw: HuggingFaceConfig =
            serde_json::from_str(&text).map_err(StudentError::json(path))?;
        Self::from_hugging_face(raw, &path.display().to_string())
    }

    fn from_hugging_face(raw: HuggingFaceConfig, origin: &str) -> Result<Self, StudentError> {
        let refuse = |field, value: String, supported| StudentError::UnsupportedConfig {
            origin: origin.to_owned(),
            field,
            value,
            supported,
        };
        if raw.model_type != "bert" {
            return Err(refuse("model_type", raw.model_type, "bert"));
        }
        if let Some(kind) = raw.position_embedding_type
            && kind != "absolute"
        {
            return Err(refuse("position_embedding_type", kind, "absolute"));
        }
        if raw.is_decoder {
            return Err(refuse("is_decoder", "true".to_owned(), "false"));
        }
        if raw.add_cross_attention {
            return Err(refuse("add_cross_attention", "true".to_owned(), "false"));
        }
        let Some(activation) = Activation::parse(&raw.hidden_act) else {
            let supported = "gelu, gelu_python, gelu_new, gelu_pytorch_tanh";
            return Err(refuse("hidden_act", raw.hidden_act, supported));
        };
        let config = Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            num_layers: raw.num_hidden_layers,
            num_heads: raw.num_attention_heads,
            intermediate_size: raw.intermediate_size,
            max_positions: raw.max_position_embeddings,
            num_token_types: raw.type_vocab_size,
            activation,
            hidden_dropout: raw.hidden_dropout_prob,
            attention_dropout: raw.attention_probs_dropout_prob,
            layer_norm_epsilon: raw.layer_norm_eps,
            pad_token_id: raw.pad_token_id.unwrap_or(0),
        };
        config.check(origin)?;
        Ok(config)
    }

    fn check(&self, origin: &str) -> Result<(), StudentError> {
        let refuse = |field, value: String, supported| StudentError::UnsupportedConfig {
            origin: origin.to_owned(),
            field,
            value,
            supported,
        };
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_positions", self.max_positions),
            ("num_token_types", self.num_token_types),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(refuse(field, "0".to_owned(), "1 or more"));
        }
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            let value = format!("{} for hidden_size {}", self.num_heads, self.hidden_size);
            return Err(refuse("num_heads", value, "a divisor of hidden_size"));
        }
        for (field, value) in [
            ("hidden_dropout", self.hidden_dropout),
            ("attention_dropout", self.attention_dropout),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(refuse(field, value.to_string(), "0 up to, but not, 1"));
            }
        }
        Ok(())
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// `config.json` for `transformers`, without `architectures` and labels.
    pub(super) fn to_hugging_face(&self) -> Value {
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
        let raw = serde_json::from_value(raw).unwrap();
        BertConfig::from_hugging_face(raw, "config.json")
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
                json!({"hidden_act": "swish"}),
                "config.json: `hidden_act` is `swish`, supported: gelu, gelu_python, gelu_new, gelu_pytorch_tanh",
            ),
            (
                json!({"position_embedding_type": "relative_key"}),
                "config.json: `position_embedding_type` is `relative_key`, supported: absolute",
            ),
            (
                json!({"model_type": "roberta"}),
                "config.json: `model_type` is `roberta`, supported: bert",
            ),
            (
                json!({"is_decoder": true}),
                "config.json: `is_decoder` is `true`, supported: false",
            ),
            (
                json!({"num_attention_heads": 5}),
                "config.json: `num_heads` is `5 for hidden_size 32`, supported: a divisor of hidden_size",
            ),
            (
                json!({"hidden_dropout_prob": 1.0}),
                "config.json: `hidden_dropout` is `1`, supported: 0 up to, but not, 1",
            ),
        ] {
            assert_eq!(parse(&changes).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn written_configuration_reads_back_equal() {
        let config = parse(&json!({"hidden_act": "gelu_new", "pad_token_id": 3})).unwrap();
        let raw = serde_json::from_value(config.to_hugging_face()).unwrap();
        assert_eq!(
            BertConfig::from_hugging_face(raw, "round trip").unwrap(),
            config
        );
    }

    #[test]
    fn fresh_configuration_refuses_unknown_keys() {
        let text = "hidden_size = 32\nnum_layers = 2\nnum_heads = 4\nintermediate_size = 64\n\
                    max_positions = 24\nlayers = 3\n";
        let error = toml::from_str::<FreshBertConfig>(text).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `layers`"),
            "{error}"
        );
    }
}
