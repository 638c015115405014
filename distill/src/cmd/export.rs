//! `distill export`.

use std::path::PathBuf;

use crate::cli::{RunArguments, StudentArguments};
use crate::config::Config;
use crate::error::{Error, Status};
use crate::setup::Inference;
use crate::student::save::save_pretrained;

/// The verb's command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: RunArguments,
    /// The directory to write; an earlier export is replaced.
    directory: PathBuf,
    #[command(flatten)]
    student: StudentArguments,
}

impl Arguments {
    /// Writes encoder, main head and tokenizer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self) -> Result<Status, Error> {
        let config = Config::read(&self.run.config)?;
        let folder = self
            .student
            .folder
            .clone()
            .unwrap_or_else(|| config.output());
        let inference = Inference::open(config, self.run.device)?;
        let (student, checkpoint) = inference.student(&folder, self.student.checkpoint)?;
        let head = student.classifier(inference.task.label());
        if inference.heads().relu_outputs {
            tracing::warn!(
                "outputs pass a ReLU here, which `BertForSequenceClassification` lacks: take max(0, output) of the exported student"
            );
        }
        if let Some(parent) = self.directory.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        }
        save_pretrained(
            &self.directory,
            student.encoder(),
            &inference.tokenizer,
            Some(&head),
        )?;
        tracing::info!(
            "the student of step {} is in {}",
            checkpoint.state.position.step,
            self.directory.display()
        );
        Ok(Status::Done)
    }
}
