//! Tasks that are answered in text, from a tiny causal student to its export.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use burn::tensor::Device;
use distill::schedule::Variant;
use distill::stop::Stop;
use distill::student::save::save_language_model;
use distill::student::{BackboneConfig, LanguageModel, TextTokenizer};
use schemas::{Example, Split};
use serde_json::{Value, json};

use crate::cli::done;
use crate::refusals::{edit, refused};
use crate::support::{World, alone, record_of, tensor_files};
use crate::training::{finished, options, remains, setup, train};
use distill::setup::Outcome;

const SPECIAL: [&str; 4] = ["<pad>", "<s>", "</s>", "<unk>"];
const COLORS: [&str; 6] = ["red", "green", "blue", "white", "black", "grey"];
const THINGS: [&str; 4] = ["cat", "dog", "sun", "sea"];
/// What is written is the opposite of the colour, then `it`.
const OPPOSITES: [&str; 6] = ["green", "red", "white", "blue", "grey", "black"];
const OTHERS: [&str; 3] = ["the", "not", "it"];

const WRITTEN: &str = r#"
name = "opposites"
fields = ["color", "thing"]
response = "answer"
metric = "rouge_l"
[template]
first = "the {thing} not {color}"
response = " {response}"
"#;

const CHOSEN: &str = r#"
name = "opposites"
fields = ["color", "thing", "options"]
label = "answer"
choices = "options"
choice_names = ["A", "B", "C"]
metric = "accuracy_per_token"
[template]
first = "the {thing} not {color}"
response = " {response}"
"#;

const CONFIG: &str = r#"
[dataset]
path = "data"
[cache]
path = "cache"
[student]
path = "student"
max_length = 16
[aligner]
hidden = 8
projection = 4
[objective]
alpha = 0.0
[training]
schedule = "alternate-epoch"
epochs = 2
batch_size = 6
student_learning_rate = 1e-2
aligner_learning_rate = 1e-2
[generation]
max_new_tokens = 4
batch_size = 3
[output]
path = "out"
"#;

/// A WordLevel tokenizer that puts `<s>` before a text.
fn tokenizer_json() -> Value {
    let words = SPECIAL
        .into_iter()
        .chain(COLORS)
        .chain(THINGS)
        .chain(OTHERS);
    let vocabulary: BTreeMap<&str, usize> = words.zip(0..).collect();
    let added: Vec<Value> = (0..SPECIAL.len())
        .map(|id| {
            json!({"id": id, "content": SPECIAL[id], "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let text = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing", "single": text, "pair": text,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    })
}

fn write_student(folder: &std::path::Path) {
    let dir = folder.join("student");
    std::fs::create_dir(&dir).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer_json().to_string()).unwrap();
    let device = Device::flex();
    device.seed(5);
    let config = BackboneConfig::from_file(&dir.join("config.json")).unwrap();
    let model = LanguageModel::initialised(config, &device).unwrap();
    let tokenizer = TextTokenizer::from_dir(&dir, 16).unwrap();
    save_language_model(&dir, &model, &tokenizer).unwrap();
}

/// The rows of every colour and thing: every fourth for validation, the next for test, the others for training.
fn world(task: &str) -> World {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("task.toml"), task).unwrap();
    let is_choice = task.contains("choices");
    let fields: &[&str] = if is_choice {
        &["color", "thing", "options"]
    } else {
        &["color", "thing"]
    };
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut records = Vec::new();
    for (number, (color, thing)) in (0..COLORS.len())
        .flat_map(|color| THINGS.map(|thing| (color, thing)))
        .enumerate()
    {
        let answer = format!("{} it", OPPOSITES[color]);
        let mut row = BTreeMap::from([
            ("color".to_owned(), json!(COLORS[color])),
            ("thing".to_owned(), json!(thing)),
        ]);
        if is_choice {
            let mut options = vec![format!("{} it", COLORS[color]), format!("not {thing}")];
            options.insert(number % 3, answer);
            row.insert("options".to_owned(), json!(options));
        }
        let example = row.iter().map(|(name, value)| {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            (name.clone(), text)
        });
        let example = Example::new(example.collect(), None, Split::train());
        records.push(record_of(example.id(), color as u32));
        let answer = if is_choice {
            json!(["A", "B", "C"][number % 3])
        } else {
            json!(format!("{} it", OPPOSITES[color]))
        };
        row.insert("answer".to_owned(), answer);
        let split = ["train", "train", "train", "train", "validation", "test"][number % 6];
        writeln!(files.entry(split).or_default(), "{}", json!(row)).unwrap();
    }
    for (split, text) in files {
        std::fs::write(data.join(format!("{split}.jsonl")), text).unwrap();
    }
    write_student(folder.path());
    World::around(folder, fields, &records, CONFIG)
}

