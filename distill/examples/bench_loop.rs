//! What a training step costs beside its computation: reading its rows and features, and logging it.
//!
//! Both are compared with a step that does without, in runs of steps that alternate, so that a busy machine slows all of
//! them. Prints one JSON line.

use std::error::Error;
use std::io::Write;
use std::num::NonZeroUsize;
use std::time::Instant;

use burn::tensor::Device;
use clap::Parser;
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
use distill::run_log::{LineLog, STEPS_FILE, StepLine};
use distill::schedule::Trained;
use distill::student::{Backbone, Encoding, FreshBertConfig};
use schemas::shard::VectorValues;
use schemas::{Example, ExampleId, Label, Split};
use serde_json::json;

const BATCH: usize = 16;
const POSITIONS: usize = 64;
const VOCABULARY: usize = 1000;
const ROUNDS: usize = 5;
const TRAINED: Trained = Trained::Both;
const RATES: Rates = Rates {
    student: 1e-5,
    aligner: 1e-4,
};

#[derive(Parser)]
struct Arguments {
    /// Steps of a round.
    steps: usize,
    /// Hidden width of the student.
    hidden: usize,
    /// Layers of the student.
    layers: usize,
    /// Width of the teacher's features.
    width: usize,
    /// Steps between two synchronisations while logging is timed.
    #[arg(long, default_value = "1")]
    block: NonZeroUsize,
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
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

/// Seconds of a step.
struct Logging {
    unlogged: f64,
    logged: f64,
    /// Of reading what a step measured and writing its line, the wait for the device included.
    line: f64,
}

/// Does the steps, whose rows are read beside them or between them.
fn round(
    prefetch: bool,
    learner: &mut Learner,
    feed: &Feed<'_>,
    batches: &[Vec<usize>],
) -> Result<Round, Box<dyn Error>> {
    let mut watch = Watch::default();
    let mut reading = 0.0;
    let start = Instant::now();
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let prefetched = prefetch.then(|| feed.prefetched(scope, TRAINED, batches));
        for (number, rows) in (1..).zip(batches) {
            let asked = Instant::now();
            let step = match &prefetched {
                Some(steps) => steps.recv()?,
                None => feed.step(TRAINED, rows),
            };
            reading += asked.elapsed().as_secs_f64();
            let outcome = learner.step(TRAINED, step, Position::default(), RATES);
            watch.note(number, outcome)?;
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

/// The faster round without and with a thread that reads ahead, of rounds that alternate.
fn reading(
    learner: &mut Learner,
    feed: &Feed<'_>,
    batches: &[Vec<usize>],
) -> Result<[Round; 2], Box<dyn Error>> {
    let mut best: [Option<Round>; 2] = [None; 2];
    for _ in 0..ROUNDS {
        for (best, prefetch) in best.iter_mut().zip([false, true]) {
            let round = round(prefetch, learner, feed, batches)?;
            if best.is_none_or(|best| round.total < best.total) {
                *best = Some(round);
            }
        }
    }
    Ok(best.map(|best| best.expect("there are rounds")))
}

/// Times steps with and without their lines, in blocks that alternate; of each kind the fastest block counts.
///
/// A block ends when the device has done it. Blocks are to be long where the host runs ahead of the device, and one step
/// where it does not.
fn logging(
    learner: &mut Learner,
    feed: &Feed<'_>,
    batches: &[Vec<usize>],
    block: usize,
) -> Result<Logging, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut log = LineLog::open(&folder.path().join(STEPS_FILE), 0)?;
    let mut watch = Watch::default();
    let mut fastest = [f64::INFINITY; 2];
    let (mut num_lines, mut writing) = (0_u32, 0.0);
    let batches = [batches; 2 * ROUNDS].concat();
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let steps = feed.prefetched(scope, TRAINED, &batches);
        let mut step_number = 0;
        for block_number in 0..batches.len() / block {
            let is_logged = block_number % 2 == 1;
            let start = Instant::now();
            for _ in 0..block {
                step_number += 1;
                let step = steps.recv()?;
                let rows = step.num_rows;
                let outcome = learner.step(TRAINED, step, Position::default(), RATES);
                if !is_logged {
                    watch.note(step_number, outcome)?;
                    continue;
                }
                let computed = Instant::now();
                let updates = watch.log(step_number, &outcome)?;
                log.append(&StepLine {
                    step: step_number,
                    epoch: 1,
                    trained: TRAINED.name().to_owned(),
                    rows,
                    aligner: updates.aligner,
                    student: updates.student,
                    examples_per_second: rows as f64 / start.elapsed().as_secs_f64(),
                })?;
                writing += computed.elapsed().as_secs_f64();
                num_lines += 1;
            }
            watch.check()?;
            let of_its_kind = &mut fastest[usize::from(is_logged)];
            *of_its_kind = of_its_kind.min(start.elapsed().as_secs_f64() / block as f64);
        }
        Ok(())
    })?;
    let [unlogged, logged] = fastest;
    Ok(Logging {
        unlogged,
        logged,
        line: writing / f64::from(num_lines),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments {
        steps,
        hidden,
        layers,
        width,
        block,
        device,
    } = Arguments::parse();
    if block.get() > steps * ROUNDS {
        return Err(format!(
            "--block: at most {}, so that there are two blocks",
            steps * ROUNDS
        )
        .into());
    }
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
    round(true, &mut learner, &feed, &batches)?;
    let [inline, prefetched] = reading(&mut learner, &feed, &batches)?;
    let logging = logging(&mut learner, &feed, &batches, block.get())?;
    let line = json!({
        "step_seconds": logging.unlogged,
        "reading_share_before": inline.reading / inline.total,
        "reading_share_prefetched": prefetched.reading / prefetched.total,
        "logging_share": logging.logged / logging.unlogged - 1.0,
        "line_share": logging.line / logging.unlogged,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
