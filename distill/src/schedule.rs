//! From a schedule and a variant to the passes of a run.

use std::fmt;
use std::str::FromStr;

use crate::config::{Schedule, TrainingConfig};
use crate::data::FeatureTransform;
use crate::objective::{ObjectiveConfig, TaskKind};

/// What a run is trained with: the method, or one of the controls that make its result believable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variant {
    /// Same budget, no teacher.
    Undistilled,
    /// The objective and schedule of the configuration.
    Method,
    /// No teacher, with the student's own auxiliary head.
    AuxOnly,
    /// The method with every example's feature taken from another one.
    Shuffled,
    /// The method with noisy features, σ in units of their own standard deviation.
    Noise(f64),
    /// The method with an aligner that is never trained.
    FrozenRandom,
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undistilled => formatter.write_str("undistilled"),
            Self::Method => formatter.write_str("method"),
            Self::AuxOnly => formatter.write_str("aux-only"),
            Self::Shuffled => formatter.write_str("shuffled"),
            Self::Noise(sigma) => write!(formatter, "noise-{sigma}"),
            Self::FrozenRandom => formatter.write_str("frozen-random"),
        }
    }
}

/// A name that is no variant's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no variant; they are undistilled, method, aux-only, shuffled, noise-<sigma>, frozen-random"
)]
pub struct UnknownVariant(String);

impl FromStr for Variant {
    type Err = UnknownVariant;

    fn from_str(name: &str) -> Result<Self, UnknownVariant> {
        Ok(match name {
            "undistilled" => Self::Undistilled,
            "method" => Self::Method,
            "aux-only" => Self::AuxOnly,
            "shuffled" => Self::Shuffled,
            "frozen-random" => Self::FrozenRandom,
            _ => name
                .strip_prefix("noise-")
                .and_then(|sigma| sigma.parse().ok())
                .filter(|&sigma: &f64| sigma > 0.0 && sigma.is_finite())
                .map(Self::Noise)
                .ok_or_else(|| UnknownVariant(name.to_owned()))?,
        })
    }
}

/// What the student learns from besides its labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Supervision {
    /// Nothing.
    None,
    /// Its own auxiliary head.
    AuxiliaryOnly,
    /// The aligner.
    Teacher {
        /// When the aligner is trained.
        schedule: Schedule,
        /// What it reads.
        transform: FeatureTransform,
    },
}

impl Supervision {
    /// What a variant comes to under a configuration.
    ///
    /// Two variants that come to the same are the same run, bit for bit: with α = β = 0 the teacher has no weight in the
    /// student's loss, with γ = 0 neither has the auxiliary head; the student of a generation task has no such head.
    pub fn new(
        variant: Variant,
        objective: &ObjectiveConfig,
        schedule: Schedule,
        kind: TaskKind,
    ) -> Self {
        let teacher = |schedule, transform| {
            if objective.alpha() == 0.0 && objective.beta() == 0.0 {
                Self::AuxiliaryOnly
            } else {
                Self::Teacher {
                    schedule,
                    transform,
                }
            }
        };
        let supervision = match variant {
            Variant::Undistilled => Self::None,
            Variant::AuxOnly => Self::AuxiliaryOnly,
            Variant::Method => teacher(schedule, FeatureTransform::AsHarvested),
            Variant::Shuffled => teacher(schedule, FeatureTransform::Shuffled),
            Variant::Noise(deviations) => teacher(schedule, FeatureTransform::Noise { deviations }),
            Variant::FrozenRandom => teacher(Schedule::FrozenRandom, FeatureTransform::AsHarvested),
        };
        match supervision {
            Self::AuxiliaryOnly if objective.gamma() == 0.0 || kind == TaskKind::Generation => {
                Self::None
            }
            other => other,
        }
    }
}

/// Who is trained in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// The aligner alone.
    Aligner,
    /// The student alone.
    Student,
    /// Both, on every batch.
    Both,
}

impl Trained {
    /// The name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aligner => "aligner",
            Self::Student => "student",
            Self::Both => "both",
        }
    }

    /// Whether the student is among them.
    pub fn has_student(self) -> bool {
        self != Self::Aligner
    }

    /// Whether the aligner is among them.
    pub fn has_aligner(self) -> bool {
        self != Self::Student
    }
}

