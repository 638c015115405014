//! Training in this process: bits, positions and gradients.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::{CONFIG, World, alone, record, rows, tensor_files};
use burn::tensor::{Device, Tensor};
use distill::checkpoint::{Checkpoints, Which};
use distill::config::Config;
use distill::data::{Padding, batch::targets, token_batch};
use distill::device::{DeviceChoice, Devices};
use distill::error::Error;
use distill::model::Student;
use distill::objective::{Guidance, Objective};
use distill::random::Randomness;
use distill::schedule::Variant;
use distill::setup::{Outcome, RunOptions, Setup};
use distill::stop::Stop;
use distill::student::Encoding;
use schemas::dataset::SkipBadRows;
use serde_json::Value;

pub(crate) fn setup(world: &World) -> Setup {
    setup_on(world, DeviceChoice::Cpu)
}

fn setup_on(world: &World, devices: impl Into<Devices>) -> Setup {
    let config = Config::read(&world.config()).unwrap();
    Setup::open(config, world.digest, devices, &mut SkipBadRows::new(0)).unwrap()
}

pub(crate) fn options(folder: &Path, variant: Variant) -> RunOptions {
    RunOptions {
        variant,
        seed: 3,
        folder: folder.to_owned(),
        restart: false,
    }
}

/// Everything a run leaves behind, with timings taken out.
#[derive(Debug, PartialEq)]
pub(crate) struct Remains {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) steps: Vec<Value>,
    pub(crate) evaluations: String,
    pub(crate) result: String,
}

pub(crate) fn remains(folder: &Path) -> Remains {
    let steps = std::fs::read_to_string(folder.join("steps.jsonl")).unwrap();
    let steps = steps.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        assert!(
            line.as_object_mut()
                .unwrap()
                .remove("examples_per_second")
                .unwrap()
                .as_f64()
                .unwrap()
                > 0.0
        );
        line
    });
    Remains {
        files: tensor_files(folder),
        steps: steps.collect(),
        evaluations: std::fs::read_to_string(folder.join("evaluations.jsonl")).unwrap(),
        result: std::fs::read_to_string(folder.join("result.json")).unwrap(),
    }
}

pub(crate) fn train(setup: &Setup, options: &RunOptions, stop: &Stop) -> Outcome {
    setup.train(options, stop, false).unwrap()
}

pub(crate) fn finished(setup: &Setup, folder: &Path, variant: Variant) -> Remains {
    let outcome = train(setup, &options(folder, variant), &Stop::default());
    assert!(matches!(outcome, Outcome::Finished(_)));
    remains(folder)
}

#[test]
fn two_runs_of_one_seed_are_bit_equal_and_of_another_are_not() {
    let _alone = alone();
    let world = World::new();
    let setup = setup(&world);
    let one = finished(&setup, &world.path("one"), Variant::Method);
    let two = finished(&setup, &world.path("two"), Variant::Method);
    assert_eq!(one.steps.len(), 16);
    assert_eq!(one, two);
    let other = RunOptions {
        seed: 4,
        ..options(&world.path("other"), Variant::Method)
    };
    train(&setup, &other, &Stop::default());
    assert_ne!(remains(&world.path("other")).files, one.files);
}

#[test]
fn a_stopped_run_ends_bit_equal_wherever_it_was_stopped() {
    let _alone = alone();
    for (schedule, num_steps) in [("alternate-epoch", 16), ("joint-step", 8)] {
        let world = World::new();
        world.replace("alternate-epoch", schedule);
        world.replace(
            "path = \"out\"",
            "path = \"out\"\ncheckpoint_every_steps = 3",
        );
        let setup = setup(&world);
        let whole = finished(&setup, &world.path("whole"), Variant::Noise(1.0));
        assert_eq!(whole.steps.len(), num_steps);
        for kill_at in 0..num_steps as u64 {
            let folder = world.path(&format!("killed-{kill_at}"));
            let options = options(&folder, Variant::Noise(1.0));
            let outcome = train(&setup, &options, &Stop::after_steps(kill_at));
            assert!(matches!(outcome, Outcome::Stopped { step } if step == kill_at));
            assert!(matches!(
                train(&setup, &options, &Stop::default()),
                Outcome::Finished(_)
            ));
            assert_eq!(
                remains(&folder),
                whole,
                "{schedule}, stopped after {kill_at} steps"
            );
        }
        // Stopped after every single step.
        let folder = world.path("often");
        let options = options(&folder, Variant::Noise(1.0));
        let stops = (0..100).take_while(|_| {
            matches!(
                train(&setup, &options, &Stop::after_steps(1)),
                Outcome::Stopped { .. }
            )
        });
        assert_eq!(stops.count(), num_steps - 1);
        assert_eq!(
            remains(&folder),
            whole,
            "{schedule}, stopped after every step"
        );
    }
}

