//! A further device of a run: a thread that computes its share of every step.
//!
//! Each worker keeps copies of the modules. A step brings it the values of what is trained, and takes its gradients
//! to the run's first device, where they are added up and the one update is done. Frozen parameters travel once.

use std::sync::mpsc::{Receiver, Sender, channel};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use crate::aligner::Aligner;
use crate::checkpoint::Position;
use crate::data::Shard;
use crate::gradients::{Computation, Lessons, Models, Sums};
use crate::model::Student;
use crate::schedule::Trained;

const ENDED: &str = "a device's thread ends with its run; what ended it earlier is told above";

enum Job {
    /// What is frozen may have changed since.
    BeginPass,
    Step(Box<StepJob>),
}

/// The modules are the first device's; parameters are shared, not copied.
struct StepJob {
    student: Student,
    aligner: Option<Aligner>,
    frozen: Option<Aligner>,
    trained: Trained,
    position: Position,
    shards: Vec<Shard>,
}

/// The thread of a device.
#[derive(Debug)]
pub(crate) struct Worker {
    jobs: Sender<Job>,
    results: Receiver<Sums>,
}

impl Worker {
    /// Starts the thread of `device`, which gives its results on `first`; both with autodiff. It ends when this is
    /// dropped.
    pub(crate) fn start(lessons: Lessons, device: Device, first: Device) -> Self {
        let (jobs, received) = channel();
        let (sender, results) = channel();
        std::thread::spawn(move || {
            let mut replicas = Replicas {
                device,
                student: None,
                aligner: None,
                frozen: None,
            };
            for job in received {
                match job {
                    Job::BeginPass => replicas.frozen = None,
                    Job::Step(step) => {
                        let sums = replicas.sums(&lessons, *step, &first.clone().inner());
                        if sender.send(sums).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Self { jobs, results }
    }

    /// Tells that the frozen aligner is another one.
    pub(crate) fn begin_pass(&self) {
        self.jobs.send(Job::BeginPass).expect(ENDED);
    }

    /// Begins the device's share of a step.
    pub(crate) fn send(
        &self,
        models: Models<'_>,
        trained: Trained,
        position: Position,
        shards: Vec<Shard>,
    ) {
        let step = StepJob {
            student: models.student.clone(),
            aligner: models.aligner.cloned(),
            frozen: models.frozen.cloned(),
            trained,
            position,
            shards,
        };
        self.jobs.send(Job::Step(Box::new(step))).expect(ENDED);
    }

    /// Its losses and gradients, on the first device.
    pub(crate) fn receive(&self) -> Sums {
        self.results.recv().expect(ENDED)
    }
}

/// The modules on a worker's device.
struct Replicas {
    device: Device,
    student: Option<Student>,
    aligner: Option<Aligner>,
    frozen: Option<Aligner>,
}

impl Replicas {
    fn sums(&mut self, lessons: &Lessons, step: StepJob, first: &Device) -> Sums {
        let StepJob {
            student,
            aligner,
            frozen,
            trained,
            position,
            shards,
        } = step;
        if trained.has_student() {
            follow(&mut self.student, &student, &self.device);
        }
        if let (Some(aligner), None) = (&aligner, &frozen) {
            follow(&mut self.aligner, aligner, &self.device);
        }
        if let (Some(frozen), None) = (frozen, &self.frozen) {
            self.frozen = Some(frozen.to_device(&self.device.clone().inner()));
        }
        let models = Models {
            student: self.student.as_ref().unwrap_or(&student),
            aligner: self.aligner.as_ref(),
            frozen: self.frozen.as_ref(),
        };
        let computation = Computation {
            lessons,
            models,
            trained,
            position,
            device: &self.device,
        };
        computation.sums(shards).into_device(models, first)
    }
}

/// Brings a replica to the state of the module that it copies: all of it at first, later what is trained.
fn follow<M: Module>(replica: &mut Option<M>, module: &M, device: &Device) {
    *replica = Some(match replica.take() {
        None => module.clone().fork(device),
        Some(replica) => {
            let mut values = TrainedValues(GradientsParams::new());
            module.visit(&mut values);
            let TrainedValues(values) = values;
            replica.map(&mut Refresh { values, device })
        }
    });
}

/// The values of all parameters that are trained, by id.
struct TrainedValues(GradientsParams);

impl ModuleVisitor for TrainedValues {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        let value = parameter.val();
        if value.is_require_grad() {
            self.0.register(parameter.id, value.inner());
        }
    }
}

struct Refresh<'a> {
    values: GradientsParams,
    device: &'a Device,
}

impl ModuleMapper for Refresh<'_> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(value) = self.values.remove::<D>(parameter.id) else {
            return parameter;
        };
        let (id, _, mapper) = parameter.consume();
        let value = value.to_device(&self.device.clone().inner());
        Param::from_mapped_value(id, Tensor::from_inner(value).require_grad(), mapper)
    }
}
