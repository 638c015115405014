//! Formats, ids and the finding of files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use schemas::dataset::{Dataset, DatasetConfig, SkipBadRows};
use schemas::{Error, Example, ExampleId, Label, Split};
use serde_json::json;

const TASK: &str = r#"
name = "pairs"
fields = ["left", "right"]
label = "label"
classes = ["no", "yes"]
metric = "accuracy"
template = { first = "{left}", second = "{right}" }
"#;

fn config(folder: &Path, more: &str) -> DatasetConfig {
    toml::from_str(&format!("path = '{}'\n{more}", folder.display())).unwrap()
}

/// A folder with `task.toml` and these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("task.toml"), TASK).unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(folder: &Path) -> Result<Dataset, Error> {
    config(folder, "").open(Path::new(""))
}

fn read(folder: &Path, split: &Split) -> Vec<Example> {
    open(folder)
        .unwrap()
        .read(split, &mut SkipBadRows::default())
        .unwrap()
}

pub(crate) fn parquet_bytes(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn every_format_gives_the_same_examples() {
    let jsonl = "{\"left\": \"a, b\", \"right\": \"say \\\"x\\\"\", \"label\": \"yes\"}\n\n\
                 {\"label\": 0, \"right\": \"7\", \"left\": \"é\", \"more\": [1]}\n";
    let csv = "\u{feff}label,right,left\r\nyes,\"say \"\"x\"\"\",\"a, b\"\r\nno,7,é";
    let tsv = "left\tmore\tright\tlabel\na, b\t\tsay \"x\"\t1\né\t\t7\t0\n";
    let parquet = parquet_bytes(vec![
        ("left", Arc::new(LargeStringArray::from(vec!["a, b", "é"]))),
        ("right", Arc::new(StringArray::from(vec!["say \"x\"", "7"]))),
        ("label", Arc::new(Int64Array::from(vec![1, 0]))),
    ]);
    let files: [(&str, &[u8]); 4] = [
        ("train.jsonl", jsonl.as_bytes()),
        ("train.csv", csv.as_bytes()),
        ("train.tsv", tsv.as_bytes()),
        ("train.parquet", &parquet),
    ];
    let expected = [("a, b", "say \"x\"", 1), ("é", "7", 0)].map(|(left, right, class)| {
        let fields = [("left", left), ("right", right)];
        let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned()));
        Example::new(fields.into(), Some(Label::Class(class)), Split::train())
    });
    for file in files {
        let folder = folder(&[file]);
        assert_eq!(read(folder.path(), &Split::train()), expected, "{}", file.0);
    }
}

#[test]
fn numbers_and_truth_values_of_a_field_are_their_json_text() {
    let folder = folder(&[(
        "train.jsonl",
        br#"{"left": 1.50, "right": true, "label": null}"#,
    )]);
    let rows = read(folder.path(), &Split::train());
    assert_eq!(
        (rows[0].field("left"), rows[0].field("right")),
        (Some("1.5"), Some("true"))
    );
    assert_eq!(rows[0].label(), None);
}

#[test]
fn a_quoted_csv_value_may_hold_lines() {
    let folder = folder(&[(
        "dev.csv",
        b"left,right,label\n\"two\nlines\",x,yes\ny,z,no\n",
    )]);
    let rows = read(folder.path(), &Split::validation());
    assert_eq!(rows[0].field("left"), Some("two\nlines"));
    assert_eq!(rows.len(), 2);
}

#[test]
fn numbered_files_are_read_in_order_and_must_be_complete() {
    let part = |text: &str| {
        let column = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
        parquet_bytes(vec![("left", column(text)), ("right", column("r"))])
    };
    let (first, second) = (part("one"), part("two"));
    let both = folder(&[
        ("train-00001-of-00002.parquet", &second),
        ("train-00000-of-00002.parquet", &first),
    ]);
    let rows = read(both.path(), &Split::train());
    let lefts: Vec<_> = rows.iter().map(|row| row.field("left").unwrap()).collect();
    assert_eq!(lefts, ["one", "two"]);

    let one = folder(&[("train-00001-of-00002.parquet", &second)]);
    let error = open(one.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("`train-00000-of-00002` is missing"),
        "{error}"
    );
}

#[test]
fn files_are_named_or_found_without_doubt() {
    let row = br#"{"left": "a", "right": "b", "label": "no"}"#;
    let csv = b"left,right\na,b\n";
    let both = folder(&[("train.jsonl", row), ("train.csv", csv), ("mine.txt", csv)]);
    let error = open(both.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("more than once: `train.csv`, `train.jsonl`"),
        "{error}"
    );
    let splits = |more: &str| {
        config(both.path(), more)
            .open(Path::new(""))
            .unwrap()
            .splits()
    };
    assert_eq!(splits("format = 'csv'"), [Split::train()]);
    assert_eq!(
        splits("format = 'csv'\nfiles = { held_out = 'mine.txt' }"),
        [Split::new("held_out")]
    );
    let error = config(both.path(), "files = { train = 'mine.txt' }")
        .open(Path::new(""))
        .unwrap_err();
    assert!(
        error.to_string().contains("its extension is none of"),
        "{error}"
    );
    let error = config(both.path(), "files = { train = 'gone.csv' }")
        .open(Path::new(""))
        .unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");

    let single = config(&both.path().join("train.csv"), "")
        .open(Path::new(""))
        .unwrap();
    assert_eq!(single.splits(), [Split::train()]);
}

#[test]
fn an_empty_folder_says_what_was_looked_for() {
    let empty = tempfile::tempdir().unwrap();
    let config = config(empty.path(), "task = 'cola'");
    let error = config.open(Path::new("")).unwrap_err();
    assert!(error.to_string().ends_with("it has no file of task `cola`"));
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("dev_matched") && hint.contains("jsonl, csv, tsv, parquet"),
        "{hint}"
    );
    let error = open(empty.path()).unwrap_err();
    assert!(
        error.to_string().contains("there is no task.toml in it"),
        "{error}"
    );
}