#[test]
fn an_unclean_end_loses_no_more_than_the_steps_since_the_checkpoint() {
    let _alone = alone();
    let world = World::new();
    let setup = setup(&world);
    let whole = finished(&setup, &world.path("whole"), Variant::Method);
    let folder = world.path("killed");
    let options = options(&folder, Variant::Method);
    train(&setup, &options, &Stop::after_steps(7));
    // What a process killed two steps later leaves: lines beyond the checkpoint, the last one torn, and an unfinished
    // checkpoint.
    let steps = folder.join("steps.jsonl");
    let text = std::fs::read_to_string(&steps).unwrap();
    let beyond = text
        .lines()
        .last()
        .unwrap()
        .replace("\"step\":7", "\"step\":8");
    std::fs::write(&steps, format!("{text}{beyond}\n{{\"step\":9,\"ep")).unwrap();
    std::fs::create_dir(folder.join("checkpoints/.step-00000008-pass-1")).unwrap();
    // An evaluation after the last saved step, whose checkpoint was not written.
    std::fs::write(folder.join("evaluations.jsonl"), "{\"step\":7}\n").unwrap();
    train(&setup, &options, &Stop::default());
    assert_eq!(remains(&folder), whole);
}

#[test]
fn a_finished_run_is_not_done_again_and_restart_does_it_again() {
    let _alone = alone();
    let world = World::new();
    let setup = setup(&world);
    let folder = world.path("run");
    let first = finished(&setup, &folder, Variant::AuxOnly);
    let touched = std::fs::metadata(folder.join("result.json"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(finished(&setup, &folder, Variant::AuxOnly), first);
    assert_eq!(
        std::fs::metadata(folder.join("result.json"))
            .unwrap()
            .modified()
            .unwrap(),
        touched
    );
    let again = RunOptions {
        restart: true,
        ..options(&folder, Variant::AuxOnly)
    };
    train(&setup, &again, &Stop::default());
    assert_eq!(remains(&folder), first);
    assert_ne!(
        std::fs::metadata(folder.join("result.json"))
            .unwrap()
            .modified()
            .unwrap(),
        touched
    );
}

#[test]
fn a_folder_of_another_run_is_refused_by_the_key_that_differs() {
    let _alone = alone();
    let world = World::new();
    let folder = world.path("run");
    train(
        &setup(&world),
        &options(&folder, Variant::Method),
        &Stop::after_steps(1),
    );
    world.replace("epochs = 2", "epochs = 3");
    let error = setup(&world)
        .train(&options(&folder, Variant::Method), &Stop::default(), false)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("holds a run with training.epochs = 2, and the configuration says 3"),
        "{error}"
    );
    world.replace("epochs = 3", "epochs = 2");
    let error = setup(&world)
        .train(
            &options(&folder, Variant::Shuffled),
            &Stop::default(),
            false,
        )
        .unwrap_err();
    assert!(
        error.to_string().contains("variant = \"method\""),
        "{error}"
    );
}

/// The tensor files of the last checkpoint after so many steps.
fn files_after(setup: &Setup, folder: &Path, num_steps: u64) -> BTreeMap<String, Vec<u8>> {
    train(
        setup,
        &options(folder, Variant::Method),
        &Stop::after_steps(num_steps),
    );
    tensor_files(folder)
}

#[test]
fn each_pass_moves_only_what_it_trains() {
    let _alone = alone();
    let world = World::new();
    let setup = setup(&world);
    let folder = world.path("run");
    let start = files_after(&setup, &folder, 0);
    let after_aligner = files_after(&setup, &folder, 4);
    let after_student = files_after(&setup, &folder, 4);
    for file in ["student.safetensors", "student_optimizer.safetensors"] {
        assert_eq!(start[file], after_aligner[file], "{file}");
        assert_ne!(after_aligner[file], after_student[file], "{file}");
    }
    for file in ["aligner.safetensors", "aligner_optimizer.safetensors"] {
        assert_ne!(start[file], after_aligner[file], "{file}");
        assert_eq!(after_aligner[file], after_student[file], "{file}");
    }
}

#[test]
fn variants_of_a_seed_start_from_the_same_student() {
    let _alone = alone();
    let world = World::new();
    let setup = setup(&world);
    let start = |variant: Variant| {
        let folder = world.path(&variant.to_string());
        train(&setup, &options(&folder, variant), &Stop::after_steps(0));
        tensor_files(&folder)
    };
    let method = start(Variant::Method);
    for variant in [
        Variant::Undistilled,
        Variant::AuxOnly,
        Variant::Shuffled,
        Variant::FrozenRandom,
    ] {
        assert_eq!(
            start(variant)["student.safetensors"],
            method["student.safetensors"],
            "{variant}"
        );
    }
    assert!(!start(Variant::Undistilled).contains_key("aligner.safetensors"));
}

#[test]
fn variants_of_a_seed_share_the_masks_of_the_student() {
    let _alone = alone();
    let world = World::new();
    let setup = setup(&world);
    // The student's first step, at which all variants have the same student.
    let first_task_loss = |variant: Variant, name: &str| {
        let remains = finished(&setup, &world.path(name), variant);
        let mut steps = remains.steps.iter();
        let losses = steps.find_map(|line| line["student"]["terms"]["task"].as_f64());
        losses.unwrap()
    };
    let undistilled = first_task_loss(Variant::Undistilled, "undistilled");
    for variant in [Variant::Method, Variant::AuxOnly, Variant::Shuffled] {
        let name = variant.to_string();
        assert_eq!(first_task_loss(variant, &name), undistilled, "{name}");
    }
}

#[test]
fn a_teacher_without_weight_leaves_the_student_as_it_is() {
    let _alone = alone();
    let world = World::new();
    let setup_of = |beta: &str, gamma: &str| {
        let text = CONFIG.replace(
            "[output]",
            &format!("[objective]\nalpha = 0\nbeta = {beta}\ngamma = {gamma}\n[output]"),
        );
        world.write_config(&text);
        setup(&world)
    };
    let undistilled = finished(&setup_of("0", "0"), &world.path("a"), Variant::Undistilled);
    let method = finished(&setup_of("0", "0"), &world.path("b"), Variant::Method);
    assert_eq!(undistilled.files, method.files);
    assert_eq!(undistilled.steps, method.steps);
    let auxiliary = finished(&setup_of("0", "1"), &world.path("c"), Variant::Method);
    assert_ne!(
        auxiliary.files["student.safetensors"],
        method.files["student.safetensors"]
    );
}

/// Values of the first student step's line, and the student's weights after it.
fn first_step(world: &World, name: &str) -> (Vec<f64>, Vec<f32>) {
    first_step_on(world, DeviceChoice::Cpu, name)
}

fn first_step_on(world: &World, devices: impl Into<Devices>, name: &str) -> (Vec<f64>, Vec<f32>) {
    let setup = setup_on(world, devices);
    let folder = world.path(name);
    train(
        &setup,
        &options(&folder, Variant::Method),
        &Stop::after_steps(1),
    );
    let text = std::fs::read_to_string(folder.join("steps.jsonl")).unwrap();
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let mut values = Vec::new();
    for side in ["student", "aligner"] {
        values.push(line[side]["loss"].as_f64().unwrap());
        values.push(line[side]["gradient_norm"].as_f64().unwrap());
        values.extend(
            line[side]["terms"]
                .as_object()
                .unwrap()
                .values()
                .map(|term| term.as_f64().unwrap()),
        );
    }
    let files = tensor_files(&folder);
    let bytes = &files["student_optimizer.safetensors"];
    let stored = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut weights = Vec::new();
    for (name, view) in stored.iter().collect::<BTreeMap<_, _>>() {
        if name.ends_with(".moment_1") {
            let (chunks, _) = view.data().as_chunks::<4>();
            weights.extend(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)));
        }
    }
    (values, weights)
}