/// A world for runs in processes of their own: the student is drawn from the process's generator, with nobody beside.
fn world_apart(task: &str) -> World {
    let _alone = alone();
    world(task)
}

fn terms(line: &Value, module: &str) -> Vec<String> {
    let terms = line[module]["terms"].as_object();
    terms.map_or_else(Vec::new, |terms| terms.keys().cloned().collect())
}

#[test]
fn a_student_learns_to_write() {
    let _alone = alone();
    let world = world(WRITTEN);
    world.replace("epochs = 2", "epochs = 25");
    world.replace("alternate-epoch", "joint-step");
    world.replace("alpha = 0.0", "alpha = 0.0\nbeta = 0.1");
    let remains = finished(&setup(&world), &world.path("run"), Variant::Method);
    let losses: Vec<f64> = remains
        .steps
        .iter()
        .map(|line| line["student"]["terms"]["task"].as_f64().unwrap())
        .collect();
    let reconstruction =
        |line: &Value| line["aligner"]["terms"]["reconstruction"].as_f64().unwrap();
    let (first, last) = (&remains.steps[0], remains.steps.last().unwrap());
    assert!(
        losses[0] > 2.5 && *losses.last().unwrap() < 0.1,
        "{losses:?}"
    );
    assert!(reconstruction(last) < 0.5 * reconstruction(first));
    let first: Value = serde_json::from_str(remains.evaluations.lines().next().unwrap()).unwrap();
    let result: Value = serde_json::from_str(&remains.result).unwrap();
    assert!(first["score"].as_f64().unwrap() < 0.7, "{first}");
    assert_eq!(result["metric"], "rouge_l");
    assert_eq!(result["validation"].as_f64(), Some(1.0), "{result}");
    assert_eq!(result["test"].as_f64(), Some(1.0), "{result}");
}

#[test]
fn a_student_learns_to_choose() {
    let _alone = alone();
    let world = world(CHOSEN);
    world.replace("epochs = 2", "epochs = 25");
    let remains = finished(&setup(&world), &world.path("run"), Variant::Undistilled);
    let result: Value = serde_json::from_str(&remains.result).unwrap();
    assert_eq!(result["metric"], "accuracy_per_token");
    assert_eq!(result["validation"].as_f64(), Some(1.0), "{result}");
    let scores = result["test_scores"].as_object().unwrap();
    let names: Vec<&String> = scores.keys().collect();
    assert_eq!(
        names,
        ["accuracy", "accuracy_per_byte", "accuracy_per_token"]
    );
}

#[test]
fn every_schedule_and_control_computes_its_terms() {
    let _alone = alone();
    let world = world(WRITTEN);
    let both = ["reconstruction", "reconstruction_aux"];
    let schedules = [
        ("alternate-epoch", "schedule = \"alternate-epoch\"", 2),
        ("joint-step", "schedule = \"joint-step\"", 2),
        (
            "pretrain-freeze",
            "schedule = \"pretrain-freeze\"\naligner_epochs = 1",
            1,
        ),
        ("frozen-random", "schedule = \"frozen-random\"", 0),
    ];
    for (name, text, aligner_epochs) in schedules {
        world.write_config(&CONFIG.replace("schedule = \"alternate-epoch\"", text));
        let remains = finished(&setup(&world), &world.path(name), Variant::Method);
        let count = |module: &str, expected: &[&str]| {
            let lines = remains.steps.iter().filter(|line| !line[module].is_null());
            lines
                .inspect(|line| assert_eq!(terms(line, module), expected, "{name}"))
                .count()
        };
        // 16 training rows in batches of 6 are 3 steps an epoch.
        assert_eq!(count("student", &["manifold", "task"]), 6, "{name}");
        assert_eq!(count("aligner", &both), 3 * aligner_epochs, "{name}");
    }
    world.write_config(CONFIG);
    let setup = setup(&world);
    for (variant, expected) in [
        (Variant::Undistilled, &["task"][..]),
        (Variant::AuxOnly, &["task"]),
        (Variant::Shuffled, &["manifold", "task"]),
        (Variant::Noise(1.0), &["manifold", "task"]),
        (Variant::FrozenRandom, &["manifold", "task"]),
    ] {
        let remains = finished(&setup, &world.path(&format!("control-{variant}")), variant);
        assert_eq!(terms(remains.steps.last().unwrap(), "student"), expected);
    }
}

