//! A small BERT without pretraining, as written in a run's configuration.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::bert::BertConfig;
use super::fields::Fields;
use super::{BackboneConfig, StudentError};

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
    /// The configuration for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    ///
    /// [`StudentError::UnsupportedConfig`] names a size of zero, heads that do not divide the
    /// width, or a dropout outside `[0, 1)`.
    pub fn resolve(&self, vocab_size: usize) -> Result<BackboneConfig, StudentError> {
        let refuse = |field, value: String, supported| StudentError::UnsupportedConfig {
            origin: "fresh student".to_owned(),
            field,
            value,
            supported,
        };
        for (field, size) in [
            ("vocab_size", vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_positions", self.max_positions),
        ] {
            if size == 0 {
                return Err(refuse(field, "0".to_owned(), "1 or more"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            let value = format!("{} for hidden_size {}", self.num_heads, self.hidden_size);
            return Err(refuse("num_heads", value, "a divisor of hidden_size"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let value = self.dropout.to_string();
            return Err(refuse("dropout", value, "0 up to, but not, 1"));
        }
        let config = json!({
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
        });
        let values = config.as_object().expect("an object was written").clone();
        let fields = Fields::new("fresh student", values);
        Ok(BackboneConfig::Bert(BertConfig::from_fields(&fields)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused() {
        let text = "hidden_size = 32\nnum_layers = 2\nnum_heads = 4\nintermediate_size = 64\n\
                    max_positions = 24\nlayers = 3\n";
        let error = toml::from_str::<FreshBertConfig>(text).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `layers`"),
            "{error}"
        );
    }
}