/// A configuration whose every loss is a mean over rows, as `elementwise` is, without dropout to differ.
fn means_over_rows(preset: &str) -> String {
    let objective =
        format!("[objective]\npreset = \"{preset}\"\nmanifold = \"elementwise\"\n[output]");
    CONFIG
        .replace("dropout = 0.1", "dropout = 0")
        .replace("projection = 4", "projection = 4\ndropout = 0")
        .replace("alternate-epoch", "joint-step")
        .replace("[output]", &objective)
}

/// Losses and norms agree within 1e-5 of each, gradients within 1e-5 of the largest.
fn assert_near(one: &(Vec<f64>, Vec<f32>), other: &(Vec<f64>, Vec<f32>), what: &str) {
    assert_eq!(one.0.len(), other.0.len());
    for (one, other) in one.0.iter().zip(&other.0) {
        assert!(
            (one - other).abs() <= 1e-5 * one.abs(),
            "{what}: {one} and {other}"
        );
    }
    assert_eq!(one.1.len(), other.1.len());
    let largest = one
        .1
        .iter()
        .fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (one, other) in one.1.iter().zip(&other.1) {
        assert!(
            (one - other).abs() <= 1e-5 * largest,
            "{what}: {one} and {other}"
        );
    }
}

#[test]
fn accumulated_gradients_equal_those_of_the_whole_batch() {
    let _alone = alone();
    for preset in ["paper", "reference"] {
        let world = World::new();
        let text = means_over_rows(preset);
        world.write_config(&text);
        let whole = first_step(&world, "whole");
        // Parts of 2, 2, 2 and of 4, 2 rows.
        for parts in [3, 2] {
            world.write_config(&text.replace(
                "batch_size = 6",
                &format!("batch_size = 6\ngradient_accumulation = {parts}"),
            ));
            let in_parts = first_step(&world, &format!("parts-{parts}"));
            assert_near(&whole, &in_parts, &format!("{preset} in {parts} parts"));
        }
    }
}

