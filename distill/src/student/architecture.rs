//! What differs between architectures without any tensor: sizes, names of weights, `config.json`.

use std::fmt::Debug;
use std::path::Path;

use serde_json::{Value, json};

use super::StudentError;
use super::bert::BertConfig;
use super::deberta_v2::DebertaV2Config;
use super::fields::{Fields, shown};
use super::llama::LlamaConfig;
use super::opt::OptConfig;
use super::qwen;
use super::roberta::{RobertaConfig, RobertaFamily};

/// How `transformers` names an architecture's classes and weights.
#[derive(Debug)]
pub struct Naming {
    /// What may stand before a trunk's tensor in a published checkpoint; the first that fits is taken off.
    pub prefixes: &'static [&'static str],
    /// The trunk alone: class and prefix as written.
    pub base: (&'static str, &'static str),
    /// With a classification head.
    pub classifier: Option<ClassifierNaming>,
    /// With a language-model head: class and prefix as written.
    pub causal: Option<(&'static str, &'static str)>,
    /// The name of a field path within the trunk's module, and back: pairs of path part and published part.
    pub parts: &'static [(&'static str, &'static str)],
    /// Beginnings of names that a checkpoint may lack: they are drawn afresh then, and said.
    pub optional: &'static [&'static str],
    /// Beginnings of names that never carry the trunk's prefix.
    pub outside: &'static [&'static str],
}

/// A model with a classification head, as published.
#[derive(Debug)]
pub struct ClassifierNaming {
    /// The class.
    pub class: &'static str,
    /// The prefix of the trunk's tensors.
    pub prefix: &'static str,
    /// The head's layer.
    pub head: &'static str,
    /// Names in the trunk that are called otherwise beside a head: path and published name, without prefix.
    pub renamed: &'static [(&'static str, &'static str)],
}

impl Naming {
    /// The published name of a field path, without prefix.
    pub(super) fn published(&self, path: &str) -> String {
        let replace =
            |name: String, (part, published): &(&str, &str)| name.replace(part, published);
        self.parts.iter().fold(path.to_owned(), replace)
    }

    /// A stored name without its prefix; older spellings of layer norms become the present ones.
    pub(super) fn canonical(&self, stored: &str) -> String {
        let name = self
            .prefixes
            .iter()
            .find_map(|prefix| stored.strip_prefix(prefix))
            .unwrap_or(stored);
        match name.strip_suffix("LayerNorm.gamma") {
            Some(prefix) => format!("{prefix}LayerNorm.weight"),
            None => match name.strip_suffix("LayerNorm.beta") {
                Some(prefix) => format!("{prefix}LayerNorm.bias"),
                None => name.to_owned(),
            },
        }
    }

    pub(super) fn is_optional(&self, name: &str) -> bool {
        self.optional.iter().any(|start| name.starts_with(start))
    }

    pub(super) fn is_outside(&self, name: &str) -> bool {
        self.outside.iter().any(|start| name.starts_with(start))
    }
}

/// The sizes that every architecture has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Width d of hidden states and pooled vectors.
    pub hidden: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Rows of the word embedding.
    pub vocab: usize,
    /// Longest sequence.
    pub max_positions: usize,
}

/// An architecture's sizes and names.
pub trait Architecture: Debug {
    /// What every architecture has.
    fn sizes(&self) -> Sizes;
    /// Keeps the first layers, at least one and at most as many as there are.
    fn keep_layers(&mut self, num_layers: usize);
    /// Id that padding carries, where the configuration says.
    fn pad_token_id(&self) -> Option<u32>;
    /// Whether the language-model head is the word embedding; `true` also where there is no such head.
    fn ties_word_embeddings(&self) -> bool {
        true
    }
    /// Ids that end a text, where the configuration says.
    fn end_token_ids(&self) -> &[u32] {
        &[]
    }
    /// Names of classes and weights.
    fn naming(&self) -> &'static Naming;
    /// `config.json` for `transformers`, without `architectures` and labels.
    fn to_hugging_face(&self) -> Value;

    /// Width d of hidden states and pooled vectors.
    fn hidden_size(&self) -> usize {
        self.sizes().hidden
    }
    /// Number of transformer layers.
    fn num_layers(&self) -> usize {
        self.sizes().num_layers
    }
    /// Rows of the word embedding.
    fn vocab_size(&self) -> usize {
        self.sizes().vocab
    }
    /// Longest sequence.
    fn max_positions(&self) -> usize {
        self.sizes().max_positions
    }
    /// Whether every position sees only what stands before it, so that the last token is pooled and the model
    /// can write text.
    fn is_causal(&self) -> bool {
        self.naming().causal.is_some()
    }
}

