//! Byte-level byte-pair encoding from `vocab.json` and `merges.txt`, as GPT-2, OPT and RoBERTa were published.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::parse;
use super::settings::Settings;
use crate::student::StudentError;

/// Classes of `transformers` that compute this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Gpt2,
    Roberta,
}

impl Class {
    fn of(settings: &Settings, origin: &str) -> Result<Self, StudentError> {
        let name = settings.class().or_else(|| settings.model_type());
        match name {
            Some("GPT2Tokenizer" | "gpt2" | "opt") => Ok(Self::Gpt2),
            Some("RobertaTokenizer" | "roberta") => Ok(Self::Roberta),
            _ => Err(StudentError::Tokenizer {
                origin: origin.to_owned(),
                message: format!(
                    "`tokenizer_class` is `{}`; beside vocab.json and merges.txt GPT2Tokenizer and RobertaTokenizer \
                     are supported, others through their tokenizer.json",
                    name.unwrap_or("left out")
                ),
            }),
        }
    }

    /// Special tokens where no file names them, by role and in the order of their ids where they are new.
    fn tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Gpt2 => &[
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
                ("pad_token", ""),
            ],
            Self::Roberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
        }
    }
}

/// The tokenizer of the two files.
///
/// # Errors
///
/// The vocabulary does not parse, or the directory states another kind of tokenizer.
pub(super) fn byte_level(
    vocabulary: &[u8],
    merges: &str,
    settings: &Settings,
    origin: &str,
) -> Result<Tokenizer, StudentError> {
    let class = Class::of(settings, origin)?;
    let vocabulary: BTreeMap<String, u32> =
        serde_json::from_slice(vocabulary).map_err(|error| StudentError::Tokenizer {
            origin: origin.to_owned(),
            message: error.to_string(),
        })?;
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .collect();
    let add_prefix_space = settings.flag("add_prefix_space").unwrap_or(false);
    let (added, ids) = special_tokens(class, &vocabulary, settings);
    let post_processor = match class {
        Class::Gpt2 => around(settings, &ids),
        Class::Roberta => json!({
            "type": "RobertaProcessing", "sep": ids["sep_token"], "cls": ids["cls_token"],
            "trim_offsets": true, "add_prefix_space": add_prefix_space,
        }),
    };
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true,
        "use_regex": true,
    });
    let definition = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": post_processor,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": merges,
        },
    });
    parse(definition.to_string().as_bytes(), origin)
}

/// The tokens before and after each text that `add_bos_token` and `add_eos_token` ask for. Where there is a
/// `tokenizer.json`, `transformers` follows that one instead.
fn around(settings: &Settings, ids: &BTreeMap<&'static str, Value>) -> Value {
    let asked = |flag: &str, role: &str| {
        let is_on = settings.flag(flag) == Some(true);
        ids.get(role).filter(|_| is_on)
    };
    let begin = asked("add_bos_token", "bos_token");
    let end = asked("add_eos_token", "eos_token");
    let special = |token: Option<&Value>, type_id: u32| {
        token.map(|token| json!({"SpecialToken": {"id": token[0], "type_id": type_id}}))
    };
    let text = |name: &str, type_id: u32| -> Vec<Value> {
        let sequence = json!({"Sequence": {"id": name, "type_id": type_id}});
        [
            special(begin, type_id),
            Some(sequence),
            special(end, type_id),
        ]
        .into_iter()
        .flatten()
        .collect()
    };
    let tokens: Map<String, Value> = [begin, end]
        .into_iter()
        .flatten()
        .filter_map(|token| {
            let content = token[0].as_str()?.to_owned();
            let entry = json!({"id": content, "ids": [token[1]], "tokens": [content]});
            Some((content, entry))
        })
        .collect();
    let pair = [text("A", 0), text("B", 1)].concat();
    json!({
        "type": "TemplateProcessing", "single": text("A", 0), "pair": pair,
        "special_tokens": tokens,
    })
}

/// Entries of `added_tokens` in the order of their ids, and content with id by role.
fn special_tokens(
    class: Class,
    vocabulary: &BTreeMap<String, u32>,
    settings: &Settings,
) -> (Vec<Value>, BTreeMap<&'static str, Value>) {
    let described = settings.added_tokens();
    let mut next_id = vocabulary.values().max().map_or(0, |id| id + 1);
    let mut added = BTreeMap::new();
    let mut roles = BTreeMap::new();
    let mut id_of: BTreeMap<String, u32> = BTreeMap::new();
    for &(role, default) in class.tokens() {
        let content = settings.token(role).unwrap_or(default);
        if content.is_empty() {
            continue;
        }
        let known = id_of.get(content).or_else(|| vocabulary.get(content));
        let id = known.copied().unwrap_or_else(|| {
            next_id += 1;
            next_id - 1
        });
        id_of.insert(content.to_owned(), id);
        let is_set = |field: &str| {
            let token = described.get(content).and_then(|token| token.get(field));
            token.and_then(Value::as_bool).unwrap_or(false)
        };
        let mut token: Map<String, Value> = ["single_word", "lstrip", "rstrip", "normalized"]
            .into_iter()
            .map(|field| (field.to_owned(), json!(is_set(field))))
            .collect();
        token.insert("id".to_owned(), json!(id));
        token.insert("content".to_owned(), json!(content));
        token.insert("special".to_owned(), json!(true));
        added.insert(id, Value::Object(token));
        roles.insert(role, json!([content, id]));
    }
    (added.into_values().collect(), roles)
}
