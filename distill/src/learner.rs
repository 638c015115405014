//! Aligner and student with their optimisers, and one step of them.
//!
//! Shape suffixes: `b` batch rows, `f` feature width.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor};
use serde_json::{Map, Value};

use crate::aligner::Aligner;
use crate::checkpoint::Position;
use crate::config::TrainingConfig;
use crate::data::{Padding, Rows, TeacherFeatures, batch, token_batch};
use crate::error::Error;
use crate::model::Student;
use crate::objective::{AlignerOutputs, Guidance, LossTerms, Objective, Targets};
use crate::optimizer::{ModuleAdamW, clip_global_norm};
use crate::random::{Purpose, Randomness};
use crate::run_log::Update;
use crate::schedule::Trained;
use crate::student::Encoding;
use crate::student::weights::{load_safetensors, to_safetensors};

const STUDENT_FILE: &str = "student.safetensors";
const STUDENT_OPTIMIZER_FILE: &str = "student_optimizer.safetensors";
const ALIGNER_FILE: &str = "aligner.safetensors";
const ALIGNER_OPTIMIZER_FILE: &str = "aligner_optimizer.safetensors";

/// The teacher's side of a run.
#[derive(Debug)]
pub struct TeacherSide {
    aligner: Aligner,
    optimizer: ModuleAdamW,
    features: TeacherFeatures,
    /// The aligner in evaluation mode while the student is trained alone.
    frozen: Option<Aligner>,
}

impl TeacherSide {
    /// An aligner that has not been trained yet.
    pub fn new(aligner: Aligner, features: TeacherFeatures, training: &TrainingConfig) -> Self {
        Self {
            aligner,
            optimizer: ModuleAdamW::new(training.weight_decay.get()),
            features,
            frozen: None,
        }
    }
}

/// What a run learns with, apart from its teacher.
#[derive(Clone, Debug)]
pub struct Lessons<'a> {
    /// The losses.
    pub objective: Objective,
    /// The training rows.
    pub rows: &'a Rows,
    /// Whether a run without teacher trains its own auxiliary head.
    pub auxiliary: bool,
    /// Parts of a step.
    pub gradient_accumulation: usize,
    /// Largest global gradient norm.
    pub max_gradient_norm: f64,
    /// Id of padding.
    pub pad_id: u32,
    /// How batches are padded.
    pub padding: Padding,
    /// Dropout follows from it and the module's step.
    pub randomness: Randomness,
    /// With autodiff.
    pub device: Device,
}

/// Learning rates of a step.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of the student.
    pub student: f64,
    /// Of the aligner.
    pub aligner: f64,
}

/// What a step did.
#[derive(Clone, Debug)]
pub struct StepOutcome {
    /// To the aligner.
    pub aligner: Option<Update>,
    /// To the student.
    pub student: Option<Update>,
}

/// Aligner and student under training.
#[derive(Debug)]
pub struct Learner<'a> {
    lessons: Lessons<'a>,
    student: Student,
    optimizer: ModuleAdamW,
    teacher: Option<TeacherSide>,
}

/// Loss and gradient of one module, summed over the parts of a step.
struct Accumulated<M> {
    gradients: GradientsAccumulator<M>,
    loss: f32,
    terms: Vec<(&'static str, f32)>,
}

impl<M: Module> Accumulated<M> {
    fn new() -> Self {
        Self {
            gradients: GradientsAccumulator::new(),
            loss: 0.0,
            terms: Vec::new(),
        }
    }

    /// Adds a part that holds `share` of the step's rows, so that mean losses add up to the mean over the step.
    fn add(&mut self, module: &M, loss: LossTerms, share: f32) {
        let mut values = vec![loss.total.clone().inner()];
        values.extend(loss.terms.iter().map(|(_, term)| term.clone().inner()));
        // One transfer for all of them.
        let values: Vec<f32> = Tensor::cat(values, 0)
            .into_data()
            .try_to_vec()
            .expect("losses are f32");
        self.loss += share * values[0];
        for (index, ((name, _), value)) in loss.terms.iter().zip(&values[1..]).enumerate() {
            match self.terms.get_mut(index) {
                Some((_, sum)) => *sum += share * value,
                None => self.terms.push((name, share * value)),
            }
        }
        let total = if share < 1.0 {
            loss.total.mul_scalar(share)
        } else {
            loss.total
        };
        let gradients = GradientsParams::from_grads(total.backward(), module);
        self.gradients.accumulate(module, gradients);
    }

