//! The `[training]` table. Defaults are the paper's for GLUE.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::number::{NotNegative, Positive, Share};
use crate::device::Precision;
use crate::learning_rate::LearningRateSchedule;

/// The paper's batch for GLUE.
const DEFAULT_ROWS: NonZeroUsize = NonZeroUsize::new(32).expect("a literal over zero");

/// When aligner and student are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Every epoch is one pass of the aligner, then one of the student under the frozen aligner: the authors' script.
    AlternateEpoch,
    /// Both on every batch: the paper's appendix.
    JointStep,
    /// The aligner first, then the student under the frozen aligner: the paper's section 4.
    PretrainFreeze {
        /// Passes of the aligner.
        aligner_epochs: NonZeroUsize,
    },
    /// The aligner is never trained: a control.
    FrozenRandom,
}

/// How the training rows are cut into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// So many rows a step, whatever their lengths.
    Rows(NonZeroUsize),
    /// Rows of about one length, as many as fit: padded positions of a step, padding counted in buckets of
    /// [`LENGTH_BUCKET`](crate::data::LENGTH_BUCKET).
    Tokens(NonZeroUsize),
}

/// Schedule and optimisers of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "TrainingDocument", into = "TrainingDocument")]
pub struct TrainingConfig {
    /// When aligner and student are trained.
    pub schedule: Schedule,
    /// Passes of the student over the training rows.
    pub epochs: NonZeroUsize,
    /// What one optimiser step reads.
    pub batching: Batching,
    /// Parts in which a step's rows are computed, to save memory.
    pub gradient_accumulation: NonZeroUsize,
    /// Whether the student's activations are computed a second time in the backward pass, to save memory.
    pub activation_checkpointing: bool,
    /// Number format in which the student's optimiser keeps its moments.
    pub optimizer_state: Precision,
    /// Gradients are scaled down to this global norm.
    pub max_gradient_norm: Positive,
    /// Largest learning rate of the student.
    pub student_learning_rate: Positive,
    /// Largest learning rate of the aligner.
    pub aligner_learning_rate: Positive,
    /// Of both optimisers, decoupled.
    pub weight_decay: NotNegative,
    /// How both learning rates change.
    pub learning_rate_schedule: LearningRateSchedule,
    /// Share of an optimiser's steps that warm up.
    pub warmup_share: Share,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ScheduleName {
    #[default]
    AlternateEpoch,
    JointStep,
    PretrainFreeze,
    FrozenRandom,
}

/// The table as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TrainingDocument {
    schedule: ScheduleName,
    epochs: NonZeroUsize,
    #[serde(skip_serializing_if = "Option::is_none")]
    aligner_epochs: Option<NonZeroUsize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_size: Option<NonZeroUsize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_batch: Option<NonZeroUsize>,
    gradient_accumulation: NonZeroUsize,
    activation_checkpointing: bool,
    optimizer_state: Precision,
    max_gradient_norm: Positive,
    student_learning_rate: Positive,
    aligner_learning_rate: Positive,
    weight_decay: NotNegative,
    learning_rate_schedule: LearningRateSchedule,
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_share: Option<Share>,
}

impl Default for TrainingDocument {
    fn default() -> Self {
        let count = |value| NonZeroUsize::new(value).expect("a literal over zero");
        let positive = |value| Positive::try_from(value).expect("a literal over zero");
        Self {
            schedule: ScheduleName::default(),
            epochs: count(10),
            aligner_epochs: None,
            batch_size: None,
            tokens_per_batch: None,
            gradient_accumulation: count(1),
            activation_checkpointing: false,
            optimizer_state: Precision::F32,
            max_gradient_norm: positive(1.0),
            student_learning_rate: positive(2e-5),
            aligner_learning_rate: positive(3e-3),
            weight_decay: NotNegative::try_from(0.01).expect("a literal over zero"),
            learning_rate_schedule: LearningRateSchedule::default(),
            warmup_share: None,
        }
    }
}

impl Default for TrainingConfig {
    fn default() -> Self {
        TrainingDocument::default()
            .try_into()
            .expect("the defaults fit together")
    }
}

