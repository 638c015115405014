//! `distill predict`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use schemas::dataset::SkipBadRows;
use schemas::task::{LabelKind, Metric};
use schemas::{Example, Split, Task};
use serde_json::{Value, json};

use crate::cli::{RunArguments, StudentArguments, print, tell_skipped};
use crate::data::Rows;
use crate::error::{Error, Status};
use crate::evaluate::Answer;
use crate::generation::{OptionWeight, best_options};

/// GLUE tasks whose submission names classes by number.
const NUMBERED: [&str; 4] = ["cola", "sst2", "mrpc", "qqp"];
/// The GLUE task whose submission holds numbers of this range.
const NUMBER_TASK: &str = "stsb";
const NUMBER_RANGE: (f64, f64) = (0.0, 5.0);

/// How predictions are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// `index<TAB>prediction` with a header, as GLUE's submission takes it.
    #[default]
    Tsv,
    /// One JSON object a line, with the probability of every class.
    Jsonl,
}

/// The verb's command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    student: StudentArguments,
    /// The split to predict; left out, the configuration's `splits.test`.
    #[arg(long, conflicts_with = "input")]
    split: Option<String>,
    /// Rows to predict instead: a JSON object with the task's fields on each line; `-` reads standard input.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Allow this many rows of the split that cannot be used; they get no prediction.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "input")]
    skip_bad_rows: u64,
    /// How to write them.
    #[arg(long, value_enum, default_value_t)]
    form: Form,
}

impl Arguments {
    /// Prints predictions on standard output, in the order of the rows.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self) -> Result<Status, Error> {
        let (inference, student, checkpoint) = self.student.open(&self.run)?;
        let configured = &inference.config.run.splits.test;
        let split = self.split.map_or_else(|| configured.clone(), Split::new);
        let examples = if let Some(path) = &self.input {
            read_rows(path, &inference.task)?
        } else {
            let dataset = inference.config.run.dataset.open(inference.config.base())?;
            let mut skip = SkipBadRows::new(self.skip_bad_rows);
            let examples = dataset.read(&split, &mut skip)?;
            tell_skipped(&skip);
            examples
        };
        let rows = Rows::new(split, &inference.task, &examples, inference.encoder())?;
        let answers = inference.answers(&student, &rows, checkpoint.state.run.seed)?;
        print(&match self.form {
            Form::Tsv => tsv(&inference.task, &answers),
            Form::Jsonl => jsonl(&inference.task, &rows, &answers),
        })?;
        Ok(Status::Done)
    }
}

fn read_rows(path: &Path, task: &Task) -> Result<Vec<Example>, Error> {
    let (origin, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        let name = "standard input";
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(Error::io(Path::new(name), "read"))?;
        (name.to_owned(), bytes)
    } else {
        (
            path.display().to_string(),
            std::fs::read(path).map_err(Error::io(path, "read"))?,
        )
    };
    let text = str::from_utf8(&bytes).map_err(|error| Error::BadInput {
        origin: origin.clone(),
        line: bytes[..error.valid_up_to()]
            .split(|&byte| byte == b'\n')
            .count(),
        problem: "not UTF-8".to_owned(),
    })?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let bad = |problem| Error::BadInput {
                origin: origin.clone(),
                line: index + 1,
                problem,
            };
            let row: BTreeMap<String, Value> =
                serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
            let list_field = task.list_field();
            let texts = row.into_iter().filter_map(|(name, value)| match value {
                Value::String(text) => Some((name, text)),
                Value::Array(_) if list_field == Some(&name) => Some((name, value.to_string())),
                _ => None,
            });
            let fields = task
                .select(&texts.collect())
                .map_err(|field| bad(format!("field `{field}` is no text")))?;
            Ok(Example::new(fields, None, Split::new("input")))
        })
        .collect()
}

fn class_name(task: &Task, class: usize) -> String {
    match task.label() {
        LabelKind::Classes(names) => names[class].clone(),
        LabelKind::Choice(_) => {
            let name = task.choice_names().get(class).cloned();
            name.unwrap_or_else(|| class.to_string())
        }
        LabelKind::Number | LabelKind::Text => class.to_string(),
    }
}