/// A backbone's configuration: every value has been checked.
#[derive(Debug, Clone, PartialEq)]
pub enum BackboneConfig {
    /// `bert`.
    Bert(BertConfig),
    /// `roberta`, `xlm-roberta`, `camembert`.
    Roberta(RobertaConfig),
    /// `deberta-v2`, which the checkpoints of DeBERTa-v3 state too.
    DebertaV2(DebertaV2Config),
    /// `llama`, `qwen2` and `qwen3`.
    Llama(LlamaConfig),
    /// `opt`.
    Opt(OptConfig),
}

/// Every `model_type` that has a student.
const MODEL_TYPES: &str =
    "bert, roberta, xlm-roberta, camembert, deberta-v2, llama, opt, qwen2, qwen3";

impl BackboneConfig {
    /// Reads `config.json` of a Hugging Face directory.
    ///
    /// # Errors
    ///
    /// The file cannot be read, misses a size, or holds a value that no student computes; the last
    /// names field, value and what is supported.
    pub fn from_file(path: &Path) -> Result<Self, StudentError> {
        Self::from_fields(&Fields::from_file(path)?)
    }

    /// Reads the fields of a `config.json`.
    ///
    /// # Errors
    ///
    /// As [`BackboneConfig::from_file`].
    pub fn from_fields(fields: &Fields) -> Result<Self, StudentError> {
        refuse_in_any(fields)?;
        let model_type = fields.text("model_type")?;
        if let Some(family) = model_type.and_then(RobertaFamily::parse) {
            return Ok(Self::Roberta(RobertaConfig::from_fields(family, fields)?));
        }
        match model_type {
            None | Some("bert") => Ok(Self::Bert(BertConfig::from_fields(fields)?)),
            Some("llama") => Ok(Self::Llama(LlamaConfig::from_fields(fields)?)),
            Some("opt") => Ok(Self::Opt(OptConfig::from_fields(fields)?)),
            Some("qwen2") => Ok(Self::Llama(qwen::qwen2(fields)?)),
            Some("qwen3") => Ok(Self::Llama(qwen::qwen3(fields)?)),
            Some("deberta-v2") => Ok(Self::DebertaV2(DebertaV2Config::from_fields(fields)?)),
            Some(other) => Err(fields.refuse("model_type", other, MODEL_TYPES)),
        }
    }

    /// Sizes and names.
    pub fn architecture(&self) -> &dyn Architecture {
        match self {
            Self::Bert(config) => config,
            Self::Llama(config) => config,
            Self::Opt(config) => config,
            Self::Roberta(config) => config,
            Self::DebertaV2(config) => config,
        }
    }

    /// Sizes and names, to be changed.
    pub fn architecture_mut(&mut self) -> &mut dyn Architecture {
        match self {
            Self::Bert(config) => config,
            Self::Llama(config) => config,
            Self::Opt(config) => config,
            Self::Roberta(config) => config,
            Self::DebertaV2(config) => config,
        }
    }
}

/// Refuses what changes the computation of any architecture, and no student computes.
fn refuse_in_any(fields: &Fields) -> Result<(), StudentError> {
    fields.expect_none(
        "quantization_config",
        "weights as they were before quantisation",
    )?;
    fields.expect_none("auto_map", "none: code beside the weights is not run")?;
    fields.expect_none("pruned_heads", "none")?;
    fields.expect_none("per_layer_config", "none: all layers are alike")?;
    fields.expect("is_encoder_decoder", &json!(false), "false")
}

