//! What the objective is computed from.
//!
//! Shape suffixes: `b` batch rows, `c` classes (1 for regression), `k` shared width.

use burn::tensor::{Int, Tensor};
use schemas::task::LabelKind;

/// What the labels of a task are, and so how wide its outputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// One of several classes.
    Classification {
        /// c.
        num_classes: usize,
    },
    /// A number.
    Regression,
}

impl TaskKind {
    /// c: the width of the outputs, 1 for regression.
    pub fn num_outputs(self) -> usize {
        match self {
            Self::Classification { num_classes } => num_classes,
            Self::Regression => 1,
        }
    }
}

impl From<&LabelKind> for TaskKind {
    fn from(label: &LabelKind) -> Self {
        match label {
            LabelKind::Classes(classes) => Self::Classification {
                num_classes: classes.len(),
            },
            LabelKind::Number => Self::Regression,
        }
    }
}

/// The labels of a batch. Their kind decides the form of the task and distillation losses.
#[derive(Clone, Debug)]
pub enum Targets {
    /// Class indices, `[b]`, each in `0..c`.
    Classes(Tensor<1, Int>),
    /// Numbers, `[b]`.
    Values(Tensor<1>),
}

/// What the aligner says about a batch of teacher features.
#[derive(Clone, Debug)]
pub struct AlignerOutputs {
    /// o_t, `[b, c]`.
    pub main_bc: Tensor<2>,
    /// a_t, `[b, c]`: read off the projection.
    pub auxiliary_bc: Tensor<2>,
    /// p_t, `[b, k]`: the projection into the shared space.
    pub projection_bk: Tensor<2>,
}

impl AlignerOutputs {
    /// The same numbers as constants: outside any graph, whatever they are combined with.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            main_bc: self.main_bc.clone().inner(),
            auxiliary_bc: self.auxiliary_bc.clone().inner(),
            projection_bk: self.projection_bk.clone().inner(),
        }
    }
}

/// What the student says about a batch of text.
#[derive(Clone, Debug)]
pub struct StudentOutputs {
    /// o_s, `[b, c]`: all that inference needs.
    pub main_bc: Tensor<2>,
    /// a_s, `[b, c]`: read off the projection.
    pub auxiliary_bc: Tensor<2>,
    /// p_s, `[b, k]`: the projection into the shared space.
    pub projection_bk: Tensor<2>,
}

/// What the student learns from besides its labels.
#[derive(Clone, Copy, Debug)]
pub enum Guidance<'a> {
    /// Nothing: the undistilled student.
    None,
    /// Its own auxiliary head, without a teacher: the `aux-only` control.
    AuxiliaryOnly,
    /// The aligner.
    Teacher(&'a AlignerOutputs),
}
