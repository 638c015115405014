//! Losses and gradients of one step on one device.
//!
//! Shape suffixes: `b` batch rows, `f` feature width, `t` the loss and its terms.

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::aligner::Aligner;
use crate::checkpoint::Position;
use crate::data::Shard;
use crate::generator::{self, Others};
use crate::model::Student;
use crate::objective::{AlignerOutputs, Guidance, LossTerms, Objective, StudentOutputs};
use crate::random::{Purpose, Randomness};
use crate::schedule::Trained;
use crate::student::checkpointing::{Segment, SegmentDraws};

/// What a run learns with, apart from its teacher.
#[derive(Clone, Debug)]
pub struct Lessons {
    /// The losses.
    pub objective: Objective,
    /// Whether a run without teacher trains its own auxiliary head.
    pub auxiliary: bool,
    /// Dropout follows from it, the module's step and the shard.
    pub randomness: Randomness,
    /// Whether the student's activations are computed a second time in the backward pass.
    pub activation_checkpointing: bool,
    /// Parts of a step.
    pub gradient_accumulation: usize,
    /// Devices over which each part is split.
    pub num_devices: usize,
}

/// The modules of a step, on one device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Models<'a> {
    pub(crate) student: &'a Student,
    pub(crate) aligner: Option<&'a Aligner>,
    /// The aligner in evaluation mode while the student is trained alone.
    pub(crate) frozen: Option<&'a Aligner>,
}

/// Loss and gradient of one module, summed over shards; nothing of it has been read from the device.
pub(crate) struct Sum<M> {
    gradients: GradientsAccumulator<M>,
    names: Vec<&'static str>,
    /// The weighted loss and its terms, `[t]`.
    values_t: Option<Tensor<1>>,
}

impl<M: Module> Sum<M> {
    fn new() -> Self {
        Self {
            gradients: GradientsAccumulator::new(),
            names: Vec::new(),
            values_t: None,
        }
    }

    /// Adds a shard that holds `share` of the step's rows, so that mean losses add up to the mean over the step.
    fn add(&mut self, module: &M, loss: &LossTerms, share: f32) {
        let gradients = loss.total.clone().mul_scalar(share).backward();
        let gradients = GradientsParams::from_grads(gradients, module);
        self.add_computed(module, loss, share, gradients);
    }

    /// As [`Sum::add`], with the gradients of the loss times `share`.
    fn add_computed(
        &mut self,
        module: &M,
        loss: &LossTerms,
        share: f32,
        gradients: GradientsParams,
    ) {
        let terms = loss.terms.iter().map(|(_, term)| term.clone().inner());
        let values = [loss.total.clone().inner()].into_iter().chain(terms);
        let values_t = Tensor::cat(values.collect(), 0).mul_scalar(share);
        let names = loss.terms.iter().map(|(name, _)| *name).collect();
        self.merge(module, names, values_t, gradients);
    }

    fn merge(
        &mut self,
        module: &M,
        names: Vec<&'static str>,
        values_t: Tensor<1>,
        gradients: GradientsParams,
    ) {
        self.gradients.accumulate(module, gradients);
        self.names = names;
        self.values_t = Some(match self.values_t.take() {
            Some(sum_t) => sum_t + values_t,
            None => values_t,
        });
    }

    /// Adds what another device has summed over its shards and sent to this one.
    fn add_sum(&mut self, module: &M, other: Self) {
        let (names, values_t, gradients) = other.finish();
        self.merge(module, names, values_t, gradients);
    }

    fn into_device(self, module: &M, device: &Device) -> Self {
        let (names, values_t, gradients) = self.finish();
        let mut sum = Self::new();
        sum.merge(
            module,
            names,
            values_t.to_device(device),
            gradients.to_device(device, module),
        );
        sum
    }

    /// Names of the terms, loss and terms `[1 + names]`, gradients.
    pub(crate) fn finish(mut self) -> (Vec<&'static str>, Tensor<1>, GradientsParams) {
        let values_t = self.values_t.expect("every step has a shard");
        (self.names, values_t, self.gradients.grads())
    }
}

/// Sums of the modules that are trained.
pub(crate) struct Sums {
    pub(crate) aligner: Option<Sum<Aligner>>,
    pub(crate) student: Option<Sum<Student>>,
}

impl Sums {
    /// Adds what another device has summed.
    pub(crate) fn add(&mut self, models: Models<'_>, other: Self) {
        if let (Some(sum), Some(aligner), Some(other)) =
            (&mut self.aligner, models.aligner, other.aligner)
        {
            sum.add_sum(aligner, other);
        }
        if let (Some(sum), Some(other)) = (&mut self.student, other.student) {
            sum.add_sum(models.student, other);
        }
    }

