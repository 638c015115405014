//! The `[compare]` table.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::number::Positive;

/// A control that `compare` can run beside the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// No teacher, main head alone. Always run: the other variants are compared with it.
    Undistilled,
    /// No teacher, with the student's own auxiliary head.
    AuxOnly,
    /// Every example has the feature of another one.
    Shuffled,
    /// Features with noise, once for each of `noise_sigmas`.
    Noise,
    /// An aligner that is never trained.
    FrozenRandom,
}

/// What `compare` runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompareConfig {
    /// Every variant is trained once with each.
    pub seeds: Vec<u64>,
    /// The controls.
    pub controls: Vec<Control>,
    /// σ of the noise in units of the features' own standard deviation.
    pub noise_sigmas: Vec<Positive>,
    /// Runs at the same time, each a process with its share of the processor.
    pub jobs: NonZeroUsize,
}

impl Default for CompareConfig {
    fn default() -> Self {
        let sigma = |value| Positive::try_from(value).expect("a literal over zero");
        Self {
            seeds: vec![1, 2, 3],
            controls: vec![
                Control::Undistilled,
                Control::AuxOnly,
                Control::Shuffled,
                Control::Noise,
                Control::FrozenRandom,
            ],
            noise_sigmas: vec![sigma(1.0), sigma(2.0), sigma(5.0)],
            jobs: NonZeroUsize::MIN,
        }
    }
}

impl CompareConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        let twice = |list: &str, value: String| Err(format!("`compare.{list}` has {value} twice"));
        if self.seeds.is_empty() {
            return Err("`compare.seeds` is empty".to_owned());
        }
        for (index, seed) in self.seeds.iter().enumerate() {
            if self.seeds[..index].contains(seed) {
                return twice("seeds", seed.to_string());
            }
        }
        for (index, control) in self.controls.iter().enumerate() {
            if self.controls[..index].contains(control) {
                return twice("controls", format!("{control:?}"));
            }
        }
        for (index, sigma) in self.noise_sigmas.iter().enumerate() {
            if self.noise_sigmas[..index].contains(sigma) {
                return twice("noise_sigmas", sigma.get().to_string());
            }
        }
        if self.controls.contains(&Control::Noise) && self.noise_sigmas.is_empty() {
            return Err(
                "`compare.controls` has `noise`, and `compare.noise_sigmas` is empty".to_owned(),
            );
        }
        Ok(())
    }
}
