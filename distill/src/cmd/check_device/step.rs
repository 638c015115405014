//! The gradients of one training step, and the update that they lead to, beside the CPU's.

use std::num::NonZeroUsize;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use crate::aligner::Aligner;
use crate::data::{Padding, token_batch};
use crate::error::Error;
use crate::generator::{self, Others};
use crate::golden::Comparison;
use crate::heads::AlignerConfig;
use crate::model::Student;
use crate::objective::{Guidance, Objective, ObjectiveConfig, Preset, Targets, TaskKind};
use crate::optimizer::{ModuleAdamW, clip_global_norm};
use crate::student::weights::{load_safetensors, named_tensors, to_safetensors};
use crate::student::{Backbone, Encoding, FreshBertConfig};

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
    generator::drawing(device, 7, Others::None, || {
        let encoder = Backbone::fresh(&sizes, VOCABULARY, device)?;
        let heads_of_student = heads.init_student_heads(sizes.hidden_size, device);
        Ok(Models {
            student: Student::from_parts(encoder, heads_of_student),
            aligner: heads.init_aligner(FEATURE_WIDTH, device),
        })
    })
}

/// What a step computes before the optimiser: losses, and the gradient of every parameter.
struct Gradients {
    losses: Vec<f32>,
    gradients: Vec<TensorData>,
}

#[expect(clippy::disallowed_methods, reason = "a comparison reads")]
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
#[expect(clippy::disallowed_methods, reason = "a comparison reads")]
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

pub(super) fn compare(device: &Device) -> Result<Vec<Comparison>, Error> {
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
    let row = |quantity, actual: &[f32], expected: &[f32]| {
        Comparison::new("step", quantity, actual, expected)
    };
    // All tensors as one: gradients that are zero but for rounding are measured by the others.
    Ok(vec![
        row("losses", &actual.losses, &expected.losses),
        row(
            "gradients",
            &flat(&actual.gradients),
            &flat(&expected.gradients),
        ),
        row("updated parameters", &flat(&update), &flat(&updated)),
    ])
}

fn flat(all: &[TensorData]) -> Vec<f32> {
    let values = |data: &TensorData| data.clone().try_to_vec::<f32>();
    all.iter()
        .flat_map(|data| values(data).expect("parameters are f32"))
        .collect()
}
