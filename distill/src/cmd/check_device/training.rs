//! A few steps of training: on a device beside the CPU, and on the device in every way that must end alike.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use schemas::shard::VectorValues;
use schemas::{Example, Split};
use tempfile::TempDir;

use crate::checkpoint::{Checkpoint, Checkpoints, Position, RunIdentity, Which};
use crate::config::TrainingConfig;
use crate::data::prompts::Sequence;
use crate::data::{Feed, Labels, Padding, Rows, TeacherFeatures, Writing};
use crate::device::Precision;
use crate::error::Error;
use crate::generator::{self, Others};
use crate::golden::Comparison;
use crate::heads::AlignerConfig;
use crate::learner::{Learner, Lessons, Rates, TeacherSide};
use crate::measured::Watch;
use crate::model::Student;
use crate::objective::{Objective, ObjectiveSettings, Preset, TaskKind};
use crate::random::Randomness;
use crate::schedule::Trained;
use crate::student::{Backbone, Encoding, LoraConfig, parity};

const STEPS: u64 = 4;
const ROWS: usize = 6;
/// Of the longest row.
const LENGTH: usize = 12;
/// Of every checkpoint.
const VOCABULARY: usize = 64;
const CLASSES: usize = 3;
const FEATURE_WIDTH: usize = 40;
const RATES: Rates = Rates {
    student: 1e-3,
    aligner: 1e-3,
};

/// A student under training.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    /// Under the folder of fixtures.
    checkpoint: &'static str,
    has_adapters: bool,
    task: TaskKind,
    /// Whether it is trained in all ways, or on the device and the CPU alone.
    in_all_ways: bool,
}

const CLASSIFICATION: TaskKind = TaskKind::Classification {
    num_classes: CLASSES,
};

const KINDS: [Kind; 4] = [
    Kind {
        name: "bert",
        checkpoint: "encoders/bert",
        has_adapters: false,
        task: CLASSIFICATION,
        in_all_ways: true,
    },
    Kind {
        name: "deberta-v2",
        checkpoint: "encoders/deberta-v2",
        has_adapters: false,
        task: CLASSIFICATION,
        in_all_ways: false,
    },
    Kind {
        name: "opt",
        checkpoint: "causal/opt",
        has_adapters: false,
        task: CLASSIFICATION,
        in_all_ways: false,
    },
    Kind {
        name: "llama with adapters",
        checkpoint: "causal/llama-grouped-tied",
        has_adapters: true,
        task: TaskKind::Generation,
        in_all_ways: true,
    },
];

/// How it is trained.
#[derive(Clone, Copy)]
struct Way {
    precision: Precision,
    optimizer_state: Precision,
    activation_checkpointing: bool,
    parts: usize,
    drops: bool,
}

const PLAIN: Way = Way {
    precision: Precision::F32,
    optimizer_state: Precision::F32,
    activation_checkpointing: false,
    parts: 1,
    drops: false,
};

/// Comparisons of one student after the other. A single device is also tried as two, each with its own thread.
pub(super) fn compare(
    devices: &[Device],
    fixtures: &Path,
) -> impl Iterator<Item = Result<Vec<Comparison>, Error>> {
    KINDS.into_iter().map(|kind| {
        let checkpoint = fixtures.join(kind.checkpoint);
        let school = School {
            kind,
            without_dropout: parity::without_dropout(&checkpoint)?,
            checkpoint,
            rows: rows(kind.task),
        };
        school.compare(devices)
    })
}

/// Everything that runs of one student share.
struct School {
    kind: Kind,
    checkpoint: PathBuf,
    without_dropout: TempDir,
    rows: Rows,
}

