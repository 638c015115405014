//! The bundled data set is what its generator makes, and keeps what its README promises.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use harvest::sketch;
use tests::scenes::{Label, Row, files, splits};

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

/// The words of a text without their order and number.
fn words(text: &str) -> BTreeSet<String> {
    let spaced = text.to_lowercase().replace('.', " .");
    spaced.split_whitespace().map(str::to_owned).collect()
}

/// Rows in groups of one hypothesis and one set of words in the premise.
fn groups(rows: &[Row]) -> BTreeMap<(BTreeSet<String>, String), Vec<&Row>> {
    let mut groups: BTreeMap<_, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let key = (words(&row.premise), row.hypothesis.clone());
        groups.entry(key).or_default().push(row);
    }
    groups
}

fn num_entailed(rows: &[&Row]) -> usize {
    let is_entailed = |row: &&&Row| row.label == Label::Entailment;
    rows.iter().filter(is_entailed).count()
}

#[test]
fn labels_are_balanced_and_half_of_the_rows_are_twins() {
    for (name, rows) in splits() {
        let all: Vec<&Row> = rows.iter().collect();
        assert_eq!(2 * num_entailed(&all), rows.len(), "{name}");
        let is_balanced = |rows: &&Vec<&Row>| 2 * num_entailed(rows) == rows.len();
        let groups = groups(&rows);
        let num_twins: usize = groups.values().filter(is_balanced).map(Vec::len).sum();
        assert_eq!(2 * num_twins, rows.len(), "{name}");
    }
}

#[test]
fn a_single_row_follows_if_its_premise_mentions_the_axis() {
    const KINDS: [[&str; 2]; 3] = [["left", "right"], ["above", "below"], ["inside", "inside"]];
    for (name, rows) in splits() {
        let mut num_singles = 0;
        for group in groups(&rows).values().filter(|rows| rows.len() == 1) {
            let row = group[0];
            let mentions =
                |text: &str, kind: [&str; 2]| kind.iter().any(|word| text.contains(word));
            let kind = KINDS
                .into_iter()
                .find(|kind| mentions(&row.hypothesis, *kind))
                .unwrap();
            assert_eq!(
                mentions(&row.premise, kind),
                row.label == Label::Entailment,
                "{row:?}"
            );
            num_singles += 1;
        }
        assert_eq!(2 * num_singles, rows.len(), "{name}");
    }
}

#[test]
fn every_text_can_be_drawn_and_what_does_not_follow_is_in_the_dark() {
    for (_, rows) in splits() {
        for row in rows {
            let text = format!("{} {}", row.premise, row.hypothesis);
            let picture =
                sketch::draw(&text).unwrap_or_else(|error| unreachable!("{text}: {error}"));
            let feature = picture.feature();
            // A black pixel is one of the claim's subject that the claim's light does not reach.
            let is_dark = feature.contains(&0.0);
            let is_lit = feature.contains(&1.0);
            let follows = row.label == Label::Entailment;
            assert_eq!((is_lit, is_dark), (follows, !follows), "{text}");
        }
    }
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