/// One pass over the training rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Who is trained.
    pub trained: Trained,
    /// The epoch, from 1, counted apart for passes of the aligner alone.
    pub epoch: usize,
}

/// All passes of a run in their order.
pub fn passes(supervision: Supervision, training: &TrainingConfig) -> Vec<Pass> {
    let student = |epoch| Pass {
        trained: Trained::Student,
        epoch,
    };
    let aligner = |epoch| Pass {
        trained: Trained::Aligner,
        epoch,
    };
    let epochs = 1..=training.epochs.get();
    let Supervision::Teacher { schedule, .. } = supervision else {
        return epochs.map(student).collect();
    };
    match schedule {
        Schedule::AlternateEpoch => epochs
            .flat_map(|epoch| [aligner(epoch), student(epoch)])
            .collect(),
        Schedule::JointStep => epochs
            .map(|epoch| Pass {
                trained: Trained::Both,
                epoch,
            })
            .collect(),
        Schedule::PretrainFreeze { aligner_epochs } => (1..=aligner_epochs.get())
            .map(aligner)
            .chain(epochs.map(student))
            .collect(),
        Schedule::FrozenRandom => epochs.map(student).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(supervision: Supervision, text: &str) -> String {
        let training: TrainingConfig = toml::from_str(text).unwrap();
        let passes = passes(supervision, &training);
        let names: Vec<String> = passes
            .iter()
            .map(|pass| format!("{}{}", pass.trained.name(), pass.epoch))
            .collect();
        names.join(" ")
    }

    fn teacher(text: &str) -> Supervision {
        let training: TrainingConfig = toml::from_str(text).unwrap();
        Supervision::new(
            Variant::Method,
            &ObjectiveConfig::default(),
            training.schedule,
            TaskKind::Regression,
        )
    }

    #[test]
    fn passes_follow_the_schedule() {
        for (text, expected) in [
            (
                "schedule = \"alternate-epoch\"\nepochs = 2",
                "aligner1 student1 aligner2 student2",
            ),
            ("schedule = \"joint-step\"\nepochs = 2", "both1 both2"),
            (
                "schedule = \"pretrain-freeze\"\nepochs = 2\naligner_epochs = 3",
                "aligner1 aligner2 aligner3 student1 student2",
            ),
            (
                "schedule = \"frozen-random\"\nepochs = 2",
                "student1 student2",
            ),
        ] {
            assert_eq!(described(teacher(text), text), expected);
            assert_eq!(described(Supervision::None, text), "student1 student2");
        }
    }

    #[test]
    fn variants_that_come_to_the_same_are_the_same() {
        let objective = |text: &str| toml::from_str::<ObjectiveConfig>(text).unwrap();
        let all = [
            Variant::Undistilled,
            Variant::Method,
            Variant::AuxOnly,
            Variant::Shuffled,
            Variant::Noise(1.0),
            Variant::Noise(2.0),
            Variant::FrozenRandom,
        ];
        let distinct_of = |kind, text: &str, schedule| {
            let mut kinds: Vec<Supervision> = Vec::new();
            for variant in all {
                let supervision = Supervision::new(variant, &objective(text), schedule, kind);
                if !kinds.contains(&supervision) {
                    kinds.push(supervision);
                }
            }
            kinds.len()
        };
        let distinct = |text: &str, schedule| distinct_of(TaskKind::Regression, text, schedule);
        let written = distinct_of(TaskKind::Generation, "alpha = 0", Schedule::JointStep);
        assert_eq!(written, 6);
        assert_eq!(distinct("", Schedule::AlternateEpoch), 7);
        assert_eq!(distinct("", Schedule::FrozenRandom), 6);
        assert_eq!(distinct("alpha = 0\nbeta = 0", Schedule::AlternateEpoch), 2);
        assert_eq!(
            distinct("alpha = 0\nbeta = 0\ngamma = 0", Schedule::AlternateEpoch),
            1
        );
        assert_eq!(distinct("gamma = 0", Schedule::AlternateEpoch), 6);
    }

    #[test]
    fn names_of_variants_parse_back() {
        for variant in [
            Variant::Undistilled,
            Variant::Noise(2.5),
            Variant::FrozenRandom,
        ] {
            assert_eq!(variant.to_string().parse(), Ok(variant));
        }
        for name in ["noise-0", "noise-", "noise-inf", "Method"] {
            assert!(name.parse::<Variant>().is_err(), "{name}");
        }
    }
}
