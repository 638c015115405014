//! The step loop: passes, batches, checkpoints, evaluations.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::{Best, Checkpoint, Checkpoints, Position, RunIdentity};
use crate::error::Error;
use crate::evaluate::Scores;
use crate::learner::{Learner, Rates};
use crate::learning_rate::LearningRate;
use crate::model::Student;
use crate::progress::Progress;
use crate::random::{Purpose, Randomness};
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
    /// Training rows.
    pub num_rows: usize,
    /// Rows of a step.
    pub batch_size: usize,
    /// The student's rate.
    pub student_rate: LearningRate,
    /// The aligner's rate.
    pub aligner_rate: LearningRate,
    /// Steps between checkpoints within a pass.
    pub checkpoint_every: Option<u64>,
    /// The order of the rows follows from it.
    pub randomness: Randomness,
    /// The task's metric.
    pub metric: &'static str,
    /// Which run this is.
    pub identity: RunIdentity,
}

impl Loop {
    /// Steps of a pass.
    pub fn steps_per_pass(&self) -> u64 {
        self.num_rows.div_ceil(self.batch_size) as u64
    }

    fn order(&self, pass: Pass) -> Vec<usize> {
        let purpose = if pass.trained.has_student() {
            Purpose::StudentOrder
        } else {
            Purpose::AlignerOrder
        };
        self.randomness
            .permutation(purpose, pass.epoch as u64, self.num_rows)
    }
}

/// A run between its steps.
#[derive(Debug)]
pub struct Trainer<'a> {
    settings: Loop,
    learner: Learner<'a>,
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
        mut learner: Learner<'a>,
        folder: &Path,
        resume: Option<&Checkpoint>,
    ) -> Result<Self, Error> {
        let (mut position, mut best) = (Position::default(), None);
        if let Some(checkpoint) = resume {
            settings
                .identity
                .check_same(&checkpoint.state.run, folder)?;
            learner.restore(&checkpoint.files)?;
            (position, best) = (checkpoint.state.position, checkpoint.state.best);
        }
        // Within a pass, an evaluation at this very step is one that a crash left: it is done again.
        let evaluated = if position.batch == 0 {
            position.step
        } else {
            position.step.saturating_sub(1)
        };
        Ok(Self {
            learner,
            position,
            best,
            checkpoints: Checkpoints::of(folder),
            steps: LineLog::open(&folder.join(STEPS_FILE), position.step)?,
            evaluations: LineLog::open(&folder.join(EVALUATIONS_FILE), evaluated)?,
            settings,
        })
    }

    /// The aligner and the student.
    pub fn learner(&self) -> &Learner<'a> {
        &self.learner
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
        while let Some(&pass) = self.settings.passes.get(self.position.pass) {
            self.learner.begin_pass(pass.trained);
            let order = self.settings.order(pass);
            for rows in order
                .chunks(self.settings.batch_size)
                .skip(self.position.batch)
            {
                if stop.is_requested() {
                    self.save()?;
                    return Ok(Ending::Stopped {
                        step: self.position.step,
                    });
                }
                progress.step(&self.step(pass, rows)?);
                stop.count_step();
                let num_done = self.position.step;
                if self
                    .settings
                    .checkpoint_every
                    .is_some_and(|every| num_done.is_multiple_of(every))
                {
                    self.save()?;
                }
            }
            if pass.trained.has_student() {
                self.evaluate(pass, &validate)?;
            }
            self.position.pass += 1;
            self.position.batch = 0;
            self.save()?;
        }
        Ok(Ending::Finished)
    }

    fn step(&mut self, pass: Pass, rows: &[usize]) -> Result<StepLine, Error> {
        let started = Instant::now();
        let rates = Rates {
            student: self.settings.student_rate.at(self.position.student_step),
            aligner: self.settings.aligner_rate.at(self.position.aligner_step),
        };
        let number = self.position.step + 1;
        let outcome = self
            .learner
            .step(pass.trained, rows, self.position, rates)?;
        self.position.step = number;
        self.position.batch += 1;
        self.position.student_step += u64::from(pass.trained.has_student());
        self.position.aligner_step += u64::from(pass.trained.has_aligner());
        let line = StepLine {
            step: number,
            epoch: pass.epoch,
            trained: pass.trained.name().to_owned(),
            rows: rows.len(),
            aligner: outcome.aligner,
            student: outcome.student,
            examples_per_second: rows.len() as f64 / started.elapsed().as_secs_f64().max(1e-9),
        };
        self.steps.append(&line)?;
        Ok(line)
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
