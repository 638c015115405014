//! Times training steps of a student of any shape, with random weights, on any device; `scripts/bench_student` compares
//! them with PyTorch in one run.
//!
//! Prints one JSON line: seconds of the best step, its parts, and the last loss.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, FloatDType, Int, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use distill::aligner::Aligner;
use distill::device::{DeviceChoice, Precision};
use distill::heads::{AlignerConfig, StudentHeads};
use distill::model::Student;
use distill::objective::{Guidance, Objective, ObjectiveConfig, Preset, Targets, TaskKind};
use distill::optimizer::{ModuleAdamW, clip_global_norm};
use distill::student::{Backbone, BackboneConfig, LoraConfig, TokenBatch};
use serde_json::json;

const FEATURE_WIDTH: usize = 1024;
const CLASSES: usize = 2;
const WEIGHT_DECAY: f64 = 0.01;
const STUDENT_RATE: f64 = 2e-5;
const ALIGNER_RATE: f64 = 3e-3;
const MAX_NORM: f64 = 1.0;

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Trains {
    /// The backbone under a squared error of its hidden states.
    Backbone,
    /// The joint step of the method: aligner, student, all losses of preset `paper`.
    Armada,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionName {
    F32,
    Bf16,
}

#[derive(Parser)]
struct Arguments {
    /// A config.json.
    config: PathBuf,
    #[arg(long)]
    trains: Trains,
    #[arg(long, default_value_t = 16)]
    rows: usize,
    #[arg(long, default_value_t = 128)]
    positions: usize,
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    #[arg(long, value_enum, default_value_t = PrecisionName::F32)]
    precision: PrecisionName,
    /// The table `[student.lora]` as JSON: adapters alone are trained, and frozen weights are stored in the precision.
    #[arg(long)]
    lora: Option<String>,
    /// Timings, of which the best counts.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Timings before them that do not count.
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Steps of one timing, between two synchronisations.
    #[arg(long, default_value_t = 1)]
    repeats: usize,
}

/// Seconds of a step's parts, each followed by a synchronisation.
#[derive(Clone, Copy, Default)]
struct Parts {
    aligner: f64,
    forward: f64,
    backward: f64,
    optimiser: f64,
}

/// One batch of everything.
struct Batch {
    tokens: TokenBatch,
    feature_bf: Tensor<2>,
    targets: Targets,
}

/// As a checkpoint of frozen weights is loaded.
struct FrozenToBf16;

impl ModuleMapper for FrozenToBf16 {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if parameter.is_require_grad() {
            parameter
        } else {
            parameter.map(|tensor| tensor.cast(FloatDType::BF16))
        }
    }
}

struct Bench {
    trains: Trains,
    device: Device,
    student: Student,
    aligner: Aligner,
    optimiser: ModuleAdamW,
    aligner_optimiser: ModuleAdamW,
    objective: Objective,
    target_bsd: Tensor<3>,
}

