//! The aligner: a small network that learns the task from the teacher's cached feature alone.
//!
//! Shape suffixes: `b` rows, `f` teacher feature width (D in the method), `h` hidden width, `k` shared width, `c` outputs.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, FloatDType, Tensor};

use crate::dropout::Dropout;
use crate::heads::{HeadsConfig, activate, apply, drawn, init_head};
use crate::objective::{AlignerOutputs, Preset};
use crate::orthogonal::Orthogonal;

/// The TS Aligner.
///
/// - trunk: `h' = drop ReLU Linear(h, h) drop ReLU Linear(D, h) z`
/// - main outputs: `o_t = Linear(h, c)(drop h')`
/// - projection, always orthogonal and without bias: `p_t = P_t(h')` in the `paper` preset, `p_t = P_t(z)` in `reference`
/// - auxiliary outputs: `a_t = Linear(k, c)(drop p_t)`
///
/// In a generation task c is D, and the outputs reconstruct the feature: `dec(h') = Linear(h, D)(drop h')` and
/// `dec_aux(p_t) = Linear(k, D)(drop p_t)`. The paper does not say what the decoders are; this is our reading.
///
/// Output heads start at N(0, 0.02²) with biases 0; the trunk like PyTorch's `Linear`, uniform in ±1/√(input width).
///
/// `valid()` gives the frozen aligner in evaluation mode that the student is trained against. Nothing of it is needed
/// once the student is trained.
#[derive(Module, Debug)]
pub struct Aligner {
    input: Linear,
    hidden: Linear,
    main: Linear,
    projection: Orthogonal,
    auxiliary: Linear,
    dropout: Dropout,
    projects_feature: bool,
    relu_outputs: bool,
    reconstructs: bool,
}

impl Aligner {
    pub(crate) fn new(config: &HeadsConfig, feature_width: usize, device: &Device) -> Self {
        let projects_feature = config.preset == Preset::Reference;
        let projected_width = if projects_feature {
            feature_width
        } else {
            config.hidden
        };
        let outputs = config.task.num_outputs().unwrap_or(feature_width);
        Self {
            input: drawn(LinearConfig::new(feature_width, config.hidden).init(device)),
            hidden: drawn(LinearConfig::new(config.hidden, config.hidden).init(device)),
            main: init_head(config.hidden, outputs, device),
            projection: Orthogonal::new(projected_width, config.projection, device),
            auxiliary: init_head(config.projection, outputs, device),
            dropout: config.init_dropout(),
            projects_feature,
            relu_outputs: config.relu_outputs,
            reconstructs: config.task.num_outputs().is_none(),
        }
    }

    /// Reads the task off teacher features.
    ///
    /// # Shapes
    /// - `feature_bf`: `[b, D]`, any float precision
    pub fn forward(&self, feature_bf: Tensor<2>) -> AlignerOutputs {
        let dropped_relu =
            |layer: &Linear, input: Tensor<2>| self.dropout.forward(relu(apply(layer, input)));
        let hidden_bh = dropped_relu(&self.hidden, dropped_relu(&self.input, feature_bf.clone()));
        let projected = if self.projects_feature {
            feature_bf.clone()
        } else {
            hidden_bh.clone()
        };
        let projection_bk = self.projection.forward(projected.cast(FloatDType::F32));
        let main_bc = apply(&self.main, self.dropout.forward(hidden_bh));
        let auxiliary_bc = apply(&self.auxiliary, self.dropout.forward(projection_bk.clone()));
        AlignerOutputs {
            main_bc: activate(main_bc, self.relu_outputs),
            auxiliary_bc: activate(auxiliary_bc, self.relu_outputs),
            projection_bk,
            reconstructed_bf: self.reconstructs.then_some(feature_bf),
        }
    }

