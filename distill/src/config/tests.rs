use std::collections::BTreeSet;
use std::path::PathBuf;

use super::*;

const SMALL: &str = r#"
[dataset]
path = "data"
[cache]
path = "cache"
[student]
path = "student"
[output]
path = "out"
"#;

const WHOLE: &str = r#"
seed = 7
[dataset]
path = "data"
format = "jsonl"
task = "cola"
files = { train = "a.jsonl" }
[splits]
train = "train"
validation = "validation_matched"
test = "test"
[cache]
path = "cache"
digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
signal = "pooled"
draw = 1
missing = "drop"
duplicate = "keep-first"
extra = "ignore"
[student]
tokenizer = "words"
max_length = 16
precision = "bf16"
[student.fresh]
hidden_size = 8
num_layers = 1
num_heads = 2
intermediate_size = 16
max_positions = 16
dropout = 0.0
[aligner]
hidden = 8
projection = 4
dropout = 0.2
relu_outputs = false
[objective]
preset = "reference"
manifold = "euclid"
alpha = 0.25
beta = 2.0
gamma = 0.5
temperature = 3.0
[training]
schedule = "pretrain-freeze"
epochs = 3
aligner_epochs = 2
batch_size = 16
gradient_accumulation = 2
max_gradient_norm = 0.5
student_learning_rate = 1e-4
aligner_learning_rate = 1e-3
weight_decay = 0.0
learning_rate_schedule = "linear-warmup"
warmup_share = 0.1
[output]
path = "out"
checkpoint_every_steps = 10
[compare]
seeds = [1, 2]
controls = ["undistilled", "noise"]
noise_sigmas = [1.5]
jobs = 2
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, PathBuf::from("runs/a"))
}

fn refusal(from: &str, to: &str) -> String {
    assert!(WHOLE.contains(from), "{from}");
    parse(&WHOLE.replace(from, to)).unwrap_err()
}

#[test]
fn relative_paths_start_at_the_configuration_file() {
    let config = parse(SMALL).unwrap();
    assert_eq!(config.output(), PathBuf::from("runs/a/out"));
    assert_eq!(config.run.cache.signal, "feature");
    assert_eq!(config.run.training, TrainingConfig::default());
    assert_eq!(config.run.compare.seeds, [1, 2, 3]);
}

#[test]
fn a_configuration_is_written_as_it_was_read() {
    for text in [SMALL, WHOLE] {
        let config = parse(text).unwrap();
        let again = parse(&toml::to_string(&config.run).unwrap()).unwrap();
        assert_eq!(again.run, config.run);
    }
}

#[test]
fn a_run_without_digest_is_refused() {
    let error = parse(SMALL).unwrap().cache_digest(None).unwrap_err();
    insta::assert_snapshot!(error, @"the run does not say which frozen state of cache `runs/a/cache` it learns from");
    let given = Sha256Digest::of(b"given");
    assert_eq!(parse(WHOLE).unwrap().cache_digest(Some(given)).unwrap(), given);
}

#[test]
fn identity_names_what_is_computed_and_not_where() {
    let one = parse(WHOLE).unwrap().identity();
    let moved = WHOLE.replace("path = \"cache\"", "path = \"elsewhere\"").replace("path = \"out\"", "path = \"other\"");
    assert_eq!(parse(&moved.replace("seed = 7", "seed = 8")).unwrap().identity(), one);
    let other = parse(&WHOLE.replace("epochs = 3", "epochs = 4")).unwrap().identity();
    let found = differences(&one, &other);
    assert_eq!(found, [("training.epochs".to_owned(), 3.into(), 4.into())]);
}

#[test]
fn refusals_name_the_key() {
    insta::assert_snapshot!(refusal("seed = 7", "sed = 7"), @r"");
    insta::assert_snapshot!(refusal("batch_size = 16", "batch_size = 0"), @r"");
    insta::assert_snapshot!(refusal("batch_size = 16", "batch_size = 1"), @r"");
    insta::assert_snapshot!(refusal("student_learning_rate = 1e-4", "student_learning_rate = 0"), @r"");
    insta::assert_snapshot!(refusal("aligner_epochs = 2", ""), @r"");
    insta::assert_snapshot!(refusal("schedule = \"pretrain-freeze\"", "schedule = \"joint-step\""), @r"");
    insta::assert_snapshot!(refusal("learning_rate_schedule = \"linear-warmup\"", ""), @r"");
    insta::assert_snapshot!(refusal("warmup_share = 0.1", "warmup_share = 2"), @r"");
    insta::assert_snapshot!(refusal("tokenizer = \"words\"", ""), @r"");
    insta::assert_snapshot!(refusal("tokenizer = \"words\"", "path = \"student\""), @r"");
    insta::assert_snapshot!(refusal("max_length = 16", "max_length = 17"), @r"");
    insta::assert_snapshot!(refusal("num_heads = 2", "num_heads = 3"), @r"");
    insta::assert_snapshot!(refusal("missing = \"drop\"", "missing = \"zero\""), @r"");
    insta::assert_snapshot!(refusal("alpha = 0.25", "alpha = 2"), @r"");
    insta::assert_snapshot!(refusal("seeds = [1, 2]", "seeds = []"), @r"");
    insta::assert_snapshot!(refusal("seeds = [1, 2]", "seeds = [1, 1]"), @r"");
    insta::assert_snapshot!(refusal("noise_sigmas = [1.5]", "noise_sigmas = []"), @r"");
    insta::assert_snapshot!(refusal("digest = \"sha256:00", "digest = \"sha256:0"), @r"");
}

/// The keys that serde names when it refuses an unknown one in a table.
fn keys_of(table: &str) -> BTreeSet<String> {
    let text = if table.is_empty() { format!("unknown_key = 1\n{WHOLE}") } else {
        WHOLE.replace(&format!("[{table}]\n"), &format!("[{table}]\nunknown_key = 1\n"))
    };
    let message = parse(&text).unwrap_err();
    let (_, expected) = message.split_once("expected").unwrap_or_else(|| panic!("[{table}]: {message}"));
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_reference_page_has_every_key() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/distill.md")).unwrap();
    let tables = [
        "", "dataset", "splits", "cache", "student", "student.fresh", "aligner", "objective", "training", "output", "compare",
    ];
    for table in tables {
        let heading = if table.is_empty() { "## Configuration".to_owned() } else { format!("### `[{table}]`") };
        let (_, section) = page.split_once(&heading).unwrap_or_else(|| panic!("docs/distill.md has no `{heading}`"));
        let section = section.split("\n##").next().unwrap();
        let keys = keys_of(table);
        assert!(!keys.is_empty());
        for key in keys {
            assert!(section.contains(&format!("| `{key}`")), "docs/distill.md has no `{key}` under `{heading}`");
        }
    }
}
