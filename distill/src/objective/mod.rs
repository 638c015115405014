//! What the aligner and the student minimise: the two presets, their weights, and every term by name.
//!
//! Aligner: `L_t = T(o_t, y) + γ T(a_t, y)`.
//! Student: `L_s = (1-α)[T(o_s, y) + γ T(a_s, y)] + α[kd(sg o_t, o_s) + γ kd(sg a_t, a_s)] + β M(sg p_t, p_s)`,
//! sg the stop-gradient, which this module applies itself. Source: arXiv 2603.10877 and the authors' reference script;
//! where they differ, [`Preset`] chooses.
//!
//! In a generation task there are no shared outputs, which is how we read the paper: `L_t = MSE(dec(h'), z) +
//! γ MSE(dec_aux(p_t), z)`; `L_s = CE + β M(sg p_t, p_s)`, CE the next-token cross-entropy of the response.
//!
//! Shape suffixes: `b` batch rows, `c` classes (1 for regression), `k` shared width.

mod config;
mod outputs;

pub use config::{Manifold, ObjectiveConfig, ObjectiveError, ObjectiveSettings, Preset};
pub use outputs::{AlignerOutputs, Guidance, Responses, StudentOutputs, Targets, TaskKind};

use burn::tensor::Tensor;

use crate::loss::{
    Space, cosine, cross_entropy, elementwise_norm, euclid_mean_squared, euclid_norm, inner,
    mean_squared, next_token, regression, softened_norm, softened_squared,
};

/// Name of the task loss of the main outputs.
pub const TASK: &str = "task";
/// Name of the task loss of the auxiliary outputs.
pub const TASK_AUXILIARY: &str = "task_aux";
/// Name of the error of what the aligner of a generation task reads off its hidden layer.
pub const RECONSTRUCTION: &str = "reconstruction";
/// Name of the error of what it reads off its projection.
pub const RECONSTRUCTION_AUXILIARY: &str = "reconstruction_aux";
/// Name of the distance between the main outputs of aligner and student.
pub const KD: &str = "kd";
/// Name of the distance between the auxiliary outputs of aligner and student.
pub const KD_AUXILIARY: &str = "kd_aux";
/// Name of the distance between the two projections.
pub const MANIFOLD: &str = "manifold";

/// A loss and what it is made of.
#[derive(Clone, Debug)]
pub struct LossTerms {
    /// The weighted sum, `[1]`; call `backward` on this.
    pub total: Tensor<1>,
    /// Every computed term, `[1]`, by name and before weighting. A term of weight zero is not computed and not here.
    pub terms: Vec<(&'static str, Tensor<1>)>,
}

impl LossTerms {
    /// The unweighted term of this name, if it was computed.
    pub fn get(&self, name: &str) -> Option<&Tensor<1>> {
        self.terms
            .iter()
            .find(|(term, _)| *term == name)
            .map(|(_, value)| value)
    }
}

/// Adds up terms, skipping those of weight zero before they are computed.
#[derive(Default)]
struct WeightedSum {
    total: Option<Tensor<1>>,
    terms: Vec<(&'static str, Tensor<1>)>,
}

impl WeightedSum {
    fn add(&mut self, name: &'static str, weight: f32, term: impl FnOnce() -> Tensor<1>) {
        if weight == 0.0 {
            return;
        }
        let term = term();
        let weighted = term.clone().mul_scalar(weight);
        self.total = Some(match self.total.take() {
            Some(total) => total + weighted,
            None => weighted,
        });
        self.terms.push((name, term));
    }

    fn finish(self) -> LossTerms {
        LossTerms {
            total: self.total.expect(
                "either the task weight 1 - alpha or the distillation weight alpha is positive",
            ),
            terms: self.terms,
        }
    }
}

/// The losses of one preset with its weights. Works for classification and regression: [`Targets`] says which.
#[derive(Clone, Copy, Debug)]
pub struct Objective {
    config: ObjectiveConfig,
}

impl Objective {
    /// The objective that `config` describes.
    pub fn new(config: ObjectiveConfig) -> Self {
        Self { config }
    }

    /// `L_t`. The student appears nowhere in it. Term names: [`TASK`], [`TASK_AUXILIARY`]; in a generation task
    /// [`RECONSTRUCTION`], [`RECONSTRUCTION_AUXILIARY`].
    pub fn aligner_loss(&self, aligner: &AlignerOutputs, targets: &Targets) -> LossTerms {
        let (names, loss): (_, &dyn Fn(&Tensor<2>) -> Tensor<1>) = match &aligner.reconstructed_bf {
            Some(feature_bf) => ((RECONSTRUCTION, RECONSTRUCTION_AUXILIARY), &|output_bf| {
                mean_squared(feature_bf.clone(), output_bf.clone())
            }),
            None => ((TASK, TASK_AUXILIARY), &|output_bc| {
                task(output_bc, targets)
            }),
        };
        let mut sum = WeightedSum::default();
        sum.add(names.0, 1.0, || loss(&aligner.main_bc));
        sum.add(names.1, self.config.gamma(), || loss(&aligner.auxiliary_bc));
        sum.finish()
    }

