//! Rows that cannot be used name file, line and column, and may be skipped.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StringArray};
use arrow::datatypes::Int32Type;
use parquet::arrow::ArrowWriter;
use schemas::dataset::{DatasetConfig, SkipBadRows};
use schemas::{Error, Example, Split};

/// Reads a file of built-in task `task`.
fn read(
    folder: &Path,
    task: &str,
    file: &str,
    bytes: &[u8],
    skip: &mut SkipBadRows,
) -> Result<Vec<Example>, Error> {
    let path = folder.join(file);
    fs::write(&path, bytes).unwrap();
    let config: DatasetConfig =
        toml::from_str(&format!("path = '{}'\ntask = '{task}'", path.display())).unwrap();
    config
        .open(Path::new(""))
        .unwrap()
        .read(&Split::train(), skip)
}

/// The message of the error, from the file's name on.
fn problem(task: &str, file: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let error = read(
        folder.path(),
        task,
        file,
        bytes,
        &mut SkipBadRows::default(),
    )
    .unwrap_err();
    let text = error.to_string();
    text.split_once(&format!("{}/", folder.path().display()))
        .unwrap()
        .1
        .to_owned()
}

#[test]
fn bad_rows_name_line_and_column() {
    let cases: [(&str, &str, &[u8], &str); 15] = [
        ("sst2", "t.jsonl", b"\n{\"sentence\": \"a\", \"label\"}\n",
            "t.jsonl:2: invalid JSON at character 26: expected `:`"),
        ("sst2", "t.jsonl", b"[1]",
            "t.jsonl:1: not a JSON object: invalid type: sequence, expected a map"),
        ("sst2", "t.jsonl", b"{\"text\": \"a\"}",
            "t.jsonl:1: column `sentence`: the row has no key `sentence`"),
        ("sst2", "t.jsonl", b"{\"sentence\": [\"a\"]}",
            "t.jsonl:1: column `sentence`: it is a list, not text"),
        ("sst2", "t.jsonl", b"{\"sentence\": null}", "t.jsonl:1: column `sentence`: it is null"),
        ("sst2", "t.jsonl", b"{\"sentence\": \" \", \"label\": 1}", "t.jsonl:1: every field is empty"),
        ("sst2", "t.jsonl", b"{\"sentence\": \"a\", \"label\": \"good\"}",
            "t.jsonl:1: column `label`: `good` is not a class: the classes are negative, positive"),
        ("sst2", "t.jsonl", b"{\"sentence\": \"a\", \"label\": 2}",
            "t.jsonl:1: column `label`: there is no class 2: there are 2"),
        ("sst2", "t.jsonl", b"{\"sentence\": \"\xff\"}", "t.jsonl:1: invalid UTF-8 at byte 15 of the line"),
        ("sst2", "t.tsv", b"sentence\tlabel\na\t1\nb\t0\tc\n",
            "t.tsv:3: it has 3 columns, the header has 2"),
        ("sst2", "t.csv", b"sentence,label\na,1\n\"b,0\nc,1\n",
            "t.csv:3: cell 1: the quote is not closed"),
        ("sst2", "t.csv", b"sentence,label\n\"a\" b,1\n",
            "t.csv:2: cell 1: text follows the closing quote"),
        ("stsb", "t.tsv", b"sentence1\tsentence2\tscore\na\tb\tgood\n",
            "t.tsv:2: column `label`: `good` is not a number"),
        ("wic", "t.jsonl",
            b"{\"word\":\"a\",\"sentence1\":\"a b\",\"sentence2\":\"a\",\"start1\":0,\"end1\":4,\"start2\":0,\"end2\":1}",
            "t.jsonl:1: column `end1`: 4 is outside `sentence1`, which has 3 characters"),
        ("cola", "t.tsv", b"s\t1\t\tGood.\ns\t0\tBad.\n", "t.tsv:2: it has 3 columns, the header has 4"),
    ];
    for (task, file, bytes, expected) in cases {
        assert_eq!(problem(task, file, bytes), expected);
    }
}

#[test]
fn a_file_without_a_column_is_refused_as_a_whole() {
    let text = problem("mrpc", "t.tsv", b"Quality\t#1 String\n1\ta\n");
    assert_eq!(text, "t.tsv`: it has no column `sentence2` or `#2 String`");
}

#[test]
fn a_parquet_column_of_lists_is_refused() {
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]);
    let batch = RecordBatch::try_from_iter([("sentence", Arc::new(lists) as ArrayRef)]).unwrap();
    let text = problem("sst2", "t.parquet", &parquet_bytes(&batch));
    assert!(
        text.starts_with("t.parquet`: column `sentence` is a List"),
        "{text}"
    );
    let text = problem("sst2", "t.parquet", b"PAR1 no");
    assert!(text.starts_with("t.parquet`: "), "{text}");
}

#[test]
fn a_null_in_parquet_is_a_bad_row() {
    let texts = StringArray::from(vec![Some("a"), None]);
    let batch = RecordBatch::try_from_iter([("sentence", Arc::new(texts) as ArrayRef)]).unwrap();
    assert_eq!(
        problem("sst2", "t.parquet", &parquet_bytes(&batch)),
        "t.parquet:2: column `sentence`: it is null"
    );
}

fn parquet_bytes(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn allowed_bad_rows_are_counted_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes =
        b"{\"sentence\": \"a\"}\nnot json\n{\"sentence\": \"b\"}\n{}\n{\"sentence\": \"c\"}\n";
    let mut skip = SkipBadRows::new(2);
    let rows = read(folder.path(), "sst2", "t.jsonl", bytes, &mut skip).unwrap();
    let texts: Vec<_> = rows
        .iter()
        .map(|row| row.field("sentence").unwrap())
        .collect();
    assert_eq!(texts, ["a", "b", "c"]);
    let lines: Vec<_> = skip
        .skipped()
        .iter()
        .map(|error| match error {
            Error::BadRow { line, .. } => *line,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!((skip.num_skipped(), lines), (2, vec![2, 4]));

    // The allowance is for the whole run: a second file has nothing left of it.
    let error = read(folder.path(), "sst2", "t.jsonl", bytes, &mut skip).unwrap_err();
    assert!(matches!(error, Error::BadRow { line: 2, .. }), "{error}");
    assert!(error.hint().unwrap().contains("--skip-bad-rows"));
}

#[test]
fn rows_behind_a_stray_quote_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = b"sentence,label\n\"a,0\nb,1\nc,0\n";
    let mut skip = SkipBadRows::new(1);
    let rows = read(folder.path(), "sst2", "t.csv", bytes, &mut skip).unwrap();
    let texts: Vec<_> = rows
        .iter()
        .map(|row| row.field("sentence").unwrap())
        .collect();
    assert_eq!(
        (texts.as_slice(), skip.num_skipped()),
        (["b", "c"].as_slice(), 1)
    );
}

#[test]
fn only_so_many_skipped_rows_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = "x\n".repeat(1000);
    let mut skip = SkipBadRows::new(2000);
    assert!(
        read(
            folder.path(),
            "sst2",
            "t.jsonl",
            bytes.as_bytes(),
            &mut skip
        )
        .unwrap()
        .is_empty()
    );
    assert_eq!((skip.num_skipped(), skip.skipped().len()), (1000, 100));
}
