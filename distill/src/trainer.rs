//! The step loop: passes, batches, checkpoints, evaluations.

use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::{Best, Checkpoint, Checkpoints, Position, RunIdentity, StoredCheckpoint};
use crate::data::{Feed, RowOrder, Step};
use crate::error::Error;
use crate::evaluate::Scores;
use crate::learner::{Learner, Rates};
use crate::learning_rate::LearningRate;
use crate::measured::Watch;
use crate::model::Student;
use crate::progress::Progress;
use crate::run_log::{EVALUATIONS_FILE, LineLog, STEPS_FILE, StepLine};
use crate::schedule::Pass;
use crate::stop::Stop;

/// One evaluation on the validation split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationLine {
    /// Steps done.
    pub step: u64,
    /// The epoch just ended.
    pub epoch: usize,
    /// The task's metric.
    pub metric: String,
    /// The task's metric's value; null where it is not defined.
    pub score: Option<f64>,
    /// Every metric that fits the task.
    pub scores: Map<String, Value>,
}

/// How a loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All passes are done.
    Finished,
    /// Asked to stop; the state is saved.
    Stopped {
        /// Steps done.
        step: u64,
    },
}

/// The loop's settings.
#[derive(Clone, Debug)]
pub struct Loop {
    /// What is done, in order.
    pub passes: Vec<Pass>,
    /// Steps of all passes.
    pub num_steps: u64,
    /// Which rows each step reads.
    pub order: RowOrder,
    /// The student's rate.
    pub student_rate: LearningRate,
    /// The aligner's rate.
    pub aligner_rate: LearningRate,
    /// Steps between checkpoints within a pass.
    pub checkpoint_every: Option<u64>,
    /// Steps between two lines of the log.
    pub log_every: u64,
    /// The task's metric.
    pub metric: &'static str,
    /// Which run this is.
    pub identity: RunIdentity,
}

/// Measures speed from one logged step to the next.
#[derive(Debug)]
struct Clock {
    started: Instant,
    num_rows: usize,
}

impl Clock {
    fn start() -> Self {
        Self {
            started: Instant::now(),
            num_rows: 0,
        }
    }

    /// Rows a second since the start, which is now.
    fn lap(&mut self) -> f64 {
        let Self { started, num_rows } = std::mem::replace(self, Self::start());
        num_rows as f64 / started.elapsed().as_secs_f64().max(1e-9)
    }
}

/// A run between its steps.
#[derive(Debug)]
pub struct Trainer<'a> {
    settings: Loop,
    feed: Feed<'a>,
    learner: Learner,
    watch: Watch,
    clock: Clock,
    position: Position,
    best: Option<Best>,
    checkpoints: Checkpoints,
    steps: LineLog,
    evaluations: LineLog,
}

impl<'a> Trainer<'a> {
    /// A run in `folder`, from its start or from a checkpoint; the logs are cut to where it stands.
    ///
    /// # Errors
    /// The checkpoint is not of this run, or the folder cannot be written.
    pub fn new(
        settings: Loop,
        feed: Feed<'a>,
        mut learner: Learner,
        folder: &Path,
        resume: Option<&StoredCheckpoint>,
    ) -> Result<Self, Error> {
        let (mut position, mut best) = (Position::default(), None);
        if let Some(checkpoint) = resume {
            settings
                .identity
                .check_same(&checkpoint.state.run, folder)?;
            learner.restore(checkpoint)?;
            (position, best) = (checkpoint.state.position, checkpoint.state.best);
        }
        // Within a pass, an evaluation at this very step is one that a crash left: it is done again.
        let evaluated = if position.batch == 0 {
            position.step
        } else {
            position.step.saturating_sub(1)
        };
        Ok(Self {
            feed,
            learner,
            watch: Watch::default(),
            clock: Clock::start(),
            position,
            best,
            checkpoints: Checkpoints::of(folder),
            steps: LineLog::open(&folder.join(STEPS_FILE), position.step)?,
            evaluations: LineLog::open(&folder.join(EVALUATIONS_FILE), evaluated)?,
            settings,
        })
    }

    /// The aligner and the student.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// Steps of the whole run.
    pub fn num_steps(&self) -> u64 {
        self.settings.num_steps
    }

