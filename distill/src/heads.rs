//! The student's heads, and what they share with the aligner: widths, dropout and initialisation.
//!
//! Shape suffixes: `b` rows, `c` outputs (classes, or 1 for regression), `d` student width, `k` shared width, `x` any width.

use std::num::NonZeroUsize;

use burn::module::{Initializer, Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::aligner::Aligner;
use crate::dropout::Dropout;
use crate::objective::{Preset, StudentOutputs, TaskKind};
use crate::orthogonal::Orthogonal;

/// Standard deviation of the initial weights of the output heads.
const HEAD_DEVIATION: f64 = 0.02;
/// h where the configuration does not say.
const DEFAULT_HIDDEN: usize = 768;
/// k of the `paper` preset where the configuration does not say.
const DEFAULT_PROJECTION_PAPER: usize = 768;
/// k of the `reference` preset where the configuration does not say.
const DEFAULT_PROJECTION_REFERENCE: usize = 1024;
/// Dropout where the configuration does not say.
const DEFAULT_DROPOUT: f64 = 0.1;

/// A dropout probability, in `[0, 1)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct DropoutProbability(f64);

/// A number that is no dropout probability.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("dropout is {0}; it is a probability, from 0 to less than 1")]
pub struct DropoutError(f64);

impl DropoutError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some("the authors' script uses 0.1; 0 turns dropout off".to_owned())
    }
}

impl TryFrom<f64> for DropoutProbability {
    type Error = DropoutError;

    fn try_from(probability: f64) -> Result<Self, DropoutError> {
        if (0.0..1.0).contains(&probability) {
            Ok(Self(probability))
        } else {
            Err(DropoutError(probability))
        }
    }
}

impl From<DropoutProbability> for f64 {
    fn from(probability: DropoutProbability) -> Self {
        probability.0
    }
}

/// The aligner's part of a run configuration. What is left out, the preset decides; see [`AlignerConfig::resolve`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlignerConfig {
    /// h: width of the aligner's two hidden layers. 768 in both presets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<NonZeroUsize>,
    /// k: width of the shared space. 768 in `paper`, 1,024 in `reference`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection: Option<NonZeroUsize>,
    /// Dropout in the aligner and before every head. 0.1 in both presets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<DropoutProbability>,
    /// Whether main and auxiliary outputs of aligner and student pass a ReLU. Only for regression in `reference`, whose
    /// script does so for STS-B: outputs cannot be negative there, but a head whose outputs are all negative stops learning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relu_outputs: Option<bool>,
}

impl AlignerConfig {
    /// Fills in the preset's defaults.
    pub fn resolve(&self, preset: Preset, task: TaskKind) -> HeadsConfig {
        let projection = match preset {
            Preset::Paper => DEFAULT_PROJECTION_PAPER,
            Preset::Reference => DEFAULT_PROJECTION_REFERENCE,
        };
        HeadsConfig {
            preset,
            task,
            hidden: self.hidden.map_or(DEFAULT_HIDDEN, NonZeroUsize::get),
            projection: self.projection.map_or(projection, NonZeroUsize::get),
            dropout: self.dropout.map_or(DEFAULT_DROPOUT, f64::from),
            relu_outputs: self
                .relu_outputs
                .unwrap_or(preset == Preset::Reference && task == TaskKind::Regression),
        }
    }
}

/// Everything that shapes the aligner and the student's heads, except the widths that the cache and the student bring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadsConfig {
    /// Where the projections come from.
    pub preset: Preset,
    /// How wide outputs are.
    pub task: TaskKind,
    /// h.
    pub hidden: usize,
    /// k.
    pub projection: usize,
    /// In `[0, 1)`.
    pub dropout: f64,
    /// Whether outputs pass a ReLU.
    pub relu_outputs: bool,
}

impl HeadsConfig {
    /// A fresh aligner for teacher features of width D, drawn from the device's generator.
    pub fn init_aligner(&self, feature_width: usize, device: &Device) -> Aligner {
        Aligner::new(self, feature_width, device)
    }

    /// Fresh heads for a student whose pooled state has width d, drawn from the device's generator. A student that
    /// writes has its language-model head already: it gets the projection alone.
    pub fn init_student_heads(&self, student_width: usize, device: &Device) -> StudentHeads {
        StudentHeads::new(self, student_width, device)
    }