    /// P_t, the map into the shared space.
    pub fn projection(&self) -> &Orthogonal {
        &self.projection
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use burn::optim::GradientsParams;

    use super::*;
    use crate::heads::{AlignerConfig, StudentHeads};
    use crate::objective::{Guidance, Objective, ObjectiveSettings, Targets, TaskKind};

    const PRESETS: [Preset; 2] = [Preset::Paper, Preset::Reference];

    fn parts(preset: Preset, device: &Device) -> (Objective, Aligner, StudentHeads) {
        let config = AlignerConfig {
            hidden: NonZeroUsize::new(6),
            projection: NonZeroUsize::new(5),
            ..AlignerConfig::default()
        };
        let heads = config.resolve(preset, TaskKind::Classification { num_classes: 2 });
        let settings = ObjectiveSettings {
            preset,
            ..ObjectiveSettings::default()
        };
        (
            Objective::new(settings.try_into().unwrap()),
            heads.init_aligner(8, device),
            heads.init_student_heads(4, device),
        )
    }

    fn rows(width: usize, device: &Device) -> Tensor<2> {
        let values = (0..3 * width).map(|n| (n as f32).sin()).collect::<Vec<_>>();
        Tensor::<1>::from_floats(values.as_slice(), device).reshape([3, width])
    }

    fn targets(device: &Device) -> Targets {
        Targets::Classes(Tensor::from_ints([0, 1, 1], device))
    }

    #[test]
    fn the_students_loss_gives_the_aligner_no_gradient() {
        let device = Device::flex().autodiff();
        for preset in PRESETS {
            let (objective, aligner, student) = parts(preset, &device);
            let taught = aligner.forward(rows(8, &device));
            let outputs = student.forward(rows(4, &device));
            let loss =
                objective.student_loss(&outputs, Guidance::Teacher(&taught), &targets(&device));
            assert_eq!(loss.terms.len(), 5);
            let mut gradients = loss.total.backward();
            assert!(GradientsParams::from_module(&mut gradients, &aligner).is_empty());
            // Main and auxiliary head with biases, and the projection.
            assert_eq!(
                GradientsParams::from_module(&mut gradients, &student).len(),
                5
            );
        }
    }

    #[test]
    fn the_aligners_loss_gives_the_student_no_gradient() {
        let device = Device::flex().autodiff();
        for preset in PRESETS {
            let (objective, aligner, student) = parts(preset, &device);
            let loss =
                objective.aligner_loss(&aligner.forward(rows(8, &device)), &targets(&device));
            let mut gradients = loss.total.backward();
            assert!(GradientsParams::from_module(&mut gradients, &student).is_empty());
            // Four layers with biases, and the projection.
            assert_eq!(
                GradientsParams::from_module(&mut gradients, &aligner).len(),
                9
            );
        }
    }

    #[test]
    fn a_frozen_aligner_teaches_a_student_under_training() {
        let device = Device::flex().autodiff();
        let (objective, aligner, student) = parts(Preset::Paper, &device);
        let frozen = aligner.valid();
        let taught = frozen.forward(rows(8, &device).inner());
        let again = frozen.forward(rows(8, &device).inner());
        let difference: f32 = (taught.main_bc.clone() - again.main_bc)
            .abs()
            .max()
            .into_scalar();
        assert_eq!(difference, 0.0, "evaluation mode has no dropout");
        let outputs = student.forward(rows(4, &device));
        let loss = objective.student_loss(&outputs, Guidance::Teacher(&taught), &targets(&device));
        let gradients = GradientsParams::from_grads(loss.total.backward(), &student);
        assert_eq!(gradients.len(), 5);
    }

    #[test]
    fn each_preset_projects_what_its_source_projects() {
        let device = Device::flex();
        let feature = rows(8, &device);
        let (_, reference, _) = parts(Preset::Reference, &device);
        let expected = feature.clone().matmul(reference.projection().weight());
        let difference = reference.forward(feature.clone()).projection_bk - expected;
        assert!(difference.abs().max().into_scalar::<f32>() < 1e-6);

        let (_, paper, _) = parts(Preset::Paper, &device);
        let hidden = relu(
            paper
                .hidden
                .forward(relu(paper.input.forward(feature.clone()))),
        );
        let expected = hidden.matmul(paper.projection().weight());
        let difference = paper.forward(feature).projection_bk - expected;
        assert!(difference.abs().max().into_scalar::<f32>() < 1e-6);
    }
}
