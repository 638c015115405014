//! The pages of the documentation against the configurations that they describe.

use std::collections::BTreeSet;

use super::test_server::configure;
use crate::config::{CommonConfig, Config, ServerConfig};

const SERVER: &str = "url = \"http://127.0.0.1:1\"\nmodel = \"m\"\n";

macro_rules! page {
    ($name:literal) => {
        include_str!(concat!("../../../docs/teachers/", $name, ".md"))
    };
}

/// Every example of a page, which has to be a whole configuration.
fn check_examples(page: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("harvest.toml");
    let blocks = page.split("```toml\n").skip(1);
    let examples: Vec<_> = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        std::fs::write(&path, example).unwrap();
        Config::read(&path).unwrap_or_else(|error| panic!("{error}\n{example}"));
    }
}

/// The keys in the first column of the table under a heading.
fn documented<'a>(page: &'a str, heading: &str) -> BTreeSet<&'a str> {
    let section = page.split_once(&format!("\n## {heading}\n")).unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.flat_map(|row| row.split('|').next().unwrap().split('`').step_by(2))
        .filter(|key| !key.trim().is_empty())
        .collect()
}

/// Compares with the keys that a refusal of an unknown one lists, without those that other pages describe, and those
/// in `elsewhere`.
fn check_keys(page: &str, heading: &str, configuration: &str, elsewhere: &[&str]) {
    let refusal = configure(&format!("{SERVER}{configuration}\nno_such_key = 1")).unwrap_err();
    let listed = refusal
        .split_once("unknown field `no_such_key`, expected ")
        .unwrap()
        .1;
    let common = [&CommonConfig::KEYS[..], &ServerConfig::KEYS, elsewhere].concat();
    let keys = listed.split('`').skip(1).step_by(2);
    let keys: BTreeSet<&str> = keys.filter(|key| !common.contains(key)).collect();
    let mut documented = documented(page, heading);
    documented.remove("kind");
    assert_eq!(documented, keys, "{heading}");
}

#[test]
fn every_example_is_read() {
    for page in [
        page!("anthropic"),
        page!("embeddings"),
        page!("gemini"),
        page!("images"),
        page!("ollama"),
        page!("tei"),
    ] {
        check_examples(page);
    }
}

#[test]
fn every_key_is_described() {
    check_keys(page!("embeddings"), "Keys", "kind = \"embeddings\"", &[]);
    check_keys(page!("tei"), "Keys", "kind = \"tei\"", &[]);
    let page = page!("ollama");
    check_keys(
        page,
        "Keys of `use = \"chat\"`",
        "kind = \"ollama\"",
        &["use"],
    );
    check_keys(
        page,
        "Keys of `use = \"embed\"`",
        "kind = \"ollama\"\nuse = \"embed\"",
        &["use"],
    );
    let page = page!("gemini");
    check_keys(
        page,
        "Keys of `use = \"generate\"`",
        "kind = \"gemini\"",
        &["use"],
    );
    check_keys(
        page,
        "Keys of `use = \"embed\"`",
        "kind = \"gemini\"\nuse = \"embed\"",
        &["use"],
    );
    check_keys(
        page!("anthropic"),
        "Keys",
        "kind = \"anthropic\"",
        &["seed", "top_logprobs"],
    );
    let page = page!("images");
    let images = "kind = \"images\"\napi = \"openai\"\n";
    check_keys(
        page,
        "Keys",
        &format!("{images}encoder = {{kind = \"builtin\"}}"),
        &["encoder"],
    );
    let images = format!("{images}[teacher.encoder]\nkind = \"builtin\"");
    check_keys(page, "Keys of `[teacher.encoder]`", &images, &[]);
}