    pub(crate) fn init_dropout(&self) -> Dropout {
        Dropout::new(self.dropout)
    }
}

/// An output head: weights N(0, 0.02²), biases 0.
pub(crate) fn init_head(input_width: usize, outputs: usize, device: &Device) -> Linear {
    let normal = Initializer::Normal {
        mean: 0.0,
        std: HEAD_DEVIATION,
    };
    let head = LinearConfig::new(input_width, outputs)
        .with_bias(false)
        .with_initializer(normal);
    let mut head = drawn(head.init(device));
    head.bias = Some(Param::from_tensor(Tensor::zeros([outputs], device)));
    head
}

/// Draws the values of a layer now: parameters are otherwise drawn at their first use, so that the numbers a seed gives
/// would depend on the order in which layers are first used.
pub(crate) fn drawn(linear: Linear) -> Linear {
    linear.weight.val();
    if let Some(bias) = &linear.bias {
        bias.val();
    }
    linear
}

/// Applies a layer to rows of another float precision than its own.
pub(crate) fn apply(linear: &Linear, input_bx: Tensor<2>) -> Tensor<2> {
    let dtype = linear.weight.val().dtype();
    linear.forward(input_bx.cast(dtype))
}

/// The output activation: ReLU or nothing.
pub(crate) fn activate(outputs_bc: Tensor<2>, relu_outputs: bool) -> Tensor<2> {
    if relu_outputs {
        relu(outputs_bc)
    } else {
        outputs_bc
    }
}

/// p_s = P_s(u): orthogonal in `paper`, a plain linear map without bias in `reference`.
#[derive(Module, Debug)]
enum StudentProjection {
    Orthogonal(Orthogonal),
    Linear(Linear),
}

/// What sits on a student's pooled state: the main head, which inference keeps, and the projection and auxiliary head,
/// which only training uses.
#[derive(Module, Debug)]
pub struct StudentHeads {
    /// None where the task's outputs are the language model's.
    main: Option<Linear>,
    projection: StudentProjection,
    auxiliary: Option<Linear>,
    dropout: Dropout,
    relu_outputs: bool,
}

impl StudentHeads {
    fn new(config: &HeadsConfig, student_width: usize, device: &Device) -> Self {
        let head = |width: usize| {
            let outputs = config.task.num_outputs()?;
            Some(init_head(width, outputs, device))
        };
        let projection = match config.preset {
            Preset::Paper => StudentProjection::Orthogonal(Orthogonal::new(
                student_width,
                config.projection,
                device,
            )),
            Preset::Reference => {
                let linear = LinearConfig::new(student_width, config.projection).with_bias(false);
                StudentProjection::Linear(drawn(linear.init(device)))
            }
        };
        Self {
            main: head(student_width),
            projection,
            auxiliary: head(config.projection),
            dropout: config.init_dropout(),
            relu_outputs: config.relu_outputs,
        }
    }

    /// All three outputs: `o_s = Linear(drop u)`, `p_s = P_s(u)`, `a_s = Linear(drop p_s)`.
    ///
    /// # Shapes
    /// - `pooled_bd`: `[b, d]`
    ///
    /// # Panics
    /// The task is a generation task, whose main outputs are the language model's.
    pub fn forward(&self, pooled_bd: Tensor<2>) -> StudentOutputs {
        let projection_bk = self.project(pooled_bd.clone());
        let auxiliary_bc = self.auxiliary.as_ref().map(|auxiliary| {
            let auxiliary_bc = apply(auxiliary, self.dropout.forward(projection_bk.clone()));
            activate(auxiliary_bc, self.relu_outputs)
        });
        StudentOutputs {
            main_bc: self.main(pooled_bd),
            auxiliary_bc,
            projection_bk,
        }
    }

    /// Whether the main outputs are a language model's.
    pub fn writes(&self) -> bool {
        self.main.is_none()
    }

    /// The projection alone, `p_s = P_s(u)`: `[b, d] -> [b, k]`.
    pub fn project(&self, pooled_bd: Tensor<2>) -> Tensor<2> {
        match &self.projection {
            StudentProjection::Orthogonal(map) => map.forward(pooled_bd),
            StudentProjection::Linear(map) => apply(map, pooled_bd),
        }
    }

