//! The bundled data set is what its generator makes, and keeps what its README promises.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use harvest::sketch;
use tests::scenes::{Label, files, splits};

fn folder() -> PathBuf {
    tests::repository().join("data/scenes")
}

#[test]
fn committed_files_are_what_the_generator_writes() {
    let files = files();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "task.toml",
            "vocab.txt",
            "train.jsonl",
            "validation.jsonl",
            "test.jsonl"
        ]
    );
    for (name, content) in &files {
        let committed = std::fs::read_to_string(folder().join(name)).unwrap();
        assert!(
            committed == *content,
            "data/scenes/{name} differs: run the example generate_scenes again"
        );
    }
}

#[test]
fn splits_have_their_sizes_and_no_pair_twice() {
    let splits = splits();
    let sizes: Vec<(&str, usize)> = splits
        .iter()
        .map(|(name, rows)| (*name, rows.len()))
        .collect();
    assert_eq!(
        sizes,
        [("train", 1_500), ("validation", 300), ("test", 500)]
    );
    let pairs: BTreeSet<(&str, &str)> = splits
        .iter()
        .flat_map(|(_, rows)| rows)
        .map(|row| (row.premise.as_str(), row.hypothesis.as_str()))
        .collect();
    assert_eq!(pairs.len(), 2_300);
}

#[test]
fn every_set_of_words_has_both_labels_equally_often() {
    for (name, rows) in splits() {
        let mut balance: BTreeMap<(Vec<String>, String), i32> = BTreeMap::new();
        for row in &rows {
            let spaced = row.premise.to_lowercase().replace('.', " .");
            let mut words: Vec<String> = spaced.split(' ').map(str::to_owned).collect();
            words.sort();
            words.dedup();
            let sign = if row.label == Label::Entailment {
                1
            } else {
                -1
            };
            *balance.entry((words, row.hypothesis.clone())).or_default() += sign;
        }
        assert!(
            balance.values().all(|&sum| sum == 0),
            "{name}: words alone tell something about the label"
        );
    }
}

#[test]
fn every_text_can_be_drawn_and_twins_look_different() {
    let mut pictures: BTreeMap<String, BTreeSet<Label>> = BTreeMap::new();
    for (_, rows) in splits() {
        for row in rows {
            let text = format!("{} {}", row.premise, row.hypothesis);
            let picture =
                sketch::draw(&text).unwrap_or_else(|error| unreachable!("{text}: {error}"));
            pictures
                .entry(format!("{picture:?}"))
                .or_default()
                .insert(row.label);
        }
    }
    assert!(
        pictures.values().all(|labels| labels.len() == 1),
        "one picture, two labels"
    );
}

#[test]
fn the_vocabulary_covers_every_text() {
    let vocabulary = std::fs::read_to_string(folder().join("vocab.txt")).unwrap();
    let entries: Vec<&str> = vocabulary.lines().collect();
    assert_eq!(entries[..5], ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]);
    let mut unused: BTreeSet<&str> = entries[5..].iter().copied().collect();
    assert_eq!(unused.len(), entries.len() - 5, "an entry occurs twice");
    for (_, rows) in splits() {
        for row in rows {
            let text = format!("{} {}", row.premise, row.hypothesis)
                .to_lowercase()
                .replace('.', " .");
            for word in text.split_whitespace() {
                assert!(entries.contains(&word), "{word} is not in vocab.txt");
                unused.remove(word);
            }
        }
    }
    assert!(unused.is_empty(), "no text uses {unused:?}");
}

#[test]
fn the_task_names_the_fields_of_the_rows() {
    let task: toml::Table = std::fs::read_to_string(folder().join("task.toml"))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        task["fields"],
        toml::Value::from(vec!["premise", "hypothesis"])
    );
    let row: serde_json::Value = serde_json::to_value(&splits()[0].1[0]).unwrap();
    let classes: Vec<&str> = task["classes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(toml::Value::as_str)
        .collect();
    assert_eq!(classes, ["not_entailment", "entailment"]);
    assert!(classes.contains(&row["label"].as_str().unwrap()));
}