#[test]
fn two_devices_equal_one_with_all_the_rows() {
    let _alone = alone();
    for preset in ["paper", "reference"] {
        let world = World::new();
        let text = means_over_rows(preset);
        // Steps of 6 rows, of 3 to each device; of 7, of 4 and 3; of 1, of which the second device has none.
        for rows in [6, 7, 1] {
            world.write_config(&text.replace("batch_size = 6", &format!("batch_size = {rows}")));
            let one = first_step(&world, &format!("one-{rows}"));
            let devices: Devices = "cpu,cpu".parse().unwrap();
            let two = first_step_on(&world, devices, &format!("two-{rows}"));
            assert_near(&one, &two, &format!("{preset}, {rows} rows"));
        }
    }
}

#[test]
fn two_devices_compute_what_one_computes_in_two_parts() {
    let _alone = alone();
    // With dropout and every manifold term, over whole runs and bit for bit: rows, masks and sums are the same.
    for schedule in ["alternate-epoch", "joint-step"] {
        let world = World::new();
        world.replace("alternate-epoch", schedule);
        let setup_two = setup_on(&world, "cpu,cpu".parse::<Devices>().unwrap());
        let folder = world.path("two");
        let options_two = options(&folder, Variant::Method);
        // A resumed run, whose second process starts its devices anew.
        train(&setup_two, &options_two, &Stop::after_steps(6));
        train(&setup_two, &options_two, &Stop::default());
        world.replace(
            "batch_size = 6",
            "batch_size = 6\ngradient_accumulation = 2",
        );
        let parts = finished(&setup(&world), &world.path("parts"), Variant::Method);
        let two = remains(&folder);
        assert_eq!(two.files, parts.files, "{schedule}");
        assert_eq!(two.steps, parts.steps, "{schedule}");
    }
}

