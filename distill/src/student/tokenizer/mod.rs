//! Texts to token ids, as `transformers` does it: `tokenizer.json` of any family, or the files that BERT, GPT-2,
//! OPT and RoBERTa were published with.
//!
//! Encoding happens in the calling thread; nothing depends on a thread count.

mod byte_level;
mod settings;
mod word_piece;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_json::json;
use tokenizers::{Tokenizer, TruncationParams, TruncationStrategy};

use super::StudentError;
use settings::{Padding, Settings};
pub use word_piece::WordPieceOptions;
use word_piece::word_piece;

const TOKENIZER_FILE: &str = "tokenizer.json";
const WORD_PIECE_FILE: &str = "vocab.txt";
const BYTE_LEVEL_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";
const SETTINGS_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
const CONFIG_FILE: &str = "config.json";
/// Every file of a tokenizer that is read or written.
pub(super) const TOKENIZER_FILES: [&str; 6] = [
    TOKENIZER_FILE,
    WORD_PIECE_FILE,
    BYTE_LEVEL_FILE,
    MERGES_FILE,
    SETTINGS_FILE,
    SPECIAL_TOKENS_FILE,
];
/// Models of the `sentencepiece` library, which are not read.
const SENTENCE_PIECE_FILES: [&str; 3] = ["spm.model", "tokenizer.model", "sentencepiece.bpe.model"];
/// One text or pair of texts as ids, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Segment of each token: 0 for the first text, 1 for the second.
    pub type_ids: Vec<u32>,
}

/// A tokenizer with its length limit and the files it came from.
#[derive(Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    padding: Padding,
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
    /// Reads `tokenizer.json`, or else `vocab.txt` (WordPiece) or `vocab.json` with `merges.txt` (byte-level) with
    /// the settings of `tokenizer_config.json`.
    ///
    /// `max_length` counts special tokens. Padding and truncation stored in the file are ignored. The padding token is
    /// the one that `tokenizer_config.json`, `special_tokens_map.json` or `config.json` name; see
    /// [`TextTokenizer::padding_note`].
    ///
    /// # Errors
    ///
    /// The directory holds none of these, or one that does not parse; `sentencepiece` models alone are refused.
    pub fn from_dir(dir: &Path, max_length: usize) -> Result<Self, StudentError> {
        let mut files = BTreeMap::new();
        for name in TOKENIZER_FILES {
            let path = dir.join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).map_err(StudentError::io(&path))?;
                files.insert(name.to_owned(), bytes);
            }
        }
        let settings = Settings::read(dir)?;
        let tokenizer = from_files(dir, &files, &settings)?;
        Self::new(tokenizer, max_length, &settings, files)
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
            WORD_PIECE_FILE.to_owned(),
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
        Self::new(tokenizer, max_length, &Settings::default(), files)
    }

    fn new(
        mut tokenizer: Tokenizer,
        max_length: usize,
        settings: &Settings,
        files: BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, StudentError> {
        let failed = |message: String| StudentError::Tokenizer {
            origin: format!("max_length = {max_length}"),
            message,
        };
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams {
                direction: settings.truncation_direction(),
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
        let padding = settings
            .padding(&tokenizer)
            .ok_or_else(|| StudentError::Tokenizer {
                origin: SETTINGS_FILE.to_owned(),
                message: "names no padding, end or unknown token of the vocabulary".to_owned(),
            })?;
        Ok(Self {
            tokenizer,
            max_length,
            padding,
            files,
        })
    }

    /// Encodes one text, or two joined as the tokenizer has it, for BERT `[CLS] first [SEP] second [SEP]`.
    ///
    /// Longer input loses tokens of whichever text is longer, as `longest_first` of `transformers` does.
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

    /// The tokenizer itself, which cuts nothing.
    ///
    /// # Errors
    ///
    /// [`StudentError::Tokenizer`].
    pub(crate) fn untruncated(&self) -> Result<Tokenizer, StudentError> {
        let mut tokenizer = self.tokenizer.clone();
        tokenizer
            .with_truncation(None)
            .map_err(|error| StudentError::Tokenizer {
                origin: TOKENIZER_FILE.to_owned(),
                message: error.to_string(),
            })?;
        Ok(tokenizer)
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

    /// Id that fills batches up.
    pub fn pad_id(&self) -> u32 {
        self.padding.id
    }

    /// What stands in where the tokenizer names no padding token, as LLaMA's does not: its end token, or else its
    /// unknown one.
    pub fn padding_note(&self) -> Option<&str> {
        self.padding.note.as_deref()
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
            let class = if files.contains_key(WORD_PIECE_FILE) {
                "BertTokenizer"
            } else {
                "PreTrainedTokenizerFast"
            };
            let settings = json!({
                "tokenizer_class": class, "model_max_length": self.max_length,
                "pad_token": self.tokenizer.id_to_token(self.padding.id),
            });
            files.insert(SETTINGS_FILE.to_owned(), settings.to_string().into());
        }
        Ok(files)
    }
}

fn from_files(
    dir: &Path,
    files: &BTreeMap<String, Vec<u8>>,
    settings: &Settings,
) -> Result<Tokenizer, StudentError> {
    let origin = |name: &str| dir.join(name).display().to_string();
    let text = |name: &str, bytes| {
        std::str::from_utf8(bytes).map_err(|error| StudentError::Tokenizer {
            origin: origin(name),
            message: error.to_string(),
        })
    };
    if let Some(definition) = files.get(TOKENIZER_FILE) {
        return parse(definition, &origin(TOKENIZER_FILE));
    }
    if let Some(vocabulary) = files.get(WORD_PIECE_FILE) {
        let options = serde_json::from_value(settings.tokenizer())
            .map_err(StudentError::json(&dir.join(SETTINGS_FILE)))?;
        let vocabulary = text(WORD_PIECE_FILE, vocabulary)?;
        return word_piece(vocabulary.lines(), options, &origin(WORD_PIECE_FILE));
    }
    if let (Some(vocabulary), Some(merges)) = (files.get(BYTE_LEVEL_FILE), files.get(MERGES_FILE)) {
        let merges = text(MERGES_FILE, merges)?;
        return byte_level::byte_level(vocabulary, merges, settings, &origin(BYTE_LEVEL_FILE));
    }
    let is_there = |file: &&str| dir.join(file).is_file();
    match SENTENCE_PIECE_FILES.into_iter().find(is_there) {
        Some(file) => Err(StudentError::SentencePieceOnly {
            dir: dir.to_owned(),
            file,
        }),
        None => Err(StudentError::NoTokenizer {
            dir: dir.to_owned(),
        }),
    }
}

fn parse(definition: &[u8], origin: &str) -> Result<Tokenizer, StudentError> {
    Tokenizer::from_bytes(definition).map_err(|error| StudentError::Tokenizer {
        origin: origin.to_owned(),
        message: error.to_string(),
    })
}
