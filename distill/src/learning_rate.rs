//! Learning rate as a function of an optimiser's own step.

use serde::{Deserialize, Serialize};

/// How the learning rate changes over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LearningRateSchedule {
    /// The same rate at every step, as in the authors' script.
    #[default]
    Constant,
    /// Up from zero over the warm-up share of all steps, then down to zero, both linearly, as
    /// `get_linear_schedule_with_warmup` of `transformers`: the very first step has rate zero if there is a warm-up.
    LinearWarmup,
}

/// The rate of one optimiser over its run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// The largest rate.
    pub peak: f64,
    /// How it gets there and away.
    pub schedule: LearningRateSchedule,
    /// Steps of the warm-up.
    pub num_warmup_steps: u64,
    /// All steps of this optimiser.
    pub num_steps: u64,
}

impl LearningRate {
    /// A rate over `num_steps` steps with `warmup_share` of them, rounded up, for the warm-up.
    pub fn new(
        peak: f64,
        schedule: LearningRateSchedule,
        warmup_share: f64,
        num_steps: u64,
    ) -> Self {
        let num_warmup_steps = match schedule {
            LearningRateSchedule::Constant => 0,
            LearningRateSchedule::LinearWarmup => {
                #[expect(clippy::cast_sign_loss, reason = "a share is not negative")]
                let steps = (warmup_share * num_steps as f64).ceil() as u64;
                steps
            }
        };
        Self {
            peak,
            schedule,
            num_warmup_steps,
            num_steps,
        }
    }

    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        let share = match self.schedule {
            LearningRateSchedule::Constant => 1.0,
            LearningRateSchedule::LinearWarmup if step < self.num_warmup_steps => {
                step as f64 / self.num_warmup_steps as f64
            }
            LearningRateSchedule::LinearWarmup => {
                let falling = self.num_steps.saturating_sub(self.num_warmup_steps).max(1);
                self.num_steps.saturating_sub(step) as f64 / falling as f64
            }
        };
        self.peak * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: LearningRateSchedule, warmup_share: f64, num_steps: u64) -> Vec<f64> {
        let rate = LearningRate::new(2.0, schedule, warmup_share, num_steps);
        (0..=num_steps).map(|step| rate.at(step)).collect()
    }

    #[test]
    fn constant_is_constant() {
        assert_eq!(rates(LearningRateSchedule::Constant, 0.5, 3), [2.0; 4]);
    }

    #[test]
    fn linear_warmup_matches_transformers() {
        // 2 * lr_lambda(step) of get_linear_schedule_with_warmup(optimizer, 2, 6).
        assert_eq!(
            rates(LearningRateSchedule::LinearWarmup, 1.0 / 3.0, 6),
            [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]
        );
        // Without warm-up it falls from the first step on.
        assert_eq!(
            rates(LearningRateSchedule::LinearWarmup, 0.0, 4),
            [2.0, 1.5, 1.0, 0.5, 0.0]
        );
        // All of it warm-up: never reaches the peak.
        assert_eq!(
            rates(LearningRateSchedule::LinearWarmup, 1.0, 2),
            [0.0, 1.0, 0.0]
        );
    }
}