#[test]
fn steps_that_are_not_logged_compute_the_same() {
    let _alone = alone();
    let world = World::new();
    let all = finished(&setup(&world), &world.path("all"), Variant::Method);
    world.replace("path = \"out\"", "path = \"out\"\nlog_every_steps = 3");
    let some = finished(&setup(&world), &world.path("some"), Variant::Method);
    assert_eq!(all.files, some.files);
    assert_eq!(all.evaluations, some.evaluations);
    let every_third: Vec<Value> = all.steps.into_iter().skip(2).step_by(3).collect();
    assert_eq!(every_third.len(), 5);
    assert_eq!(every_third, some.steps);
}

#[test]
fn a_run_that_diverges_keeps_nothing_of_it() {
    let _alone = alone();
    let world = World::new();
    let text = CONFIG
        .replace(
            "student_learning_rate = 1e-3",
            "student_learning_rate = 1e38",
        )
        .replace(
            "schedule = \"alternate-epoch\"",
            "schedule = \"joint-step\"",
        );
    let diverged_at = |name: &str, output: &str| {
        world.write_config(&text.replace("path = \"out\"", &format!("path = \"out\"\n{output}")));
        let options = options(&world.path(name), Variant::Method);
        let error = setup(&world)
            .train(&options, &Stop::default(), false)
            .unwrap_err();
        let Error::Diverged { step } = error else {
            unreachable!("{error}");
        };
        step
    };
    // The first step is fine, and leaves weights that no other step is.
    assert_eq!(diverged_at("logged", "checkpoint_every_steps = 1"), 2);
    assert_eq!(
        diverged_at(
            "unlogged",
            "checkpoint_every_steps = 3\nlog_every_steps = 1000"
        ),
        2
    );
    let log = |name: &str| std::fs::read_to_string(world.path(name).join("steps.jsonl")).unwrap();
    assert!(log("unlogged").is_empty());
    assert!(!Checkpoints::of(&world.path("unlogged")).exist());
    let kept = Checkpoints::of(&world.path("logged"))
        .open(Which::Last)
        .unwrap();
    assert_eq!(kept.state.position.step, 1);
}

#[test]
fn batches_of_one_length_read_every_row_once_and_are_resumed() {
    let _alone = alone();
    for schedule in ["alternate-epoch", "joint-step"] {
        // Every third row is long.
        let mut train_rows = rows(0..20);
        for row in train_rows.iter_mut().step_by(3) {
            row.second
                .push_str(" and red blue green big small left right");
        }
        let records: Vec<_> = train_rows.iter().map(record).collect();
        let splits = [("train", train_rows), ("validation", rows(20..28))];
        let world = World::with(&splits, &records);
        world.replace("alternate-epoch", schedule);
        world.replace(
            "batch_size = 6",
            "tokens_per_batch = 72\ngradient_accumulation = 2\nlearning_rate_schedule = \"linear-warmup\"",
        );
        let setup = setup(&world);
        let whole = finished(&setup, &world.path("whole"), Variant::Method);
        let mut num_rows: BTreeMap<(String, u64), u64> = BTreeMap::new();
        let mut sizes = Vec::new();
        for line in &whole.steps {
            let pass = (
                line["trained"].as_str().unwrap().to_owned(),
                line["epoch"].as_u64().unwrap(),
            );
            let size = line["rows"].as_u64().unwrap();
            *num_rows.entry(pass).or_default() += size;
            sizes.push(size);
        }
        assert!(num_rows.values().all(|&rows| rows == 20), "{num_rows:?}");
        // Rows of at most 16 positions come by fours, those of at most 24 by threes.
        assert!(
            sizes.contains(&4) && sizes.contains(&3) && !sizes.contains(&5),
            "{sizes:?}"
        );
        // The rate falls to zero over the steps that there are: the last one is one step over it.
        for side in ["student", "aligner"] {
            let rates: Vec<f64> = whole
                .steps
                .iter()
                .filter_map(|line| line[side]["learning_rate"].as_f64())
                .collect();
            let last = 1e-3 / rates.len() as f64;
            assert!((rates[rates.len() - 1] - last).abs() < 1e-12, "{rates:?}");
        }
        for kill_at in (1..whole.steps.len() as u64).step_by(4) {
            let folder = world.path(&format!("killed-{kill_at}"));
            let options = options(&folder, Variant::Method);
            train(&setup, &options, &Stop::after_steps(kill_at));
            train(&setup, &options, &Stop::default());
            assert_eq!(
                remains(&folder),
                whole,
                "{schedule}, stopped after {kill_at}"
            );
        }
    }
}