    /// `L_s` under `guidance`; the aligner's outputs are detached here, so that no gradient reaches it.
    ///
    /// | guidance | loss |
    /// |---|---|
    /// | [`Guidance::None`] | `T(o_s, y)` |
    /// | [`Guidance::AuxiliaryOnly`] | `T(o_s, y) + γ T(a_s, y)` |
    /// | [`Guidance::Teacher`] | `L_s` in full |
    ///
    /// The student of a generation task has no auxiliary outputs, and α is 0 there: what is left is `T(o_s, y)` and
    /// `β M(sg p_t, p_s)`.
    pub fn student_loss(
        &self,
        student: &StudentOutputs,
        guidance: Guidance<'_>,
        targets: &Targets,
    ) -> LossTerms {
        let (alpha, gamma) = (self.config.alpha(), self.config.gamma());
        let mut sum = WeightedSum::default();
        let (task_weight, task_auxiliary_weight) = match guidance {
            Guidance::None => (1.0, 0.0),
            Guidance::AuxiliaryOnly => (1.0, gamma),
            Guidance::Teacher(_) => (1.0 - alpha, (1.0 - alpha) * gamma),
        };
        sum.add(TASK, task_weight, || task(&student.main_bc, targets));
        if let Some(auxiliary_bc) = &student.auxiliary_bc {
            sum.add(TASK_AUXILIARY, task_auxiliary_weight, || {
                task(auxiliary_bc, targets)
            });
        }
        if let Guidance::Teacher(aligner) = guidance {
            let aligner = aligner.detach();
            sum.add(KD, alpha, || {
                self.distillation(aligner.main_bc, student.main_bc.clone(), targets)
            });
            if let Some(auxiliary_bc) = &student.auxiliary_bc {
                sum.add(KD_AUXILIARY, alpha * gamma, || {
                    self.distillation(aligner.auxiliary_bc, auxiliary_bc.clone(), targets)
                });
            }
            sum.add(MANIFOLD, self.config.beta(), || {
                self.manifold(aligner.projection_bk, student.projection_bk.clone())
            });
        }
        sum.finish()
    }

    /// kd(·,·): the distance between outputs `[b, c]` in the scale of the preset; `[1]`.
    pub(crate) fn distillation(
        &self,
        teacher_bc: Tensor<2>,
        student_bc: Tensor<2>,
        targets: &Targets,
    ) -> Tensor<1> {
        let temperature = self.config.temperature();
        match (self.config.preset(), targets) {
            (Preset::Paper, Targets::Classes(_)) => {
                softened_norm(teacher_bc, student_bc, temperature, Space::Probabilities)
            }
            (Preset::Paper, Targets::Values(_) | Targets::Responses(_)) => {
                softened_norm(teacher_bc, student_bc, temperature, Space::Values)
            }
            (Preset::Reference, Targets::Classes(_)) => {
                softened_squared(teacher_bc, student_bc, temperature)
            }
            (Preset::Reference, Targets::Values(_) | Targets::Responses(_)) => {
                mean_squared(teacher_bc, student_bc)
            }
        }
    }

