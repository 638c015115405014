//! Gradients computed layer by layer beside those of one graph.
#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test fails by panicking; equal bits are meant"
)]

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use distill::device::Precision;
use distill::heads::AlignerConfig;
use distill::model::Student;
use distill::objective::{
    Guidance, Objective, ObjectiveConfig, Preset, Responses, StudentOutputs, Targets, TaskKind,
};
use distill::random::{Purpose, Randomness};
use distill::student::checkpointing::{Segment, SegmentDraws};
use distill::student::{Backbone, FreshBertConfig, LoraConfig, TokenBatch};

/// The CPU's random state belongs to the process: one test at a time draws from it.
static RANDOM_STATE: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    RANDOM_STATE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

const ROWS: usize = 3;
const POSITIONS: usize = 7;
const WIDTH: usize = 16;
const VOCABULARY: usize = 40;

fn device() -> Device {
    Device::flex().autodiff()
}

fn with_heads(backbone: Backbone, dropout: f64) -> Student {
    with_heads_for(
        backbone,
        dropout,
        TaskKind::Classification { num_classes: 2 },
    )
}

fn with_heads_for(backbone: Backbone, dropout: f64, task: TaskKind) -> Student {
    let aligner = AlignerConfig {
        projection: NonZeroUsize::new(12),
        dropout: Some(dropout.try_into().unwrap()),
        ..AlignerConfig::default()
    };
    let heads = aligner.resolve(Preset::Paper, task);
    let width = backbone.config().architecture().hidden_size();
    Student::from_parts(backbone, heads.init_student_heads(width, &device()))
}

fn student(dropout: f64, precision: Precision) -> Student {
    let device = device();
    device.seed(11);
    let sizes = FreshBertConfig {
        hidden_size: WIDTH,
        num_layers: 3,
        num_heads: 4,
        intermediate_size: 32,
        max_positions: 16,
        dropout,
    };
    let backbone = Backbone::fresh(&sizes, VOCABULARY, &device).unwrap();
    with_heads(backbone.with_precision(precision), dropout)
}

fn batch(device: &Device) -> TokenBatch {
    let ids = |value: &dyn Fn(usize) -> usize| {
        let values: Vec<i64> = (0..ROWS * POSITIONS)
            .map(|index| value(index).try_into().unwrap())
            .collect();
        Tensor::<2, Int>::from_data(TensorData::new(values, [ROWS, POSITIONS]), device)
    };
    TokenBatch {
        token_ids_bs: ids(&|index| index * 7 % VOCABULARY),
        type_ids_bs: ids(&|index| usize::from(index % POSITIONS > 3)),
        attention_mask_bs: ids(&|index| usize::from(index % POSITIONS < 7 - index / POSITIONS)),
    }
}

/// What the student's kind of task is answered with.
fn targets(student: &Student, device: &Device) -> Targets {
    let integers = |values: [i64; 3]| Tensor::from_ints(values, device);
    if !student.writes() {
        return Targets::Classes(integers([0, 1, 1]));
    }
    Targets::Responses(Responses {
        rows_r: integers([0, 0, 2]),
        columns_r: integers([3, 4, 2]),
        tokens_r: integers([9, 5, 9]),
        weights_r: Tensor::from_floats([0.25, 0.25, 0.5], device),
        prompt_ends_b: integers([3, 1, 2]),
    })
}

fn loss(student: &Student, outputs: &StudentOutputs) -> Tensor<1> {
    let targets = targets(student, &outputs.main_bc.device());
    let loss = Objective::new(ObjectiveConfig::default())
        .student_loss(outputs, Guidance::AuxiliaryOnly, &targets)
        .total;
    // In a generation task the projection has no part in it otherwise.
    loss + outputs.projection_bk.clone().mean()
}

/// Every gradient by position, and the number of parameters without one.
fn collected<M: Module>(module: &M, gradients: &GradientsParams) -> (Vec<Vec<f32>>, usize) {
    struct Collector<'a>(&'a GradientsParams, Vec<Vec<f32>>, usize);
    impl ModuleVisitor for Collector<'_> {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            match self.0.get::<D>(parameter.id) {
                Some(gradient) => self.1.push(gradient.into_data().try_to_vec().unwrap()),
                None => self.2 += 1,
            }
        }
    }
    let mut collector = Collector(gradients, Vec::new(), 0);
    module.visit(&mut collector);
    (collector.1, collector.2)
}

fn ordinary(student: &Student) -> (f32, GradientsParams) {
    let targets = targets(student, &device());
    let loss = loss(student, &student.forward(&batch(&device()), &targets));
    let value = loss.clone().into_scalar();
    (value, GradientsParams::from_grads(loss.backward(), student))
}

struct Draws;

impl SegmentDraws for Draws {
    fn drawing<T>(&self, segment: Segment, compute: impl FnOnce() -> T) -> T {
        let purpose = Purpose::StudentDropout;
        device().seed(Randomness::new(5).device_seed(purpose, segment.number()));
        compute()
    }
}

fn checkpointed(student: &Student) -> (f32, GradientsParams) {
    let targets = targets(student, &device());
    let (gradients, value) =
        student.checkpointed_gradients(&batch(&device()), &targets, &Draws, |outputs| {
            let loss = loss(student, &outputs);
            (loss.clone(), loss.into_scalar::<f32>())
        });
    (value, gradients)
}