impl TryFrom<TrainingDocument> for TrainingConfig {
    type Error = String;

    fn try_from(document: TrainingDocument) -> Result<Self, String> {
        let schedule = match (document.schedule, document.aligner_epochs) {
            (ScheduleName::AlternateEpoch, None) => Schedule::AlternateEpoch,
            (ScheduleName::JointStep, None) => Schedule::JointStep,
            (ScheduleName::FrozenRandom, None) => Schedule::FrozenRandom,
            (ScheduleName::PretrainFreeze, Some(aligner_epochs)) => {
                Schedule::PretrainFreeze { aligner_epochs }
            }
            (ScheduleName::PretrainFreeze, None) => {
                return Err("schedule `pretrain-freeze` needs `training.aligner_epochs`".to_owned());
            }
            (_, Some(_)) => {
                return Err(
                    "`training.aligner_epochs` belongs to schedule `pretrain-freeze`".to_owned(),
                );
            }
        };
        if document.warmup_share.is_some()
            && document.learning_rate_schedule == LearningRateSchedule::Constant
        {
            return Err(
                "`training.warmup_share` belongs to learning_rate_schedule = \"linear-warmup\""
                    .to_owned(),
            );
        }
        let batching = batching(&document)?;
        Ok(Self {
            schedule,
            epochs: document.epochs,
            batching,
            gradient_accumulation: document.gradient_accumulation,
            activation_checkpointing: document.activation_checkpointing,
            optimizer_state: document.optimizer_state,
            max_gradient_norm: document.max_gradient_norm,
            student_learning_rate: document.student_learning_rate,
            aligner_learning_rate: document.aligner_learning_rate,
            weight_decay: document.weight_decay,
            learning_rate_schedule: document.learning_rate_schedule,
            warmup_share: document
                .warmup_share
                .unwrap_or(Share::try_from(0.0).expect("0 is a share")),
        })
    }
}

fn batching(document: &TrainingDocument) -> Result<Batching, String> {
    let rows = match (document.batch_size, document.tokens_per_batch) {
        (Some(_), Some(_)) => {
            return Err(
                "a step has either `training.batch_size` rows or `training.tokens_per_batch` positions"
                    .to_owned(),
            );
        }
        (None, Some(budget)) => return Ok(Batching::Tokens(budget)),
        (Some(rows), None) => rows,
        (None, None) => DEFAULT_ROWS,
    };
    if document.gradient_accumulation > rows {
        return Err(format!(
            "`training.gradient_accumulation` is {}, and a step has only `training.batch_size` = {rows} rows",
            document.gradient_accumulation
        ));
    }
    Ok(Batching::Rows(rows))
}

impl From<TrainingConfig> for TrainingDocument {
    fn from(config: TrainingConfig) -> Self {
        let (schedule, aligner_epochs) = match config.schedule {
            Schedule::AlternateEpoch => (ScheduleName::AlternateEpoch, None),
            Schedule::JointStep => (ScheduleName::JointStep, None),
            Schedule::PretrainFreeze { aligner_epochs } => {
                (ScheduleName::PretrainFreeze, Some(aligner_epochs))
            }
            Schedule::FrozenRandom => (ScheduleName::FrozenRandom, None),
        };
        let (batch_size, tokens_per_batch) = match config.batching {
            Batching::Rows(rows) => (Some(rows), None),
            Batching::Tokens(budget) => (None, Some(budget)),
        };
        let warms_up = config.learning_rate_schedule == LearningRateSchedule::LinearWarmup;
        Self {
            schedule,
            epochs: config.epochs,
            aligner_epochs,
            batch_size,
            tokens_per_batch,
            gradient_accumulation: config.gradient_accumulation,
            activation_checkpointing: config.activation_checkpointing,
            optimizer_state: config.optimizer_state,
            max_gradient_norm: config.max_gradient_norm,
            student_learning_rate: config.student_learning_rate,
            aligner_learning_rate: config.aligner_learning_rate,
            weight_decay: config.weight_decay,
            learning_rate_schedule: config.learning_rate_schedule,
            warmup_share: warms_up.then_some(config.warmup_share),
        }
    }
}
