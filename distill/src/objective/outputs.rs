//! What the objective is computed from.
//!
//! Shape suffixes: `b` batch rows, `c` outputs (classes; 1 for regression), `f` feature width (D in the method), `k`
//! shared width, `r` response tokens of the batch, `v` vocabulary.

use burn::tensor::{Int, Tensor};
use schemas::task::LabelKind;

/// What the answers of a task are, and so what its outputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// One of several classes.
    Classification {
        /// c.
        num_classes: usize,
    },
    /// A number.
    Regression,
    /// A text.
    Generation,
}

impl TaskKind {
    /// c: the width of the outputs that aligner and student share, 1 for regression. A generation task has none: its
    /// student writes tokens, its aligner reconstructs features.
    pub fn num_outputs(self) -> Option<usize> {
        match self {
            Self::Classification { num_classes } => Some(num_classes),
            Self::Regression => Some(1),
            Self::Generation => None,
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
            LabelKind::Text | LabelKind::Choice(_) => Self::Generation,
        }
    }
}

/// The labels of a batch. Their kind decides the form of the task and distillation losses.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of them in a step")]
pub enum Targets {
    /// Class indices, `[b]`, each in `0..c`.
    Classes(Tensor<1, Int>),
    /// Numbers, `[b]`.
    Values(Tensor<1>),
    /// Texts.
    Responses(Responses),
}

/// The tokens to be written in a batch, all rows one after the other.
#[derive(Clone, Debug)]
pub struct Responses {
    /// The row of each token, `[r]`.
    pub rows_r: Tensor<1, Int>,
    /// The position from which each token is predicted, the one before it, `[r]`.
    pub columns_r: Tensor<1, Int>,
    /// The tokens, `[r]`.
    pub tokens_r: Tensor<1, Int>,
    /// What each counts in the loss, `[r]`; see [`crate::loss::next_token`].
    pub weights_r: Tensor<1>,
    /// The position of each row's last prompt token, `[b]`.
    pub prompt_ends_b: Tensor<1, Int>,
}

/// What the aligner says about a batch of teacher features.
#[derive(Clone, Debug)]
pub struct AlignerOutputs {
    /// o_t, `[b, c]`; in a generation task dec(h'), `[b, f]`.
    pub main_bc: Tensor<2>,
    /// a_t, `[b, c]`: read off the projection; in a generation task dec_aux(p_t), `[b, f]`.
    pub auxiliary_bc: Tensor<2>,
    /// p_t, `[b, k]`: the projection into the shared space.
    pub projection_bk: Tensor<2>,
    /// z, `[b, f]`, in a generation task: what main and auxiliary outputs reconstruct.
    pub reconstructed_bf: Option<Tensor<2>>,
}

impl AlignerOutputs {
    /// The same numbers as constants: outside any graph, whatever they are combined with.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            main_bc: self.main_bc.clone().inner(),
            auxiliary_bc: self.auxiliary_bc.clone().inner(),
            projection_bk: self.projection_bk.clone().inner(),
            reconstructed_bf: self
                .reconstructed_bf
                .as_ref()
                .map(|feature_bf| feature_bf.clone().inner()),
        }
    }
}

/// What the student says about a batch of text.
#[derive(Clone, Debug)]
pub struct StudentOutputs {
    /// o_s, `[b, c]`: all that inference needs; in a generation task the logits of the response's tokens, `[r, v]`.
    pub main_bc: Tensor<2>,
    /// a_s, `[b, c]`: read off the projection; a generation task has none.
    pub auxiliary_bc: Option<Tensor<2>>,
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
