//! `distill export`.

use std::path::{Path, PathBuf};

use schemas::task::LabelKind;

use crate::cli::{RunArguments, StudentArguments};
use crate::config::StudentSource;
use crate::error::{Error, Status};
use crate::model::Student;
use crate::setup::Inference;
use crate::student::StudentError;
use crate::student::peft::save_adapter;
use crate::student::save::{ClassifierHead, HeadOutputs, save_language_model, save_pretrained};

/// The verb's command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: RunArguments,
    /// The directory to write; an earlier export is replaced.
    directory: PathBuf,
    /// Of a student with adapters, write these alone, as the package `peft` loads them, instead of a whole student.
    #[arg(long)]
    adapter: bool,
    #[command(flatten)]
    student: StudentArguments,
}

impl Arguments {
    /// Writes backbone, main head or language-model head, and tokenizer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self) -> Result<Status, Error> {
        let (inference, student, checkpoint) = self.student.open(&self.run)?;
        if inference.heads().relu_outputs {
            tracing::warn!(
                "outputs pass a ReLU here, which the classes of `transformers` lack: take max(0, output) of the exported student"
            );
        }
        if let Some(parent) = self.directory.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        }
        let outputs = match inference.task.label() {
            LabelKind::Classes(names) => Some(HeadOutputs::Classes(names.clone())),
            LabelKind::Number => Some(HeadOutputs::Number),
            LabelKind::Text | LabelKind::Choice(_) => None,
        };
        let head = outputs.map(|outputs| student.classifier(outputs));
        let tokenizer = &inference.tokenizer;
        if self.adapter {
            save_adapter_of(&inference, &student, head.as_ref(), &self.directory)?;
        } else if head.is_some() {
            let student = student.merged();
            let head = head.as_ref();
            save_pretrained(&self.directory, student.backbone(), tokenizer, head)?;
        } else {
            let model = student.merged().language_model();
            save_language_model(&self.directory, &model, tokenizer)?;
        }
        tracing::info!(
            "the student of step {} is in {}",
            checkpoint.state.position.step,
            self.directory.display()
        );
        Ok(Status::Done)
    }
}

fn save_adapter_of(
    inference: &Inference,
    student: &Student,
    head: Option<&ClassifierHead>,
    directory: &Path,
) -> Result<(), Error> {
    let StudentSource::Pretrained { path, num_layers } = &inference.config.run.student.source
    else {
        return Err(StudentError::NoAdapters.into());
    };
    if let Some(num_layers) = num_layers {
        tracing::warn!(
            "the base model is cut to {num_layers} layers here: load it with `num_hidden_layers={num_layers}` beside the adapter"
        );
    }
    let base = inference.config.resolve(path);
    save_adapter(
        directory,
        student.backbone().clone(),
        &inference.tokenizer,
        head,
        &base.to_string_lossy(),
    )?;
    Ok(())
}