#[test]
fn padding_changes_no_loss() {
    let _alone = alone();
    let world = World::new();
    let setup = setup(&world);
    let run = &setup.inference.config.run;
    let device = Device::flex();
    let heads = run
        .aligner
        .resolve(run.objective.preset(), setup.inference.kind());
    let tokenizer = &setup.inference.tokenizer;
    let student = Student::new(
        &run.student,
        setup.inference.config.base(),
        tokenizer,
        &heads,
        Randomness::new(1),
        &device,
    )
    .unwrap();
    let rows = [0, 1, 2, 3];
    let train = &setup.data.corpus.train;
    let encodings: Vec<&Encoding> = rows.iter().map(|&row| &train.encodings[row]).collect();
    let lengths: Vec<usize> = encodings
        .iter()
        .map(|encoding| encoding.ids.len())
        .collect();
    assert!(
        lengths.iter().any(|length| *length != lengths[0]),
        "{lengths:?}"
    );
    let targets = targets(train, &rows, 0.0, &device);
    let aligner = heads.init_aligner(setup.data.features.width(), &device);
    let taught = aligner.forward(setup.data.features.batch(&rows, &device));
    let objective = Objective::new(run.objective);
    let losses = |padding| -> Vec<f32> {
        let tokens = token_batch(&encodings, tokenizer.pad_id(), padding, &device);
        let loss = objective.student_loss(
            &student.forward(&tokens, &targets),
            Guidance::Teacher(&taught),
            &targets,
        );
        let all = [loss.total]
            .into_iter()
            .chain(loss.terms.into_iter().map(|(_, term)| term));
        all.map(|term: Tensor<1>| term.into_scalar::<f32>())
            .collect()
    };
    let tight = losses(Padding::Longest);
    let wide = losses(Padding::Multiple { of: 24, limit: 24 });
    assert_eq!(tight.len(), 6);
    for (tight, wide) in tight.iter().zip(wide) {
        assert!(
            (tight - wide).abs() <= 1e-6 * tight.abs().max(1.0),
            "{tight} and {wide}"
        );
    }
}

#[test]
fn the_checkpoint_is_chosen_by_validation_alone() {
    let _alone = alone();
    let world = World::new();
    world.replace("epochs = 2", "epochs = 5");
    world.replace(
        "student_learning_rate = 1e-3",
        "student_learning_rate = 2e-2",
    );
    let setup = setup(&world);
    let remains = finished(&setup, &world.path("run"), Variant::Method);
    let result: Value = serde_json::from_str(&remains.result).unwrap();
    let lines = remains
        .evaluations
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let scores: Vec<(f64, u64)> = lines
        .map(|line| {
            (
                line["score"].as_f64().unwrap(),
                line["step"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(scores.len(), 5);
    let best = scores
        .iter()
        .map(|(score, _)| *score)
        .fold(f64::NEG_INFINITY, f64::max);
    let earliest = scores.iter().find(|(score, _)| *score == best).unwrap();
    assert_eq!(result["validation"].as_f64(), Some(best));
    assert_eq!(result["best_step"].as_u64(), Some(earliest.1));
}

#[test]
fn the_aligner_learns_from_the_cache() {
    let _alone = alone();
    let world = World::new();
    world.replace(
        "schedule = \"alternate-epoch\"",
        "schedule = \"pretrain-freeze\"\naligner_epochs = 25",
    );
    world.replace(
        "aligner_learning_rate = 1e-3",
        "aligner_learning_rate = 1e-2",
    );
    let remains = finished(&setup(&world), &world.path("run"), Variant::Method);
    let losses: Vec<f64> = remains
        .steps
        .iter()
        .filter_map(|line| line["aligner"]["terms"]["task"].as_f64())
        .collect();
    assert_eq!(losses.len(), 100);
    assert!(
        losses[0] > 0.6 && losses[99] < 0.3,
        "{} to {}",
        losses[0],
        losses[99]
    );
}
