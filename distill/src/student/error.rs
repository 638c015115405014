//! Everything that can go wrong between a student directory and an encoder.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::weights::WeightsError;

/// Why a student could not be read, built or written.
#[derive(Debug, Error)]
pub enum StudentError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file does not parse or misses a field.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The configuration asks for something this encoder does not compute.
    #[error("{origin}: `{field}` is `{value}`, supported: {supported}")]
    UnsupportedConfig {
        /// The file, or a description of where the configuration came from.
        origin: String,
        /// The field's name.
        field: &'static str,
        /// The value found.
        value: String,
        /// What would be accepted.
        supported: &'static str,
    },
    /// More layers were asked for than the checkpoint has.
    #[error("num_layers = {requested}, but {} has {available} layers", dir.display())]
    TooManyLayers {
        /// The student directory.
        dir: PathBuf,
        /// Layers asked for.
        requested: usize,
        /// Layers there are.
        available: usize,
    },
    /// The directory holds no weights in a known form.
    #[error(
        "{} has neither model.safetensors nor model.safetensors.index.json",
        dir.display()
    )]
    NoWeights {
        /// The student directory.
        dir: PathBuf,
    },
    /// The directory holds pickled weights alone.
    #[error("{} has its weights only as pickles ({file}), of which none is ever opened", dir.display())]
    PickleOnly {
        /// The student directory.
        dir: PathBuf,
        /// One file of them, or their index.
        file: &'static str,
        /// The class of `transformers` that keeps all weights a student may need.
        class: &'static str,
    },
    /// A weight file is not valid safetensors.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: safetensors::SafeTensorError,
    },
    /// A shard index names a shard that lacks the tensor.
    #[error("{}: the index promises tensor `{name}`, which is not there", path.display())]
    IndexedTensorMissing {
        /// The shard.
        path: PathBuf,
        /// The tensor's name in the index.
        name: String,
    },
    /// A weight is stored in a type that is not a float of 16 or 32 bits.
    #[error("{}: tensor `{name}` is stored as {dtype}, supported: F32, F16, BF16", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The stored type.
        dtype: String,
    },
    /// Weights of the encoder's trunk are absent.
    #[error("{} lacks {} weights of the encoder: {}", dir.display(), names.len(), names.join(", "))]
    MissingWeights {
        /// The student directory.
        dir: PathBuf,
        /// Their names, without the `bert.` prefix.
        names: Vec<String>,
    },
    /// A weight does not have the shape that `config.json` implies.
    #[error("{}: tensor `{name}` has shape {found:?}, config.json implies {expected:?}", path.display())]
    ShapeMismatch {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// Shape implied by the configuration.
        expected: Vec<usize>,
        /// Shape stored.
        found: Vec<usize>,
    },
    /// The directory holds no tokenizer.
    #[error("{} has neither tokenizer.json, nor vocab.txt, nor vocab.json with merges.txt", dir.display())]
    NoTokenizer {
        /// The student directory.
        dir: PathBuf,
    },
    /// The directory holds a `sentencepiece` model alone.
    #[error("{} has only {file}, a model of the sentencepiece library, and no tokenizer.json", dir.display())]
    SentencePieceOnly {
        /// The student directory.
        dir: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// The tokenizer does not parse, or failed on a text.
    #[error("{origin}: {message}")]
    Tokenizer {
        /// The file, or a description of where the vocabulary came from.
        origin: String,
        /// What went wrong.
        message: String,
    },
    /// The tokenizer can produce ids for which the encoder has no embedding.
    #[error("the tokenizer has {tokenizer} tokens, the encoder embeds {encoder}")]
    VocabularyMismatch {
        /// Size of the tokenizer's vocabulary.
        tokenizer: usize,
        /// Rows of the word embedding.
        encoder: usize,
    },
    /// A text may become longer than the encoder has positions.
    #[error("max_length = {max_length}, but the encoder has {max_positions} positions")]
    TooLong {
        /// Longest encoding the tokenizer produces.
        max_length: usize,
        /// Rows of the position embedding.
        max_positions: usize,
    },
    /// A pattern of `student.lora.target_modules` that no linear map has.
    #[error("`student.lora.target_modules`: `{pattern}` matches none of {}", names.join(", "))]
    NoLoraTarget {
        /// The pattern.
        pattern: String,
        /// The linear maps, each once for all layers.
        names: Vec<String>,
    },
    /// Adapters were to be written, and there are none.
    #[error("the student was trained in full and has no adapters")]
    NoAdapters,
    /// A language model was asked for, but the architecture writes no text.
    #[error("`{class}` is no causal language model: it cannot predict the next token")]
    NotCausal {
        /// The architecture's class.
        class: &'static str,
    },
    /// A directory that an export must not replace.
    #[error("no student is written to `{}`: {problem}", dir.display())]
    ExportTarget {
        /// The directory.
        dir: PathBuf,
        /// What is in the way.
        problem: String,
    },
    /// Tensors could not be exported.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl StudentError {
    /// What to do next, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::PickleOnly { dir, class, .. } => Some(format!(
                "convert it once: python3 -c \"from transformers import {class}; \
                 {class}.from_pretrained('{0}').save_pretrained('{0}', safe_serialization=True)\"",
                dir.display()
            )),
            Self::NoWeights { dir } => Some(format!(
                "point at a Hugging Face model directory; {} is not one",
                dir.display()
            )),
            Self::UnsupportedConfig { field, .. } => {
                Some(format!("choose a checkpoint whose `{field}` is supported"))
            }
            Self::TooManyLayers { available, .. } => Some(format!(
                "set num_layers to at most {available}, or leave it out"
            )),
            Self::MissingWeights { .. } | Self::ShapeMismatch { .. } => Some(
                "config.json and the weights belong to different models; take both from one export"
                    .to_owned(),
            ),
            Self::NoTokenizer { .. } => Some(
                "copy tokenizer.json or vocab.txt of the checkpoint into the directory".to_owned(),
            ),
            Self::SentencePieceOnly { dir, .. } => Some(format!(
                "convert it once (Python packages transformers, sentencepiece, protobuf): python3 -c \"from \
                 transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{0}').save_pretrained('{0}')\"",
                dir.display()
            )),
            Self::VocabularyMismatch { .. } => {
                Some("use the tokenizer that the checkpoint was trained with".to_owned())
            }
            Self::TooLong { max_positions, .. } => {
                Some(format!("set max_length to at most {max_positions}"))
            }
            Self::NoLoraTarget { .. } => Some(
                "a text is a regular expression for the whole name; a list holds ends of names, as \"query\"; \
                 \"all-linear\" takes all"
                    .to_owned(),
            ),
            Self::NoAdapters => Some("export without --adapter".to_owned()),
            Self::NotCausal { .. } => Some(
                "choose a checkpoint whose `model_type` is llama, opt, qwen2 or qwen3".to_owned(),
            ),
            Self::ExportTarget { .. } => {
                Some("name a folder that is new, empty or an earlier export".to_owned())
            }
            Self::Weights(error) => error.hint(),
            Self::UnsupportedDtype { .. } => {
                Some("store the checkpoint in float32, float16 or bfloat16".to_owned())
            }
            Self::Io { .. }
            | Self::Json { .. }
            | Self::Safetensors { .. }
            | Self::IndexedTensorMissing { .. }
            | Self::Tokenizer { .. } => None,
        }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(super) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Json { path, source }
    }
}
