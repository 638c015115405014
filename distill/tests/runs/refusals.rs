//! What would be lost or misread is refused, and what a user should know is said.

use crate::cli::{done, run, stderr};
use crate::support::{World, record, rows};

/// The error of a command that must fail as a user's error.
#[track_caller]
pub(crate) fn refused(world: &World, arguments: &[&str]) -> String {
    let output = run(world, arguments);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    stderr(&output)
}

/// Replaces a text in a file of the data set.
pub(crate) fn edit(world: &World, file: &str, from: &str, to: &str) {
    let path = world.path(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn export_replaces_an_earlier_export_and_nothing_else() {
    let world = World::new();
    done(&world, &["train"]);
    let before = names(&world.path(""));
    let precious = world.path("data");
    for target in [precious.to_str().unwrap(), "."] {
        let error = refused(&world, &["export", target]);
        assert!(
            error.ends_with("hint: name a folder that is new, empty or an earlier export\n"),
            "{error}"
        );
    }
    assert_eq!(names(&world.path("")), before);
    assert!(precious.join("train.jsonl").exists());
    assert!(
        !names(std::path::Path::new("."))
            .iter()
            .any(|name| name.contains(".partial-"))
    );

    let target = world.path("exported");
    std::fs::create_dir(&target).unwrap();
    for _ in 0..2 {
        done(&world, &["export", target.to_str().unwrap()]);
    }
    std::fs::write(target.join("notes.txt"), "mine").unwrap();
    let error = refused(&world, &["export", target.to_str().unwrap()]);
    assert!(
        error.contains("it holds `notes.txt`, which is no export's"),
        "{error}"
    );
    assert!(target.join("notes.txt").exists() && target.join("config.json").exists());
}

#[test]
fn a_student_is_not_read_under_another_configuration() {
    let world = World::new();
    done(&world, &["train"]);
    let text = std::fs::read_to_string(world.config()).unwrap();
    let target = world.path("exported");
    let verbs = [
        vec!["eval"],
        vec!["predict"],
        vec!["export", target.to_str().unwrap()],
    ];
    for (from, to, key) in [
        (
            "num_heads = 2",
            "num_heads = 1",
            "student.fresh.num_heads = 2",
        ),
        (
            "max_length = 24",
            "max_length = 12",
            "student.max_length = 24",
        ),
        ("hidden = 8\n", "hidden = 9\n", "aligner.hidden = 8"),
        (
            "[output]",
            "[objective]\npreset = \"reference\"\n[output]",
            "objective.preset = \"paper\"",
        ),
    ] {
        world.write_config(&text);
        world.replace(from, to);
        for verb in &verbs {
            let error = refused(&world, verb);
            assert!(
                error.contains(&format!("holds a run with {key}")),
                "{error}"
            );
        }
    }
    world.write_config(&text);
    // How it was trained does not matter to what it answers.
    world.replace("epochs = 2", "epochs = 3");
    done(&world, &["eval"]);
    edit(
        &world,
        "data/task.toml",
        "[\"no\", \"yes\"]",
        "[\"yes\", \"no\"]",
    );
    for verb in &verbs {
        let error = refused(&world, verb);
        assert!(error.contains(r#"classes = ["no","yes"]"#), "{error}");
    }
    assert!(!target.exists());
}

#[test]
fn metric_and_pretrained_weights_are_part_of_a_run() {
    let world = World::new();
    done(&world, &["train"]);
    edit(&world, "data/task.toml", "\"accuracy\"", "\"f1\"");
    let error = refused(&world, &["train"]);
    assert!(error.contains("metric = \"accuracy\""), "{error}");

    let student = world.path("student");
    done(&world, &["export", student.to_str().unwrap()]);
    let text = std::fs::read_to_string(world.config()).unwrap();
    let (before, rest) = text.split_once("[student]").unwrap();
    let (_, after) = rest.split_once("[aligner]").unwrap();
    world.write_config(&format!(
        "{before}[student]\npath = \"student\"\nmax_length = 24\n[aligner]{after}"
    ));
    world.replace("path = \"out\"", "path = \"second\"");
    done(&world, &["train"]);
    done(&world, &["eval"]);
    for file in ["model.safetensors", "config.json"] {
        let path = student.join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        if file == "config.json" {
            bytes.push(b'\n');
        } else {
            *bytes.last_mut().unwrap() ^= 1;
        }
        std::fs::write(&path, bytes).unwrap();
        let error = refused(&world, &["train"]);
        assert!(
            error.contains("holds a run with student digest = "),
            "{error}"
        );
        std::fs::write(&path, whole).unwrap();
    }
    done(&world, &["train"]);
}

#[test]
fn export_says_that_a_relu_is_left_out() {
    let world = World::new();
    let target = world.path("exported");
    let arguments = ["export", target.to_str().unwrap()];
    done(&world, &["train"]);
    assert!(!stderr(&run(&world, &arguments)).contains("ReLU"));
    world.replace("projection = 4", "projection = 4\nrelu_outputs = true");
    done(&world, &["train", "--restart"]);
    let output = run(&world, &arguments);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        stderr(&output)
            .contains("outputs pass a ReLU here, which the classes of `transformers` lack"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_vocabulary_with_a_line_twice_is_refused() {
    let world = World::new();
    edit(&world, "data/vocab.txt", "blue", "red");
    let error = refused(&world, &["train"]);
    assert!(
        error.contains("vocab.txt: line 9 repeats `red` of line 8"),
        "{error}"
    );
}

#[test]
fn a_split_that_is_named_is_there() {
    let world = World::new();
    world.replace("[cache]", "[splits]\ntest = \"tset\"\n[cache]");
    let error = refused(&world, &["train"]);
    assert!(error.contains("there is no split `tset`"), "{error}");
}

#[test]
fn a_table_without_a_test_split_says_so() {
    let splits = [("train", rows(0..20)), ("validation", rows(20..28))];
    let records: Vec<_> = splits
        .iter()
        .flat_map(|(_, rows)| rows)
        .map(record)
        .collect();
    let world = World::with(&splits, &records);
    world.replace("noise_sigmas = [1]", "controls = []");
    let table = done(&world, &["compare"]);
    assert!(
        table.contains(
            "differences and p on validation, for the test split is absent or has no labels"
        ),
        "{table}"
    );
}

#[test]
fn skipped_rows_are_listed() {
    let world = World::new();
    done(&world, &["train"]);
    world.replace("noise_sigmas = [1]", "controls = []");
    for split in ["validation", "test"] {
        let path = world.path(&format!("data/{split}.jsonl"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}{{\"first\": 1}}\n")).unwrap();
    }
    for verb in ["eval", "predict", "compare"] {
        let count = if verb == "compare" { "2" } else { "1" };
        let output = run(&world, &[verb, "--skip-bad-rows", count]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(
            stderr(&output).matches("skipped ").count().to_string(),
            count,
            "{verb}: {}",
            stderr(&output)
        );
    }
}
