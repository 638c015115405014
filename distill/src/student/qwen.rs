//! Qwen2 (Yang et al., arXiv 2407.10671) and Qwen3 (arXiv 2505.09388): the decoder of `llama` with
//! biases on queries, keys and values, or with every head's queries and keys normalised.

use super::StudentError;
use super::architecture::{ClassifierNaming, Naming, refuse_in_decoders};
use super::fields::Fields;
use super::llama::{Family, LlamaConfig};

/// Width of a head where a Qwen3 configuration does not say.
const QWEN3_HEAD_SIZE: usize = 128;
/// First layer with a window where the configuration does not say.
const FIRST_WINDOWED_LAYER: i64 = 28;

pub(super) static QWEN2_NAMING: Naming = Naming {
    prefixes: &["model."],
    base: ("Qwen2Model", ""),
    classifier: Some(ClassifierNaming {
        class: "Qwen2ForSequenceClassification",
        prefix: "model.",
        head: "score",
        renamed: &[],
    }),
    causal: Some(("Qwen2ForCausalLM", "model.")),
    parts: &[],
    optional: &[],
    outside: &[],
};

pub(super) static QWEN3_NAMING: Naming = Naming {
    prefixes: &["model."],
    base: ("Qwen3Model", ""),
    classifier: Some(ClassifierNaming {
        class: "Qwen3ForSequenceClassification",
        prefix: "model.",
        head: "score",
        renamed: &[],
    }),
    causal: Some(("Qwen3ForCausalLM", "model.")),
    parts: &[],
    optional: &[],
    outside: &[],
};

/// Reads the fields of a `qwen2` configuration.
pub(super) fn qwen2(fields: &Fields) -> Result<LlamaConfig, StudentError> {
    refuse_windows(fields)?;
    Ok(LlamaConfig {
        query_key_value_bias: true,
        ..LlamaConfig::shared(
            fields,
            Family::Qwen2,
            fields.size("num_key_value_heads")?,
            fields.optional_size("head_dim")?,
        )?
    })
}

/// Reads the fields of a `qwen3` configuration.
pub(super) fn qwen3(fields: &Fields) -> Result<LlamaConfig, StudentError> {
    refuse_windows(fields)?;
    let attention_bias = fields.flag_or("attention_bias", false)?;
    Ok(LlamaConfig {
        query_key_value_bias: attention_bias,
        attention_output_bias: attention_bias,
        ..LlamaConfig::shared(
            fields,
            Family::Qwen3,
            fields.size("num_key_value_heads")?,
            Some(fields.size_or("head_dim", QWEN3_HEAD_SIZE)?),
        )?
    })
}

/// Refuses a configuration one of whose layers sees only a window of the positions before.
fn refuse_windows(fields: &Fields) -> Result<(), StudentError> {
    refuse_in_decoders(fields)?;
    let first = fields.integer_or("max_window_layers", FIRST_WINDOWED_LAYER)?;
    let num_layers = fields.size("num_hidden_layers")?;
    let is_reached = usize::try_from(first).map_or(true, |first| first < num_layers);
    // Where the configuration lists its layers, the list is what holds.
    let follows = fields.get("layer_types").is_none();
    if follows && is_reached && fields.flag_or("use_sliding_window", false)? {
        return Err(fields.refuse("use_sliding_window", true, "false"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::BackboneConfig;
    use super::*;

    fn parse(model_type: &str, changes: &Value) -> Result<BackboneConfig, StudentError> {
        let mut raw = json!({
            "model_type": model_type, "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
            "max_position_embeddings": 24,
        });
        let fields = raw.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        BackboneConfig::from_fields(&Fields::new("config.json", fields.clone()))
    }

    #[test]
    fn a_window_is_refused_only_where_it_is_used() {
        let used = |first: i64| json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": first});
        let unused = [
            json!({"use_sliding_window": false, "sliding_window": 8, "max_window_layers": 1}),
            json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2}),
            json!({"use_sliding_window": false, "sliding_window": 8, "max_window_layers": 0}),
            json!({"use_sliding_window": true, "layer_types": ["full_attention", "full_attention"]}),
        ];
        for family in ["qwen2", "qwen3"] {
            for first in [1, 0, -1] {
                assert_eq!(
                    parse(family, &used(first)).unwrap_err().to_string(),
                    "config.json: `use_sliding_window` is `true`, supported: false"
                );
            }
            let layer = json!({"layer_types": ["full_attention", "sliding_attention"]});
            assert_eq!(
                parse(family, &layer).unwrap_err().to_string(),
                "config.json: `layer_types` is `sliding_attention`, supported: full_attention"
            );
            for changes in &unused {
                assert!(parse(family, changes).is_ok(), "{changes}");
            }
        }
    }

    #[test]
    fn written_configuration_reads_back_equal() {
        for family in ["qwen2", "qwen3"] {
            let config = parse(family, &json!({"tie_word_embeddings": true})).unwrap();
            let written = config.architecture().to_hugging_face();
            let written = Fields::new("round trip", written.as_object().unwrap().clone());
            assert_eq!(BackboneConfig::from_fields(&written).unwrap(), config);
        }
    }
}
