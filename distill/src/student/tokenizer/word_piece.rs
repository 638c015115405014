//! BERT's WordPiece from `vocab.txt`.

use serde::Deserialize;
use serde_json::{Map, json};
use tokenizers::Tokenizer;

use super::parse;
use crate::student::StudentError;

/// Special tokens of BERT; a vocabulary must hold each of them.
const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// How BERT's normaliser treats text; the keys of `tokenizer_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct WordPieceOptions {
    /// Lower-case the text.
    pub do_lower_case: bool,
    /// Remove accents; `None` follows `do_lower_case`.
    pub strip_accents: Option<bool>,
    /// Put spaces around every CJK ideograph.
    pub tokenize_chinese_chars: bool,
}

impl Default for WordPieceOptions {
    fn default() -> Self {
        Self {
            do_lower_case: true,
            strip_accents: None,
            tokenize_chinese_chars: true,
        }
    }
}

/// BERT's tokenizer over a vocabulary in the order of the ids.
pub(super) fn word_piece<'a>(
    tokens: impl Iterator<Item = &'a str>,
    options: WordPieceOptions,
    origin: &str,
) -> Result<Tokenizer, StudentError> {
    let mut vocabulary = Map::new();
    for (id, token) in tokens.enumerate() {
        if let Some(first) = vocabulary.insert(token.to_owned(), json!(id)) {
            let first = first.as_u64().expect("an id is a number") + 1;
            return Err(StudentError::Tokenizer {
                origin: origin.to_owned(),
                message: format!("line {} repeats `{token}` of line {first}", id + 1),
            });
        }
    }
    let id = |token: &str| {
        vocabulary
            .get(token)
            .ok_or_else(|| StudentError::Tokenizer {
                origin: origin.to_owned(),
                message: format!("the vocabulary lacks {token}"),
            })
    };
    let mut added = Vec::new();
    for token in SPECIAL_TOKENS {
        added.push(json!({
            "id": id(token)?, "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }));
    }
    added.sort_by_key(|token| token["id"].as_u64());
    let definition = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": options.tokenize_chinese_chars,
            "strip_accents": options.strip_accents, "lowercase": options.do_lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", id("[SEP]")?], "cls": ["[CLS]", id("[CLS]")?],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    });
    parse(definition.to_string().as_bytes(), origin)
}