impl School {
    fn compare(&self, devices: &[Device]) -> Result<Vec<Comparison>, Error> {
        let cpu = [Device::flex()];
        let device = &devices[..1];
        let on_cpu = || self.learner(PLAIN, &cpu);
        let mut on_cpu = generator::drawing(&cpu[0], 7, Others::None, on_cpu)?;
        // Devices draw different numbers: all runs start from the CPU's.
        let start = saved(&on_cpu)?;
        let expected = self.steps(&mut on_cpu, PLAIN, 1, 0..STEPS)?;
        let plain = self.run(PLAIN, device, &start)?;
        let mut found = vec![self.row("steps beside the CPU", &plain, &expected)];
        if !self.kind.in_all_ways {
            return Ok(found);
        }

        let checkpointed = Way {
            activation_checkpointing: true,
            ..PLAIN
        };
        let actual = self.run(checkpointed, device, &start)?;
        found.push(self.row("steps with activations again", &actual, &plain));

        let rounded = Way {
            precision: Precision::Bf16,
            ..PLAIN
        };
        let actual = self.run(rounded, device, &start)?;
        found.push(self.row("steps in bf16", &actual, &plain));

        let rounded = Way {
            optimizer_state: Precision::Bf16,
            ..PLAIN
        };
        let actual = self.run(rounded, device, &start)?;
        found.push(self.row("steps with rounded moments", &actual, &plain));

        let in_parts = Way { parts: 2, ..PLAIN };
        let one = self.run(in_parts, device, &start)?;
        let other = devices.last().expect("there is at least one device");
        let two = self.run(PLAIN, &[device[0].clone(), other.clone()], &start)?;
        found.push(self.row("steps over two devices", &two, &one));

        found.push(self.resumed(device, &start)?);
        Ok(found)
    }

    /// With all that is drawn: dropout, and the rounding of moments.
    fn resumed(&self, device: &[Device], start: &TempDir) -> Result<Comparison, Error> {
        let way = Way {
            optimizer_state: Precision::Bf16,
            drops: true,
            ..PLAIN
        };
        let uninterrupted = self.run(way, device, start)?;
        let half = STEPS / 2;
        let mut first = self.learner(way, device)?;
        restore(&mut first, start)?;
        let mut measured = self.steps(&mut first, way, 1, 0..half)?;
        let middle = saved(&first)?;
        let mut second = self.learner(way, device)?;
        restore(&mut second, &middle)?;
        measured.extend(self.steps(&mut second, way, 1, half..STEPS)?);
        Ok(self.row("steps of a resumed run", &measured, &uninterrupted))
    }

    /// Every measured number beside what it should be.
    fn row(&self, quantity: &str, actual: &[f32], expected: &[f32]) -> Comparison {
        let quotients: Vec<f32> = actual.iter().zip(expected).map(|(a, e)| a / e).collect();
        let ones = vec![1.0_f32; expected.len()];
        Comparison::new(self.kind.name, quantity, &quotients, &ones)
    }

    fn run(&self, way: Way, devices: &[Device], start: &TempDir) -> Result<Vec<f32>, Error> {
        let mut learner = self.learner(way, devices)?;
        restore(&mut learner, start)?;
        self.steps(&mut learner, way, devices.len(), 0..STEPS)
    }

    fn learner(&self, way: Way, devices: &[Device]) -> Result<Learner, Error> {
        let devices: Vec<Device> = devices.iter().map(|one| one.clone().autodiff()).collect();
        let device = &devices[0];
        let heads = AlignerConfig {
            hidden: NonZeroUsize::new(48),
            projection: NonZeroUsize::new(24),
            dropout: (!way.drops).then(|| 0.0.try_into().expect("0 is a probability")),
            relu_outputs: None,
        };
        let heads = heads.resolve(Preset::Paper, self.kind.task);
        let folder = if way.drops {
            &self.checkpoint
        } else {
            self.without_dropout.path()
        };
        let storage = if self.kind.has_adapters {
            way.precision
        } else {
            Precision::F32
        };
        let (backbone, report) = Backbone::from_pretrained_as(folder, None, storage, device)?;
        let backbone = if self.kind.has_adapters {
            let lora = LoraConfig::default();
            backbone.with_lora(&lora, &report.missing, device)?
        } else {
            backbone
        };
        let width = backbone.config().architecture().hidden_size();
        let student = Student::from_parts(
            backbone.with_precision(way.precision),
            heads.init_student_heads(width, device),
        );
        let training = TrainingConfig {
            optimizer_state: way.optimizer_state,
            ..TrainingConfig::default()
        };
        let teacher = TeacherSide::new(heads.init_aligner(FEATURE_WIDTH, device), &training);
        let lessons = Lessons {
            objective: objective(self.kind.task),
            auxiliary: false,
            randomness: Randomness::new(1),
            activation_checkpointing: way.activation_checkpointing,
            gradient_accumulation: way.parts,
            num_devices: devices.len(),
        };
        Ok(Learner::new(
            lessons,
            student,
            Some(teacher),
            &training,
            &devices,
        ))
    }