/// The option that the task's metric counts as the answer.
fn chosen(task: &Task, weights: &[OptionWeight]) -> usize {
    let best = best_options(weights, 0);
    match task.metric() {
        Metric::AccuracyPerToken => best.per_token,
        Metric::AccuracyPerByte => best.per_byte,
        _ => best.likeliest,
    }
}

fn tsv(task: &Task, answers: &[Answer]) -> String {
    let mut text = "index\tprediction\n".to_owned();
    for (index, answer) in answers.iter().enumerate() {
        let prediction = match answer {
            Answer::Class { class, .. } if NUMBERED.contains(&task.name()) => class.to_string(),
            Answer::Class { class, .. } => class_name(task, *class),
            Answer::Value(value) if task.name() == NUMBER_TASK => {
                format!("{:.3}", value.clamp(NUMBER_RANGE.0, NUMBER_RANGE.1))
            }
            Answer::Value(value) => value.to_string(),
            // A text may hold tabs and line ends; as JSON it has neither.
            Answer::Text(text) => json!(text).to_string(),
            Answer::Option(weights) => class_name(task, chosen(task, weights)),
        };
        writeln!(text, "{index}\t{prediction}").expect("a string takes any text");
    }
    text
}

fn jsonl(task: &Task, rows: &Rows, answers: &[Answer]) -> String {
    let mut text = String::new();
    for (index, (id, answer)) in rows.ids.iter().zip(answers).enumerate() {
        let line = match answer {
            Answer::Class {
                class,
                probabilities,
            } => {
                let named = probabilities
                    .iter()
                    .enumerate()
                    .map(|(class, value)| (class_name(task, class), json!(value)));
                let named: serde_json::Map<String, Value> = named.collect();
                json!({"index": index, "id": id, "prediction": class_name(task, *class), "probabilities": named})
            }
            Answer::Value(value) => json!({"index": index, "id": id, "prediction": value}),
            Answer::Text(text) => json!({"index": index, "id": id, "prediction": text}),
            Answer::Option(weights) => {
                let log_likelihoods: Vec<f64> =
                    weights.iter().map(|weight| weight.log_likelihood).collect();
                json!({
                    "index": index, "id": id, "prediction": class_name(task, chosen(task, weights)),
                    "log_likelihoods": log_likelihoods,
                })
            }
        };
        writeln!(text, "{line}").expect("a string takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(class: usize) -> Answer {
        Answer::Class {
            class,
            probabilities: vec![0.25, 0.75],
        }
    }

    #[test]
    fn submissions_name_labels_as_glue_does() {
        let task = |name| Task::builtin(name).unwrap();
        assert_eq!(
            tsv(&task("cola"), &[class(1), class(0)]),
            "index\tprediction\n0\t1\n1\t0\n"
        );
        assert_eq!(
            tsv(&task("rte"), &[class(1), class(0)]),
            "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
        );
        let numbers = [
            Answer::Value(2.34567),
            Answer::Value(-0.1),
            Answer::Value(5.2),
        ];
        assert_eq!(
            tsv(&task("stsb"), &numbers),
            "index\tprediction\n0\t2.346\n1\t0.000\n2\t5.000\n"
        );
    }

    #[test]
    fn rows_need_every_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(
            &path,
            "{\"sentence\": \"A dog.\", \"more\": 1}\n\n{\"text\": \"x\"}\n",
        )
        .unwrap();
        let error = read_rows(&path, &Task::builtin("cola").unwrap()).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("rows.jsonl:3: field `sentence` is no text"),
            "{error}"
        );
        std::fs::write(&path, "{\"sentence\": \"A dog.\"}\n").unwrap();
        let rows = read_rows(&path, &Task::builtin("cola").unwrap()).unwrap();
        assert_eq!(rows[0].field("sentence"), Some("A dog."));
        std::fs::write(
            &path,
            b"{\"sentence\": \"A dog.\"}\n{\"sentence\": \"\xff\"}\n",
        )
        .unwrap();
        let error = read_rows(&path, &Task::builtin("cola").unwrap()).unwrap_err();
        assert!(
            error.to_string().ends_with("rows.jsonl:2: not UTF-8"),
            "{error}"
        );
        assert_eq!(error.status(), Status::UserError);
    }
}
