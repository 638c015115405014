//! The `[student]` table: a Hugging Face directory, or a fresh encoder with a tokenizer.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::device::Precision;
use crate::student::chat::ChatFormat;
use crate::student::{FreshBertConfig, LoraConfig};

/// Where the student's weights come from.
#[derive(Clone, Debug, PartialEq)]
pub enum StudentSource {
    /// A Hugging Face directory with weights and tokenizer.
    Pretrained {
        /// The directory.
        path: PathBuf,
        /// Keep this many layers, from the bottom.
        num_layers: Option<NonZeroUsize>,
    },
    /// No pretraining.
    Fresh {
        /// The encoder's sizes.
        sizes: FreshBertConfig,
        /// Folder with `tokenizer.json` or `vocab.txt`.
        tokenizer: PathBuf,
    },
}

/// The student as configured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StudentDocument", into = "StudentDocument")]
pub struct StudentConfig {
    /// Where it comes from.
    pub source: StudentSource,
    /// Longest input in tokens, special tokens included.
    pub max_length: NonZeroUsize,
    /// Number format of its matrix products.
    pub precision: Precision,
    /// How a chat is written for it.
    pub chat: Option<ChatFormat>,
    /// Adapters are trained instead of the backbone.
    pub lora: Option<LoraConfig>,
}

/// The table as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StudentDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    num_layers: Option<NonZeroUsize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokenizer: Option<PathBuf>,
    #[serde(default = "default_max_length")]
    max_length: NonZeroUsize,
    #[serde(default)]
    precision: Precision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chat: Option<ChatFormat>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fresh: Option<FreshBertConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lora: Option<LoraConfig>,
}

/// The paper's, for understanding tasks.
fn default_max_length() -> NonZeroUsize {
    NonZeroUsize::new(128).expect("128 is not zero")
}

impl TryFrom<StudentDocument> for StudentConfig {
    type Error = String;

    fn try_from(document: StudentDocument) -> Result<Self, String> {
        let source = match (document.path, document.fresh, document.tokenizer) {
            (Some(path), None, None) => StudentSource::Pretrained {
                path,
                num_layers: document.num_layers,
            },
            (Some(_), None, Some(_)) => {
                return Err(
                    "`student.tokenizer` belongs to `student.fresh`: a directory brings its own"
                        .to_owned(),
                );
            }
            (None, Some(sizes), Some(tokenizer)) => {
                if document.num_layers.is_some() {
                    return Err("`student.num_layers` cuts a directory's encoder; use `student.fresh.num_layers`".to_owned());
                }
                if document.lora.is_some() {
                    return Err("`student.lora` trains adapters beside the weights of `student.path`: a fresh encoder has none to keep".to_owned());
                }
                sizes.resolve(1).map_err(|error| error.to_string())?;
                if sizes.max_positions < document.max_length.get() {
                    return Err(format!(
                        "`student.max_length` is {} and `student.fresh.max_positions` is {}",
                        document.max_length, sizes.max_positions
                    ));
                }
                StudentSource::Fresh { sizes, tokenizer }
            }
            (None, Some(_), None) => {
                return Err("`student.fresh` needs `student.tokenizer`, a folder with tokenizer.json or vocab.txt".to_owned());
            }
            (Some(_), Some(_), _) | (None, None, _) => {
                return Err(
                    "a student has either `path`, a Hugging Face directory, or a table `fresh`"
                        .to_owned(),
                );
            }
        };
        Ok(Self {
            source,
            max_length: document.max_length,
            precision: document.precision,
            chat: document.chat,
            lora: document.lora,
        })
    }
}

impl From<StudentConfig> for StudentDocument {
    fn from(config: StudentConfig) -> Self {
        let (max_length, precision, lora) = (config.max_length, config.precision, config.lora);
        match config.source {
            StudentSource::Pretrained { path, num_layers } => Self {
                path: Some(path),
                num_layers,
                tokenizer: None,
                max_length,
                precision,
                chat: config.chat,
                fresh: None,
                lora,
            },
            StudentSource::Fresh { sizes, tokenizer } => Self {
                path: None,
                num_layers: None,
                tokenizer: Some(tokenizer),
                max_length,
                precision,
                chat: config.chat,
                fresh: Some(sizes),
                lora,
            },
        }
    }
}
