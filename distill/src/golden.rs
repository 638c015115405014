//! Compares the losses and their gradients with values computed elsewhere, in double precision.
//!
//! A library function rather than a test, so that the same comparison runs on any device.

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor};
use serde::Deserialize;

use crate::objective::{
    AlignerOutputs, Guidance, KD, KD_AUXILIARY, MANIFOLD, Manifold, Objective, ObjectiveConfig,
    ObjectiveError, ObjectiveSettings, Preset, StudentOutputs, TASK, TASK_AUXILIARY, Targets, task,
};

/// One compared quantity of one case.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What it belongs to: of a loss preset, manifold term, task, weights and shape.
    pub case: String,
    /// What is compared: of a loss a term, `aligner_loss`, `total`, or `gradient o_s`, `gradient a_s`, `gradient p_s`.
    pub quantity: String,
    /// Largest magnitude among the expected entries.
    pub magnitude: f64,
    /// Largest absolute difference between an entry and its expected value; NaN if an entry is.
    pub difference: f64,
}

/// The values of a tensor that is compared.
#[expect(clippy::disallowed_methods, reason = "a comparison reads")]
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .into_data()
        .try_to_vec()
        .expect("what is compared is f32")
}

impl Comparison {
    /// Compares entry by entry; other numbers of entries differ by NaN.
    pub fn new<E: Copy + Into<f64>>(
        case: &str,
        quantity: &str,
        actual: &[f32],
        expected: &[E],
    ) -> Self {
        let mut difference = if actual.len() == expected.len() {
            0.0
        } else {
            f64::NAN
        };
        let mut magnitude: f64 = 0.0;
        for (&actual, &expected) in actual.iter().zip(expected) {
            let expected: f64 = expected.into();
            let distance = (f64::from(actual) - expected).abs();
            // `max` would drop a NaN.
            difference = if distance.is_nan() || difference.is_nan() {
                f64::NAN
            } else {
                f64::max(difference, distance)
            };
            magnitude = magnitude.max(expected.abs());
        }
        Self {
            case: case.to_owned(),
            quantity: quantity.to_owned(),
            magnitude,
            difference,
        }
    }

    /// The largest difference relative to the largest expected magnitude of the tensor: small entries of a gradient are
    /// sums of large ones that cancel, and carry the rounding of those. A single number is compared with itself.
    /// Where everything expected is zero, 0 if that was met exactly and infinite otherwise.
    pub fn relative(&self) -> f64 {
        if self.difference == 0.0 {
            0.0
        } else {
            self.difference / self.magnitude
        }
    }

    /// Whether [`Comparison::relative`] is at most `tolerance`; never if a value is NaN.
    pub fn within(&self, tolerance: f64) -> bool {
        self.relative() <= tolerance
    }
}

/// Why a file of expected values was not compared.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// Not the expected JSON.
    #[error("the file of expected losses is not readable: {0}")]
    Parse(#[from] serde_json::Error),
    /// A case outside the ranges of the objective.
    #[error("a case of the file of expected losses is no objective: {0}")]
    Objective(#[from] ObjectiveError),
    /// A matrix of a case whose rows differ in width, or that has none.
    #[error("`{name}` of a case of the file of expected losses is not a matrix")]
    Ragged {
        /// The tensor.
        name: &'static str,
    },
}

impl GoldenError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some("use tests/golden/armada_losses.json of this version".to_owned())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "about")]
    _about: String,
    cases: Vec<Case>,
}

/// The file names the reference script's forms apart from the paper's; here the preset already tells them apart.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ManifoldName {
    Inner,
    Cosine,
    #[serde(alias = "euclid_mse")]
    Euclid,
    #[serde(alias = "elementwise_mse")]
    Elementwise,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TaskName {
    Classification,
    Regression,
}

type Rows = Vec<Vec<f64>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    preset: Preset,
    manifold: ManifoldName,
    task: TaskName,
    alpha: f64,
    beta: f64,
    gamma: f64,
    tau: f64,
    inputs: Inputs,
    terms: BTreeMap<String, f64>,
    aligner_loss: f64,
    total: f64,
    gradients: Gradients,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inputs {
    o_t: Rows,
    a_t: Rows,
    p_t: Rows,
    y: Vec<f64>,
    o_s: Rows,
    a_s: Rows,
    p_s: Rows,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_field_names,
    reason = "the names of the file, which are those of the method"
)]
struct Gradients {
    o_s: Rows,
    a_s: Rows,
    p_s: Rows,
}

/// Computes every case of `json` in `f32` on `device` and compares each term, both totals, and the gradients of the
/// student's total with respect to its three outputs.
///
/// # Errors
/// [`GoldenError`] where the file is not one of expected losses. A difference is no error: see [`Comparison::within`].
pub fn compare(device: &Device, json: &str) -> Result<Vec<Comparison>, GoldenError> {
    let file: File = serde_json::from_str(json)?;
    let device = device.clone().autodiff();
    let mut comparisons = Vec::new();
    for case in &file.cases {
        comparisons.extend(case.compare(&device)?);
    }
    Ok(comparisons)
}

