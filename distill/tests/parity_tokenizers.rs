//! Tokenizers of every family beside `transformers`, id by id: expected values are in `tests/fixtures/tokenizers`, made
//! by `scripts/fixtures/make_tokenizers.py`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use distill::student::save::save_pretrained;
use distill::student::{Backbone, FreshBertConfig, TextTokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

const ALL: [&str; 7] = [
    "word-piece",
    "unigram",
    "llama-2",
    "llama-2-left",
    "llama-3",
    "roberta",
    "opt",
];

#[derive(Deserialize)]
struct Expected {
    pad_id: Option<u32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    max_length: usize,
    first: String,
    second: Option<String>,
    ids: Vec<u32>,
    type_ids: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/tokenizers")
        .join(name)
}

fn expected(name: &str) -> Expected {
    serde_json::from_slice(&fs::read(fixture(name).join("cases.json")).unwrap()).unwrap()
}

/// Every case of `name` with the tokenizer of `dir`.
#[track_caller]
fn assert_same_ids(name: &str, dir: &Path) {
    let cases = expected(name).cases;
    assert_eq!(cases.len(), 19);
    for case in cases {
        let tokenizer = TextTokenizer::from_dir(dir, case.max_length).unwrap();
        let second = case.second.as_deref();
        let encoding = tokenizer.encode_pair(&case.first, second).unwrap();
        assert_eq!(
            encoding.ids, case.ids,
            "{name}: {:?} {second:?}",
            case.first
        );
        assert_eq!(encoding.type_ids, case.type_ids, "{name}: {:?}", case.first);
    }
}

/// Files of a fixture, the settings changed.
fn copy(name: &str, files: &[&str], settings: impl Fn(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
    }
    let text = fs::read(fixture(name).join("tokenizer_config.json")).unwrap();
    let mut parsed = serde_json::from_slice(&text).unwrap();
    settings(&mut parsed);
    let path = dir.path().join("tokenizer_config.json");
    fs::write(path, parsed.to_string()).unwrap();
    dir
}

#[test]
fn ids_match_transformers() {
    for name in ALL {
        assert_same_ids(name, &fixture(name));
    }
}

#[test]
fn an_exported_tokenizer_gives_the_same_ids() {
    let device = Device::flex();
    for name in ALL {
        let tokenizer = TextTokenizer::from_dir(&fixture(name), 24).unwrap();
        let sizes = FreshBertConfig {
            hidden_size: 4,
            num_layers: 1,
            num_heads: 1,
            intermediate_size: 4,
            max_positions: 24,
            dropout: 0.0,
        };
        let backbone = Backbone::fresh(&sizes, tokenizer.vocab_size(), &device).unwrap();
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("student");
        save_pretrained(&dir, &backbone, &tokenizer, None).unwrap();
        assert_same_ids(name, &dir);
        for source in ["vocab.json", "merges.txt"] {
            let _ = fs::remove_file(dir.join(source));
        }
        assert_same_ids(name, &dir);
    }
}

#[test]
fn roberta_from_vocabulary_and_merges_gives_the_same_ids() {
    let dir = copy("roberta", &[], |settings| {
        // The mask takes the space before it, as the published `tokenizer_config.json` says.
        settings["added_tokens_decoder"] =
            json!({"4": {"content": "<mask>", "lstrip": true, "special": true}});
    });
    let text = fs::read(fixture("roberta").join("tokenizer.json")).unwrap();
    let definition: Value = serde_json::from_slice(&text).unwrap();
    let model = &definition["model"];
    fs::write(dir.path().join("vocab.json"), model["vocab"].to_string()).unwrap();
    let merges: Vec<[String; 2]> = serde_json::from_value(model["merges"].clone()).unwrap();
    let lines: Vec<String> = merges.iter().map(|pair| pair.join(" ")).collect();
    let merges = format!("#version: 0.2\n{}\n", lines.join("\n"));
    fs::write(dir.path().join("merges.txt"), merges).unwrap();
    assert_same_ids("roberta", dir.path());
}

#[test]
fn padding_is_the_one_of_transformers_or_said() {
    for name in ALL {
        let tokenizer = TextTokenizer::from_dir(&fixture(name), 24).unwrap();
        if let Some(pad_id) = expected(name).pad_id {
            assert_eq!(tokenizer.pad_id(), pad_id, "{name}");
            assert_eq!(tokenizer.padding_note(), None, "{name}");
        } else {
            let end = match name {
                "llama-3" => "<|end_of_text|>",
                _ => "</s>",
            };
            let id = tokenizer.pad_id();
            let note = format!(
                "the tokenizer names no padding token: `{end}` (id {id}) fills batches up, masked"
            );
            assert_eq!(tokenizer.padding_note(), Some(note.as_str()));
        }
    }
}

#[test]
fn padding_follows_the_first_file_that_names_it() {
    let pad_id = |dir: &tempfile::TempDir| {
        let tokenizer = TextTokenizer::from_dir(dir.path(), 24).unwrap();
        (tokenizer.pad_id(), tokenizer.padding_note().is_some())
    };
    let dir = copy("llama-2", &["tokenizer.json"], |_| ());
    assert_eq!(pad_id(&dir), (2, true));
    let config = dir.path().join("config.json");
    fs::write(&config, r#"{"pad_token_id": -1}"#).unwrap();
    assert_eq!(pad_id(&dir), (2, true));
    fs::write(&config, r#"{"pad_token_id": 0}"#).unwrap();
    assert_eq!(pad_id(&dir), (0, false));
    let map = dir.path().join("special_tokens_map.json");
    fs::write(&map, r#"{"pad_token": {"content": "<s>"}}"#).unwrap();
    assert_eq!(pad_id(&dir), (1, false));
    let dir = copy("llama-2", &["tokenizer.json"], |settings| {
        settings["pad_token"] = json!("<0x00>");
    });
    assert_eq!(pad_id(&dir), (3, false));
}

#[test]
fn what_cannot_be_read_is_refused_with_the_next_step() {
    let refusal = |dir: &Path| TextTokenizer::from_dir(dir, 24).unwrap_err();
    let dir = tempfile::tempdir().unwrap();
    let error = refusal(dir.path()).to_string();
    let expected = "has neither tokenizer.json, nor vocab.txt, nor vocab.json with merges.txt";
    assert!(error.ends_with(expected), "{error}");
    for file in ["sentencepiece.bpe.model", "tokenizer.model", "spm.model"] {
        fs::write(dir.path().join(file), b"a protocol buffer").unwrap();
        let error = refusal(dir.path());
        let expected =
            format!("has only {file}, a model of the sentencepiece library, and no tokenizer.json");
        assert!(error.to_string().ends_with(&expected), "{error}");
        assert!(error.hint().unwrap().starts_with("convert it once"));
    }

    let dir = copy("opt", &["vocab.json", "merges.txt"], |settings| {
        settings["tokenizer_class"] = json!("Qwen2TokenizerFast");
    });
    let error = refusal(dir.path()).to_string();
    let expected = "`tokenizer_class` is `Qwen2Tokenizer`; beside vocab.json and merges.txt \
                    GPT2Tokenizer and RobertaTokenizer are supported, others through their tokenizer.json";
    assert!(error.ends_with(expected), "{error}");
}
