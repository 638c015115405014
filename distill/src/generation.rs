//! Tasks that are answered in text: what they need of a configuration, and a student's answers to them.

use std::path::Path;

use burn::tensor::Device;
use schemas::Task;
use schemas::task::LabelKind;
use serde::Deserialize;

use crate::config::{Config, GenerationConfig, RunConfig, StudentSource};
use crate::data::{PromptEncoder, PromptError, Rows};
use crate::error::Error;
use crate::evaluate::Answer;
use crate::metrics::OptionOutcome;
use crate::model::Student;
use crate::random::{Purpose, Randomness};
use crate::student::generation::{Style, log_probabilities, write};
use crate::student::{BackboneConfig, StudentError, TextTokenizer};

const CONFIG_FILE: &str = "config.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// Checks that configuration and task fit, and makes what tokenises prompts; `None` for a task that is not answered in
/// text.
///
/// # Errors
/// [`PromptError`] names what does not fit; the student's folder cannot be read.
pub fn open_prompts(
    config: &Config,
    task: &Task,
    tokenizer: &TextTokenizer,
) -> Result<Option<PromptEncoder>, Error> {
    let run = &config.run;
    if !task.label().is_generation() {
        check_no_generation(run, task)?;
        return Ok(None);
    }
    check_outputs(run, task)?;
    let StudentSource::Pretrained { path, .. } = &run.student.source else {
        let task = task.name().to_owned();
        return Err(PromptError::NotCausal { task }.into());
    };
    let ends = end_token_ids(&config.resolve(path), task)?;
    let max_new_tokens = run.generation.unwrap_or_default().max_new_tokens.get();
    let chat = run.student.chat.clone();
    PromptEncoder::new(task, tokenizer, chat, ends, max_new_tokens).map(Some)
}

fn check_no_generation(run: &RunConfig, task: &Task) -> Result<(), PromptError> {
    for (key, is_there) in [
        ("generation", run.generation.is_some()),
        ("student.chat", run.student.chat.is_some()),
    ] {
        if is_there {
            let task = task.name().to_owned();
            return Err(PromptError::NoGeneration { key, task });
        }
    }
    Ok(())
}

/// Aligner and student share no outputs: nothing is distilled from them, and no ReLU acts on them.
fn check_outputs(run: &RunConfig, task: &Task) -> Result<(), PromptError> {
    let refuse = |key, value: String, fitting| {
        let task = task.name().to_owned();
        Err(PromptError::NoSharedOutputs {
            key,
            value,
            fitting,
            task,
        })
    };
    if run.objective.alpha() > 0.0 {
        return refuse("objective.alpha", run.objective.alpha().to_string(), "0");
    }
    match run.aligner.relu_outputs {
        Some(true) => refuse("aligner.relu_outputs", "true".to_owned(), "false"),
        _ => Ok(()),
    }
}

/// The tokens that end a text: those of `generation_config.json`, else of `config.json`.
fn end_token_ids(dir: &Path, task: &Task) -> Result<Vec<u32>, Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ends {
        One(u32),
        Several(Vec<u32>),
    }
    #[derive(Deserialize)]
    struct Generation {
        #[serde(default)]
        eos_token_id: Option<Ends>,
    }
    let config = BackboneConfig::from_file(&dir.join(CONFIG_FILE))?;
    if !config.architecture().is_causal() {
        let task = task.name().to_owned();
        return Err(PromptError::NotCausal { task }.into());
    }
    let path = dir.join(GENERATION_CONFIG_FILE);
    let ends = if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let generation: Generation =
            serde_json::from_str(&text).map_err(|source| StudentError::Json {
                path: path.clone(),
                source,
            })?;
        generation.eos_token_id
    } else {
        None
    };
    Ok(match ends {
        Some(Ends::One(end)) => vec![end],
        Some(Ends::Several(ends)) => ends,
        None => config.architecture().end_token_ids().to_vec(),
    })
}

/// How much a student believes in one option.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptionWeight {
    /// Logarithm of the probability of all its tokens after the prompt.
    pub log_likelihood: f64,
    /// How many tokens these are.
    pub num_tokens: usize,
    /// Bytes of its text.
    pub num_bytes: usize,
}

/// The best option by each rule; the first of equals.
pub fn best_options(weights: &[OptionWeight], expected: usize) -> OptionOutcome {
    let best = |score: &dyn Fn(&OptionWeight) -> f64| {
        let mut best = 0;
        for (index, weight) in weights.iter().enumerate() {
            if score(weight) > score(&weights[best]) {
                best = index;
            }
        }
        best
    };
    let per = |weight: &OptionWeight, count: usize| weight.log_likelihood / count.max(1) as f64;
    OptionOutcome {
        likeliest: best(&|weight| weight.log_likelihood),
        per_token: best(&|weight| per(weight, weight.num_tokens)),
        per_byte: best(&|weight| per(weight, weight.num_bytes)),
        expected,
    }
}

