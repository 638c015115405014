//! What keeps a task from being answered in text.

use std::path::PathBuf;

use schemas::ExampleId;

/// Why texts cannot be written or weighed.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The student cannot write.
    #[error("the task `{task}` is answered in text, and the student is no causal language model")]
    NotCausal {
        /// The task.
        task: String,
    },
    /// Settings of generation for a task without it.
    #[error(
        "`{key}` belongs to a task with `response` or `choices`, and the task `{task}` has neither"
    )]
    NoGeneration {
        /// The key of the configuration.
        key: &'static str,
        /// The task.
        task: String,
    },
    /// Outputs that a generation task lacks.
    #[error(
        "`{key}` is {value}, and the task `{task}` is answered in text: aligner and student share no outputs there"
    )]
    NoSharedOutputs {
        /// The key of the configuration.
        key: &'static str,
        /// Its value.
        value: String,
        /// The value that fits.
        fitting: &'static str,
        /// The task.
        task: String,
    },
    /// Nothing ends a text.
    #[error("the student's configuration names no token that ends a text")]
    NoEnd,
    /// Adapters beside a head that was never trained.
    #[error("student `{}` has no language-model head, and beside adapters a new one would not be trained", dir.display())]
    NoHead {
        /// The student's folder.
        dir: PathBuf,
    },
    /// Messages and no format for them.
    #[error("the task `{task}` has messages, and the student no chat format")]
    NoChat {
        /// The task.
        task: String,
    },
    /// No room for a prompt.
    #[error("`student.max_length` is {max_length}: {needed} tokens are needed beside the prompt")]
    NoRoom {
        /// Longest sequence.
        max_length: usize,
        /// What leaves no room.
        needed: usize,
    },
    /// A prompt without a token.
    #[error("the prompt of example {id} has no tokens: nothing predicts the first one")]
    EmptyPrompt {
        /// The example.
        id: ExampleId,
    },
    /// Options that cannot be read.
    #[error("example {id}: {problem}")]
    Options {
        /// The example.
        id: ExampleId,
        /// What is wrong.
        problem: String,
    },
}

impl PromptError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotCausal { .. } => {
                "name a folder of a LLaMA, Qwen or OPT model in `student.path`".to_owned()
            }
            Self::NoGeneration { key, .. } => format!("leave `{key}` out"),
            Self::NoSharedOutputs { key, fitting, .. } => format!("write {key} = {fitting}"),
            Self::NoEnd => {
                "write `eos_token_id` into generation_config.json or config.json".to_owned()
            }
            Self::NoHead { .. } => {
                "name a checkpoint with its `lm_head`, or leave `student.lora` out".to_owned()
            }
            Self::NoChat { .. } => {
                "set `student.chat` to \"llama-3\", \"chatml\" or a table of your own".to_owned()
            }
            Self::NoRoom { .. } => {
                "raise `student.max_length`, or lower `generation.max_new_tokens`".to_owned()
            }
            Self::EmptyPrompt { .. } => "give `template.first` some text".to_owned(),
            Self::Options { .. } => "mend the row; a list is a JSON array of texts".to_owned(),
        })
    }
}
