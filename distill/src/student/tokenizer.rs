//! Texts to token ids, as `transformers` does it for BERT.
//!
//! Encoding happens in the calling thread; nothing depends on a thread count.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, json};
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use super::StudentError;

const TOKENIZER_FILE: &str = "tokenizer.json";
const VOCABULARY_FILE: &str = "vocab.txt";
const SETTINGS_FILE: &str = "tokenizer_config.json";
/// Every file of a tokenizer that is read or written.
pub(super) const TOKENIZER_FILES: [&str; 4] = [
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    SETTINGS_FILE,
    "special_tokens_map.json",
];
/// Special tokens of BERT; a vocabulary must hold each of them.
const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// One text or pair of texts as ids, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Segment of each token: 0 for the first text, 1 for the second.
    pub type_ids: Vec<u32>,
}

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

/// A tokenizer with its length limit and the files it came from.
#[derive(Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    pad_id: u32,
    /// Files that travel with an exported student, by name.
    files: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TextTokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("max_length", &self.max_length)
            .finish_non_exhaustive()
    }
}

impl TextTokenizer {
    /// Reads `tokenizer.json`, or else `vocab.txt` with the settings of `tokenizer_config.json`.
    ///
    /// `max_length` counts special tokens. Padding and truncation stored in the file are ignored.
    ///
    /// # Errors
    ///
    /// The directory holds neither file, or one that does not parse.
    pub fn from_dir(dir: &Path, max_length: usize) -> Result<Self, StudentError> {
        let mut files = BTreeMap::new();
        for name in TOKENIZER_FILES {
            let path = dir.join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).map_err(StudentError::io(&path))?;
                files.insert(name.to_owned(), bytes);
            }
        }
        if let Some(definition) = files.get(TOKENIZER_FILE) {
            let tokenizer = parse(definition, &dir.join(TOKENIZER_FILE).display().to_string())?;
            return Self::new(tokenizer, max_length, files);
        }
        let Some(vocabulary) = files.get(VOCABULARY_FILE) else {
            return Err(StudentError::NoTokenizer {
                dir: dir.to_owned(),
            });
        };
        let origin = dir.join(VOCABULARY_FILE).display().to_string();
        let text = std::str::from_utf8(vocabulary).map_err(|error| StudentError::Tokenizer {
            origin: origin.clone(),
            message: error.to_string(),
        })?;
        let options = match files.get(SETTINGS_FILE) {
            None => WordPieceOptions::default(),
            Some(settings) => serde_json::from_slice(settings)
                .map_err(StudentError::json(&dir.join(SETTINGS_FILE)))?,
        };
        let tokenizer = word_piece(text.lines(), options, &origin)?;
        Self::new(tokenizer, max_length, files)
    }

    /// A WordPiece tokenizer over `vocabulary`, whose position is the id.
    ///
    /// Pieces that continue a word begin with `##`. The vocabulary must hold `[PAD]`, `[UNK]`,
    /// `[CLS]`, `[SEP]` and `[MASK]`.
    ///
    /// # Errors
    ///
    /// A special token is missing, or a token is there twice.
    pub fn from_vocabulary(
        vocabulary: &[String],
        options: WordPieceOptions,
        max_length: usize,
    ) -> Result<Self, StudentError> {
        let tokens = vocabulary.iter().map(String::as_str);
        let tokenizer = word_piece(tokens, options, "vocabulary")?;
        let mut files = BTreeMap::new();
        files.insert(
            VOCABULARY_FILE.to_owned(),
            (vocabulary.join("\n") + "\n").into_bytes(),
        );
        let settings = json!({
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": options.do_lower_case,
            "strip_accents": options.strip_accents,
            "tokenize_chinese_chars": options.tokenize_chinese_chars,
            "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
            "sep_token": "[SEP]", "mask_token": "[MASK]",
            "model_max_length": max_length,
        });
        let settings = serde_json::to_vec_pretty(&settings).expect("a JSON value has string keys");
        files.insert(SETTINGS_FILE.to_owned(), settings);
        Self::new(tokenizer, max_length, files)
    }

    fn new(
        mut tokenizer: Tokenizer,
        max_length: usize,
        files: BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, StudentError> {
        let failed = |message: String| StudentError::Tokenizer {
            origin: format!("max_length = {max_length}"),
            message,
        };
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams {
                direction: TruncationDirection::Right,
                max_length,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .map_err(|error| failed(error.to_string()))?;
        let special = tokenizer.get_post_processor().map_or(0, |processor| {
            tokenizers::PostProcessor::added_tokens(processor, true)
        });
        if max_length <= special {
            return Err(failed(format!(
                "a pair needs {special} special tokens and room for text"
            )));
        }
        let pad_id = tokenizer.token_to_id("[PAD]").unwrap_or(0);
        Ok(Self {
            tokenizer,
            max_length,
            pad_id,
            files,
        })
    }

    /// Encodes one text, or two joined as `[CLS] first [SEP] second [SEP]`.
    ///
    /// Longer input loses tokens from the end of whichever text is longer, as `longest_first` of
    /// `transformers` does.
    ///
    /// # Errors
    ///
    /// [`StudentError::Tokenizer`] quotes the text.
    pub fn encode_pair(&self, first: &str, second: Option<&str>) -> Result<Encoding, StudentError> {
        let encoded = match second {
            None => self.tokenizer.encode(first, true),
            Some(second) => self.tokenizer.encode((first, second), true),
        };
        let encoded = encoded.map_err(|error| StudentError::Tokenizer {
            origin: format!("text {first:?}"),
            message: error.to_string(),
        })?;
        Ok(Encoding {
            ids: encoded.get_ids().to_vec(),
            type_ids: encoded.get_type_ids().to_vec(),
        })
    }

    /// One more than the largest id, added tokens included: ids may have gaps.
    pub fn vocab_size(&self) -> usize {
        let ids = self.tokenizer.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// Longest encoding, special tokens included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Id of `[PAD]`.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The files of an exported student: those read, and `tokenizer.json` in any case.
    pub(super) fn files(&self) -> Result<BTreeMap<String, Vec<u8>>, StudentError> {
        let mut files = self.files.clone();
        if !files.contains_key(TOKENIZER_FILE) {
            let mut tokenizer = self.tokenizer.clone();
            let failed = |error: tokenizers::Error| StudentError::Tokenizer {
                origin: TOKENIZER_FILE.to_owned(),
                message: error.to_string(),
            };
            tokenizer.with_truncation(None).map_err(failed)?;
            files.insert(
                TOKENIZER_FILE.to_owned(),
                tokenizer.to_string(true).map_err(failed)?.into(),
            );
        }
        if !files.contains_key(SETTINGS_FILE) {
            let settings = json!({
                "tokenizer_class": "BertTokenizer", "model_max_length": self.max_length,
            });
            files.insert(SETTINGS_FILE.to_owned(), settings.to_string().into());
        }
        Ok(files)
    }
}

fn parse(definition: &[u8], origin: &str) -> Result<Tokenizer, StudentError> {
    Tokenizer::from_bytes(definition).map_err(|error| StudentError::Tokenizer {
        origin: origin.to_owned(),
        message: error.to_string(),
    })
}

/// BERT's tokenizer over a vocabulary in the order of the ids.
fn word_piece<'a>(
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