#[test]
fn unknown_keys_and_tasks_are_refused() {
    let error = toml::from_str::<DatasetConfig>("path = 'a'\nsplit = 'train'").unwrap_err();
    assert!(
        error.to_string().contains("unknown field `split`"),
        "{error}"
    );
    let unknown: DatasetConfig = toml::from_str("path = '.'\ntask = 'sst3'").unwrap();
    assert!(matches!(
        unknown.open(Path::new("")),
        Err(Error::UnknownTask { .. })
    ));
}

#[test]
fn a_configuration_reads_back_as_written() {
    let text =
        "path = \"d\"\nformat = \"tsv\"\ntask = \"t/task.toml\"\n\n[files]\ntrain = \"a.tsv\"\n";
    let config: DatasetConfig = toml::from_str(text).unwrap();
    assert_eq!(toml::to_string(&config).unwrap(), text);
    let short: DatasetConfig = toml::from_str("path = \"d\"").unwrap();
    assert_eq!(toml::to_string(&short).unwrap(), "path = \"d\"\n");
}

#[test]
fn a_split_that_is_not_there_lists_those_that_are() {
    let folder = folder(&[("train.jsonl", b"")]);
    let dataset = open(folder.path()).unwrap();
    let error = dataset
        .read(&Split::test(), &mut SkipBadRows::default())
        .unwrap_err();
    assert!(error.to_string().ends_with("there is no split `test`"));
    assert_eq!(error.hint().unwrap(), "the splits are train");
}

/// Rows of a JSONL file whose keys come in the order of `keys`.
fn jsonl(rows: &[(String, String, bool)], keys: [usize; 3]) -> String {
    let lines = rows.iter().map(|(left, right, label)| {
        let pairs = [
            format!("\"left\": {}", json!(left)),
            format!("\"right\": {}", json!(right)),
            format!("\"label\": {}", u8::from(*label)),
        ];
        let ordered = keys.map(|key| pairs[key].as_str());
        format!("{{{}}}", ordered.join(", "))
    });
    lines.collect::<Vec<_>>().join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ids_follow_content_alone(
        rows in prop::collection::vec(("[^\\x00]{1,12}", "\\PC{0,12}", any::<bool>()), 1..12),
        keys in Just([0, 1, 2]).prop_shuffle(),
        order in any::<u64>(),
    ) {
        prop_assume!(rows.iter().all(|(left, right, _)| !(left.trim().is_empty() && right.trim().is_empty())));
        let mut shuffled = rows.clone();
        let middle = usize::try_from(order % rows.len() as u64).unwrap();
        shuffled.rotate_left(middle);
        shuffled.reverse();
        for row in &mut shuffled {
            row.2 = !row.2;
        }
        let here = folder(&[("train.jsonl", jsonl(&rows, [0, 1, 2]).as_bytes())]);
        let there = folder(&[("test.jsonl", jsonl(&shuffled, keys).as_bytes())]);
        let here = read(here.path(), &Split::train());
        let there = read(there.path(), &Split::test());
        for (example, (left, right, label)) in here.iter().zip(&rows) {
            prop_assert_eq!(example.field("left"), Some(left.as_str()));
            prop_assert_eq!(example.field("right"), Some(right.as_str()));
            prop_assert_eq!(example.label(), Some(&Label::Class(u32::from(*label))));
        }
        let ids = |examples: &[Example]| examples.iter().map(Example::id).collect::<BTreeSet<ExampleId>>();
        prop_assert_eq!(ids(&here), ids(&there));
    }

    #[test]
    fn csv_gives_back_any_text(rows in prop::collection::vec(("[^\\r\\x00]{1,16}", "[\",\\n a]{0,16}"), 1..8)) {
        prop_assume!(rows.iter().all(|(left, _)| !left.trim().is_empty()));
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut lines = vec!["left,right".to_owned()];
        lines.extend(rows.iter().map(|(left, right)| format!("{},{}", quoted(left), quoted(right))));
        let csv = lines.join("\n");
        let folder = folder(&[("train.csv", csv.as_bytes())]);
        let read: Vec<_> = read(folder.path(), &Split::train())
            .iter()
            .map(|row| (row.field("left").unwrap().to_owned(), row.field("right").unwrap().to_owned()))
            .collect();
        prop_assert_eq!(read, rows);
    }
}

/// Every byte of a file is changed in turn. Some of the changes make the Parquet reader itself panic.
#[test]
fn a_damaged_parquet_file_is_refused_by_name() {
    let texts = ["one", "two", "two", "three"];
    let whole = parquet_bytes(vec![
        (
            "left",
            Arc::new(StringArray::from(texts.to_vec())) as ArrayRef,
        ),
        ("right", Arc::new(LargeStringArray::from(texts.to_vec()))),
        ("label", Arc::new(Int64Array::from(vec![0, 1, 1, 0]))),
    ]);
    let folder = folder(&[]);
    let path = folder.path().join("train.parquet");
    let mut undecodable = 0;
    for at in 0..whole.len() {
        for value in [0, 0x7f] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            fs::write(&path, &damaged).unwrap();
            let dataset = open(folder.path()).unwrap();
            let Err(error) = dataset.read(&Split::train(), &mut SkipBadRows::new(4)) else {
                continue;
            };
            assert!(error.to_string().contains("train.parquet"), "{error}");
            assert!(error.hint().is_some(), "{error}");
            undecodable += u32::from(error.to_string().contains("pages cannot be decoded"));
        }
    }
    assert!(undecodable > 0, "no change reached the decoder's panics");
}
