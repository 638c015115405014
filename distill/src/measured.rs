//! What steps measured, read from the device when it is asked for.
//!
//! Reading waits for everything that the device has been given. So losses and norms stay there until a step is logged, and
//! norms alone are kept of the steps between.
//!
//! Shape suffixes: `t` the loss and its terms.

use burn::tensor::Tensor;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::learner::StepOutcome;
use crate::run_log::Update;

/// Steps after which norms are read at the latest.
const CHECK_EVERY: usize = 100;

/// What one optimiser's step measured, on its device.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Names of the terms.
    pub names: Vec<&'static str>,
    /// The weighted loss and the terms before weighting, f32 `[1 + names]`.
    pub values_t: Tensor<1>,
    /// Global norm of the gradient before clipping, f32 `[1]`.
    pub norm: Tensor<1>,
    /// The learning rate.
    pub learning_rate: f64,
}

impl Measured {
    fn update(&self, values: &mut impl Iterator<Item = f32>) -> Update {
        let mut next = || values.next().expect("what is read is what was measured");
        let gradient_norm = f64::from(next());
        let loss = next();
        let terms = self
            .names
            .iter()
            .map(|name| ((*name).to_owned(), Value::from(next())));
        Update {
            loss,
            terms: terms.collect::<Map<_, _>>(),
            learning_rate: self.learning_rate,
            gradient_norm,
        }
    }
}

/// Both updates of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Updates {
    /// The aligner's, if it was trained.
    pub aligner: Option<Update>,
    /// The student's, if it was trained.
    pub student: Option<Update>,
}

/// Looks out for gradients that are not finite.
///
/// A run that diverges is found at the next step that is logged, before the next checkpoint or evaluation, and after
/// 100 steps at the latest, whichever is first. So nothing that is kept was ever moved by such a gradient.
#[derive(Debug, Default)]
pub struct Watch {
    /// Steps with their norms, `[1]` each.
    unread: Vec<(u64, Tensor<1>)>,
}

impl Watch {
    /// Takes note of a step that is not logged.
    ///
    /// # Errors
    /// [`Error::Diverged`].
    pub fn note(&mut self, step: u64, outcome: StepOutcome) -> Result<(), Error> {
        let both = [outcome.aligner, outcome.student].into_iter().flatten();
        self.unread
            .extend(both.map(|measured| (step, measured.norm)));
        if self.unread.len() >= CHECK_EVERY {
            self.check()?;
        }
        Ok(())
    }

    /// Reads the norms that were noted.
    ///
    /// # Errors
    /// [`Error::Diverged`] names the first step whose gradient was not finite.
    pub fn check(&mut self) -> Result<(), Error> {
        self.read(Vec::new()).map(drop)
    }

    /// Reads everything of a step, and the norms that were noted, in one transfer.
    ///
    /// # Errors
    /// As [`Watch::check`], of this step as well.
    pub fn log(&mut self, step: u64, outcome: &StepOutcome) -> Result<Updates, Error> {
        let both = [&outcome.aligner, &outcome.student];
        let tensors = both
            .into_iter()
            .flatten()
            .flat_map(|measured| [measured.norm.clone(), measured.values_t.clone()]);
        let mut values = self.read(tensors.collect())?.into_iter();
        let mut update = |measured: &Option<Measured>| Some(measured.as_ref()?.update(&mut values));
        let updates = Updates {
            aligner: update(&outcome.aligner),
            student: update(&outcome.student),
        };
        let of_step = [&updates.aligner, &updates.student];
        if of_step
            .into_iter()
            .flatten()
            .any(|update| !update.gradient_norm.is_finite())
        {
            return Err(Error::Diverged { step });
        }
        Ok(updates)
    }

    /// Checks the noted norms and returns the values of `tensors`.
    #[expect(
        clippy::disallowed_methods,
        reason = "logged steps and checks: the one place of a run where a step is waited for"
    )]
    fn read(&mut self, tensors: Vec<Tensor<1>>) -> Result<Vec<f32>, Error> {
        let unread = std::mem::take(&mut self.unread);
        let (steps, mut all): (Vec<u64>, Vec<Tensor<1>>) = unread.into_iter().unzip();
        all.extend(tensors);
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let mut values: Vec<f32> = Tensor::cat(all, 0)
            .into_data()
            .try_to_vec()
            .expect("losses and norms are f32");
        let rest = values.split_off(steps.len());
        match steps
            .into_iter()
            .zip(values)
            .find(|(_, norm)| !norm.is_finite())
        {
            Some((step, _)) => Err(Error::Diverged { step }),
            None => Ok(rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn outcome(norm: f32) -> StepOutcome {
        let tensor = |values: &[f32]| Tensor::from_floats(values, &Device::flex());
        let student = Measured {
            names: vec!["task", "kd"],
            values_t: tensor(&[1.5, 1.0, 0.5]),
            norm: tensor(&[norm]),
            learning_rate: 0.1,
        };
        StepOutcome {
            aligner: None,
            student: Some(student),
        }
    }

    fn diverged_at(result: Result<(), Error>) -> Option<u64> {
        match result {
            Ok(()) => None,
            Err(Error::Diverged { step }) => Some(step),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_logged_step_reads_its_values() {
        let mut watch = Watch::default();
        watch.note(1, outcome(3.0)).unwrap();
        let updates = watch.log(2, &outcome(2.0)).unwrap();
        let student = updates.student.unwrap();
        assert_eq!((student.loss, student.gradient_norm), (1.5, 2.0));
        assert_eq!(student.terms["task"], 1.0);
        assert_eq!(student.terms["kd"], 0.5);
        assert_eq!(updates.aligner, None);
    }

    #[test]
    fn the_first_gradient_that_is_not_finite_is_named() {
        for bad in [f32::NAN, f32::INFINITY] {
            let noted = || {
                let mut watch = Watch::default();
                for (step, norm) in [(5, 1.0), (6, bad), (7, f32::NAN)] {
                    watch.note(step, outcome(norm)).unwrap();
                }
                watch
            };
            assert_eq!(diverged_at(noted().check()), Some(6));
            assert_eq!(
                diverged_at(noted().log(8, &outcome(1.0)).map(drop)),
                Some(6)
            );
            let mut watch = Watch::default();
            assert_eq!(diverged_at(watch.log(8, &outcome(bad)).map(drop)), Some(8));
        }
    }

    #[test]
    fn norms_do_not_wait_longer_than_promised() {
        let mut watch = Watch::default();
        let stopped = (1..1000).find_map(|step| {
            let norm = if step == 20 { f32::NAN } else { 1.0 };
            diverged_at(watch.note(step, outcome(norm))).map(|at| (step, at))
        });
        assert_eq!(stopped, Some((CHECK_EVERY as u64, 20)));
    }
}
