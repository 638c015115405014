//! What a training step costs beside its computation: reading its rows and features, and logging it.
//!
//! Usage: `bench_loop STEPS HIDDEN LAYERS FEATURE_WIDTH [DEVICE]`; prints one JSON line.
//!
//! Every way of doing a step is timed in rounds that alternate, so that a busy machine slows all of them; the fastest round
//! of each counts.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use burn::tensor::Device;
use distill::DeviceChoice;
use distill::checkpoint::Position;
use distill::config::{Schedule, TrainingConfig};
use distill::data::{Feed, Labels, Padding, Rows, TeacherFeatures};
use distill::heads::AlignerConfig;
use distill::learner::{Learner, Lessons, Rates, TeacherSide};
use distill::measured::Watch;
use distill::model::Student;
use distill::objective::{Objective, ObjectiveConfig, Preset, TaskKind};
use distill::random::Randomness;
use distill::schedule::Trained;
use distill::student::{Backbone, Encoding, FreshBertConfig};
use schemas::shard::VectorValues;
use schemas::{Example, ExampleId, Label, Split};
use serde_json::json;

const BATCH: usize = 16;
const POSITIONS: usize = 64;
const VOCABULARY: usize = 1000;
const ROUNDS: usize = 5;

/// How a round does its steps.
#[derive(Clone, Copy)]
struct Way {
    prefetch: bool,
    log_every_step: bool,
}

/// Seconds of a round, and of its waiting for what steps read.
#[derive(Clone, Copy)]
struct Round {
    total: f64,
    reading: f64,
}

fn rows(num_rows: usize) -> Rows {
    let id = |row: usize| -> ExampleId {
        let fields = [("text".to_owned(), row.to_string())].into();
        Example::new(fields, Some(Label::Class(0)), Split::train()).id()
    };
    let encoding = |row: usize| Encoding {
        ids: (0..POSITIONS)
            .map(|position| ((row * 31 + position * 7) % VOCABULARY) as u32)
            .collect(),
        type_ids: vec![0; POSITIONS],
    };
    Rows {
        split: Split::train(),
        ids: (0..num_rows).map(id).collect(),
        encodings: (0..num_rows).map(encoding).collect(),
        writings: Vec::new(),
        labels: Labels::Classes((0..num_rows).map(|row| row as u32 % 2).collect()),
    }
}

fn features(rows: &Rows, width: usize) -> TeacherFeatures {
    let values =
        (0..rows.len() * width).map(|place| half::f16::from_f32((place % 97) as f32 / 97.0));
    let places = (0..rows.len()).collect();
    TeacherFeatures::new(
        width,
        VectorValues::F16(values.collect()),
        places,
        rows.ids.clone(),
    )
}

fn learner(
    hidden_size: usize,
    num_layers: usize,
    feature_width: usize,
    device: &Device,
) -> Result<Learner, Box<dyn Error>> {
    let objective = ObjectiveConfig::default();
    let heads = AlignerConfig::default()
        .resolve(Preset::Paper, TaskKind::Classification { num_classes: 2 });
    let sizes = FreshBertConfig {
        hidden_size,
        num_layers,
        num_heads: hidden_size / 32,
        intermediate_size: 4 * hidden_size,
        max_positions: POSITIONS,
        dropout: 0.1,
    };
    let backbone = Backbone::fresh(&sizes, VOCABULARY, device)?;
    let student = Student::from_parts(backbone, heads.init_student_heads(hidden_size, device));
    let training = TrainingConfig {
        schedule: Schedule::JointStep,
        ..TrainingConfig::default()
    };
    let teacher = TeacherSide::new(heads.init_aligner(feature_width, device), &training);
    let lessons = Lessons {
        objective: Objective::new(objective),
        auxiliary: false,
        randomness: Randomness::new(1),
        activation_checkpointing: false,
        gradient_accumulation: 1,
        num_devices: 1,
    };
    let devices = [device.clone()];
    Ok(Learner::new(
        lessons,
        student,
        Some(teacher),
        &training,
        &devices,
    ))
}

fn round(
    way: Way,
    learner: &mut Learner,
    feed: &Feed<'_>,
    batches: &[Vec<usize>],
) -> Result<Round, Box<dyn Error>> {
    let trained = Trained::Both;
    let rates = Rates {
        student: 1e-5,
        aligner: 1e-4,
    };
    let mut watch = Watch::default();
    let mut reading = 0.0;
    let start = Instant::now();
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let prefetched = way
            .prefetch
            .then(|| feed.prefetched(scope, trained, batches));
        for (number, rows) in (1..).zip(batches) {
            let asked = Instant::now();
            let step = match &prefetched {
                Some(steps) => steps.recv()?,
                None => feed.step(trained, rows),
            };
            reading += asked.elapsed().as_secs_f64();
            let outcome = learner.step(trained, step, Position::default(), rates);
            if way.log_every_step {
                watch.log(number, &outcome)?;
            } else {
                watch.note(number, outcome)?;
            }
        }
        Ok(())
    })?;
    // Waits for the device.
    watch.check()?;
    Ok(Round {
        total: start.elapsed().as_secs_f64(),
        reading,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (numbers, device) = match arguments.split_at_checked(4) {
        Some((numbers, [])) => (numbers, DeviceChoice::Cpu),
        Some((numbers, [device])) => (numbers, device.parse()?),
        _ => return Err("usage: bench_loop STEPS HIDDEN LAYERS FEATURE_WIDTH [DEVICE]".into()),
    };
    let numbers: Vec<usize> = numbers
        .iter()
        .map(|number| number.parse())
        .collect::<Result<_, _>>()?;
    let [steps, hidden, layers, width] = numbers[..] else {
        unreachable!("they were split off");
    };
    let device = device.open()?.autodiff();
    device.seed(1);
    let rows = rows(steps * BATCH);
    let feed = Feed {
        features: Some(features(&rows, width)),
        rows: &rows,
        pad_id: 0,
        padding: Padding::Longest,
        gradient_accumulation: 1,
        num_devices: 1,
    };
    let all: Vec<usize> = (0..rows.len()).collect();
    let batches: Vec<Vec<usize>> = all.chunks(BATCH).map(<[usize]>::to_vec).collect();
    let mut learner = learner(hidden, layers, width, &device)?;
    let way = |prefetch, log_every_step| Way {
        prefetch,
        log_every_step,
    };
    let ways = [way(false, true), way(true, true), way(true, false)];
    let mut best: [Option<Round>; 3] = [None; 3];
    round(way(true, true), &mut learner, &feed, &batches)?;
    for _ in 0..ROUNDS {
        for (best, way) in best.iter_mut().zip(ways) {
            let round = round(way, &mut learner, &feed, &batches)?;
            if best.is_none_or(|best| round.total < best.total) {
                *best = Some(round);
            }
        }
    }
    let [inline, prefetched, unlogged] = best.map(|best| best.expect("there are rounds"));
    let line = json!({
        "step_seconds": prefetched.total / steps as f64,
        "reading_share_before": inline.reading / inline.total,
        "reading_share_prefetched": prefetched.reading / prefetched.total,
        "logging_share": prefetched.total / unlogged.total - 1.0,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
