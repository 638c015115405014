//! What reads a trained student: task, tokenizer, device.

use std::path::Path;

use burn::module::Module as _;
use burn::tensor::Device;
use schemas::Task;
use schemas::task::LabelKind;

use crate::checkpoint::{Checkpoints, RunIdentity, StoredCheckpoint, Which};
use crate::config::Config;
use crate::data::{Padding, PromptEncoder, RowEncoder, Rows};
use crate::device::DeviceChoice;
use crate::error::Error;
use crate::evaluate::{Answer, Scores, answers, metric_name, scores};
use crate::generation::{Answering, open_prompts};
use crate::heads::HeadsConfig;
use crate::learner::restore_student;
use crate::model::{Student, open_pretrained, open_tokenizer};
use crate::objective::TaskKind;
use crate::random::Randomness;
use crate::student::{PretrainedFiles, TextTokenizer};

/// Positions to which batches are padded on a GPU, which tunes kernels for every new shape.
const GPU_PADDING: usize = 16;

/// A task, a tokenizer and a device: enough to read a trained student.
#[derive(Debug)]
pub struct Inference {
    /// The configuration.
    pub config: Config,
    /// What is predicted.
    pub task: Task,
    /// Texts to token ids.
    pub tokenizer: TextTokenizer,
    /// Without autodiff.
    pub device: Device,
    /// What the student starts from, where it is pretrained.
    pub pretrained: Option<PretrainedFiles>,
    /// Prompts to token ids, where the task is answered in text.
    pub prompts: Option<PromptEncoder>,
    /// What batches are padded to.
    pub(crate) padding: Padding,
}

impl Inference {
    /// Opens the task's description, the tokenizer and the device.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn open(config: Config, device: DeviceChoice) -> Result<Self, Error> {
        let task = config.run.dataset.open(config.base())?.task().clone();
        let tokenizer = open_tokenizer(&config.run.student, config.base())?;
        let pretrained = open_pretrained(&config.run.student, config.base())?;
        let prompts = open_prompts(&config, &task, &tokenizer)?;
        let padding = padding(device, tokenizer.max_length());
        Ok(Self {
            prompts,
            task,
            tokenizer,
            pretrained,
            device: device.open()?,
            padding,
            config,
        })
    }

    /// What the labels are.
    pub fn kind(&self) -> TaskKind {
        TaskKind::from(self.task.label())
    }

    /// What shapes the student's heads.
    pub fn heads(&self) -> HeadsConfig {
        let run = &self.config.run;
        run.aligner.resolve(run.objective.preset(), self.kind())
    }

    /// The identity of a run under this configuration.
    pub(crate) fn identity(
        &self,
        variant: String,
        seed: u64,
        cache: String,
        data: String,
    ) -> RunIdentity {
        RunIdentity {
            variant,
            seed,
            cache,
            data,
            metric: metric_name(self.task.metric()).to_owned(),
            classes: match self.task.label() {
                LabelKind::Classes(names) => Some(names.clone()),
                LabelKind::Number | LabelKind::Text | LabelKind::Choice(_) => None,
            },
            student: self
                .pretrained
                .as_ref()
                .map(|files| files.digest.to_string()),
            num_devices: 1,
            config: self.config.identity(),
        }
    }

    /// The student of a run folder, in evaluation mode, with the checkpoint's state.
    ///
    /// # Errors
    /// There is no such checkpoint, or it is of another configuration.
    pub fn student(
        &self,
        run_folder: &Path,
        which: Which,
    ) -> Result<(Student, StoredCheckpoint), Error> {
        let checkpoint = Checkpoints::of(run_folder).open(which)?;
        let stored = &checkpoint.state.run;
        let (cache, data) = (stored.cache.clone(), stored.data.clone());
        self.identity(stored.variant.clone(), stored.seed, cache, data)
            .check_same_student(stored, run_folder)?;
        let randomness = Randomness::new(stored.seed);
        let student = Student::new(
            &self.config.run.student,
            self.config.base(),
            &self.tokenizer,
            &self.heads(),
            randomness,
            &self.device,
        )?;
        let student = restore_student(student, &checkpoint)?.valid();
        Ok((student, checkpoint))
    }

    /// How rows become token ids.
    pub fn encoder(&self) -> RowEncoder<'_> {
        match &self.prompts {
            Some(prompts) => RowEncoder::Prompts(prompts),
            None => RowEncoder::Segments(&self.tokenizer),
        }
    }

    /// What a student in evaluation mode says about some rows; `seed` is its run's, from which sampled tokens are drawn.
    ///
    /// # Errors
    /// The tokenizer cannot spell what the student wrote.
    pub fn answers(&self, student: &Student, rows: &Rows, seed: u64) -> Result<Vec<Answer>, Error> {
        if let Some(prompts) = &self.prompts {
            let answering = Answering {
                task: &self.task,
                prompts,
                config: self.config.run.generation.unwrap_or_default(),
                randomness: Randomness::new(seed),
                device: &self.device,
            };
            return answering.answers(student, rows);
        }
        Ok(answers(
            student,
            &rows.encodings,
            self.kind(),
            self.tokenizer.pad_id(),
            self.padding,
            &self.device,
        ))
    }

    /// What a student in evaluation mode scores on some rows, answered as [`Inference::answers`] does; `None` where they
    /// have no labels.
    ///
    /// # Errors
    /// The task's metric does not score its labels.
    pub fn scores(
        &self,
        student: &Student,
        rows: &Rows,
        seed: u64,
    ) -> Result<Option<Scores>, Error> {
        let answers = self.answers(student, rows, seed)?;
        scores(&answers, rows, self.task.metric())
    }
}

/// What batches are padded to on a device.
pub(crate) fn padding(device: DeviceChoice, limit: usize) -> Padding {
    match device {
        DeviceChoice::Cpu => Padding::Longest,
        DeviceChoice::Cuda(_) => Padding::Multiple {
            of: GPU_PADDING,
            limit,
        },
    }
}
