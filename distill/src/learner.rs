//! Aligner and student with their optimisers, and one step of them.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Device;

use crate::aligner::Aligner;
use crate::checkpoint::{Position, StoredCheckpoint};
use crate::config::TrainingConfig;
use crate::data::Step;
use crate::error::Error;
use crate::gradients::{Computation, Models, Sum, Sums};
use crate::measured::Measured;
use crate::model::Student;
use crate::optimizer::{ModuleAdamW, clip_global_norm};
use crate::schedule::Trained;
use crate::student::weights::{load_safetensors, to_safetensors};
use crate::worker::Worker;

pub use crate::gradients::Lessons;

const STUDENT_FILE: &str = "student.safetensors";
const STUDENT_OPTIMIZER_FILE: &str = "student_optimizer.safetensors";
const ALIGNER_FILE: &str = "aligner.safetensors";
const ALIGNER_OPTIMIZER_FILE: &str = "aligner_optimizer.safetensors";

/// The teacher's side of a run.
#[derive(Debug)]
pub struct TeacherSide {
    aligner: Aligner,
    optimizer: ModuleAdamW,
    /// The aligner in evaluation mode while the student is trained alone.
    frozen: Option<Aligner>,
}

impl TeacherSide {
    /// An aligner that has not been trained yet.
    pub fn new(aligner: Aligner, training: &TrainingConfig) -> Self {
        Self {
            aligner,
            optimizer: ModuleAdamW::new(training.weight_decay.get()),
            frozen: None,
        }
    }
}

/// Learning rates of a step.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of the student.
    pub student: f64,
    /// Of the aligner.
    pub aligner: f64,
}

/// What a step did, not yet read from the device.
#[derive(Clone, Debug)]
pub struct StepOutcome {
    /// To the aligner.
    pub aligner: Option<Measured>,
    /// To the student.
    pub student: Option<Measured>,
}

/// Aligner and student under training.
#[derive(Debug)]
pub struct Learner {
    lessons: Lessons,
    /// There between steps: while it is moved, nobody else holds its old parameters.
    student: Option<Student>,
    optimizer: ModuleAdamW,
    teacher: Option<TeacherSide>,
    max_gradient_norm: f64,
    /// With autodiff; modules and optimisers live here.
    device: Device,
    /// One for each further device.
    workers: Vec<Worker>,
}

/// Moves a module by what was summed over a step.
fn apply<M: Module>(
    module: M,
    sum: Sum<M>,
    optimizer: &mut ModuleAdamW,
    learning_rate: f64,
    max_norm: f64,
) -> (M, Measured) {
    let (names, values_t, gradients) = sum.finish();
    let clipped = clip_global_norm(&module, gradients, max_norm);
    let module = optimizer.step(learning_rate, module, clipped.gradients);
    let measured = Measured {
        names,
        values_t,
        norm: clipped.norm,
        learning_rate,
    };
    (module, measured)
}

impl Learner {
    /// A run at its start; the modules are on the first of `devices`, which have autodiff.
    pub fn new(
        lessons: Lessons,
        student: Student,
        teacher: Option<TeacherSide>,
        training: &TrainingConfig,
        devices: &[Device],
    ) -> Self {
        let (device, others) = devices
            .split_first()
            .expect("a run has at least one device");
        let workers = others
            .iter()
            .map(|other| Worker::start(lessons.clone(), other.clone(), device.clone()));
        let optimizer = ModuleAdamW::new(training.weight_decay.get())
            .with_state(training.optimizer_state, lessons.randomness);
        Self {
            workers: workers.collect(),
            lessons,
            student: Some(student),
            optimizer,
            teacher,
            max_gradient_norm: training.max_gradient_norm.get(),
            device: device.clone(),
        }
    }

    /// The student in evaluation mode: no dropout, no graph.
    pub fn evaluated_student(&self) -> Student {
        self.student().valid()
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
        for worker in &self.workers {
            worker.begin_pass();
        }
    }

