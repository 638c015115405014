//! Everything that the runs of one configuration share: data set, cache, tokenizer, device.

use std::fs::File;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use schemas::dataset::SkipBadRows;
use schemas::{Manifest, Sha256Digest};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoints, RunIdentity, StoredCheckpoint, Which, read_json, write_json};
use crate::config::Config;
use crate::data::{
    Feed, JoinReport, RowEncoder, RowOrder, TrainingData, check_manifest, join, read_corpus,
};
use crate::device::Devices;
use crate::error::Error;
use crate::evaluate::metric_name;
use crate::generation::open_prompts;
use crate::inference::{Inference, padding};
use crate::learner::{Learner, Lessons, TeacherSide};
use crate::learning_rate::LearningRate;
use crate::model::{Student, open_pretrained, open_tokenizer};
use crate::objective::Objective;
use crate::progress::Progress;
use crate::random::{Purpose, Randomness};
use crate::run_log::{EVALUATIONS_FILE, STEPS_FILE};
use crate::schedule::{Supervision, Trained, Variant, passes};
use crate::stop::Stop;
use crate::trainer::{Ending, Loop, Trainer};

const RESULT_FILE: &str = "result.json";
const LOCK_FILE: &str = "run.lock";

/// What a finished run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Which run this is.
    pub run: RunIdentity,
    /// The task's metric.
    pub metric: String,
    /// Its value on the validation split, at the checkpoint that was chosen by it.
    pub validation: Option<f64>,
    /// Its value on the test split, which was read once; null without labels.
    pub test: Option<f64>,
    /// Every metric that fits the task, on the test split.
    pub test_scores: Map<String, Value>,
    /// The epoch of the chosen checkpoint.
    pub best_epoch: usize,
    /// Its steps.
    pub best_step: u64,
    /// Training rows.
    pub num_train_rows: usize,
}

/// How `train` ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// All passes are done and the test split was read.
    Finished(Box<RunResult>),
    /// Asked to stop; the state is saved.
    Stopped {
        /// Steps done.
        step: u64,
    },
}

/// One run of a setup.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// What is trained.
    pub variant: Variant,
    /// From which all randomness follows.
    pub seed: u64,
    /// Where it goes.
    pub folder: PathBuf,
    /// Throw away what the folder holds.
    pub restart: bool,
}

/// A configuration whose data set and cache are opened, joined and tokenised.
#[derive(Debug)]
pub struct Setup {
    /// Task, tokenizer and device.
    pub inference: Inference,
    /// Rows and features.
    pub data: TrainingData,
    /// All devices, without autodiff; the first is that of inference.
    devices: Vec<Device>,
    cache_digest: Sha256Digest,
}

impl Setup {
    /// Opens everything that a run reads. The manifest is compared with the configuration before the data set is read,
    /// and the device is opened last.
    ///
    /// # Errors
    /// Something is not there, not what its digest says, or does not fit the rest.
    pub fn open(
        config: Config,
        cache_digest: Sha256Digest,
        devices: impl Into<Devices>,
        skip: &mut SkipBadRows,
    ) -> Result<Self, Error> {
        let devices = devices.into();
        let dataset = config.run.dataset.open(config.base())?;
        let folder = config.cache();
        let manifest = Manifest::open_frozen(&folder, &cache_digest)?;
        check_manifest(&folder, &manifest, dataset.task(), &config.run.cache)?;
        let tokenizer = open_tokenizer(&config.run.student, config.base())?;
        let prompts = open_prompts(&config, dataset.task(), &tokenizer)?;
        let encoder = match &prompts {
            Some(prompts) => RowEncoder::Prompts(prompts),
            None => RowEncoder::Segments(&tokenizer),
        };
        let corpus = read_corpus(&dataset, &config.run.splits, encoder, skip)?;
        let data = join(corpus, &folder, &manifest, &config.run.cache)?;
        let pretrained = open_pretrained(&config.run.student, config.base())?;
        let padding = padding(devices.first(), tokenizer.max_length());
        let task = dataset.task().clone();
        let devices = devices.open()?;
        let inference = Inference {
            prompts,
            task,
            tokenizer,
            pretrained,
            device: devices[0].clone(),
            padding,
            config,
        };
        Ok(Self {
            inference,
            data,
            devices,
            cache_digest,
        })
    }