impl Bench {
    fn new(
        arguments: &Arguments,
        config: BackboneConfig,
        device: Device,
    ) -> Result<Self, Box<dyn Error>> {
        let width = config.architecture().hidden_size();
        let task = TaskKind::Classification {
            num_classes: CLASSES,
        };
        let heads = AlignerConfig::default().resolve(Preset::Paper, task);
        let precision = match arguments.precision {
            PrecisionName::F32 => Precision::F32,
            PrecisionName::Bf16 => Precision::Bf16,
        };
        let mut backbone = Backbone::initialised(config, &device).with_precision(precision);
        if let Some(lora) = &arguments.lora {
            let lora: LoraConfig = serde_json::from_str(lora)?;
            backbone = backbone.with_lora(&lora, &[], &device)?;
            if precision == Precision::Bf16 {
                backbone = backbone.map(&mut FrozenToBf16);
            }
        }
        let student_heads: StudentHeads = heads.init_student_heads(width, &device);
        let shape = [arguments.rows, arguments.positions, width];
        Ok(Self {
            trains: arguments.trains,
            student: Student::from_parts(backbone, student_heads),
            aligner: heads.init_aligner(FEATURE_WIDTH, &device),
            optimiser: ModuleAdamW::new(WEIGHT_DECAY),
            aligner_optimiser: ModuleAdamW::new(WEIGHT_DECAY),
            objective: Objective::new(ObjectiveConfig::default()),
            target_bsd: Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device),
            device,
        })
    }

    /// One step; `mark` is called at the end of each of its four parts.
    fn step(&mut self, batch: Batch, mut mark: impl FnMut(usize)) -> Tensor<1> {
        let Batch {
            tokens,
            feature_bf,
            targets,
        } = batch;
        let loss = match self.trains {
            Trains::Backbone => {
                mark(0);
                let hidden_bsd = self.student.backbone().forward(&tokens).hidden_bsd;
                (hidden_bsd - self.target_bsd.clone()).square().mean()
            }
            Trains::Armada => {
                let taught = self.aligner.forward(feature_bf);
                let loss = self.objective.aligner_loss(&taught, &targets).total;
                let gradients = GradientsParams::from_grads(loss.backward(), &self.aligner);
                let clipped = clip_global_norm(&self.aligner, gradients, MAX_NORM);
                self.aligner = self.aligner_optimiser.step(
                    ALIGNER_RATE,
                    self.aligner.clone(),
                    clipped.gradients,
                );
                mark(0);
                let outputs = self.student.forward(&tokens, &targets);
                self.objective
                    .student_loss(&outputs, Guidance::Teacher(&taught), &targets)
                    .total
            }
        };
        mark(1);
        let gradients = GradientsParams::from_grads(loss.backward(), &self.student);
        mark(2);
        let clipped = clip_global_norm(&self.student, gradients, MAX_NORM);
        self.student = self
            .optimiser
            .step(STUDENT_RATE, self.student.clone(), clipped.gradients);
        mark(3);
        loss.inner()
    }

    /// Seconds of one step's parts.
    fn parts(&mut self, batch: Batch) -> Parts {
        let device = self.device.clone();
        let mut times = [0.0; 4];
        let mut last = Instant::now();
        self.step(batch, |part| {
            device.sync().expect("the device works");
            times[part] = last.elapsed().as_secs_f64();
            last = Instant::now();
        });
        let [aligner, forward, backward, optimiser] = times;
        Parts {
            aligner,
            forward,
            backward,
            optimiser,
        }
    }
}

fn batch(arguments: &Arguments, vocab_size: usize, seed: u64, device: &Device) -> Batch {
    let shape = [arguments.rows, arguments.positions];
    let mut state = seed;
    let ids = (0..shape[0] * shape[1])
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % (vocab_size as u64 - 200) + 100).cast_signed()
        })
        .collect();
    let classes = (0..arguments.rows)
        .map(|row| (row % CLASSES) as u32)
        .collect();
    Batch {
        tokens: TokenBatch {
            token_ids_bs: Tensor::<2, Int>::from_data(
                TensorData::new::<i64, _>(ids, shape),
                device,
            ),
            type_ids_bs: Tensor::zeros(shape, device),
            attention_mask_bs: Tensor::ones(shape, device),
        },
        feature_bf: Tensor::random(
            [arguments.rows, FEATURE_WIDTH],
            Distribution::Normal(0.0, 1.0),
            device,
        ),
        targets: Targets::Classes(Tensor::from_data(
            TensorData::new::<u32, _>(classes, [arguments.rows]),
            device,
        )),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let device = arguments.device.open()?.autodiff();
    device.seed(42);
    let config = BackboneConfig::from_file(&arguments.config)?;
    let vocab_size = config.architecture().vocab_size();
    let mut bench = Bench::new(&arguments, config, device.clone())?;
    let mut number = 0;
    let mut next = || {
        number += 1;
        batch(&arguments, vocab_size, number, &device)
    };
    let (mut best, mut last_loss) = (f64::INFINITY, f32::NAN);
    for timing in 0..arguments.warmup + arguments.steps {
        let batches: Vec<Batch> = (0..arguments.repeats).map(|_| next()).collect();
        device.sync()?;
        let start = Instant::now();
        let mut loss = None;
        for batch in batches {
            loss = Some(bench.step(batch, |_| ()));
        }
        device.sync()?;
        let seconds = start.elapsed().as_secs_f64() / arguments.repeats as f64;
        last_loss = loss.ok_or("at least one step")?.into_scalar();
        if timing >= arguments.warmup {
            best = best.min(seconds);
        }
    }
    let parts = bench.parts(next());
    let line = json!({
        "step": best, "loss": last_loss,
        "parts": {
            "aligner": parts.aligner, "forward": parts.forward,
            "backward": parts.backward, "optimiser": parts.optimiser,
        },
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
