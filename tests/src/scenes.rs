//! The seeded generator of the bundled data set `data/scenes`.
//!
//! Half of the rows are *twins*: one hypothesis, and two premises made of the same set of words in another order, of
//! which one entails the hypothesis and the other one excludes it. So which words occur, in the hypothesis alone or in
//! the pair, says nothing about their label. The other half are *single* rows, in which the hypothesis either follows or
//! speaks of something that the premise never mentions, so that words tell a part of the answer. Labels follow from the
//! facts of the premise by logic alone (`knowledge.rs`); the generator never looks at a picture.

mod knowledge;
mod scene;
mod single;
mod twins;

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use harvest::sketch::{Colour, Extreme, Relation, Shape, Size};

/// Seed of the committed data set.
const SEED: u64 = 32;
/// Rows of each split.
const SPLITS: [(&str, usize); 3] = [("train", 1_500), ("validation", 300), ("test", 500)];

const TASK: &str = r#"# What a model is asked about data/scenes; the rows are described in README.md.
name = "scenes"
fields = ["premise", "hypothesis"]
label = "label"
classes = ["not_entailment", "entailment"]
metric = "accuracy"

[template]
first = "{premise}"
second = "{hypothesis}"
"#;

/// One row of the data set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// Sentences that describe a scene.
    pub premise: String,
    /// One sentence about the scene.
    pub hypothesis: String,
    /// `entailment` or `not_entailment`.
    pub label: Label,
}

/// Whether the premise entails the hypothesis.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// In some or in every scene that the premise allows the hypothesis is false.
    NotEntailment,
    /// In every scene that the premise allows the hypothesis is true.
    Entailment,
}

/// Every generated file as its name and its content.
pub fn files() -> Vec<(String, String)> {
    let mut files = vec![
        ("task.toml".to_owned(), TASK.to_owned()),
        ("vocab.txt".to_owned(), vocabulary()),
    ];
    for (split, rows) in splits() {
        let lines = rows
            .iter()
            .map(|row| serde_json::to_string(row).expect("a row is plain text") + "\n");
        files.push((format!("{split}.jsonl"), lines.collect()));
    }
    files
}

/// The rows of each split by name. No pair occurs twice, within or across splits.
pub fn splits() -> Vec<(&'static str, Vec<Row>)> {
    let mut seen = BTreeSet::new();
    let split = |(stream, &(name, num_rows)): (usize, &(&'static str, usize))| {
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        random.set_stream(stream as u64);
        let mut rows = Vec::with_capacity(num_rows);
        while rows.len() < num_rows {
            let drawn = if rows.len() < num_rows / 2 {
                twins::generate(&mut random)
            } else {
                let labels = [Label::NotEntailment, Label::Entailment];
                Some(labels.map(|label| single::generate(label, &mut random)))
            };
            let Some(drawn) = drawn else { continue };
            let pair = |row: &Row| (row.premise.clone(), row.hypothesis.clone());
            if drawn.iter().all(|row| !seen.contains(&pair(row))) {
                seen.extend(drawn.iter().map(pair));
                rows.extend(drawn);
            }
        }
        rows.shuffle(&mut random);
        (name, rows)
    };
    SPLITS.iter().enumerate().map(split).collect()
}

/// A BERT WordPiece vocabulary of every word and mark of the sketch language, one entry a line.
fn vocabulary() -> String {
    let special = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "the", "is", "shape",
    ];
    let mut words: Vec<&str> = special.to_vec();
    words.extend(Size::ALL.iter().map(|word| word.words()));
    words.extend(Colour::ALL.iter().map(|word| word.words()));
    words.extend(Shape::ALL.iter().map(|word| word.words()));
    words.extend(
        Relation::ALL
            .iter()
            .flat_map(|word| word.words().split(' ')),
    );
    words.extend(Extreme::ALL.iter().map(|word| word.words()));
    let mut seen = BTreeSet::new();
    words.retain(|word| seen.insert(*word));
    words.join("\n") + "\n"
}