    /// The main outputs alone, `[b, d] -> [b, c]`: what evaluation and prediction use.
    ///
    /// # Panics
    /// As [`StudentHeads::forward`].
    pub fn main(&self, pooled_bd: Tensor<2>) -> Tensor<2> {
        activate(
            apply(self.main_linear(), self.dropout.forward(pooled_bd)),
            self.relu_outputs,
        )
    }

    /// The same heads whose main head has no bias, as the classes of causal language models in `transformers` have it.
    #[must_use]
    pub fn without_main_bias(mut self) -> Self {
        if let Some(main) = &mut self.main {
            main.bias = None;
        }
        self
    }

    /// The main head's layer, for export: weight `[d, c]`, bias `[c]` if it has one.
    ///
    /// # Panics
    /// As [`StudentHeads::forward`].
    pub fn main_linear(&self) -> &Linear {
        self.main
            .as_ref()
            .expect("a generation task is answered by the language-model head")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: TaskKind = TaskKind::Classification { num_classes: 3 };

    #[test]
    fn presets_fill_in_what_the_configuration_leaves_out() {
        let empty: AlignerConfig = toml::from_str("").unwrap();
        let paper = empty.resolve(Preset::Paper, CLASSES);
        assert_eq!(
            (
                paper.hidden,
                paper.projection,
                paper.dropout,
                paper.relu_outputs
            ),
            (768, 768, 0.1, false)
        );
        let reference = empty.resolve(Preset::Reference, TaskKind::Regression);
        assert_eq!(
            (
                reference.hidden,
                reference.projection,
                reference.dropout,
                reference.relu_outputs
            ),
            (768, 1024, 0.1, true)
        );
        assert!(
            !empty
                .resolve(Preset::Paper, TaskKind::Regression)
                .relu_outputs
        );
        let given: AlignerConfig =
            toml::from_str("hidden = 32\nprojection = 16\ndropout = 0\nrelu_outputs = false")
                .unwrap();
        let given = given.resolve(Preset::Reference, TaskKind::Regression);
        assert_eq!(
            (
                given.hidden,
                given.projection,
                given.dropout,
                given.relu_outputs
            ),
            (32, 16, 0.0, false)
        );
    }

    #[test]
    fn refuses_impossible_shapes() {
        let message = |text| {
            toml::from_str::<AlignerConfig>(text)
                .unwrap_err()
                .message()
                .to_owned()
        };
        assert_eq!(
            message("dropout = 1.0"),
            "dropout is 1; it is a probability, from 0 to less than 1"
        );
        assert!(message("hidden = 0").contains("nonzero"));
        assert!(message("width = 4").starts_with("unknown field `width`"));
    }

    #[test]
    fn shapes_follow_the_configuration() {
        let device = Device::flex();
        let config = AlignerConfig {
            projection: NonZeroUsize::new(7),
            ..AlignerConfig::default()
        };
        for preset in [Preset::Paper, Preset::Reference] {
            let heads = config
                .resolve(preset, CLASSES)
                .init_student_heads(5, &device);
            let outputs = heads.forward(Tensor::ones([2, 5], &device));
            assert_eq!(outputs.main_bc.dims(), [2, 3]);
            assert_eq!(outputs.auxiliary_bc.unwrap().dims(), [2, 3]);
            assert_eq!(outputs.projection_bk.dims(), [2, 7]);
            let bias: f32 = heads
                .main_linear()
                .bias
                .as_ref()
                .unwrap()
                .val()
                .abs()
                .max()
                .into_scalar();
            assert_eq!(bias, 0.0);
        }
    }

    #[test]
    fn outputs_pass_a_relu_when_asked() {
        let device = Device::flex();
        let config = AlignerConfig {
            projection: NonZeroUsize::new(4),
            ..AlignerConfig::default()
        };
        let heads = config
            .resolve(Preset::Reference, TaskKind::Regression)
            .init_student_heads(3, &device);
        let pooled = Tensor::<2>::from_floats([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]], &device);
        let outputs = heads.forward(pooled);
        // The bias is zero, so the two rows have opposite signs before the ReLU and one of them is cut to zero.
        for outputs_bc in [outputs.main_bc, outputs.auxiliary_bc.unwrap()] {
            let values: Vec<f32> = outputs_bc.into_data().try_to_vec().unwrap();
            assert!(
                values.iter().all(|&value| value >= 0.0) && values.contains(&0.0),
                "{values:?}"
            );
        }
    }
}