    /// The same on `device`.
    pub(crate) fn into_device(self, models: Models<'_>, device: &Device) -> Self {
        let aligner = self.aligner.zip(models.aligner);
        Self {
            aligner: aligner.map(|(sum, aligner)| sum.into_device(aligner, device)),
            student: self
                .student
                .map(|sum| sum.into_device(models.student, device)),
        }
    }
}

/// One step's share of one device, which has autodiff.
pub(crate) struct Computation<'a> {
    pub(crate) lessons: &'a Lessons,
    pub(crate) models: Models<'a>,
    pub(crate) trained: Trained,
    /// Where the run stands before the step.
    pub(crate) position: Position,
    pub(crate) device: &'a Device,
}

impl Computation<'_> {
    /// Losses and gradients over `shards`.
    pub(crate) fn sums(&self, shards: Vec<Shard>) -> Sums {
        let trains_aligner = self.trained.has_aligner() && self.models.aligner.is_some();
        let mut sums = Sums {
            aligner: trains_aligner.then(Sum::new),
            student: self.trained.has_student().then(Sum::new),
        };
        for shard in shards {
            self.add(shard, &mut sums);
        }
        sums
    }

    fn add(&self, shard: Shard, sums: &mut Sums) {
        let objective = &self.lessons.objective;
        let targets = shard.targets.into_device(self.device);
        let taught = shard
            .features
            .map(|features| self.teach(features, shard.index));
        if let (Some(sum), Some(aligner), Some(taught)) =
            (&mut sums.aligner, self.models.aligner, &taught)
        {
            sum.add(
                aligner,
                &objective.aligner_loss(taught, &targets),
                shard.share,
            );
        }
        if let (Some(sum), Some(tokens)) = (&mut sums.student, shard.tokens) {
            let tokens = tokens.into_device(self.device);
            let student = self.models.student;
            let guidance = self.guidance(taught.as_ref());
            let loss =
                |outputs: &StudentOutputs| objective.student_loss(outputs, guidance, &targets);
            let draws = StudentDraws {
                computation: self,
                place: self.place(self.position.student_step, shard.index),
            };
            if self.lessons.activation_checkpointing {
                let (gradients, loss) =
                    student.checkpointed_gradients(&tokens, &targets, &draws, |outputs| {
                        let loss = loss(&outputs);
                        (loss.total.clone().mul_scalar(shard.share), loss)
                    });
                sum.add_computed(student, &loss, shard.share, gradients);
            } else {
                let outputs = draws.whole(|| student.forward(&tokens, &targets));
                sum.add(student, &loss(&outputs), shard.share);
            }
        }
    }

    fn teach(&self, features: TensorData, index: u64) -> AlignerOutputs {
        if let Some(frozen) = self.models.frozen {
            let device = self.device.clone().inner();
            return frozen.forward(Tensor::from_data(features, (&device, DType::F32)));
        }
        let aligner = self
            .models
            .aligner
            .expect("features are there for an aligner");
        let features_bf = Tensor::from_data(features, (self.device, DType::F32));
        let place = self.place(self.position.aligner_step, index);
        let randomness = self.lessons.randomness;
        let seed = randomness.device_seed(Purpose::AlignerDropout, place);
        self.drawing(seed, || aligner.forward(features_bf))
    }

    /// Where in the run a shard is.
    fn place(&self, step: u64, index: u64) -> u64 {
        let num_shards = self.lessons.gradient_accumulation * self.lessons.num_devices;
        step * num_shards as u64 + index
    }

    /// A forward pass with dropout of its own, whatever other devices do meanwhile.
    fn drawing<T>(&self, seed: u64, forward: impl FnOnce() -> T) -> T {
        let others = if self.lessons.num_devices > 1 {
            Others::Draw
        } else {
            Others::None
        };
        generator::drawing(self.device, seed, others, forward)
    }

    fn guidance<'t>(&self, taught: Option<&'t AlignerOutputs>) -> Guidance<'t> {
        match taught {
            Some(taught) => Guidance::Teacher(taught),
            None if self.lessons.auxiliary => Guidance::AuxiliaryOnly,
            None => Guidance::None,
        }
    }
}

/// The student's dropout in one shard.
struct StudentDraws<'a> {
    computation: &'a Computation<'a>,
    place: u64,
}

impl StudentDraws<'_> {
    /// All of a forward pass.
    fn whole<T>(&self, forward: impl FnOnce() -> T) -> T {
        let randomness = self.computation.lessons.randomness;
        let seed = randomness.device_seed(Purpose::StudentDropout, self.place);
        self.computation.drawing(seed, forward)
    }
}

impl SegmentDraws for StudentDraws<'_> {
    fn drawing<T>(&self, segment: Segment, compute: impl FnOnce() -> T) -> T {
        let position = [self.place, segment.number()].map(u64::to_le_bytes);
        let randomness = self.computation.lessons.randomness;
        let seed = randomness.device_seed_at(Purpose::StudentDropout, position.as_flattened());
        self.computation.drawing(seed, compute)
    }
}