    /// M(·,·): the distance between projections `[b, k]` in the scale of the preset; `[1]`.
    pub(crate) fn manifold(&self, teacher_bk: Tensor<2>, student_bk: Tensor<2>) -> Tensor<1> {
        match (self.config.manifold(), self.config.preset()) {
            (Manifold::Inner, _) => inner(teacher_bk, student_bk),
            (Manifold::Cosine, _) => cosine(teacher_bk, student_bk),
            (Manifold::Euclid, Preset::Paper) => euclid_norm(teacher_bk, student_bk),
            (Manifold::Euclid, Preset::Reference) => euclid_mean_squared(teacher_bk, student_bk),
            (Manifold::Elementwise, Preset::Paper) => elementwise_norm(teacher_bk, student_bk),
            (Manifold::Elementwise, Preset::Reference) => mean_squared(teacher_bk, student_bk),
        }
    }
}

/// T(·,·): the task loss of outputs `[b, c]`; `[1]`.
pub(crate) fn task(outputs_bc: &Tensor<2>, targets: &Targets) -> Tensor<1> {
    match targets {
        Targets::Classes(classes_b) => cross_entropy(outputs_bc.clone(), classes_b.clone()),
        Targets::Values(values_b) => regression(outputs_bc.clone(), values_b.clone()),
        Targets::Responses(responses) => next_token(
            outputs_bc.clone(),
            responses.tokens_r.clone(),
            responses.weights_r.clone(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn outputs(device: &Device) -> (AlignerOutputs, StudentOutputs) {
        let tensor = |rows: [[f32; 2]; 2]| Tensor::<2>::from_floats(rows, device).require_grad();
        let aligner = AlignerOutputs {
            main_bc: tensor([[1.0, -1.0], [0.5, 0.0]]),
            auxiliary_bc: tensor([[0.0, 2.0], [1.0, 1.5]]),
            projection_bk: tensor([[1.0, 2.0], [3.0, -1.0]]),
            reconstructed_bf: None,
        };
        let student = StudentOutputs {
            main_bc: tensor([[0.3, 0.2], [-0.4, 0.1]]),
            auxiliary_bc: Some(tensor([[0.0, 0.5], [0.2, 0.1]])),
            projection_bk: tensor([[0.5, 0.5], [1.0, -2.0]]),
        };
        (aligner, student)
    }

    fn objective(alpha: f64, beta: f64, gamma: f64) -> Objective {
        let settings = ObjectiveSettings {
            alpha,
            beta,
            gamma,
            ..ObjectiveSettings::default()
        };
        Objective::new(settings.try_into().unwrap())
    }

    fn names(loss: &LossTerms) -> Vec<&'static str> {
        loss.terms.iter().map(|(name, _)| *name).collect()
    }

    fn scalar(tensor: &Tensor<1>) -> f32 {
        tensor.clone().into_scalar()
    }

    #[test]
    fn terms_of_weight_zero_are_absent() {
        let device = Device::flex().autodiff();
        let (aligner, student) = outputs(&device);
        let targets = Targets::Classes(Tensor::from_ints([0, 1], &device));
        let guided = |alpha, beta, gamma| {
            names(&objective(alpha, beta, gamma).student_loss(
                &student,
                Guidance::Teacher(&aligner),
                &targets,
            ))
        };
        assert_eq!(
            guided(0.5, 1.0, 1.0),
            ["task", "task_aux", "kd", "kd_aux", "manifold"]
        );
        assert_eq!(guided(0.0, 1.0, 0.0), ["task", "manifold"]);
        assert_eq!(guided(1.0, 0.0, 0.5), ["kd", "kd_aux"]);
        assert_eq!(
            names(&objective(0.5, 1.0, 0.0).aligner_loss(&aligner, &targets)),
            ["task"]
        );
    }

    #[test]
    fn guidance_without_a_teacher_keeps_the_full_task_weight() {
        let device = Device::flex().autodiff();
        let (_, student) = outputs(&device);
        let targets = Targets::Classes(Tensor::from_ints([0, 1], &device));
        let objective = objective(0.5, 1.0, 0.25);

        let undistilled = objective.student_loss(&student, Guidance::None, &targets);
        assert_eq!(names(&undistilled), ["task"]);
        assert_eq!(
            scalar(&undistilled.total),
            scalar(undistilled.get(TASK).unwrap())
        );

        let auxiliary = objective.student_loss(&student, Guidance::AuxiliaryOnly, &targets);
        assert_eq!(names(&auxiliary), ["task", "task_aux"]);
        let expected = scalar(auxiliary.get(TASK).unwrap())
            + 0.25 * scalar(auxiliary.get(TASK_AUXILIARY).unwrap());
        assert!((scalar(&auxiliary.total) - expected).abs() < 1e-6);
    }

    #[test]
    fn student_loss_never_reaches_the_aligner() {
        let device = Device::flex().autodiff();
        let (aligner, student) = outputs(&device);
        let targets = Targets::Classes(Tensor::from_ints([0, 1], &device));
        let loss =
            objective(0.5, 1.0, 1.0).student_loss(&student, Guidance::Teacher(&aligner), &targets);
        let gradients = loss.total.backward();
        for leaf in [
            &aligner.main_bc,
            &aligner.auxiliary_bc,
            &aligner.projection_bk,
        ] {
            assert!(leaf.grad(&gradients).is_none());
        }
        for leaf in [
            &student.main_bc,
            student.auxiliary_bc.as_ref().unwrap(),
            &student.projection_bk,
        ] {
            let gradient: f32 = leaf.grad(&gradients).unwrap().abs().sum().into_scalar();
            assert!(gradient > 0.0);
        }
    }
}