#[test]
fn a_stopped_run_ends_bit_equal() {
    let _alone = alone();
    let world = world(WRITTEN);
    world.replace(
        "[generation]",
        "[generation]\nsampling = { temperature = 1.2, top_p = 0.9 }",
    );
    let setup = setup(&world);
    let whole = finished(&setup, &world.path("whole"), Variant::Noise(1.0));
    assert_eq!(whole.steps.len(), 12);
    for kill_at in [2, 5, 7, 11] {
        let folder = world.path(&format!("killed-{kill_at}"));
        let options = options(&folder, Variant::Noise(1.0));
        let outcome = train(&setup, &options, &Stop::after_steps(kill_at));
        assert!(matches!(outcome, Outcome::Stopped { .. }));
        train(&setup, &options, &Stop::default());
        assert_eq!(remains(&folder), whole, "stopped after {kill_at} steps");
    }
}

#[test]
fn sampled_texts_follow_the_seed_of_the_run() {
    let _alone = alone();
    let world = world(WRITTEN);
    world.replace(
        "[generation]",
        "[generation]\nsampling = { temperature = 2.0 }",
    );
    let folder = world.path("seventh");
    let folder = folder.to_str().unwrap();
    let predicted = || done(&world, &["predict", "--folder", folder]);
    done(&world, &["train", "--seed", "7", "--folder", folder]);
    let texts = predicted();
    // Another seed in the configuration is not that of the run.
    world.replace("[dataset]", "seed = 8\n[dataset]");
    assert_eq!(predicted(), texts);

    let setup = setup(&world);
    let last = distill::checkpoint::Which::Last;
    let (student, _) = setup.inference.student(folder.as_ref(), last).unwrap();
    let rows = &setup.data.corpus.validation;
    let answers = |seed| setup.inference.answers(&student, rows, seed).unwrap();
    assert_eq!(answers(7), answers(7));
    assert_ne!(answers(7), answers(8));
    // Training scored what the run's seed draws.
    let log = world.path("seventh/evaluations.jsonl");
    let log = std::fs::read_to_string(log).unwrap();
    let told: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let scores = |seed| setup.inference.scores(&student, rows, seed).unwrap();
    let scores = |seed| json!(scores(seed).unwrap().all);
    assert_eq!(told["scores"], scores(7));
    assert!((8..12).any(|seed| scores(seed) != scores(7)));
}

#[test]
fn parts_of_a_step_add_up_although_responses_differ_in_length() {
    let _alone = alone();
    let world = world(WRITTEN);
    edit(
        &world,
        "data/train.jsonl",
        "green it\"",
        "green it it it it\"",
    );
    world.replace("[objective]", "[objective]\nmanifold = \"elementwise\"");
    world.replace("projection = 4", "projection = 4\ndropout = 0");
    let whole = finished(&setup(&world), &world.path("whole"), Variant::Method);
    world.replace(
        "batch_size = 6\n",
        "batch_size = 6\ngradient_accumulation = 4\n",
    );
    let parts = finished(&setup(&world), &world.path("parts"), Variant::Method);
    let loss = |line: &Value| line["student"]["loss"].as_f64();
    let losses: Vec<(f64, f64)> = whole
        .steps
        .iter()
        .zip(&parts.steps)
        .filter_map(|(whole, parts)| Some((loss(whole)?, loss(parts)?)))
        .collect();
    assert_eq!(losses.len(), 6);
    for (whole, parts) in losses {
        assert!((whole - parts).abs() < 1e-4 * whole, "{whole} and {parts}");
    }
}

#[test]
fn eval_predict_and_export_of_a_student_that_writes() {
    let world = world_apart(WRITTEN);
    world.replace("epochs = 2", "epochs = 25");
    world.replace("alternate-epoch", "joint-step");
    world.replace("alpha = 0.0", "alpha = 0.0\nbeta = 0.1");
    done(&world, &["train", "--seed", "3"]);
    let scores: Value = serde_json::from_str(&done(&world, &["eval", "--split", "test"])).unwrap();
    assert_eq!(scores["score"].as_f64(), Some(1.0));
    assert_eq!(scores["scores"]["last_number"].as_f64(), Some(0.0));
    let text = done(&world, &["predict", "--split", "test"]);
    // The first test row.
    assert_eq!(text.lines().nth(1), Some("0\t\"red it\""));
    let rows = world.path("rows.jsonl");
    std::fs::write(&rows, "{\"color\": \"grey\", \"thing\": \"sea\"}\n").unwrap();
    let input = rows.to_str().unwrap();
    let line = done(&world, &["predict", "--input", input, "--form", "jsonl"]);
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["prediction"], "black it");

    let target = world.path("exported");
    done(&world, &["export", target.to_str().unwrap()]);
    let config: Value =
        serde_json::from_slice(&std::fs::read(target.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["LlamaForCausalLM"]));
    assert_eq!(config["eos_token_id"], 2);
    // A fresh run of no step from the export answers as the trained student does.
    world.replace("path = \"student\"", "path = \"exported\"");
    world.replace(
        "student_learning_rate = 1e-2",
        "student_learning_rate = 1e-30",
    );
    world.replace("path = \"out\"", "path = \"again\"");
    let result: Value = serde_json::from_str(&done(&world, &["train"])).unwrap();
    assert_eq!(result["validation"].as_f64(), Some(1.0));
}