/// What a student answers with.
#[derive(Clone, Copy, Debug)]
pub struct Answering<'a> {
    /// What is asked.
    pub task: &'a Task,
    /// Tokens to texts.
    pub prompts: &'a PromptEncoder,
    /// How.
    pub config: GenerationConfig,
    /// The run's; tokens are drawn from it.
    pub randomness: Randomness,
    /// Without autodiff.
    pub device: &'a Device,
}

impl Answering<'_> {
    /// Answers for all rows, in their order. Rows are batched by length, so that little is padded.
    ///
    /// `student` is in evaluation mode, see [`Module::valid`](burn::module::Module::valid).
    ///
    /// # Errors
    /// The tokenizer cannot spell what was written.
    pub fn answers(&self, student: &Student, rows: &Rows) -> Result<Vec<Answer>, Error> {
        match self.task.label() {
            LabelKind::Choice(_) => Ok(self.weigh(student, rows)),
            _ => self.write(student, rows),
        }
    }

    fn write(&self, student: &Student, rows: &Rows) -> Result<Vec<Answer>, Error> {
        let model = student.language_model();
        let style = Style {
            max_new_tokens: self.config.max_new_tokens.get(),
            sampling: self.config.sampling,
            ends: self.prompts.ends(),
        };
        let lengths = rows.writings.iter().map(|writing| writing.prompt.len());
        let mut texts = vec![String::new(); rows.len()];
        for batch in by_length(lengths).chunks(self.config.batch_size.get()) {
            let prompts: Vec<&[u32]> = batch
                .iter()
                .map(|&row| &rows.writings[row].prompt[..])
                .collect();
            let stream = |row: &usize| {
                self.randomness
                    .stream(Purpose::Sampling, rows.ids[*row].as_bytes())
            };
            let mut streams: Vec<_> = batch.iter().map(stream).collect();
            let written = write(&model, &prompts, style, &mut streams, self.device);
            for (&row, tokens) in batch.iter().zip(written) {
                let text = self.prompts.decode(&tokens)?;
                self.task.strip_response(&text).clone_into(&mut texts[row]);
            }
        }
        Ok(texts.into_iter().map(Answer::Text).collect())
    }

    fn weigh(&self, student: &Student, rows: &Rows) -> Vec<Answer> {
        let model = student.language_model();
        let options: Vec<_> = rows
            .writings
            .iter()
            .flat_map(|writing| &writing.options)
            .collect();
        let lengths = options.iter().map(|option| option.sequence.ids.len());
        let mut sums = vec![0.0; options.len()];
        for batch in by_length(lengths).chunks(self.config.batch_size.get()) {
            let sequences: Vec<(&[u32], usize)> = batch
                .iter()
                .map(|&index| &options[index].sequence)
                .map(|sequence| (&sequence.ids[..], sequence.response_start))
                .collect();
            let weighed = log_probabilities(&model, &sequences, self.device);
            for (&index, values) in batch.iter().zip(weighed) {
                sums[index] = values.into_iter().map(f64::from).sum();
            }
        }
        let mut weights = options
            .iter()
            .zip(sums)
            .map(|(option, log_likelihood)| OptionWeight {
                log_likelihood,
                num_tokens: option.sequence.response().len(),
                num_bytes: option.num_bytes,
            });
        let count = |writing: &crate::data::Writing| writing.options.len();
        rows.writings
            .iter()
            .map(|writing| Answer::Option(weights.by_ref().take(count(writing)).collect()))
            .collect()
    }
}

/// Indices in the order of lengths.
fn by_length(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut order: Vec<(usize, usize)> = lengths.enumerate().collect();
    order.sort_by_key(|&(_, length)| length);
    order.into_iter().map(|(index, _)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_differ_in_what_length_costs() {
        let weight = |log_likelihood, num_tokens, num_bytes| OptionWeight {
            log_likelihood,
            num_tokens,
            num_bytes,
        };
        let weights = [weight(-3.0, 1, 8), weight(-4.0, 4, 5), weight(-5.0, 2, 50)];
        assert_eq!(
            best_options(&weights, 2),
            OptionOutcome {
                likeliest: 0,
                per_token: 1,
                per_byte: 2,
                expected: 2
            }
        );
        assert_eq!(best_options(&[weights[0], weights[0]], 0).likeliest, 0);
    }
}