    /// Moves the module; `None` where the gradient is not finite.
    fn apply(
        mut self,
        module: M,
        optimizer: &mut ModuleAdamW,
        rate: f64,
        max_norm: f64,
    ) -> Option<(M, Update)> {
        let clipped = clip_global_norm(&module, self.gradients.grads(), max_norm);
        if !clipped.norm.is_finite() {
            return None;
        }
        let module = optimizer.step(rate, module, clipped.gradients);
        let terms = self
            .terms
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Value::from(value)));
        let update = Update {
            loss: self.loss,
            terms: terms.collect::<Map<_, _>>(),
            learning_rate: rate,
            gradient_norm: clipped.norm,
        };
        Some((module, update))
    }
}

impl<'a> Learner<'a> {
    /// A run at its start.
    pub fn new(
        lessons: Lessons<'a>,
        student: Student,
        teacher: Option<TeacherSide>,
        weight_decay: f64,
    ) -> Self {
        Self {
            lessons,
            student,
            optimizer: ModuleAdamW::new(weight_decay),
            teacher,
        }
    }

    /// The student in evaluation mode: no dropout, no graph.
    pub fn evaluated_student(&self) -> Student {
        self.student.valid()
    }

    /// The aligner, where there is a teacher.
    pub fn aligner(&self) -> Option<&Aligner> {
        self.teacher.as_ref().map(|teacher| &teacher.aligner)
    }

    /// Prepares for a pass: while the student is trained alone, the aligner is frozen in evaluation mode.
    pub fn begin_pass(&mut self, trained: Trained) {
        if let Some(teacher) = &mut self.teacher {
            teacher.frozen = (trained == Trained::Student).then(|| teacher.aligner.valid());
        }
    }

    /// One optimiser step on `rows`; `position` is where the run stands before it.
    ///
    /// Dropout is keyed with the steps of the module that it acts on, so that all variants of a seed share the
    /// student's masks however many passes the aligner has.
    ///
    /// # Errors
    /// [`Error::Diverged`]; nothing has moved then, or the aligner alone.
    pub fn step(
        &mut self,
        trained: Trained,
        rows: &[usize],
        position: Position,
        rates: Rates,
    ) -> Result<StepOutcome, Error> {
        let part_size = rows
            .len()
            .div_ceil(self.lessons.gradient_accumulation)
            .max(1);
        let mut aligner_sum = trained.has_aligner().then(Accumulated::<Aligner>::new);
        let mut student_sum = trained.has_student().then(Accumulated::<Student>::new);
        for (index, part) in rows.chunks(part_size).enumerate() {
            let part_number =
                |step: u64| step * self.lessons.gradient_accumulation as u64 + index as u64;
            let share = part.len() as f32 / rows.len() as f32;
            let targets = batch::targets(&self.lessons.rows.labels, part, &self.lessons.device);
            let taught = self
                .teacher
                .as_ref()
                .map(|teacher| self.teach(teacher, part, part_number(position.aligner_step)));
            if let (Some(sum), Some(teacher), Some(taught)) =
                (&mut aligner_sum, &self.teacher, &taught)
            {
                sum.add(
                    &teacher.aligner,
                    self.lessons.objective.aligner_loss(taught, &targets),
                    share,
                );
            }
            if let Some(sum) = &mut student_sum {
                sum.add(
                    &self.student,
                    self.student_loss(
                        part,
                        taught.as_ref(),
                        &targets,
                        part_number(position.student_step),
                    ),
                    share,
                );
            }
        }
        let max_norm = self.lessons.max_gradient_norm;
        let diverged = || Error::Diverged {
            step: position.step + 1,
        };
        let mut outcome = StepOutcome {
            aligner: None,
            student: None,
        };
        if let (Some(sum), Some(teacher)) = (aligner_sum, &mut self.teacher) {
            let aligner = teacher.aligner.clone();
            let (aligner, update) = sum
                .apply(aligner, &mut teacher.optimizer, rates.aligner, max_norm)
                .ok_or_else(diverged)?;
            teacher.aligner = aligner;
            outcome.aligner = Some(update);
        }
        if let Some(sum) = student_sum {
            let student = self.student.clone();
            let (student, update) = sum
                .apply(student, &mut self.optimizer, rates.student, max_norm)
                .ok_or_else(diverged)?;
            self.student = student;
            outcome.student = Some(update);
        }
        Ok(outcome)
    }