/// Refuses what changes the attention of any decoder in `transformers`, and no student computes: positions that see
/// those after them, or not all before them.
pub(super) fn refuse_in_decoders(fields: &Fields) -> Result<(), StudentError> {
    const FULL: &str = "full_attention";
    fields.expect("is_causal", &json!(true), "true")?;
    fields.expect_none("attention_chunk_size", "null")?;
    match fields.get("layer_types") {
        Some(Value::Array(types)) => match types.iter().find(|&layer| layer != FULL) {
            Some(other) => Err(fields.refuse("layer_types", shown(other), FULL)),
            None => Ok(()),
        },
        Some(other) => Err(fields.refuse("layer_types", shown(other), "a list")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest configuration of a model type.
    fn fields(model_type: &str, changes: &Value) -> Fields {
        let mut raw = json!({
            "model_type": model_type, "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 8, "ffn_dim": 8,
            "max_position_embeddings": 8, "relative_attention": true, "pos_att_type": "p2c",
        });
        let fields = raw.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        Fields::new("config.json", fields.clone())
    }

    fn refused(model_type: &str, changes: &Value) -> String {
        let config = BackboneConfig::from_fields(&fields(model_type, changes));
        config.unwrap_err().to_string()
    }

    #[test]
    fn what_no_student_computes_is_refused_for_every_model_type() {
        for model_type in MODEL_TYPES.split(", ") {
            for (changes, expected) in [
                (
                    json!({"quantization_config": {"quant_method": "gptq"}}),
                    r#"`quantization_config` is `{"quant_method":"gptq"}`, supported: weights as they were before quantisation"#,
                ),
                (
                    json!({"auto_map": {"AutoModel": "model.Own"}}),
                    r#"`auto_map` is `{"AutoModel":"model.Own"}`, supported: none: code beside the weights is not run"#,
                ),
                (
                    json!({"pruned_heads": {"0": [1]}}),
                    r#"`pruned_heads` is `{"0":[1]}`, supported: none"#,
                ),
                (
                    json!({"per_layer_config": {"0": {"hidden_act": "relu"}}}),
                    r#"`per_layer_config` is `{"0":{"hidden_act":"relu"}}`, supported: none: all layers are alike"#,
                ),
                (
                    json!({"is_encoder_decoder": true}),
                    "`is_encoder_decoder` is `true`, supported: false",
                ),
            ] {
                let message = refused(model_type, &changes);
                assert_eq!(message, format!("config.json: {expected}"), "{model_type}");
            }
            let nothing = json!({
                "pruned_heads": {}, "quantization_config": null, "is_encoder_decoder": false,
            });
            assert!(BackboneConfig::from_fields(&fields(model_type, &nothing)).is_ok());
        }
    }

    /// Fields as the published checkpoints have them, among them those that must not be refused.
    #[test]
    fn published_configurations_are_read() {
        for published in [
            json!({
                "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
                "gradient_checkpointing": false, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
                "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
                "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
                "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
                "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0",
                "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522,
            }),
            json!({
                "model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
                "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
                "intermediate_size": 3072, "max_position_embeddings": 512, "relative_attention": true,
                "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": true,
                "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7, "max_relative_positions": -1,
                "position_biased_input": false, "num_attention_heads": 12, "num_hidden_layers": 12,
                "type_vocab_size": 0, "vocab_size": 128_100,
            }),
            json!({
                "_remove_final_layer_norm": false, "activation_dropout": 0.0, "activation_function": "relu",
                "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
                "do_layer_norm_before": true, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 8192,
                "hidden_size": 2048, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
                "model_type": "opt", "num_attention_heads": 32, "num_hidden_layers": 24,
                "pad_token_id": 1, "prefix": "</s>", "use_cache": true, "vocab_size": 50272,
                "word_embed_proj_dim": 2048,
            }),
            json!({
                "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
                "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009], "head_dim": 128,
                "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
                "intermediate_size": 8192, "max_position_embeddings": 131_072, "mlp_bias": false,
                "model_type": "llama", "num_attention_heads": 24, "num_hidden_layers": 28,
                "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
                "rope_scaling": {
                    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192, "rope_type": "llama3",
                },
                "rope_theta": 500_000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
                "use_cache": true, "vocab_size": 128_256,
            }),
            json!({
                "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643,
                "eos_token_id": 151_645, "hidden_act": "silu", "hidden_size": 1536,
                "intermediate_size": 8960, "max_position_embeddings": 32768, "max_window_layers": 21,
                "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28,
                "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
                "sliding_window": 32768, "tie_word_embeddings": true, "use_mrope": false,
                "use_sliding_window": false, "vocab_size": 151_936,
            }),
            json!({
                "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
                "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
                "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
                "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
                "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1_000_000,
                "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false,
                "vocab_size": 151_936,
            }),
        ] {
            let fields = Fields::new("config.json", published.as_object().unwrap().clone());
            let config = BackboneConfig::from_fields(&fields).unwrap();
            let expected = published["hidden_size"].as_u64().unwrap();
            assert_eq!(config.architecture().hidden_size() as u64, expected);
        }
    }

    #[test]
    fn a_decoder_sees_all_that_stands_before_and_nothing_else() {
        for model_type in ["llama", "opt", "qwen2", "qwen3"] {
            for (changes, expected) in [
                (
                    json!({"is_causal": false}),
                    "`is_causal` is `false`, supported: true",
                ),
                (
                    json!({"attention_chunk_size": 4}),
                    "`attention_chunk_size` is `4`, supported: null",
                ),
                (
                    json!({"layer_types": ["sliding_attention"]}),
                    "`layer_types` is `sliding_attention`, supported: full_attention",
                ),
                (
                    json!({"layer_types": "full_attention"}),
                    "`layer_types` is `full_attention`, supported: a list",
                ),
            ] {
                let message = refused(model_type, &changes);
                assert_eq!(message, format!("config.json: {expected}"), "{model_type}");
            }
            let full = json!({"is_causal": true, "layer_types": ["full_attention"]});
            assert!(BackboneConfig::from_fields(&fields(model_type, &full)).is_ok());
        }
        for model_type in ["llama", "opt"] {
            let message = refused(model_type, &json!({"sliding_window": 4}));
            let expected = "config.json: `sliding_window` is `4`, supported: null";
            assert_eq!(message, expected);
        }
    }
}