    /// One optimiser step; `position` is where the run stands before it.
    ///
    /// Nothing is read from the device, so a gradient that is not finite moves the modules: [`Watch`](crate::measured::Watch)
    /// finds it before anything of them is kept.
    ///
    /// Dropout is keyed with the steps of the module that it acts on, so that all variants of a seed share the
    /// student's masks however many passes the aligner has.
    pub fn step(
        &mut self,
        trained: Trained,
        step: Step,
        position: Position,
        rates: Rates,
    ) -> StepOutcome {
        let sums = self.sums(trained, step, position);
        let max_norm = self.max_gradient_norm;
        let mut outcome = StepOutcome {
            aligner: None,
            student: None,
        };
        if let (Some(sum), Some(teacher)) = (sums.aligner, &mut self.teacher) {
            let (aligner, measured) = apply(
                teacher.aligner.clone(),
                sum,
                &mut teacher.optimizer,
                rates.aligner,
                max_norm,
            );
            teacher.aligner = aligner;
            outcome.aligner = Some(measured);
        }
        if let Some(sum) = sums.student {
            let student = self.student.take().expect("the student is there");
            let optimizer = &mut self.optimizer;
            let (student, measured) = apply(student, sum, optimizer, rates.student, max_norm);
            self.student = Some(student);
            outcome.student = Some(measured);
        }
        outcome
    }

    fn student(&self) -> &Student {
        self.student.as_ref().expect("the student is there")
    }

    /// Losses and gradients of a step over all devices, summed in their order.
    fn sums(&self, trained: Trained, step: Step, position: Position) -> Sums {
        let teacher = self.teacher.as_ref();
        let models = Models {
            student: self.student(),
            aligner: teacher.map(|teacher| &teacher.aligner),
            frozen: teacher.and_then(|teacher| teacher.frozen.as_ref()),
        };
        let mut shards = step.shards.into_iter();
        let own = shards.next().unwrap_or_default();
        // A short step has no rows for the last devices.
        let busy: Vec<&Worker> = self
            .workers
            .iter()
            .zip(shards)
            .filter(|(_, shards)| !shards.is_empty())
            .map(|(worker, shards)| {
                worker.send(models, trained, position, shards);
                worker
            })
            .collect();
        let computation = Computation {
            lessons: &self.lessons,
            models,
            trained,
            position,
            device: &self.device,
        };
        let mut sums = computation.sums(own);
        for worker in busy {
            sums.add(models, worker.receive());
        }
        sums
    }

    /// All tensors that the next step depends on, as files of a checkpoint.
    ///
    /// # Errors
    /// The format cannot hold them.
    pub fn files(&self) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let mut files = BTreeMap::from([
            (STUDENT_FILE.to_owned(), self.student().to_safetensors()?),
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

    /// Takes over the tensors of a checkpoint, one file after the other.
    ///
    /// # Errors
    /// They are damaged, or not those of this run.
    pub fn restore(&mut self, checkpoint: &StoredCheckpoint) -> Result<(), Error> {
        let device = self.device.clone().inner();
        let student = self.student.take().expect("the student is there");
        self.student = Some(restore_student(student, checkpoint)?);
        self.optimizer
            .load_safetensors(&checkpoint.file(STUDENT_OPTIMIZER_FILE)?, &device)?;
        if let Some(teacher) = &mut self.teacher {
            let aligner = checkpoint.file(ALIGNER_FILE)?;
            teacher.aligner = load_safetensors(teacher.aligner.clone(), &aligner)?;
            teacher
                .optimizer
                .load_safetensors(&checkpoint.file(ALIGNER_OPTIMIZER_FILE)?, &device)?;
        }
        Ok(())
    }
}

/// The student of a checkpoint; no other file of it is read.
///
/// # Errors
/// It is damaged, or was trained under another configuration.
pub fn restore_student(student: Student, checkpoint: &StoredCheckpoint) -> Result<Student, Error> {
    Ok(student.load_safetensors(&checkpoint.file(STUDENT_FILE)?)?)
}
