//! `kill -9` of the trainer at random moments: what remains is bit for bit what an undisturbed run leaves.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tests::{binary, repository};

const NUM_KILLS: usize = 20;

const HARVEST: &str = r#"
[dataset]
path = "data"
[teacher]
kind = "sketch"
[cache]
path = "cache"
"#;

const DISTILL: &str = r#"
[dataset]
path = "data"
[cache]
path = "cache"
[student]
tokenizer = "data"
max_length = 64
[student.fresh]
hidden_size = 32
num_layers = 2
num_heads = 2
intermediate_size = 64
max_positions = 64
dropout = 0.1
[aligner]
hidden = 32
projection = 32
[objective]
preset = "paper"
[training]
epochs = 12
batch_size = 8
student_learning_rate = 1e-3
aligner_learning_rate = 1e-3
[output]
path = "undisturbed"
checkpoint_every_steps = 3
"#;

/// The first rows of the bundled data set, harvested and frozen. Returns the cache's digest.
fn prepare(folder: &Path) -> String {
    let data = folder.join("data");
    std::fs::create_dir(&data).unwrap();
    let scenes = repository().join("data/scenes");
    for (file, num_lines) in [
        ("train.jsonl", 200),
        ("validation.jsonl", 40),
        ("test.jsonl", 40),
        ("task.toml", 99),
        ("vocab.txt", 999),
    ] {
        let text = std::fs::read_to_string(scenes.join(file)).unwrap();
        let head: String = text.split_inclusive('\n').take(num_lines).collect();
        std::fs::write(data.join(file), head).unwrap();
    }
    std::fs::write(folder.join("harvest.toml"), HARVEST).unwrap();
    std::fs::write(folder.join("distill.toml"), DISTILL).unwrap();
    let harvest = |verb: &str| {
        let output = Command::new(binary("harvest"))
            .arg(verb)
            .arg(folder.join("harvest.toml"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    harvest("run");
    let frozen = harvest("freeze");
    let digest = frozen
        .lines()
        .find_map(|line| line.strip_prefix("digest"))
        .unwrap();
    digest.trim().to_owned()
}

fn train(folder: &Path, digest: &str, output: &str) -> Command {
    let mut command = Command::new(binary("distill"));
    command
        .arg("train")
        .arg(folder.join("distill.toml"))
        .args(["--cache-digest", digest, "--folder"])
        .arg(folder.join(output))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Every file of the last checkpoint, every logged step without its timing, the evaluations and the result.
fn remains(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let index = std::fs::read_to_string(run.join("checkpoints/index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let last = run
        .join("checkpoints")
        .join(index["last"].as_str().unwrap());
    for entry in std::fs::read_dir(last).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        files.insert(name, std::fs::read(&path).unwrap());
    }
    let steps = std::fs::read_to_string(run.join("steps.jsonl")).unwrap();
    let steps = steps.lines().map(|line| {
        let mut step: Value = serde_json::from_str(line).unwrap();
        step.as_object_mut()
            .unwrap()
            .remove("examples_per_second")
            .unwrap();
        step.to_string() + "\n"
    });
    files.insert("steps".to_owned(), steps.collect::<String>().into_bytes());
    for name in ["evaluations.jsonl", "result.json"] {
        files.insert(name.to_owned(), std::fs::read(run.join(name)).unwrap());
    }
    files
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
}

#[test]
fn killed_twenty_times_it_ends_where_an_undisturbed_run_ends() {
    let folder = tempfile::tempdir().unwrap();
    let digest = prepare(folder.path());
    let started = Instant::now();
    assert!(
        train(folder.path(), &digest, "undisturbed")
            .status()
            .unwrap()
            .success()
    );
    // 20 kills fall within the run however fast the machine: each lets it go on by a fiftieth on average.
    let longest_pause = started.elapsed() / 25;

    let mut random = ChaCha8Rng::seed_from_u64(20);
    let index = folder.path().join("killed/checkpoints/index.json");
    let mut num_struck = 0;
    for _ in 0..NUM_KILLS {
        let before = modified(&index);
        let mut child = train(folder.path(), &digest, "killed").spawn().unwrap();
        // The clock starts with the first new checkpoint, so that no kill is spent on loading the program.
        let started = Instant::now();
        while modified(&index) == before
            && child.try_wait().unwrap().is_none()
            && started.elapsed() < Duration::from_secs(20)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(longest_pause.mul_f64(random.random()));
        num_struck += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(
        num_struck >= NUM_KILLS - 2,
        "only {num_struck} kills struck a run"
    );
    assert!(
        train(folder.path(), &digest, "killed")
            .status()
            .unwrap()
            .success()
    );

    let (undisturbed, killed) = (
        remains(&folder.path().join("undisturbed")),
        remains(&folder.path().join("killed")),
    );
    assert_eq!(
        undisturbed.keys().collect::<Vec<_>>(),
        killed.keys().collect::<Vec<_>>()
    );
    assert!(
        undisturbed.len() >= 8,
        "weights and optimiser states are among {:?}",
        undisturbed.keys()
    );
    for (name, bytes) in &undisturbed {
        assert!(bytes == &killed[name], "{name} differs");
    }
}