    fn teach(&self, teacher: &TeacherSide, rows: &[usize], part_number: u64) -> AlignerOutputs {
        let device = &self.lessons.device;
        if let Some(frozen) = &teacher.frozen {
            return frozen.forward(teacher.features.batch(rows, &device.clone().inner()));
        }
        device.seed(
            self.lessons
                .randomness
                .device_seed(Purpose::AlignerDropout, part_number),
        );
        teacher
            .aligner
            .forward(teacher.features.batch(rows, device))
    }

    fn student_loss(
        &self,
        rows: &[usize],
        taught: Option<&AlignerOutputs>,
        targets: &Targets,
        part_number: u64,
    ) -> LossTerms {
        let Lessons {
            rows: all,
            pad_id,
            padding,
            device,
            ..
        } = &self.lessons;
        let encodings: Vec<&Encoding> = rows.iter().map(|&row| &all.encodings[row]).collect();
        device.seed(
            self.lessons
                .randomness
                .device_seed(Purpose::StudentDropout, part_number),
        );
        let outputs = self
            .student
            .forward(&token_batch(&encodings, *pad_id, *padding, device));
        let guidance = match taught {
            Some(taught) => Guidance::Teacher(taught),
            None if self.lessons.auxiliary => Guidance::AuxiliaryOnly,
            None => Guidance::None,
        };
        self.lessons
            .objective
            .student_loss(&outputs, guidance, targets)
    }

    /// All tensors that the next step depends on, as files of a checkpoint.
    ///
    /// # Errors
    /// The format cannot hold them.
    pub fn files(&self) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let mut files = BTreeMap::from([
            (STUDENT_FILE.to_owned(), to_safetensors(&self.student)?),
            (
                STUDENT_OPTIMIZER_FILE.to_owned(),
                self.optimizer.to_safetensors()?,
            ),
        ]);
        if let Some(teacher) = &self.teacher {
            files.insert(ALIGNER_FILE.to_owned(), to_safetensors(&teacher.aligner)?);
            files.insert(
                ALIGNER_OPTIMIZER_FILE.to_owned(),
                teacher.optimizer.to_safetensors()?,
            );
        }
        Ok(files)
    }

    /// Takes over the tensors of a checkpoint.
    ///
    /// # Errors
    /// They are not those of this run.
    pub fn restore(&mut self, files: &BTreeMap<String, Vec<u8>>) -> Result<(), Error> {
        let device = self.lessons.device.clone().inner();
        self.student = restore_student(self.student.clone(), files)?;
        self.optimizer
            .load_safetensors(file(files, STUDENT_OPTIMIZER_FILE), &device)?;
        if let Some(teacher) = &mut self.teacher {
            teacher.aligner = load_safetensors(teacher.aligner.clone(), file(files, ALIGNER_FILE))?;
            teacher
                .optimizer
                .load_safetensors(file(files, ALIGNER_OPTIMIZER_FILE), &device)?;
        }
        Ok(())
    }
}

/// The student of a checkpoint.
///
/// # Errors
/// It was trained under another configuration.
pub fn restore_student(
    student: Student,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<Student, Error> {
    Ok(load_safetensors(student, file(files, STUDENT_FILE))?)
}

/// An absent file reads as empty, which the format refuses.
fn file<'a>(files: &'a BTreeMap<String, Vec<u8>>, name: &str) -> &'a [u8] {
    files.get(name).map_or(&[], Vec::as_slice)
}