impl Case {
    fn objective(&self) -> Result<Objective, ObjectiveError> {
        let manifold = match self.manifold {
            ManifoldName::Inner => Manifold::Inner,
            ManifoldName::Cosine => Manifold::Cosine,
            ManifoldName::Euclid => Manifold::Euclid,
            ManifoldName::Elementwise => Manifold::Elementwise,
        };
        let settings = ObjectiveSettings {
            preset: self.preset,
            manifold,
            alpha: self.alpha,
            beta: self.beta,
            gamma: self.gamma,
            temperature: self.tau,
        };
        Ok(Objective::new(ObjectiveConfig::try_from(settings)?))
    }

    fn name(&self) -> String {
        format!(
            "{:?} {:?} {:?} alpha {} beta {} gamma {} tau {} batch {}",
            self.preset,
            self.manifold,
            self.task,
            self.alpha,
            self.beta,
            self.gamma,
            self.tau,
            self.inputs.y.len()
        )
        .to_lowercase()
    }

    fn targets(&self, device: &Device) -> Targets {
        match self.task {
            TaskName::Classification => {
                let classes = self
                    .inputs
                    .y
                    .iter()
                    .map(|&class| class as i64)
                    .collect::<Vec<_>>();
                Targets::Classes(Tensor::<1, Int>::from_ints(classes.as_slice(), device))
            }
            TaskName::Regression => {
                let values = self
                    .inputs
                    .y
                    .iter()
                    .map(|&value| value as f32)
                    .collect::<Vec<_>>();
                Targets::Values(Tensor::from_floats(values.as_slice(), device))
            }
        }
    }

    fn compare(&self, device: &Device) -> Result<Vec<Comparison>, GoldenError> {
        let objective = self.objective()?;
        let targets = self.targets(device);
        let aligner = AlignerOutputs {
            main_bc: matrix("o_t", &self.inputs.o_t, device)?,
            auxiliary_bc: matrix("a_t", &self.inputs.a_t, device)?,
            projection_bk: matrix("p_t", &self.inputs.p_t, device)?,
            reconstructed_bf: None,
        };
        let auxiliary_bc = matrix("a_s", &self.inputs.a_s, device)?.require_grad();
        let student = StudentOutputs {
            main_bc: matrix("o_s", &self.inputs.o_s, device)?.require_grad(),
            auxiliary_bc: Some(auxiliary_bc.clone()),
            projection_bk: matrix("p_s", &self.inputs.p_s, device)?.require_grad(),
        };
        let loss = objective.student_loss(&student, Guidance::Teacher(&aligner), &targets);
        let gradients = loss.total.backward();

        let case = self.name();
        let row = |quantity: &str, actual: Tensor<1>, expected: &[f64]| {
            Comparison::new(&case, quantity, &values(actual), expected)
        };
        let mut rows = Vec::new();
        for (term, expected) in &self.terms {
            // A term of weight zero is not part of the loss, but the file expects its value all the same.
            let actual = match loss.get(term) {
                Some(value) => value.clone(),
                None => unweighted(
                    term,
                    &objective,
                    &aligner,
                    (&student.main_bc, &auxiliary_bc, &student.projection_bk),
                    &targets,
                ),
            };
            rows.push(row(term, actual, &[*expected]));
        }
        rows.push(row(
            "aligner_loss",
            objective.aligner_loss(&aligner, &targets).total,
            &[self.aligner_loss],
        ));
        rows.push(row("total", loss.total.clone(), &[self.total]));
        for (quantity, leaf, expected) in [
            ("gradient o_s", &student.main_bc, &self.gradients.o_s),
            ("gradient a_s", &auxiliary_bc, &self.gradients.a_s),
            ("gradient p_s", &student.projection_bk, &self.gradients.p_s),
        ] {
            // An output that no term of the loss reads has no gradient, which is a gradient of zero.
            let actual = leaf
                .grad(&gradients)
                .unwrap_or_else(|| leaf.clone().inner().zeros_like());
            rows.push(row(quantity, actual.flatten(0, 1), &expected.concat()));
        }
        Ok(rows)
    }
}

fn unweighted(
    term: &str,
    objective: &Objective,
    aligner: &AlignerOutputs,
    (main_bc, auxiliary_bc, projection_bk): (&Tensor<2>, &Tensor<2>, &Tensor<2>),
    targets: &Targets,
) -> Tensor<1> {
    match term {
        TASK => task(main_bc, targets),
        TASK_AUXILIARY => task(auxiliary_bc, targets),
        KD => objective.distillation(aligner.main_bc.clone(), main_bc.clone(), targets),
        KD_AUXILIARY => {
            objective.distillation(aligner.auxiliary_bc.clone(), auxiliary_bc.clone(), targets)
        }
        MANIFOLD => objective.manifold(aligner.projection_bk.clone(), projection_bk.clone()),
        _ => Tensor::from_floats([f32::NAN], &main_bc.device()),
    }
}

fn matrix(name: &'static str, rows: &Rows, device: &Device) -> Result<Tensor<2>, GoldenError> {
    let width = rows.first().map_or(0, Vec::len);
    if width == 0 || rows.iter().any(|row| row.len() != width) {
        return Err(GoldenError::Ragged { name });
    }
    let values = rows
        .iter()
        .flatten()
        .map(|&value| value as f32)
        .collect::<Vec<_>>();
    Ok(Tensor::<1>::from_floats(values.as_slice(), device).reshape([rows.len(), width]))
}
