//! Ids of the tokens that a causal language model's `config.json` names.

use serde_json::{Map, Value, json};

use super::StudentError;
use super::fields::Fields;

/// Beginning, end and padding, as far as the configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecialTokens {
    /// Stands before a text.
    pub beginning: Option<u32>,
    /// Each of them ends a text.
    pub ends: Vec<u32>,
    /// What padding carries.
    pub padding: Option<u32>,
}

impl SpecialTokens {
    /// Reads `bos_token_id`, `eos_token_id` (one or several) and `pad_token_id`, each left out as in `defaults`.
    pub(super) fn from_fields(fields: &Fields, defaults: Self) -> Result<Self, StudentError> {
        Ok(Self {
            beginning: fields.optional_id("bos_token_id")?.or(defaults.beginning),
            ends: fields.ids("eos_token_id")?.unwrap_or(defaults.ends),
            padding: fields.optional_id("pad_token_id")?.or(defaults.padding),
        })
    }

    /// Writes the three fields.
    pub(super) fn insert_into(&self, config: &mut Map<String, Value>) {
        let ends = match self.ends.as_slice() {
            [] => Value::Null,
            [end] => json!(end),
            several => json!(several),
        };
        config.insert("bos_token_id".to_owned(), json!(self.beginning));
        config.insert("eos_token_id".to_owned(), ends);
        config.insert("pad_token_id".to_owned(), json!(self.padding));
    }
}