    /// The join's account.
    pub fn join_report(&self) -> &JoinReport {
        &self.data.report
    }

    fn identity(&self, options: &RunOptions) -> RunIdentity {
        let identity = self.inference.identity(
            options.variant.to_string(),
            options.seed,
            self.cache_digest.to_string(),
            self.data.corpus.digest(),
        );
        RunIdentity {
            num_devices: self.devices.len(),
            ..identity
        }
    }

    /// Trains one variant with one seed in a folder of its own, going on from the folder's last checkpoint if it holds
    /// one of this run. A finished run is not done again.
    ///
    /// # Errors
    /// The folder holds another run or cannot be written; the run diverged.
    pub fn train(&self, options: &RunOptions, stop: &Stop, told: bool) -> Result<Outcome, Error> {
        let folder = &options.folder;
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        let _lock = lock(folder)?;
        let checkpoints = Checkpoints::of(folder);
        let identity = self.identity(options);
        let result_path = folder.join(RESULT_FILE);
        if options.restart {
            clear(folder, &checkpoints)?;
        }
        if result_path.exists() {
            let result: RunResult = read_json(&result_path)?;
            identity.check_same(&result.run, folder)?;
            return Ok(Outcome::Finished(Box::new(result)));
        }
        let resume = if checkpoints.exist() {
            Some(checkpoints.open(Which::Last)?)
        } else {
            None
        };
        let mut trainer = self.trainer(options, identity.clone(), resume.as_ref())?;
        let before = resume.map_or(0, |checkpoint| checkpoint.state.position.step);
        if before > 0 {
            tracing::info!("going on after step {before}");
        }
        let mut progress = if told {
            Progress::new("steps", trainer.num_steps(), before)
        } else {
            Progress::silent()
        };
        let validation = &self.data.corpus.validation;
        let ending = trainer.run(stop, &mut progress, |student| {
            let scores = self.inference.scores(student, validation, options.seed)?;
            Ok(scores.expect("validation rows are labelled"))
        })?;
        drop(progress);
        // The best student is built from its checkpoint: two of them need not fit into the device's memory.
        drop(trainer);
        match ending {
            Ending::Stopped { step } => Ok(Outcome::Stopped { step }),
            Ending::Finished => {
                let result = self.finish(identity, folder)?;
                write_json(&result_path, &result)?;
                Ok(Outcome::Finished(Box::new(result)))
            }
        }
    }

    fn supervision(&self, variant: Variant) -> Supervision {
        let run = &self.inference.config.run;
        Supervision::new(
            variant,
            &run.objective,
            run.training.schedule,
            self.inference.kind(),
        )
    }

