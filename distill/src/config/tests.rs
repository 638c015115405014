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
activation_checkpointing = true
optimizer_state = "bf16"
max_gradient_norm = 0.5
student_learning_rate = 1e-4
aligner_learning_rate = 1e-3
weight_decay = 0.0
learning_rate_schedule = "linear-warmup"
warmup_share = 0.1
[output]
path = "out"
checkpoint_every_steps = 10
log_every_steps = 5
[generation]
max_new_tokens = 32
batch_size = 4
sampling = { temperature = 0.7, top_k = 50, top_p = 0.9 }
[compare]
seeds = [1, 2]
controls = ["undistilled", "noise"]
noise_sigmas = [1.5]
jobs = 2
"#;

/// [`SMALL`] with adapters.
const ADAPTED: &str = r#"
[dataset]
path = "data"
[cache]
path = "cache"
[student]
path = "student"
[student.lora]
rank = 4
alpha = 16.0
dropout = 0.1
target_modules = ["query", "value"]
[output]
path = "out"
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
    for text in [SMALL, WHOLE, ADAPTED] {
        let config = parse(text).unwrap();
        let again = parse(&toml::to_string(&config.run).unwrap()).unwrap();
        assert_eq!(again.run, config.run);
    }
}

#[test]
fn a_step_has_rows_or_positions() {
    let tokens = WHOLE.replace("batch_size = 16", "tokens_per_batch = 512");
    let config = parse(&tokens).unwrap();
    let budget = NonZeroUsize::new(512).unwrap();
    assert_eq!(config.run.training.batching, Batching::Tokens(budget));
    let again = parse(&toml::to_string(&config.run).unwrap()).unwrap();
    assert_eq!(again.run, config.run);
    insta::assert_snapshot!(refusal("batch_size = 16", "tokens_per_batch = 15"), @"`training.tokens_per_batch` is 15, and a row may have `student.max_length` = 16 tokens");
    insta::assert_snapshot!(refusal("batch_size = 16", "batch_size = 16\ntokens_per_batch = 512"), @r#"
    TOML parse error at line 43, column 1
       |
    43 | [training]
       | ^^^^^^^^^^
    a step has either `training.batch_size` rows or `training.tokens_per_batch` positions
    "#);
}

#[test]
fn a_run_without_digest_is_refused() {
    let error = parse(SMALL).unwrap().cache_digest(None).unwrap_err();
    insta::assert_snapshot!(error, @"the run does not say which frozen state of cache `runs/a/cache` it learns from");
    let given = Sha256Digest::of(b"given");
    assert_eq!(
        parse(WHOLE).unwrap().cache_digest(Some(given)).unwrap(),
        given
    );
}

#[test]
fn identity_names_what_is_computed_and_not_where() {
    let one = parse(WHOLE).unwrap().identity();
    let moved = WHOLE
        .replace("path = \"cache\"", "path = \"elsewhere\"")
        .replace("path = \"out\"", "path = \"other\"");
    assert_eq!(
        parse(&moved.replace("seed = 7", "seed = 8"))
            .unwrap()
            .identity(),
        one
    );
    let other = parse(&WHOLE.replace("epochs = 3", "epochs = 4"))
        .unwrap()
        .identity();
    let found = differences(&one, &other);
    assert_eq!(found, [("training.epochs".to_owned(), 3.into(), 4.into())]);
}

#[test]
fn refusals_of_training_name_the_key() {
    insta::assert_snapshot!(refusal("seed = 7", "sed = 7"), @r#"
    TOML parse error at line 2, column 1
      |
    2 | sed = 7
      | ^^^
    unknown field `sed`, expected one of `seed`, `dataset`, `splits`, `cache`, `student`, `aligner`, `objective`, `training`, `generation`, `output`, `compare`
    "#);
    insta::assert_snapshot!(refusal("batch_size = 16", "batch_size = 0"), @r#"
    TOML parse error at line 47, column 14
       |
    47 | batch_size = 0
       |              ^
    invalid value: integer `0`, expected a nonzero usize
    "#);
    insta::assert_snapshot!(refusal("batch_size = 16", "batch_size = 1"), @r#"
    TOML parse error at line 43, column 1
       |
    43 | [training]
       | ^^^^^^^^^^
    `training.gradient_accumulation` is 2, and a step has only `training.batch_size` = 1 rows
    "#);
    insta::assert_snapshot!(refusal("student_learning_rate = 1e-4", "student_learning_rate = 0"), @r#"
    TOML parse error at line 52, column 25
       |
    52 | student_learning_rate = 0
       |                         ^
    0 is not a finite number over 0
    "#);
    insta::assert_snapshot!(refusal("aligner_epochs = 2", ""), @r#"
    TOML parse error at line 43, column 1
       |
    43 | [training]
       | ^^^^^^^^^^
    schedule `pretrain-freeze` needs `training.aligner_epochs`
    "#);
    insta::assert_snapshot!(refusal("schedule = \"pretrain-freeze\"", "schedule = \"joint-step\""), @r#"
    TOML parse error at line 43, column 1
       |
    43 | [training]
       | ^^^^^^^^^^
    `training.aligner_epochs` belongs to schedule `pretrain-freeze`
    "#);
    insta::assert_snapshot!(refusal("learning_rate_schedule = \"linear-warmup\"", ""), @r#"
    TOML parse error at line 43, column 1
       |
    43 | [training]
       | ^^^^^^^^^^
    `training.warmup_share` belongs to learning_rate_schedule = "linear-warmup"
    "#);
    insta::assert_snapshot!(refusal("warmup_share = 0.1", "warmup_share = 2"), @r#"
    TOML parse error at line 56, column 16
       |
    56 | warmup_share = 2
       |                ^
    2 is not a share from 0 to 1
    "#);
}

#[test]
fn refusals_of_the_rest_name_the_key() {
    insta::assert_snapshot!(refusal("tokenizer = \"words\"", ""), @r#"
    TOML parse error at line 20, column 1
       |
    20 | [student]
       | ^^^^^^^^^
    `student.fresh` needs `student.tokenizer`, a folder with tokenizer.json or vocab.txt
    "#);
    insta::assert_snapshot!(refusal("tokenizer = \"words\"", "path = \"student\""), @r#"
    TOML parse error at line 20, column 1
       |
    20 | [student]
       | ^^^^^^^^^
    a student has either `path`, a Hugging Face directory, or a table `fresh`
    "#);
    insta::assert_snapshot!(refusal("max_length = 16", "max_length = 17"), @r#"
    TOML parse error at line 20, column 1
       |
    20 | [student]
       | ^^^^^^^^^
    `student.max_length` is 17 and `student.fresh.max_positions` is 16
    "#);
    insta::assert_snapshot!(refusal("num_heads = 2", "num_heads = 3"), @r#"
    TOML parse error at line 20, column 1
       |
    20 | [student]
       | ^^^^^^^^^
    fresh student: `num_heads` is `3 for hidden_size 8`, supported: a divisor of hidden_size
    "#);
    insta::assert_snapshot!(refusal("missing = \"drop\"", "missing = \"zero\""), @r#"
    TOML parse error at line 17, column 11
       |
    17 | missing = "zero"
       |           ^^^^^^
    unknown variant `zero`, expected `refuse` or `drop`
    "#);
    insta::assert_snapshot!(refusal("alpha = 0.25", "alpha = 2"), @r#"
    TOML parse error at line 36, column 1
       |
    36 | [objective]
       | ^^^^^^^^^^^
    objective.alpha is 2; it is a share and lies between 0 and 1
    "#);
    insta::assert_snapshot!(refusal("test = \"test\"", "test = \"train\""), @"`splits.train` and `splits.test` are both `train`");
    insta::assert_snapshot!(refusal("epochs = 3", "epochs = 100001"), @"`training.epochs` is 100001; it is at most 100000");
    insta::assert_snapshot!(refusal("hidden = 8", "hidden = 65537"), @"`aligner.hidden` is 65537; it is at most 65536");
    insta::assert_snapshot!(refusal("intermediate_size = 16", "intermediate_size = 4294967296"), @"`student.fresh.intermediate_size` is 4294967296; it is at most 65536");
    insta::assert_snapshot!(refusal("seeds = [1, 2]", "seeds = []"), @"`compare.seeds` is empty");
    insta::assert_snapshot!(refusal("seeds = [1, 2]", "seeds = [1, 1]"), @"`compare.seeds` has 1 twice");
    insta::assert_snapshot!(refusal("noise_sigmas = [1.5]", "noise_sigmas = []"), @"`compare.controls` has `noise`, and `compare.noise_sigmas` is empty");
    insta::assert_snapshot!(refusal("digest = \"sha256:00", "digest = \"sha256:0"), @r#"
    TOML parse error at line 14, column 10
       |
    14 | digest = "sha256:000000000000000000000000000000000000000000000000000000000000000"
       |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    `sha256:000000000000000000000000000000000000000000000000000000000000000` is not a digest
    "#);
}

#[test]
fn refusals_of_adapters_name_the_key() {
    let refused = |from: &str, to: &str| {
        assert!(ADAPTED.contains(from), "{from}");
        parse(&ADAPTED.replace(from, to)).unwrap_err()
    };
    insta::assert_snapshot!(refused("rank = 4", "rank = 0"), @r#"
    TOML parse error at line 9, column 8
      |
    9 | rank = 0
      |        ^
    invalid value: integer `0`, expected a nonzero usize
    "#);
    insta::assert_snapshot!(refused("alpha = 16.0", "alpha = 0"), @r#"
    TOML parse error at line 10, column 9
       |
    10 | alpha = 0
       |         ^
    0 is not a finite number over 0
    "#);
    insta::assert_snapshot!(refused("dropout = 0.1", "dropout = 1"), @r#"
    TOML parse error at line 11, column 11
       |
    11 | dropout = 1
       |           ^
    dropout is 1; it is a probability, from 0 to less than 1
    "#);
    insta::assert_snapshot!(refused("[\"query\", \"value\"]", "[]"), @r#"
    TOML parse error at line 12, column 18
       |
    12 | target_modules = []
       |                  ^^
    `target_modules` is an empty list
    "#);
    insta::assert_snapshot!(refused("[\"query\", \"value\"]", "\"(query\""), @r#"
    TOML parse error at line 12, column 18
       |
    12 | target_modules = "(query"
       |                  ^^^^^^^^
    `target_modules` is no regular expression: regex parse error:
        (query
        ^
    error: unclosed group
    "#);
    insta::assert_snapshot!(refused("rank = 4", "rank = 65537"), @"`student.lora.rank` is 65537; it is at most 65536");
    insta::assert_snapshot!(refusal("[student.fresh]", "[student.lora]\n[student.fresh]"), @r#"
    TOML parse error at line 20, column 1
       |
    20 | [student]
       | ^^^^^^^^^
    `student.lora` trains adapters beside the weights of `student.path`: a fresh encoder has none to keep
    "#);
}

/// The keys that serde names when it refuses an unknown one in a table.
fn keys_of(table: &str) -> BTreeSet<String> {
    let text = if table.is_empty() {
        format!("unknown_key = 1\n{WHOLE}")
    } else {
        let whole = if table == "student.lora" {
            ADAPTED
        } else {
            WHOLE
        };
        whole.replace(
            &format!("[{table}]\n"),
            &format!("[{table}]\nunknown_key = 1\n"),
        )
    };
    let message = parse(&text).unwrap_err();
    let (_, expected) = message
        .split_once("expected")
        .unwrap_or_else(|| panic!("[{table}]: {message}"));
    expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_reference_page_has_every_key() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/distill.md"))
        .unwrap();
    let tables = [
        "",
        "dataset",
        "splits",
        "cache",
        "student",
        "student.fresh",
        "student.lora",
        "aligner",
        "objective",
        "training",
        "generation",
        "output",
        "compare",
    ];
    for table in tables {
        let heading = if table.is_empty() {
            "## Configuration".to_owned()
        } else {
            format!("### `[{table}]`")
        };
        let (_, section) = page
            .split_once(&heading)
            .unwrap_or_else(|| panic!("docs/distill.md has no `{heading}`"));
        let section = section.split("\n##").next().unwrap();
        let keys = keys_of(table);
        assert!(!keys.is_empty());
        for key in keys {
            assert!(
                section.contains(&format!("| `{key}`")),
                "docs/distill.md has no `{key}` under `{heading}`"
            );
        }
    }
}

#[test]
fn the_example_of_an_instruction_run_is_complete() {
    let text = include_str!("../../../data/generation/distill.toml");
    let run = parse(text).unwrap().run;
    assert!(run.generation.is_some() && run.student.lora.is_some());
    assert_eq!(run.objective.alpha(), 0.0);
}
