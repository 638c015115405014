//! `distill export`.

use std::path::PathBuf;

use schemas::task::LabelKind;

use crate::cli::{RunArguments, StudentArguments};
use crate::config::StudentSource;
use crate::error::{Error, Status};
use crate::inference::Inference;
use crate::student::StudentError;
use crate::student::peft::save_adapter;
use crate::student::save::{HeadOutputs, save_language_model, save_pretrained};

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
    /// Under which name `peft` finds the adapters' base model, for instance its name on the Hugging Face hub; left out,
    /// the path of the student's folder on this machine.
    #[arg(long, value_name = "NAME", requires = "adapter")]
    base_model: Option<String>,
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
            let (backbone, head) = (student.backbone().clone(), head.as_ref());
            let folder = base_folder(&inference)?;
            let base = self.base_model.as_ref().unwrap_or(&folder);
            save_adapter(&self.directory, backbone, tokenizer, head, base)?;
            tracing::info!(
                "the adapters name `{base}` as their base model; --base-model gives it another name"
            );
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

/// The folder of the model that the adapters were trained beside.
fn base_folder(inference: &Inference) -> Result<String, Error> {
    let StudentSource::Pretrained { path, num_layers } = &inference.config.run.student.source
    else {
        return Err(StudentError::NoAdapters.into());
    };
    if let Some(num_layers) = num_layers {
        tracing::warn!(
            "the base model is cut to {num_layers} layers here: load it with `num_hidden_layers={num_layers}` beside the adapter"
        );
    }
    let folder = inference.config.resolve(path);
    let folder = folder.canonicalize().map_err(Error::io(&folder, "find"))?;
    Ok(folder.display().to_string())
}
