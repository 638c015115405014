//! Tasks that are answered in text: the ready ones, and options in lists.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, StringArray, StringBuilder};
use schemas::dataset::{DatasetConfig, SkipBadRows};
use schemas::task::Role;
use schemas::{Error, Example, Label, LabelKind, Split, Task};

use crate::formats::parquet_bytes;

fn ready() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/generation")
}

/// Rows of one file under a ready task.
fn read(task: &str, name: &str, bytes: &[u8]) -> (Task, Result<Vec<Example>, Error>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), bytes).unwrap();
    fs::copy(ready().join(task), folder.path().join("task.toml")).unwrap();
    let config = format!("path = '{}'", folder.path().display());
    let config: DatasetConfig = toml::from_str(&config).unwrap();
    let dataset = config.open(Path::new("")).unwrap();
    let rows = dataset.read(&Split::train(), &mut SkipBadRows::default());
    (dataset.task().clone(), rows)
}

#[test]
fn every_ready_task_is_one() {
    let mut num_tasks = 0;
    for entry in fs::read_dir(ready()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name != "distill.toml") {
            let name = path.file_name().unwrap().to_str().unwrap();
            let (task, _) = read(name, "train.jsonl", b"{}\n");
            assert!(task.label().is_generation(), "{name}");
            num_tasks += 1;
        }
    }
    assert_eq!(num_tasks, 7);
}

#[test]
fn an_optional_input_has_its_place_in_the_prompt() {
    let rows = "{\"instruction\": \"Add.\", \"input\": \"1 2\", \"output\": \"3\"}\n\
                {\"instruction\": \"Say hi.\", \"input\": \"\", \"output\": \"hi\"}\n";
    let (task, rows) = read("alpaca.toml", "train.jsonl", rows.as_bytes());
    let rows = rows.unwrap();
    assert_eq!(rows[0].label(), Some(&Label::Text("3".into())));
    assert_eq!(
        task.conversation(&rows[0]),
        [(
            Role::User,
            "Below is an instruction that describes a task, paired with an input that provides further context. Write \
             a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n\
             ### Response:\n"
                .to_owned()
        )]
    );
    assert_eq!(
        task.conversation(&rows[1])[0].1,
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
         ### Instruction:\nSay hi.\n\n### Response:\n"
    );
}

#[test]
fn messages_stand_before_the_users_last() {
    let row = "{\"instruction\": \"Say hi.\", \"context\": \"\", \"response\": \"hi\"}\n";
    let (task, rows) = read("dolly_chat.toml", "train.jsonl", row.as_bytes());
    let messages = task.conversation(&rows.unwrap()[0]);
    let roles: Vec<Role> = messages.iter().map(|(role, _)| *role).collect();
    assert_eq!(roles, [Role::System, Role::User]);
    assert_eq!(messages[1].1, "Say hi.");
}

#[test]
fn options_are_a_list_in_every_format() {
    let jsonl = "{\"activity_label\": \"a\", \"ctx\": \"b\", \"endings\": [\"x\", \"y \\\"z\\\"\"], \"label\": \"1\"}\n";
    let tsv = "activity_label\tctx\tendings\tlabel\na\tb\t[\"x\",\"y \\\"z\\\"\"]\t1\n";
    let mut endings = ListBuilder::new(StringBuilder::new());
    endings.append_value([Some("x"), Some("y \"z\"")]);
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value.to_owned()])) };
    let parquet = parquet_bytes(vec![
        ("activity_label", text("a")),
        ("ctx", text("b")),
        ("endings", Arc::new(endings.finish())),
        ("label", text("1")),
    ]);
    let mut ids = Vec::new();
    for (name, bytes) in [
        ("train.jsonl", jsonl.as_bytes()),
        ("train.tsv", tsv.as_bytes()),
        ("train.parquet", &parquet),
    ] {
        let (task, rows) = read("hellaswag.toml", name, bytes);
        let rows = rows.unwrap();
        assert_eq!(rows[0].label(), Some(&Label::Class(1)), "{name}");
        let LabelKind::Choice(choices) = task.label() else {
            panic!("{name}: {:?}", task.label());
        };
        assert_eq!(choices.options(rows[0].fields()).unwrap(), ["x", "y \"z\""]);
        ids.push(rows[0].id());
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn a_label_that_is_no_option_is_a_bad_row() {
    let row = |options: &str, label: &str| {
        format!("{{\"question\": \"q\", \"options\": {options}, \"answerKey\": {label}}}\n")
    };
    for (options, label, problem) in [
        (
            "[\"x\", \"y\"]",
            "\"C\"",
            "`C` is no option of this row: its options are A, B",
        ),
        ("[\"x\"]", "\"A\"", "there are 1 options; a choice has two"),
        ("[\"1\", 2]", "\"A\"", "`options` is not a list of texts"),
        (
            "[\"a\", \"b\", \"c\", \"d\", \"e\", \"f\"]",
            "\"A\"",
            "there are 6 options, and `choice_names` has 5",
        ),
    ] {
        let (_, rows) = read("arc.toml", "train.jsonl", row(options, label).as_bytes());
        let error = rows.unwrap_err().to_string();
        assert!(error.ends_with(problem), "{error}");
    }
    let (_, rows) = read(
        "arc.toml",
        "train.jsonl",
        row("[\"x\", \"y\"]", "null").as_bytes(),
    );
    assert_eq!(rows.unwrap()[0].label(), None);
}
