//! `distill check-device`: the losses and gradients of a file of expected values, and one training step, on a device
//! beside the CPU.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use crate::aligner::Aligner;
use crate::cli::print;
use crate::data::{Padding, token_batch};
use crate::device::DeviceChoice;
use crate::error::{Error, Status};
use crate::golden;
use crate::heads::AlignerConfig;
use crate::model::Student;
use crate::objective::{Guidance, Objective, ObjectiveConfig, Preset, Targets, TaskKind};
use crate::optimizer::{ModuleAdamW, clip_global_norm};
use crate::student::weights::{load_safetensors, named_tensors, to_safetensors};
use crate::student::{Backbone, Encoding, FreshBertConfig};

/// The verb's command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// `cpu`, or `cuda:0` and so on in a build with feature `cuda`.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// A file of expected losses, as tests/golden/armada_losses.json.
    #[arg(long)]
    golden: Option<PathBuf>,
    /// Largest difference relative to the largest expected entry of a tensor.
    #[arg(long, default_value_t = 1e-3)]
    tolerance: f64,
}

/// One line of the table.
struct Line {
    name: String,
    count: usize,
    /// NaN where an entry is.
    difference: f64,
}

impl Arguments {
    /// Prints the table on standard output.
    ///
    /// # Errors
    /// [`Error::DeviceDiffers`] where a difference is over the tolerance.
    pub fn run(self) -> Result<Status, Error> {
        let device = self.device.open()?;
        let mut lines = Vec::new();
        if let Some(path) = &self.golden {
            let json = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
            lines.extend(golden_lines(&device, &json)?);
        }
        lines.extend(step_lines(&device)?);
        let mut text = format!(
            "{:28}  {:>7}  {:>12}\n",
            "quantity", "tensors", "difference"
        );
        for line in &lines {
            writeln!(
                text,
                "{:28}  {:>7}  {:>12.3e}",
                line.name, line.count, line.difference
            )
            .expect("a string takes any text");
        }
        print(&text)?;
        let is_over = |line: &&Line| line.difference.is_nan() || line.difference > self.tolerance;
        let count = lines.iter().filter(is_over).count();
        if count > 0 {
            return Err(Error::DeviceDiffers {
                device: self.device.to_string(),
                count,
                tolerance: self.tolerance,
            });
        }
        Ok(Status::Done)
    }
}

/// The largest difference of each quantity over all cases of the file.
fn golden_lines(device: &Device, json: &str) -> Result<Vec<Line>, Error> {
    let mut lines: Vec<Line> = Vec::new();
    for comparison in golden::compare(device, json)? {
        let name = format!("golden {}", comparison.quantity);
        let difference = comparison.relative();
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => {
                line.count += 1;
                line.difference = largest(line.difference, difference);
            }
            None => lines.push(Line {
                name,
                count: 1,
                difference,
            }),
        }
    }
    Ok(lines)
}

/// `max` that keeps NaN.
fn largest(one: f64, two: f64) -> f64 {
    if one.is_nan() || two.is_nan() {
        f64::NAN
    } else {
        one.max(two)
    }
}

/// Rows, positions and classes of the training step.
const ROWS: usize = 6;
const LONGEST: usize = 12;
const VOCABULARY: usize = 60;
const CLASSES: usize = 3;
const FEATURE_WIDTH: usize = 40;
/// Not a realistic rate: large enough for an update to be seen beside the parameters.
const RATE: f64 = 0.05;

/// Student and aligner at the start of the step, drawn on the CPU.
struct Models {
    student: Student,
    aligner: Aligner,
}

fn models(device: &Device) -> Result<Models, Error> {
    let sizes = FreshBertConfig {
        hidden_size: 32,
        num_layers: 2,
        num_heads: 4,
        intermediate_size: 64,
        max_positions: 32,
        dropout: 0.0,
    };
    let aligner = AlignerConfig {
        hidden: NonZeroUsize::new(48),
        projection: NonZeroUsize::new(24),
        ..AlignerConfig::default()
    };
    let mut heads = aligner.resolve(
        Preset::Paper,
        TaskKind::Classification {
            num_classes: CLASSES,
        },
    );
    // Devices draw different numbers.
    heads.dropout = 0.0;
    device.seed(7);
    let encoder = Backbone::fresh(&sizes, VOCABULARY, device)?;
    let student = Student::from_parts(encoder, heads.init_student_heads(sizes.hidden_size, device));
    Ok(Models {
        student,
        aligner: heads.init_aligner(FEATURE_WIDTH, device),
    })
}

/// What a step computes before the optimiser: losses, and the gradient of every parameter.
struct Gradients {
    losses: Vec<f32>,
    gradients: Vec<TensorData>,
}

