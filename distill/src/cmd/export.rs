//! `distill export`.

use std::path::PathBuf;

use crate::cli::{RunArguments, StudentArguments};
use crate::error::{Error, Status};
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
        let (inference, student, checkpoint) = self.student.open(&self.run)?;
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