fn assert_same_gradients(student: &Student, tolerance: f32) -> usize {
    let (expected_loss, expected) = ordinary(student);
    let (actual_loss, actual) = checkpointed(student);
    assert_eq!(actual_loss, expected_loss);
    let (expected, num_frozen) = collected(student, &expected);
    let (actual, num_without) = collected(student, &actual);
    assert_eq!(num_without, num_frozen);
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(&expected) {
        let largest = expected
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        for (actual, expected) in actual.iter().zip(expected) {
            let difference = (actual - expected).abs();
            assert!(
                difference <= tolerance * largest,
                "{actual} is not {expected}"
            );
        }
    }
    num_frozen
}

#[test]
fn without_dropout_gradients_are_those_of_one_graph() {
    let _turn = turn();
    assert_eq!(
        assert_same_gradients(&student(0.0, Precision::F32), 1e-6),
        0
    );
}

#[test]
fn in_bf16_they_are_too() {
    let _turn = turn();
    assert_eq!(
        assert_same_gradients(&student(0.0, Precision::Bf16), 1e-6),
        0
    );
}

/// Students of every kind of layer: DeBERTa's share what they read of relative positions, and its first layer has a
/// convolution beside it.
const ENCODERS: [&str; 3] = [
    "bert-tiny",
    "encoders/deberta-v2",
    "encoders/deberta-separate",
];
const DECODERS: [&str; 5] = [
    "causal/llama-grouped-tied",
    "causal/qwen2",
    "causal/qwen3",
    "causal/opt",
    "causal/opt-post-norm-projected",
];

/// A copy of a fixture whose configuration has no dropout.
fn without_dropout(name: &str) -> tempfile::TempDir {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let fixture = fixture.join(name);
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(fixture.join("config.json")).unwrap();
    let config = config.replace(": 0.1", ": 0.0");
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let weights = "model.safetensors";
    std::fs::copy(fixture.join(weights), dir.path().join(weights)).unwrap();
    dir
}

#[test]
fn every_architecture_has_the_gradients_of_one_graph() {
    let _turn = turn();
    for name in ENCODERS.into_iter().chain(DECODERS) {
        let dir = without_dropout(name);
        for precision in [Precision::F32, Precision::Bf16] {
            let (backbone, _) = Backbone::from_pretrained(dir.path(), None, &device()).unwrap();
            let student = with_heads(backbone.with_precision(precision), 0.0);
            let num_frozen = assert_same_gradients(&student, 1e-6);
            assert_eq!(num_frozen, 0, "{name}");
        }
    }
}

#[test]
fn beside_adapters_only_what_is_trained_has_gradients() {
    let _turn = turn();
    let lora = toml::from_str::<LoraConfig>("target_modules = 'all-linear'").unwrap();
    for name in ENCODERS.into_iter().chain(DECODERS) {
        let dir = without_dropout(name);
        for precision in [Precision::F32, Precision::Bf16] {
            let device = device();
            let (backbone, report) =
                Backbone::from_pretrained_as(dir.path(), None, precision, &device).unwrap();
            let backbone = backbone.with_lora(&lora, &report.missing, &device).unwrap();
            let student = with_heads(backbone.with_precision(precision), 0.0);
            let num_frozen = assert_same_gradients(&student, 1e-6);
            assert_eq!(num_frozen, report.applied.len(), "{name}");
        }
    }
}

/// The head of most is the word embedding, which the first and the last part use both.
#[test]
fn a_student_that_writes_has_the_gradients_of_one_graph() {
    let _turn = turn();
    for name in ["causal/llama-grouped-tied", "causal/qwen3", "causal/opt"] {
        let dir = without_dropout(name);
        for precision in [Precision::F32, Precision::Bf16] {
            let (backbone, _) = Backbone::from_pretrained(dir.path(), None, &device()).unwrap();
            let backbone = backbone.with_precision(precision);
            let student = with_heads_for(backbone, 0.0, TaskKind::Generation);
            assert!(student.writes());
            let num_frozen = assert_same_gradients(&student, 1e-6);
            assert_eq!(num_frozen, 0, "{name}");
        }
    }
}

/// Moves every parameter along its gradient.
struct Mover<'a>(&'a GradientsParams, f32);

impl ModuleMapper for Mover<'_> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.0.get::<D>(parameter.id).unwrap();
        let moved = parameter.val().inner() + gradient.mul_scalar(self.1);
        let id = parameter.id;
        Param::initialized(id, Tensor::from_inner(moved).require_grad())
    }
}

/// The masks of the second computation are those of the first: the loss, which comes from the first, grows along the
/// gradient, which comes from the second, by the gradient's squared length.
#[test]
fn with_dropout_the_gradient_is_that_of_the_very_loss() {
    let _turn = turn();
    let student = student(0.3, Precision::F32);
    let (value, gradients) = checkpointed(&student);
    let (again, _) = checkpointed(&student);
    assert_eq!(value, again);
    let device = Device::flex();
    let without = student
        .valid()
        .forward(&batch(&device), &targets(&student, &device));
    assert_ne!(value, loss(&student, &without).into_scalar::<f32>());
    let (all, _) = collected(&student, &gradients);
    let square: f32 = all.iter().flatten().map(|value| value * value).sum();
    let step = 1e-2 / square.sqrt();
    let moved = |step| checkpointed(&student.clone().map(&mut Mover(&gradients, step))).0;
    let slope = (moved(step) - moved(-step)) / (2.0 * step);
    assert!(
        (slope / square - 1.0).abs() < 5e-3,
        "{slope} is not {square}"
    );
}