    /// Losses and gradient norms of some steps.
    fn steps(
        &self,
        learner: &mut Learner,
        way: Way,
        num_devices: usize,
        steps: Range<u64>,
    ) -> Result<Vec<f32>, Error> {
        let feed = Feed {
            rows: &self.rows,
            features: Some(features(&self.rows)),
            pad_id: 0,
            padding: Padding::Longest,
            gradient_accumulation: way.parts,
            num_devices,
        };
        let rows: Vec<usize> = (0..ROWS).collect();
        let mut watch = Watch::default();
        let mut measured = Vec::new();
        for number in steps {
            let position = Position {
                step: number,
                student_step: number,
                aligner_step: number,
                ..Position::default()
            };
            let step = feed.step(Trained::Both, &rows);
            let outcome = learner.step(Trained::Both, step, position, RATES);
            let updates = watch.log(number + 1, &outcome)?;
            for update in [updates.aligner, updates.student].into_iter().flatten() {
                measured.extend([update.loss, update.gradient_norm as f32]);
            }
        }
        Ok(measured)
    }
}

/// A run's folder with its checkpoint.
fn saved(learner: &Learner) -> Result<TempDir, Error> {
    let folder = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir(), "write"))?;
    let identity = RunIdentity {
        variant: "method".to_owned(),
        seed: 1,
        cache: String::new(),
        data: String::new(),
        metric: String::new(),
        classes: None,
        student: None,
        num_devices: 1,
        config: serde_json::Value::Null,
    };
    let checkpoint = Checkpoint::new(identity, Position::default(), None, learner.files()?);
    Checkpoints::of(folder.path()).save(&checkpoint)?;
    Ok(folder)
}

fn restore(learner: &mut Learner, folder: &TempDir) -> Result<(), Error> {
    learner.restore(&Checkpoints::of(folder.path()).open(Which::Last)?)
}

fn objective(task: TaskKind) -> Objective {
    let default = ObjectiveSettings::default();
    let settings = ObjectiveSettings {
        alpha: if task == TaskKind::Generation {
            0.0
        } else {
            default.alpha
        },
        ..default
    };
    Objective::new(settings.try_into().expect("the defaults are an objective"))
}

/// Rows of different lengths; of texts, the second half is the response.
fn rows(task: TaskKind) -> Rows {
    let ids = |row: usize| -> Vec<u32> {
        let id = |position| ((row * 17 + position * 5) % (VOCABULARY - 5) + 5) as u32;
        (0..LENGTH - row).map(id).collect()
    };
    let encoding = |row: usize| Encoding {
        ids: ids(row),
        type_ids: vec![0; LENGTH - row],
    };
    let writing = |row: usize| Writing {
        whole: Sequence {
            ids: ids(row),
            response_start: (LENGTH - row) / 2,
        },
        prompt: Vec::new(),
        options: Vec::new(),
    };
    let example = |row: usize| {
        let fields = [("text".to_owned(), row.to_string())].into();
        Example::new(fields, None, Split::train()).id()
    };
    let num_writings = match task {
        TaskKind::Generation => ROWS,
        TaskKind::Classification { .. } | TaskKind::Regression => 0,
    };
    Rows {
        split: Split::train(),
        ids: (0..ROWS).map(example).collect(),
        encodings: (0..ROWS).map(encoding).collect(),
        writings: (0..num_writings).map(writing).collect(),
        labels: Labels::Classes((0..ROWS).map(|row| (row % CLASSES) as u32).collect()),
    }
}

fn features(rows: &Rows) -> TeacherFeatures {
    let values = (0..ROWS * FEATURE_WIDTH).map(|place| (place as f32 * 0.7).sin());
    TeacherFeatures::new(
        FEATURE_WIDTH,
        VectorValues::F32(values.collect()),
        (0..ROWS).collect(),
        rows.ids.clone(),
    )
}