fn gradients(models: &Models, device: &Device) -> Gradients {
    let encodings: Vec<Encoding> = (0..ROWS)
        .map(|row| {
            let length = LONGEST - row;
            let ids = (0..length)
                .map(|position| ((row * 17 + position * 5) % (VOCABULARY - 1) + 1) as u32);
            Encoding {
                ids: ids.collect(),
                type_ids: (0..length)
                    .map(|position| u32::from(2 * position > length))
                    .collect(),
            }
        })
        .collect();
    let tokens = token_batch(
        &encodings.iter().collect::<Vec<_>>(),
        0,
        Padding::Longest,
        device,
    );
    let feature = (0..ROWS * FEATURE_WIDTH)
        .map(|n| (n as f32 * 0.7).sin())
        .collect::<Vec<_>>();
    let feature = Tensor::<2>::from_data(TensorData::new(feature, [ROWS, FEATURE_WIDTH]), device);
    let classes = (0..CLASSES)
        .cycle()
        .take(ROWS)
        .map(|class| class as u32)
        .collect::<Vec<_>>();
    let targets = Targets::Classes(Tensor::from_data(TensorData::new(classes, [ROWS]), device));
    let objective = Objective::new(ObjectiveConfig::default());
    let taught = models.aligner.forward(feature);
    let aligner_loss = objective.aligner_loss(&taught, &targets);
    let outputs = models.student.forward(&tokens, &targets);
    let student_loss = objective.student_loss(&outputs, Guidance::Teacher(&taught), &targets);

    let terms = student_loss
        .terms
        .iter()
        .map(|(_, term)| term)
        .chain([&student_loss.total, &aligner_loss.total]);
    let losses = terms
        .map(|term| term.clone().into_scalar::<f32>())
        .collect();
    let mut gradients = collect(
        &models.student,
        &GradientsParams::from_grads(student_loss.total.backward(), &models.student),
    );
    gradients.extend(collect(
        &models.aligner,
        &GradientsParams::from_grads(aligner_loss.total.backward(), &models.aligner),
    ));
    Gradients { losses, gradients }
}

/// Gradients in the order of the module's fields.
fn collect<M: Module>(module: &M, gradients: &GradientsParams) -> Vec<TensorData> {
    struct Collector<'a> {
        gradients: &'a GradientsParams,
        found: Vec<TensorData>,
    }
    impl ModuleVisitor for Collector<'_> {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            self.found
                .extend(self.gradients.get::<D>(parameter.id).map(Tensor::into_data));
        }
    }
    let mut collector = Collector {
        gradients,
        found: Vec::new(),
    };
    module.visit(&mut collector);
    collector.found
}

/// Clips `gradients` and takes one step with them; all parameters afterwards.
fn update(student: Student, gradients: &[TensorData], device: &Device) -> Vec<TensorData> {
    struct Register<'a> {
        gradients: std::slice::Iter<'a, TensorData>,
        device: Device,
        registered: GradientsParams,
    }
    impl ModuleVisitor for Register<'_> {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            let data = self
                .gradients
                .next()
                .expect("every parameter has a gradient")
                .clone();
            self.registered
                .register(parameter.id, Tensor::<D>::from_data(data, &self.device));
        }
    }
    let mut register = Register {
        gradients: gradients.iter(),
        device: device.clone().inner(),
        registered: GradientsParams::new(),
    };
    student.visit(&mut register);
    let clipped = clip_global_norm(&student, register.registered, 1.0);
    let student = ModuleAdamW::new(0.01).step(RATE, student, clipped.gradients);
    named_tensors(&student)
        .into_iter()
        .map(|tensor| tensor.data)
        .collect()
}

fn step_lines(device: &Device) -> Result<Vec<Line>, Error> {
    let cpu = Device::flex().autodiff();
    let device = device.clone().autodiff();
    let reference = models(&cpu)?;
    let other = models(&device)?;
    let other = Models {
        student: load_safetensors(other.student, &to_safetensors(&reference.student)?)?,
        aligner: load_safetensors(other.aligner, &to_safetensors(&reference.aligner)?)?,
    };
    let (expected, actual) = (gradients(&reference, &cpu), gradients(&other, &device));
    let of_student = named_tensors(&reference.student).len();
    // The same gradients on both, as an update by Adam turns the rounding of a tiny gradient into a whole step.
    let given = &expected.gradients[..of_student];
    let (updated, update) = (
        update(reference.student, given, &cpu),
        update(other.student, given, &device),
    );
    Ok(vec![
        Line {
            name: "step losses".to_owned(),
            count: expected.losses.len(),
            difference: relative(&actual.losses, &expected.losses),
        },
        line("step gradients", &actual.gradients, &expected.gradients),
        line("step updated parameters", &update, &updated),
    ])
}

/// All tensors as one: gradients that are zero but for rounding are measured by the others.
fn line(name: &str, actual: &[TensorData], expected: &[TensorData]) -> Line {
    let flat = |all: &[TensorData]| -> Vec<f32> {
        all.iter()
            .flat_map(|data| {
                data.clone()
                    .try_to_vec::<f32>()
                    .expect("parameters are f32")
            })
            .collect()
    };
    Line {
        name: name.to_owned(),
        count: expected.len(),
        difference: relative(&flat(actual), &flat(expected)),
    }
}

/// Largest difference by largest expected entry; NaN where sizes differ.
fn relative(actual: &[f32], expected: &[f32]) -> f64 {
    if actual.len() != expected.len() {
        return f64::NAN;
    }
    let pairs = actual.iter().zip(expected);
    let difference = pairs
        .map(|(a, e)| f64::from(a - e).abs())
        .fold(0.0, largest);
    let magnitude = expected
        .iter()
        .map(|e| f64::from(e.abs()))
        .fold(0.0, largest);
    if difference == 0.0 {
        0.0
    } else {
        difference / magnitude
    }
}