    /// Runs all passes that are left. `validate` scores a student in evaluation mode on the validation split.
    ///
    /// # Errors
    /// The run diverged, or its folder cannot be written.
    pub fn run(
        &mut self,
        stop: &Stop,
        progress: &mut Progress,
        validate: impl Fn(&Student) -> Result<Scores, Error>,
    ) -> Result<Ending, Error> {
        let feed = self.feed.clone();
        while let Some(&pass) = self.settings.passes.get(self.position.pass) {
            self.learner.begin_pass(pass.trained);
            let batches = self.settings.order.batches(pass);
            let left = &batches[self.position.batch..];
            let is_stopped = std::thread::scope(|scope| {
                let steps = feed.prefetched(scope, pass.trained, left);
                self.pass(pass, &steps, stop, progress)
            })?;
            if is_stopped {
                self.save()?;
                return Ok(Ending::Stopped {
                    step: self.position.step,
                });
            }
            self.watch.check()?;
            if pass.trained.has_student() {
                self.evaluate(pass, &validate)?;
            }
            self.position.pass += 1;
            self.position.batch = 0;
            self.save()?;
        }
        Ok(Ending::Finished)
    }

    /// The steps that are left of a pass; whether it was stopped before their end.
    fn pass(
        &mut self,
        pass: Pass,
        steps: &Receiver<Step>,
        stop: &Stop,
        progress: &mut Progress,
    ) -> Result<bool, Error> {
        let (started, mut waited, mut num_steps) = (Instant::now(), Duration::ZERO, 0_u64);
        self.clock = Clock::start();
        loop {
            let asked = Instant::now();
            let Ok(next) = steps.recv() else {
                break;
            };
            if stop.is_requested() {
                return Ok(true);
            }
            waited += asked.elapsed();
            num_steps += 1;
            progress.step(self.step(pass, next)?.as_ref());
            stop.count_step();
            let every = self.settings.checkpoint_every;
            if every.is_some_and(|every| self.position.step.is_multiple_of(every)) {
                self.save()?;
                self.clock = Clock::start();
            }
        }
        tracing::debug!(
            "{num_steps} steps in {:.3} s, of which {:.6} s waiting for what they read",
            started.elapsed().as_secs_f64(),
            waited.as_secs_f64()
        );
        Ok(false)
    }

    /// One step, and its line if it is logged.
    fn step(&mut self, pass: Pass, step: Step) -> Result<Option<StepLine>, Error> {
        let rates = Rates {
            student: self.settings.student_rate.at(self.position.student_step),
            aligner: self.settings.aligner_rate.at(self.position.aligner_step),
        };
        let number = self.position.step + 1;
        let rows = step.num_rows;
        let outcome = self.learner.step(pass.trained, step, self.position, rates);
        self.position.step = number;
        self.position.batch += 1;
        self.position.student_step += u64::from(pass.trained.has_student());
        self.position.aligner_step += u64::from(pass.trained.has_aligner());
        self.clock.num_rows += rows;
        if !number.is_multiple_of(self.settings.log_every) {
            self.watch.note(number, outcome)?;
            return Ok(None);
        }
        let updates = self.watch.log(number, &outcome)?;
        let line = StepLine {
            step: number,
            epoch: pass.epoch,
            trained: pass.trained.name().to_owned(),
            rows,
            aligner: updates.aligner,
            student: updates.student,
            examples_per_second: self.clock.lap(),
        };
        self.steps.append(&line)?;
        Ok(Some(line))
    }

    /// Scores the student; the best score so far wins, and of equal ones the earlier.
    fn evaluate(
        &mut self,
        pass: Pass,
        validate: &impl Fn(&Student) -> Result<Scores, Error>,
    ) -> Result<(), Error> {
        let scores = validate(&self.learner.evaluated_student())?;
        let step = self.position.step;
        tracing::debug!(
            "epoch {}: validation {} {:?}",
            pass.epoch,
            self.settings.metric,
            scores.main
        );
        self.evaluations.append(&EvaluationLine {
            step,
            epoch: pass.epoch,
            metric: self.settings.metric.to_owned(),
            score: scores.main,
            scores: scores.all,
        })?;
        // An undefined score is under every defined one.
        let rank = |score: Option<f64>| score.unwrap_or(f64::NEG_INFINITY);
        if self
            .best
            .is_none_or(|best| rank(scores.main) > rank(best.score))
        {
            self.best = Some(Best {
                score: scores.main,
                epoch: pass.epoch,
                step,
            });
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), Error> {
        self.watch.check()?;
        self.steps.sync()?;
        self.evaluations.sync()?;
        let files = self.learner.files()?;
        let checkpoint = Checkpoint::new(
            self.settings.identity.clone(),
            self.position,
            self.best,
            files,
        );
        Ok(self.checkpoints.save(&checkpoint)?)
    }
}