    /// A trainer at the run's start or at a checkpoint. Public for tests that look inside a run.
    ///
    /// # Errors
    /// The student cannot be built, or the checkpoint is of another run.
    #[expect(clippy::disallowed_methods, reason = "once a run")]
    pub fn trainer(
        &self,
        options: &RunOptions,
        identity: RunIdentity,
        resume: Option<&StoredCheckpoint>,
    ) -> Result<Trainer<'_>, Error> {
        let run = &self.inference.config.run;
        let training = &run.training;
        let randomness = Randomness::new(options.seed);
        let supervision = self.supervision(options.variant);
        let device = self.inference.device.clone().autodiff();
        let heads = self.inference.heads();
        let (base, tokenizer) = (self.inference.config.base(), &self.inference.tokenizer);
        let student = Student::new(&run.student, base, tokenizer, &heads, randomness, &device)?;
        let features = match supervision {
            Supervision::Teacher { transform, .. } => {
                Some(self.data.features.transformed(transform, randomness))
            }
            Supervision::None | Supervision::AuxiliaryOnly => None,
        };
        let teacher = features.as_ref().map(|features| {
            device.seed(randomness.device_seed(Purpose::AlignerWeights, 0));
            TeacherSide::new(heads.init_aligner(features.width(), &device), training)
        });
        let feed = Feed {
            rows: &self.data.corpus.train,
            features,
            pad_id: tokenizer.pad_id(),
            padding: self.inference.padding,
            gradient_accumulation: training.gradient_accumulation.get(),
            num_devices: self.devices.len(),
        };
        let lessons = Lessons {
            objective: Objective::new(run.objective),
            auxiliary: supervision == Supervision::AuxiliaryOnly,
            randomness,
            activation_checkpointing: training.activation_checkpointing,
            gradient_accumulation: feed.gradient_accumulation,
            num_devices: feed.num_devices,
        };
        let devices: Vec<Device> = self
            .devices
            .iter()
            .map(|device| device.clone().autodiff())
            .collect();
        let learner = Learner::new(lessons, student, teacher, training, &devices);
        let settings = self.settings(supervision, randomness, identity);
        Trainer::new(settings, feed, learner, &options.folder, resume)
    }

    fn settings(
        &self,
        supervision: Supervision,
        randomness: Randomness,
        identity: RunIdentity,
    ) -> Loop {
        let run = &self.inference.config.run;
        let training = &run.training;
        let encodings = self.data.corpus.train.encodings.iter();
        let order = RowOrder::new(
            training.batching,
            encodings.map(|encoding| encoding.ids.len()),
            self.inference.tokenizer.max_length(),
            randomness,
        );
        let passes = passes(supervision, training);
        let steps = |is_counted: fn(Trained) -> bool| -> u64 {
            passes
                .iter()
                .filter(|pass| is_counted(pass.trained))
                .map(|&pass| order.num_batches(pass))
                .sum()
        };
        let rate = |peak: f64, num_steps: u64| {
            let warmup_share = training.warmup_share.get();
            LearningRate::new(
                peak,
                training.learning_rate_schedule,
                warmup_share,
                num_steps,
            )
        };
        Loop {
            student_rate: rate(
                training.student_learning_rate.get(),
                steps(Trained::has_student),
            ),
            aligner_rate: rate(
                training.aligner_learning_rate.get(),
                steps(Trained::has_aligner),
            ),
            num_steps: steps(|_| true),
            passes,
            order,
            checkpoint_every: run
                .output
                .checkpoint_every_steps
                .map(std::num::NonZeroU64::get),
            log_every: run.output.log_every_steps.get(),
            metric: metric_name(self.inference.task.metric()),
            identity,
        }
    }

    /// Reads the test split, for the first and only time, with the checkpoint that the validation split chose.
    fn finish(&self, run: RunIdentity, folder: &Path) -> Result<RunResult, Error> {
        let (student, checkpoint) = self.inference.student(folder, Which::Best)?;
        let test = match &self.data.corpus.test {
            Some(rows) => self.inference.scores(&student, rows, run.seed)?,
            None => None,
        };
        let best = checkpoint
            .state
            .best
            .expect("the best checkpoint was written after an evaluation");
        Ok(RunResult {
            run,
            metric: metric_name(self.inference.task.metric()).to_owned(),
            validation: best.score,
            test: test.as_ref().and_then(|scores| scores.main),
            test_scores: test.map(|scores| scores.all).unwrap_or_default(),
            best_epoch: best.epoch,
            best_step: best.step,
            num_train_rows: self.data.corpus.train.len(),
        })
    }
}

/// The result of a finished run, if the folder holds one.
///
/// # Errors
/// The file is damaged.
pub fn read_result(folder: &Path) -> Result<Option<RunResult>, Error> {
    let path = folder.join(RESULT_FILE);
    if path.exists() {
        Ok(Some(read_json(&path)?))
    } else {
        Ok(None)
    }
}

/// Held while a process trains in the folder; the operating system lets go of it when the process ends.
fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(LOCK_FILE);
    let file = File::create(&path).map_err(Error::io(&path, "create"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked {
            path: folder.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(error)) => Err(Error::io(&path, "lock")(error)),
    }
}

fn clear(folder: &Path, checkpoints: &Checkpoints) -> Result<(), Error> {
    checkpoints.clear()?;
    for name in [RESULT_FILE, STEPS_FILE, EVALUATIONS_FILE] {
        let path = folder.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&path, "remove")(error));
            }
            _ => {}
        }
    }
    Ok(())
}
