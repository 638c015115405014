//! Times training steps of a student of any shape, with random weights, on any device; `scripts/bench_student` compares
//! them with PyTorch in one run.
//!
//! Prints one JSON line: seconds of the best step, of which until the host was through with it, its parts, the last loss,
//! and the MiB that the device's allocator has reserved. With `--profile` also the parts of its layers in isolation, and
//! how long a step of 8 tokens takes, which is all launches. With `--kernels` nothing but where in that file the kernels of
//! `--repeats` steps are listed; cubecl writes the file if its configuration says so.

mod parts;

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, FloatDType, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use distill::aligner::Aligner;
use distill::device::{DeviceChoice, Precision};
use distill::heads::{AlignerConfig, StudentHeads};
use distill::model::Student;
use distill::objective::{Guidance, Objective, ObjectiveConfig, Preset, Targets, TaskKind};
use distill::optimizer::{ModuleAdamW, clip_global_norm};
use distill::student::{Backbone, BackboneConfig, LoraConfig, TokenBatch};
use serde_json::{Value, json};

use crate::parts::Layer;

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
    /// Say where the time goes.
    #[arg(long)]
    profile: bool,
    /// The log of kernels that cubecl writes.
    #[arg(long)]
    kernels: Option<PathBuf>,
}

impl Arguments {
    fn precision(&self) -> Precision {
        match self.precision {
            PrecisionName::F32 => Precision::F32,
            PrecisionName::Bf16 => Precision::Bf16,
        }
    }
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
        let precision = arguments.precision();
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
                let [rows, positions, _] = hidden_bsd.dims();
                let target_bsd = self.target_bsd.clone().slice([0..rows, 0..positions]);
                (hidden_bsd - target_bsd).square().mean()
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

/// Token ids, features and classes that differ from batch to batch.
struct Batches<'a> {
    shape: [usize; 2],
    vocab_size: usize,
    device: &'a Device,
    state: u64,
}

impl Batches<'_> {
    fn next(&mut self) -> Batch {
        let [rows, positions] = self.shape;
        let mut next_id = || {
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((self.state >> 33) % (self.vocab_size as u64 - 200) + 100).cast_signed()
        };
        let ids: Vec<i64> = (0..rows * positions).map(|_| next_id()).collect();
        let classes: Vec<u32> = (0..rows).map(|row| (row % CLASSES) as u32).collect();
        let device = self.device;
        let normal = Distribution::Normal(0.0, 1.0);
        Batch {
            tokens: TokenBatch {
                token_ids_bs: Tensor::from_data(TensorData::new(ids, self.shape), device),
                type_ids_bs: Tensor::zeros(self.shape, device),
                attention_mask_bs: Tensor::ones(self.shape, device),
            },
            feature_bf: Tensor::random([rows, FEATURE_WIDTH], normal, device),
            targets: Targets::Classes(Tensor::from_data(TensorData::new(classes, [rows]), device)),
        }
    }
}

/// One timing of several steps.
struct Timing {
    /// Seconds a step.
    step: f64,
    /// Seconds a step until the host was through with it.
    host: f64,
    loss: f32,
}

impl Bench {
    fn time(
        &mut self,
        batches: &mut Batches<'_>,
        repeats: usize,
    ) -> Result<Timing, Box<dyn Error>> {
        let prepared: Vec<Batch> = (0..repeats).map(|_| batches.next()).collect();
        self.device.sync()?;
        let start = Instant::now();
        let mut loss = None;
        for batch in prepared {
            loss = Some(self.step(batch, |_| ()));
        }
        let host = start.elapsed().as_secs_f64() / repeats as f64;
        self.device.sync()?;
        let step = start.elapsed().as_secs_f64() / repeats as f64;
        let loss = loss.ok_or("at least one step")?.into_scalar();
        Ok(Timing { step, host, loss })
    }

    /// The part of cubecl's log that lists the kernels of some steps.
    fn kernels(
        &mut self,
        batches: &mut Batches<'_>,
        arguments: &Arguments,
        log: &Path,
    ) -> Result<[u64; 2], Box<dyn Error>> {
        for _ in 0..arguments.warmup {
            self.time(batches, 1)?;
        }
        // The log is written by a thread of its own.
        let size = || -> std::io::Result<u64> {
            std::thread::sleep(Duration::from_secs(1));
            Ok(std::fs::metadata(log)?.len())
        };
        let before = size()?;
        self.time(batches, arguments.repeats)?;
        Ok([before, size()?])
    }
}

/// The fewest tokens of a step, so that its time is that of launches and of the optimiser.
const LEAST: [usize; 2] = [1, 8];

fn profile(
    bench: &mut Bench,
    batches: &mut Batches<'_>,
    arguments: &Arguments,
) -> Result<Value, Box<dyn Error>> {
    let config = serde_json::from_str(&std::fs::read_to_string(&arguments.config)?)?;
    let shape = std::mem::replace(&mut batches.shape, LEAST);
    for _ in 0..2 {
        bench.time(batches, 1)?;
    }
    let least = bench.time(batches, arguments.repeats)?;
    batches.shape = shape;
    let is_frozen = arguments.lora.is_some();
    let layer = Layer::new(&config, shape, is_frozen, arguments.precision())?;
    Ok(json!({
        "least": least.step,
        "layers": layer.seconds(&bench.device, arguments.repeats),
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let device = arguments.device.open()?.autodiff();
    device.seed(42);
    let config = BackboneConfig::from_file(&arguments.config)?;
    let mut batches = Batches {
        shape: [arguments.rows, arguments.positions],
        vocab_size: config.architecture().vocab_size(),
        device: &device,
        state: 1,
    };
    let mut bench = Bench::new(&arguments, config, device.clone())?;
    if let Some(log) = &arguments.kernels {
        let place = bench.kernels(&mut batches, &arguments, log)?;
        writeln!(
            std::io::stdout(),
            "{}",
            json!({"kernels": place, "steps": arguments.repeats})
        )?;
        return Ok(());
    }
    for _ in 0..arguments.warmup {
        bench.time(&mut batches, arguments.repeats)?;
    }
    let mut best = bench.time(&mut batches, arguments.repeats)?;
    for _ in 1..arguments.steps {
        let timing = bench.time(&mut batches, arguments.repeats)?;
        if timing.step < best.step {
            best = timing;
        }
    }
    let reserved = device
        .memory_pool_usage()
        .map(|usage| usage.bytes_reserved as f64 / 1_048_576.0);
    let parts = bench.parts(batches.next());
    let profile = if arguments.profile {
        profile(&mut bench, &mut batches, &arguments)?
    } else {
        Value::Null
    };
    let line = json!({
        "step": best.step, "host": best.host, "loss": best.loss, "reserved": reserved,
        "parts": {
            "aligner": parts.aligner, "forward": parts.forward,
            "backward": parts.backward, "optimiser": parts.optimiser,
        },
        "profile": profile,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
