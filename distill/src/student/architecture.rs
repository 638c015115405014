//! What differs between architectures without any tensor: sizes, names of weights, `config.json`.

use std::fmt::Debug;
use std::path::Path;

use serde_json::Value;

use super::StudentError;
use super::bert::BertConfig;
use super::deberta_v2::DebertaV2Config;
use super::fields::Fields;
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

/// An architecture's sizes and names.
pub trait Architecture: Debug {
    /// Width d of hidden states and pooled vectors.
    fn hidden_size(&self) -> usize;
    /// Number of transformer layers.
    fn num_layers(&self) -> usize;
    /// Keeps the first layers, at least one and at most as many as there are.
    fn keep_layers(&mut self, num_layers: usize);
    /// Rows of the word embedding.
    fn vocab_size(&self) -> usize;
    /// Longest sequence.
    fn max_positions(&self) -> usize;
    /// Id that padding carries, where the configuration says.
    fn pad_token_id(&self) -> Option<u32>;
    /// Whether every position sees only what stands before it, so that the last token is pooled and the model
    /// can write text.
    fn is_causal(&self) -> bool;
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
