//! What a directory says about its tokenizer beside the vocabulary.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{Tokenizer, TruncationDirection};

use super::{CONFIG_FILE, SETTINGS_FILE, SPECIAL_TOKENS_FILE};
use crate::student::StudentError;

/// The parsed JSON files.
#[derive(Debug, Default)]
pub(super) struct Settings {
    tokenizer: Map<String, Value>,
    special_tokens: Map<String, Value>,
    model: Map<String, Value>,
}

/// A token's id, and why it is that one where no file says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Padding {
    pub(super) id: u32,
    pub(super) note: Option<String>,
}

impl Settings {
    /// Reads what `dir` holds of the three files.
    ///
    /// # Errors
    ///
    /// A file cannot be read or holds no JSON object.
    pub(super) fn read(dir: &Path) -> Result<Self, StudentError> {
        let read = |name: &str| -> Result<Map<String, Value>, StudentError> {
            let path = dir.join(name);
            if !path.is_file() {
                return Ok(Map::new());
            }
            let bytes = std::fs::read(&path).map_err(StudentError::io(&path))?;
            serde_json::from_slice(&bytes).map_err(StudentError::json(&path))
        };
        Ok(Self {
            tokenizer: read(SETTINGS_FILE)?,
            special_tokens: read(SPECIAL_TOKENS_FILE)?,
            model: read(CONFIG_FILE)?,
        })
    }

    /// `tokenizer_config.json` as it is.
    pub(super) fn tokenizer(&self) -> Value {
        Value::Object(self.tokenizer.clone())
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.tokenizer.get(name)?.as_bool()
    }

    /// The class that `transformers` opens the tokenizer with, without `Fast`.
    pub(super) fn class(&self) -> Option<&str> {
        let class = self.tokenizer.get("tokenizer_class")?.as_str()?;
        Some(class.strip_suffix("Fast").unwrap_or(class))
    }

    /// `model_type` of the model beside it.
    pub(super) fn model_type(&self) -> Option<&str> {
        self.model.get("model_type")?.as_str()
    }

    /// A special token by its role, as in `pad_token`.
    pub(super) fn token(&self, role: &str) -> Option<&str> {
        [&self.tokenizer, &self.special_tokens]
            .into_iter()
            .filter_map(|values| values.get(role))
            .find_map(|value| value.get("content").unwrap_or(value).as_str())
    }

    /// Entries of `added_tokens_decoder` by content.
    pub(super) fn added_tokens(&self) -> BTreeMap<&str, &Value> {
        let listed = self.tokenizer.get("added_tokens_decoder");
        let listed = listed.and_then(Value::as_object).into_iter().flatten();
        listed
            .filter_map(|(_, token)| Some((token.get("content")?.as_str()?, token)))
            .collect()
    }

    /// Which end of a text that is too long is cut off.
    pub(super) fn truncation_direction(&self) -> TruncationDirection {
        match self
            .tokenizer
            .get("truncation_side")
            .and_then(Value::as_str)
        {
            Some("left") => TruncationDirection::Left,
            _ => TruncationDirection::Right,
        }
    }

    /// The token that fills batches up. It is masked, so that any token may stand in where none is named.
    pub(super) fn padding(&self, tokenizer: &Tokenizer) -> Option<Padding> {
        let id_of = |token: &str| tokenizer.token_to_id(token);
        let stated = self.token("pad_token").and_then(id_of);
        let stated = stated
            .or_else(|| self.model_token_id("pad_token_id", tokenizer))
            .or_else(|| ["[PAD]", "<pad>"].into_iter().find_map(id_of));
        if let Some(id) = stated {
            return Some(Padding { id, note: None });
        }
        let end = self.token("eos_token").and_then(id_of);
        let id = end
            .or_else(|| self.model_token_id("eos_token_id", tokenizer))
            .or_else(|| self.token("unk_token").and_then(id_of))
            .or_else(|| {
                ["</s>", "<|endoftext|>", "[UNK]", "<unk>"]
                    .into_iter()
                    .find_map(id_of)
            })?;
        let token = tokenizer.id_to_token(id).unwrap_or_default();
        let note = format!(
            "the tokenizer names no padding token: `{token}` (id {id}) fills batches up, masked"
        );
        Some(Padding {
            id,
            note: Some(note),
        })
    }

    /// An id, or the first of several, that the tokenizer knows.
    fn model_token_id(&self, field: &str, tokenizer: &Tokenizer) -> Option<u32> {
        let value = self.model.get(field)?;
        let first = value.as_array().map_or(Some(value), |ids| ids.first())?;
        let id = u32::try_from(first.as_u64()?).ok()?;
        tokenizer.id_to_token(id).map(|_| id)
    }
}
