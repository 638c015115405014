//! The published layouts of the twelve understanding tasks: both layouts of a task give the same examples.

use schemas::dataset::{Dataset, DatasetConfig, SkipBadRows};
use schemas::{Example, Label, Split};

use crate::fixtures;

const GLUE: [(&str, &str); 8] = [
    ("cola", "CoLA"),
    ("sst2", "SST-2"),
    ("mrpc", "MRPC"),
    ("qqp", "QQP"),
    ("stsb", "STS-B"),
    ("mnli", "MNLI"),
    ("qnli", "QNLI"),
    ("rte", "RTE"),
];
const SUPERGLUE: [(&str, &str); 4] = [
    ("boolq", "BoolQ"),
    ("cb", "CB"),
    ("copa", "COPA"),
    ("wic", "WiC"),
];

fn open(task: &str, folder: &str) -> Dataset {
    let config: DatasetConfig =
        toml::from_str(&format!("path = '{folder}'\ntask = '{task}'")).unwrap();
    config.open(&fixtures("datasets")).unwrap()
}

fn read(dataset: &Dataset, split: &str) -> Vec<Example> {
    dataset
        .read(&Split::new(split), &mut SkipBadRows::default())
        .unwrap()
}

fn read_from(task: &str, folder: &str, split: &str) -> Vec<Example> {
    read(&open(task, folder), split)
}

#[test]
fn both_layouts_of_a_task_give_the_same_examples() {
    let pairs = GLUE
        .map(|(task, folder)| {
            (
                task,
                format!("glue_tsv/{folder}"),
                format!("glue_parquet/{task}"),
            )
        })
        .into_iter()
        .chain(SUPERGLUE.map(|(task, folder)| {
            (
                task,
                format!("superglue_jsonl/{folder}"),
                format!("superglue_parquet/{task}"),
            )
        }));
    for (task, original, export) in pairs {
        let (original, export) = (open(task, &original), open(task, &export));
        assert_eq!(original.splits(), export.splits(), "{task}");
        assert!(original.splits().len() >= 3, "{task}");
        for split in original.splits() {
            let (one, two) = (
                read(&original, split.as_str()),
                read(&export, split.as_str()),
            );
            assert!(!one.is_empty(), "{task} {split}");
            if (task, split.as_str()) == ("mrpc", "test") {
                // The export labels MRPC's test split, GLUE's own file does not.
                let ids =
                    |examples: &[Example]| examples.iter().map(Example::id).collect::<Vec<_>>();
                assert_eq!(ids(&one), ids(&two));
                assert_eq!(
                    (one[0].label(), two[0].label()),
                    (None, Some(&Label::Class(1)))
                );
            } else {
                assert_eq!(one, two, "{task} {split}");
            }
            let labelled = one.iter().all(|example| example.label().is_some());
            assert_eq!(
                labelled,
                !split.as_str().starts_with("test"),
                "{task} {split}"
            );
        }
    }
}

#[test]
fn the_first_distribution_of_mrpc_gives_the_same_splits() {
    let (first, export) = (open("mrpc", "mrpc_msr"), open("mrpc", "glue_parquet/mrpc"));
    for split in ["train", "validation", "test"] {
        assert_eq!(read(&first, split), read(&export, split), "{split}");
    }
    assert_eq!(first.source_files().len(), 3);
}

#[test]
fn quotes_are_plain_characters_in_glue() {
    let train = read_from("cola", "glue_tsv/CoLA", "train");
    let sentences: Vec<_> = train
        .iter()
        .map(|row| row.field("sentence").unwrap())
        .collect();
    assert_eq!(
        sentences,
        [
            "He said \"go\" and went.",
            "The kettle sing is.",
            "\"Unbalanced she left."
        ]
    );
    let labels: Vec<_> = train.iter().map(|row| row.label().cloned()).collect();
    assert_eq!(labels, [1, 0, 0].map(|class| Some(Label::Class(class))));
}

#[test]
fn mnli_has_matched_and_mismatched_splits() {
    let dataset = open("mnli", "glue_tsv/MNLI");
    let splits: Vec<_> = dataset.splits().iter().map(Split::to_string).collect();
    assert_eq!(
        splits,
        [
            "test_matched",
            "test_mismatched",
            "train",
            "validation_matched",
            "validation_mismatched"
        ]
    );
    let rows = read(&dataset, "validation_mismatched");
    assert_eq!(rows[0].field("premise"), Some("She said \"maybe\"."));
    assert_eq!(rows[0].label(), Some(&Label::Class(1)));
}

#[test]
fn scores_are_numbers_and_the_same_from_text_and_f32() {
    let train = read_from("stsb", "glue_parquet/stsb", "train");
    assert_eq!(train[0].label(), Some(&Label::Value(3.8)));
    assert_eq!(
        read_from("stsb", "glue_parquet/stsb", "test")[0].label(),
        None
    );
}

#[test]
fn every_field_reaches_the_model() {
    let copa = open("copa", "superglue_jsonl/COPA");
    assert_eq!(
        copa.task().render(&read(&copa, "train")[1]),
        (
            "The lamp went out. What was the effect?".into(),
            Some("The room was bright. or The room grew dark.".into())
        )
    );
    let wic = open("wic", "superglue_parquet/wic");
    assert_eq!(
        wic.task().render(&read(&wic, "train")[0]),
        (
            "bank: They sat on the *bank*.".into(),
            Some("The *bank* – a steep one – slid.".into())
        )
    );
    assert_eq!(
        read(&wic, "train")[1].field("sentence1"),
        Some("Éva *runs* a mill.")
    );
}

#[test]
fn truth_values_are_classes() {
    let labels: Vec<_> = read_from("boolq", "superglue_jsonl/BoolQ", "train")
        .iter()
        .map(|row| row.label().cloned())
        .collect();
    assert_eq!(labels, [Some(Label::Class(0)), Some(Label::Class(1))]);
}