#[test]
fn adapters_of_a_student_that_writes_are_exported_for_a_language_model() {
    let world = world_apart(WRITTEN);
    world.replace(
        "[aligner]",
        "[student.lora]\nrank = 2\ntarget_modules = \"all-linear\"\n[aligner]",
    );
    world.replace("epochs = 2", "epochs = 2\nactivation_checkpointing = true");
    done(&world, &["train"]);
    let (alone, merged) = (world.path("adapter"), world.path("merged"));
    let read = |path: &std::path::Path, name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(path.join(name)).unwrap()).unwrap()
    };
    done(&world, &["export", alone.to_str().unwrap(), "--adapter"]);
    let config = read(&alone, "adapter_config.json");
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(config["modules_to_save"], json!([]));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
    done(&world, &["export", merged.to_str().unwrap()]);
    let config = read(&merged, "config.json");
    assert_eq!(config["architectures"], json!(["LlamaForCausalLM"]));
    // What is frozen is in no checkpoint: neither the base weights nor the head.
    let files = tensor_files(&world.path("out"));
    let student = safetensors::SafeTensors::deserialize(&files["student.safetensors"]).unwrap();
    let names = student.names();
    assert!(!names.iter().any(|name| name.starts_with("language_head")));
    assert_eq!(
        names.iter().filter(|name| name.contains("adapter")).count(),
        14
    );
    assert_eq!(names.len(), 15, "{names:?}");
}

#[test]
fn predictions_of_a_choice_name_the_option() {
    let world = world_apart(CHOSEN);
    done(&world, &["train"]);
    let text = done(&world, &["predict", "--form", "jsonl"]);
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let weights = line["log_likelihoods"].as_array().unwrap();
        assert_eq!(weights.len(), 3);
        assert!(weights.iter().all(|weight| weight.as_f64().unwrap() < 0.0));
        assert!(["A", "B", "C"].contains(&line["prediction"].as_str().unwrap()));
    }
    assert_eq!(text.lines().count(), 4);
}

#[test]
fn what_does_not_fit_a_generation_task_is_refused() {
    let changed = |from: &str, to: &str| {
        let world = world_apart(WRITTEN);
        world.replace(from, to);
        refused(&world, &["train"])
    };
    let fresh = "tokenizer = \"student\"\nfresh = { hidden_size = 8, num_layers = 1, num_heads = 2, \
                 intermediate_size = 8, max_positions = 16 }";
    assert_eq!(
        changed("path = \"student\"", fresh),
        "error: the task `opposites` is answered in text, and the student is no causal language model\n\
         hint: name a folder of a LLaMA, Qwen or OPT model in `student.path`\n"
    );
    assert_eq!(
        changed("alpha = 0.0", "alpha = 0.5"),
        "error: `objective.alpha` is 0.5, and the task `opposites` is answered in text: aligner and student share no \
         outputs there\nhint: write objective.alpha = 0\n"
    );
    assert_eq!(
        changed("max_length = 16", "max_length = 6"),
        "error: `student.max_length` is 6: 6 tokens are needed beside the prompt\n\
         hint: raise `student.max_length`, or lower `generation.max_new_tokens`\n"
    );
    assert!(changed("max_new_tokens = 4", "top_p = 0.5").contains("unknown field `top_p`"));
    assert!(
        changed("max_length = 16", "max_length = 16\nchat = \"alpaca\"")
            .contains("a table of your own, or one of chatml, llama-3")
    );

    let world = world_apart(WRITTEN);
    edit(
        &world,
        "data/task.toml",
        "response = \" {response}\"",
        "messages = [{ role = \"system\", text = \"not\" }]",
    );
    assert_eq!(
        refused(&world, &["train"]),
        "error: the task `opposites` has messages, and the student no chat format\n\
         hint: set `student.chat` to \"llama-3\", \"chatml\" or a table of your own\n"
    );
}

#[test]
fn generation_settings_belong_to_a_generation_task() {
    let world = World::new();
    world.replace("[output]", "[generation]\nmax_new_tokens = 4\n[output]");
    assert_eq!(
        refused(&world, &["train"]),
        "error: `generation` belongs to a task with `response` or `choices`, and the task `pairs` has neither\n\
         hint: leave `generation` out\n"
    );
}
