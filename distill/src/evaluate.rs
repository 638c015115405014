//! Predictions and scores of a student over a split. The text is all that is read.

use burn::tensor::Device;
use burn::tensor::activation::softmax;
use schemas::task::Metric;
use serde_json::{Map, Value};

use crate::data::{Labels, Padding, Rows, token_batch};
use crate::error::Error;
use crate::generation::{OptionWeight, best_options};
use crate::metrics::{Outcome, Predictions, score};
use crate::model::Student;
use crate::objective::TaskKind;
use crate::student::Encoding;

/// Rows of an evaluation batch: no gradient is kept, so it may be larger than a training batch.
const BATCH_SIZE: usize = 64;

/// Metrics that may fit a task, with their names in results.
const METRICS: [(Metric, &str); 10] = [
    (Metric::Accuracy, "accuracy"),
    (Metric::F1, "f1"),
    (Metric::F1Macro, "f1_macro"),
    (Metric::Matthews, "matthews"),
    (Metric::Pearson, "pearson"),
    (Metric::Spearman, "spearman"),
    (Metric::AccuracyPerToken, "accuracy_per_token"),
    (Metric::AccuracyPerByte, "accuracy_per_byte"),
    (Metric::RougeL, "rouge_l"),
    (Metric::LastNumber, "last_number"),
];

/// The name of a metric in results.
pub fn metric_name(metric: Metric) -> &'static str {
    METRICS
        .iter()
        .find(|(known, _)| *known == metric)
        .map_or("", |(_, name)| name)
}

/// What a student says about one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A class, with the probability of every class.
    Class {
        /// The likeliest class; the first of equals.
        class: usize,
        /// Sum to 1.
        probabilities: Vec<f32>,
    },
    /// A number.
    Value(f64),
    /// A text.
    Text(String),
    /// What each of the row's options weighs.
    Option(Vec<OptionWeight>),
}

/// Answers of a student that reads, for all rows in their order. Rows are batched by length, so that little is padded.
///
/// `student` is in evaluation mode, see [`Module::valid`](burn::module::Module::valid).
#[expect(clippy::disallowed_methods, reason = "the answers of a batch")]
pub fn answers(
    student: &Student,
    encodings: &[Encoding],
    kind: TaskKind,
    pad_id: u32,
    padding: Padding,
    device: &Device,
) -> Vec<Answer> {
    let mut order: Vec<usize> = (0..encodings.len()).collect();
    order.sort_by_key(|&row| encodings[row].ids.len());
    let mut answers: Vec<Option<Answer>> = vec![None; encodings.len()];
    for rows in order.chunks(BATCH_SIZE) {
        let batch: Vec<&Encoding> = rows.iter().map(|&row| &encodings[row]).collect();
        let outputs_bc = student.main(&token_batch(&batch, pad_id, padding, device));
        let has_classes = kind != TaskKind::Regression;
        let outputs_bc = if has_classes {
            softmax(outputs_bc, 1)
        } else {
            outputs_bc
        };
        let width = outputs_bc.dims()[1];
        let values: Vec<f32> = outputs_bc
            .into_data()
            .try_to_vec()
            .expect("outputs are f32");
        for (&row, outputs) in rows.iter().zip(values.chunks(width)) {
            answers[row] = Some(if has_classes {
                Answer::Class {
                    class: argmax(outputs),
                    probabilities: outputs.to_vec(),
                }
            } else {
                Answer::Value(f64::from(outputs[0]))
            });
        }
    }
    answers
        .into_iter()
        .map(|answer| answer.expect("every row is in one batch"))
        .collect()
}

fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

/// Scores of a split.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The task's own metric; `None` where it is not defined, as a correlation with a constant is not.
    pub main: Option<f64>,
    /// Every metric that fits the task, by name.
    pub all: Map<String, Value>,
}

/// Scores answers against labels; `None` where the rows have none.
///
/// # Errors
/// The task's metric does not score its labels.
pub fn scores(answers: &[Answer], rows: &Rows, metric: Metric) -> Result<Option<Scores>, Error> {
    let Some(predictions) = predictions(answers, &rows.labels) else {
        return Ok(None);
    };
    let num_classes = answers.iter().find_map(|answer| match answer {
        Answer::Class { probabilities, .. } => Some(probabilities.len()),
        _ => None,
    });
    let mut all = Map::new();
    for (candidate, name) in METRICS {
        if candidate == Metric::F1 && num_classes != Some(2) {
            continue;
        }
        if let Ok(score) = score(candidate, &predictions) {
            all.insert(name.to_owned(), score.into());
        }
    }
    Ok(Some(Scores {
        main: score(metric, &predictions)?,
        all,
    }))
}

/// Answers with their labels; `None` where there are no labels.
fn predictions(answers: &[Answer], labels: &Labels) -> Option<Predictions> {
    fn paired<'a, L, O>(
        answers: &'a [Answer],
        labels: &'a [L],
        pair: impl Fn(&Answer, &L) -> Option<O>,
    ) -> Vec<O> {
        let pairs = answers.iter().zip(labels);
        pairs
            .filter_map(|(answer, label)| pair(answer, label))
            .collect()
    }
    let is_choice = matches!(answers.first(), Some(Answer::Option(_)));
    Some(match labels {
        Labels::Absent => return None,
        Labels::Classes(classes) if is_choice => {
            Predictions::Options(paired(answers, classes, |answer, &expected| match answer {
                Answer::Option(weights) => Some(best_options(weights, expected as usize)),
                _ => None,
            }))
        }
        Labels::Classes(classes) => {
            Predictions::Classes(paired(answers, classes, |answer, &expected| match answer {
                Answer::Class { class, .. } => Some(Outcome {
                    predicted: *class,
                    expected: expected as usize,
                }),
                _ => None,
            }))
        }
        Labels::Values(values) => {
            Predictions::Values(paired(answers, values, |answer, &expected| match answer {
                Answer::Value(predicted) => Some(Outcome {
                    predicted: *predicted,
                    expected,
                }),
                _ => None,
            }))
        }
        Labels::Texts(texts) => {
            Predictions::Texts(paired(answers, texts, |answer, expected| match answer {
                Answer::Text(predicted) => Some(Outcome {
                    predicted: predicted.clone(),
                    expected: expected.clone(),
                }),
                _ => None,
            }))
        }
    })
}
