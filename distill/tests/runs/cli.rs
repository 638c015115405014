//! The binary as its users run it.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::World;
use serde_json::Value;

fn distill(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_distill"));
    command
        .args(&arguments[..1])
        .arg(world.config())
        .args(&arguments[1..]);
    if ["train", "compare"].contains(&arguments[0]) {
        command.args(["--cache-digest", &world.digest.to_string()]);
    }
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

pub(crate) fn run(world: &World, arguments: &[&str]) -> Output {
    distill(world, arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
pub(crate) fn done(world: &World, arguments: &[&str]) -> String {
    let output = run(world, arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
}

/// The steps of a run without their timings.
fn steps(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("steps.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut()
            .unwrap()
            .remove("examples_per_second")
            .unwrap();
        line
    });
    lines.collect()
}

/// The bytes of every file of the last checkpoint.
pub(crate) fn last_checkpoint(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let index = std::fs::read_to_string(folder.join("checkpoints/index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let folder = folder
        .join("checkpoints")
        .join(index["last"].as_str().unwrap());
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn train_eval_predict_and_export() {
    let world = World::new();
    let result: Value = serde_json::from_str(&done(&world, &["train"])).unwrap();
    assert_eq!(result["metric"], "accuracy");

    let scores: Value = serde_json::from_str(&done(&world, &["eval", "--split", "test"])).unwrap();
    assert_eq!(scores["score"], result["test"]);
    assert_eq!(scores["rows"], 8);
    assert_eq!(scores["scores"], result["test_scores"]);

    let table = done(&world, &["predict"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines[0], lines.len()), ("index\tprediction", 9));
    assert!(lines[1] == "0\tno" || lines[1] == "0\tyes", "{}", lines[1]);

    // The rows of the split from a file give the same predictions.
    let rows = world.path("data/test.jsonl");
    assert_eq!(
        done(&world, &["predict", "--input", rows.to_str().unwrap()]),
        table
    );
    let json = done(&world, &["predict", "--form", "jsonl"]);
    for (line, row) in json.lines().zip(&lines[1..]) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            format!(
                "{}\t{}",
                line["index"],
                line["prediction"].as_str().unwrap()
            ),
            **row
        );
        let sum: f64 = line["probabilities"]
            .as_object()
            .unwrap()
            .values()
            .map(|value| value.as_f64().unwrap())
            .sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    let target = world.path("exported");
    done(&world, &["export", target.to_str().unwrap()]);
    let config: Value =
        serde_json::from_slice(&std::fs::read(target.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "BertForSequenceClassification");
    assert_eq!(config["id2label"]["1"], "yes");
    assert!(target.join("model.safetensors").exists() && target.join("vocab.txt").exists());
}

/// Cuts a byte off a file of a run's best checkpoint.
fn damage(folder: &Path, file: &str) {
    let index = std::fs::read(folder.join("checkpoints/index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let name = index["best"].as_str().unwrap();
    let path = folder.join("checkpoints").join(name).join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.pop();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn verbs_that_need_the_student_alone_read_nothing_else() {
    let world = World::new();
    done(&world, &["train"]);
    let scores = done(&world, &["eval"]);
    let out = world.path("out");
    for file in [
        "student_optimizer.safetensors",
        "aligner.safetensors",
        "aligner_optimizer.safetensors",
    ] {
        damage(&out, file);
    }
    assert_eq!(done(&world, &["eval"]), scores);
    done(&world, &["predict"]);
    let target = world.path("exported");
    done(&world, &["export", target.to_str().unwrap()]);
    damage(&out, "student.safetensors");
    let output = run(&world, &["eval"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let expected = "student.safetensors` is damaged: its digest is not that in state.json";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
}

#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    let world = World::new();
    world.replace("epochs = 2", "epochs = 40");
    world.replace(
        "path = \"out\"",
        "path = \"out\"\ncheckpoint_every_steps = 5",
    );
    let whole = world.path("whole");
    done(&world, &["train", "--folder", whole.to_str().unwrap()]);
    let folder = world.path("killed");
    let arguments = ["train", "--folder", folder.to_str().unwrap()];
    let mut num_kills = 0;
    for milliseconds in [30, 60, 90, 120, 150, 200, 250] {
        let mut child = distill(&world, &arguments)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        num_kills += u32::from(!child.wait().unwrap().success());
    }
    assert!(num_kills > 2, "the run is too short to be killed");
    done(&world, &arguments);
    assert_eq!(steps(&folder), steps(&whole));
    assert_eq!(last_checkpoint(&folder), last_checkpoint(&whole));
    let read = |folder: &Path| std::fs::read_to_string(folder.join("result.json")).unwrap();
    assert_eq!(read(&folder), read(&whole));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let world = World::new();
    let with_threads = |name: &str, threads: &str| {
        let folder = world.path(name);
        let mut command = distill(&world, &["train", "--folder", folder.to_str().unwrap()]);
        assert!(
            command
                .env("RAYON_NUM_THREADS", threads)
                .output()
                .unwrap()
                .status
                .success()
        );
        last_checkpoint(&folder)
    };
    assert_eq!(with_threads("one", "1"), with_threads("two", "2"));
}

#[test]
fn stopping_early_has_its_own_status() {
    let world = World::new();
    let output = run(&world, &["train", "--stop-after-steps", "3"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped after step 3; the same command goes on from there"));
    assert_eq!(steps(&world.path("out")).len(), 3);
    let output = run(&world, &["train", "--restart", "--stop-after-steps", "3"]);
    assert!(
        stderr(&output).contains(
            "stopped after step 3; the same command without --restart goes on from there"
        )
    );
    done(&world, &["train"]);
    assert_eq!(steps(&world.path("out")).len(), 16);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_its_state() {
    let world = World::new();
    world.replace("epochs = 2", "epochs = 400");
    let mut child = distill(&world, &["train"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let log = world.path("out/evaluations.jsonl");
    let started = Instant::now();
    // The first evaluation is on disk once the checkpoint after it is written.
    while std::fs::metadata(&log).map_or(true, |file| file.len() == 0) {
        assert!(started.elapsed() < Duration::from_secs(90), "no evaluation");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let state = last_checkpoint(&world.path("out"));
    let (_, state) = state.iter().find(|(name, _)| name == "state.json").unwrap();
    let state: Value = serde_json::from_slice(state).unwrap();
    assert_eq!(state["position"]["step"], steps(&world.path("out")).len());
}

#[test]
fn compare_prints_a_table_and_goes_on_after_a_stop() {
    let world = World::new();
    let table = done(&world, &["compare", "--jobs", "2"]);
    let names: Vec<&str> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "undistilled",
            "method",
            "aux-only",
            "shuffled",
            "noise-1",
            "frozen-random",
            "accuracy"
        ]
    );
    let report = std::fs::read_to_string(world.path("out/compare.json")).unwrap();
    let figures: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(figures["rows"][1]["seeds"].as_array().unwrap().len(), 2);

    // One run is done again alone, and comes out the same.
    std::fs::remove_dir_all(world.path("out/compare/method/seed-2")).unwrap();
    let untouched = world.path("out/compare/shuffled/seed-1/result.json");
    let before = std::fs::metadata(&untouched).unwrap().modified().unwrap();
    assert_eq!(done(&world, &["compare"]), table);
    assert_eq!(
        std::fs::metadata(&untouched).unwrap().modified().unwrap(),
        before
    );
    assert_eq!(
        std::fs::read_to_string(world.path("out/compare.json")).unwrap(),
        report
    );
}

#[test]
fn errors_are_told_with_a_hint_and_a_status() {
    let world = World::new();
    world.replace("epochs = 2", "epoch = 2");
    let output = run(&world, &["train"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("unknown field `epoch`"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).ends_with("hint: docs/distill.md has every key\n"));

    let world = World::new();
    let output = run(&world, &["eval"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).ends_with("holds no checkpoint\nhint: train first: `distill train`\n"),
        "{}",
        stderr(&output)
    );

    let output = run(&world, &["train", "--device", "gpu"]);
    assert_eq!(output.status.code(), Some(1));

    if !cfg!(feature = "cuda") {
        let output = run(&world, &["train", "--device", "cuda:0"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("error: device `cuda:0`: this binary was built without CUDA")
        );
    }
}

#[test]
fn the_cpu_agrees_with_itself() {
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/golden/armada_losses.json"
    );
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
    let output = Command::new(env!("CARGO_BIN_EXE_distill"))
        .args([
            "check-device",
            "--device",
            "cpu",
            "--golden",
            golden,
            "--fixtures",
            fixtures,
            "--tolerance",
            "1e-5",
        ])
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    let table = stdout(&output);
    for quantity in [
        "golden total",
        "golden gradient p_s",
        "step losses",
        "step gradients",
        "step updated parameters",
        "qwen3 gradients",
        "deberta-v2 steps beside the CPU",
        "llama with adapters steps over two devices",
        "bert steps of a resumed run",
    ] {
        assert!(table.contains(quantity), "{table}");
    }
}
