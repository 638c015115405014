//! How well predictions match labels, in double precision, on plain slices.
//!
//! Every function answers `None` where the score is not defined (no rows; a correlation with a constant), where
//! scikit-learn and SciPy give NaN or raise. Where those define a degenerate score, so do we, with the same value.

mod accuracy;
mod correlation;
mod f1;
mod last_number;
mod matthews;
mod rouge;

pub use accuracy::accuracy;
pub use correlation::{pearson, spearman};
pub use f1::{f1, f1_macro};
pub use last_number::{last_number, same_last_number};
pub use matthews::matthews;
pub use rouge::rouge_l;

use schemas::task::Metric;

/// What was predicted for one example, and what is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<T> {
    /// The model's answer.
    pub predicted: T,
    /// The label.
    pub expected: T,
}

/// Predictions over a split, with their labels.
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// Class indices.
    Classes(Vec<Outcome<usize>>),
    /// Numbers.
    Values(Vec<Outcome<f64>>),
    /// Written texts.
    Texts(Vec<Outcome<String>>),
    /// Options.
    Options(Vec<OptionOutcome>),
}

/// What was chosen for one multiple-choice example, by three rules, and what is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionOutcome {
    /// The option of the largest log-likelihood.
    pub likeliest: usize,
    /// The option of the largest log-likelihood for each of its tokens.
    pub per_token: usize,
    /// The option of the largest log-likelihood for each of its bytes.
    pub per_byte: usize,
    /// The label.
    pub expected: usize,
}

impl Predictions {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(outcomes) => outcomes.len(),
            Self::Values(outcomes) => outcomes.len(),
            Self::Texts(outcomes) => outcomes.len(),
            Self::Options(outcomes) => outcomes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A metric that does not score this kind of label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metric {metric:?} does not score {labels}")]
pub struct MetricError {
    /// The metric asked for.
    pub metric: Metric,
    /// `classes`, `numbers`, `texts` or `options`.
    pub labels: &'static str,
}

impl MetricError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let fitting = match self.labels {
            "classes" => "accuracy, f1, f1_macro or matthews",
            "numbers" => "pearson or spearman",
            "texts" => "rouge_l or last_number",
            _ => "accuracy, accuracy_per_token or accuracy_per_byte",
        };
        Some(format!("{} are scored by {fitting}", self.labels))
    }
}

/// The score of `predictions`; higher is better for every metric. `None` where it is not defined.
///
/// # Errors
/// [`MetricError`] where the metric scores another kind of label.
pub fn score(metric: Metric, predictions: &Predictions) -> Result<Option<f64>, MetricError> {
    let refuse = |labels| Err(MetricError { metric, labels });
    match predictions {
        Predictions::Classes(outcomes) => match metric {
            Metric::Accuracy => Ok(accuracy(outcomes)),
            Metric::F1 => Ok(f1(outcomes)),
            Metric::F1Macro => Ok(f1_macro(outcomes)),
            Metric::Matthews => Ok(matthews(outcomes)),
            _ => refuse("classes"),
        },
        Predictions::Values(outcomes) => match metric {
            Metric::Pearson => Ok(pearson(outcomes)),
            Metric::Spearman => Ok(spearman(outcomes)),
            _ => refuse("numbers"),
        },
        Predictions::Texts(outcomes) => match metric {
            Metric::RougeL => Ok(mean(outcomes, |one| rouge_l(&one.predicted, &one.expected))),
            Metric::LastNumber => Ok(share(outcomes, |one| {
                same_last_number(&one.predicted, &one.expected)
            })),
            _ => refuse("texts"),
        },
        Predictions::Options(outcomes) => match metric {
            Metric::Accuracy => Ok(share(outcomes, |one| one.likeliest == one.expected)),
            Metric::AccuracyPerToken => Ok(share(outcomes, |one| one.per_token == one.expected)),
            Metric::AccuracyPerByte => Ok(share(outcomes, |one| one.per_byte == one.expected)),
            _ => refuse("options"),
        },
    }
}

fn mean<T>(outcomes: &[T], value: impl Fn(&T) -> f64) -> Option<f64> {
    let sum: f64 = outcomes.iter().map(value).sum();
    (!outcomes.is_empty()).then(|| sum / outcomes.len() as f64)
}

fn share<T>(outcomes: &[T], is_right: impl Fn(&T) -> bool) -> Option<f64> {
    mean(outcomes, |one| f64::from(u8::from(is_right(one))))
}

/// Expected values in these tests were printed by `scripts/golden/metrics.py` (scikit-learn 1.9.1, SciPy 1.17.1).
#[cfg(test)]
mod testing {
    use super::Outcome;

    pub(super) fn outcomes<T: Copy>(expected: &[T], predicted: &[T]) -> Vec<Outcome<T>> {
        assert_eq!(expected.len(), predicted.len());
        expected
            .iter()
            .zip(predicted)
            .map(|(&expected, &predicted)| Outcome {
                predicted,
                expected,
            })
            .collect()
    }

    pub(super) fn binary() -> Vec<Outcome<usize>> {
        outcomes(
            &[1, 0, 1, 1, 0, 1, 0, 0, 1, 1],
            &[1, 0, 0, 1, 1, 1, 0, 1, 1, 0],
        )
    }

    pub(super) fn three() -> Vec<Outcome<usize>> {
        outcomes(
            &[0, 1, 2, 2, 1, 0, 0, 2, 1, 2],
            &[0, 2, 2, 2, 1, 0, 1, 0, 1, 2],
        )
    }

    pub(super) fn assert_score(actual: Option<f64>, expected: f64) {
        let actual = actual.unwrap();
        assert!(
            (actual - expected).abs() < 1e-14,
            "{actual} is not {expected}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{assert_score, outcomes};
    use super::*;

    #[test]
    fn each_metric_scores_its_kind_of_label() {
        let classes = Predictions::Classes(outcomes(&[0, 1, 1, 0], &[0, 1, 1, 1]));
        let values = Predictions::Values(outcomes(&[1.0, 2.0, 3.0], &[9.0, 4.0, 1.0]));
        assert_eq!(score(Metric::Accuracy, &classes), Ok(Some(0.75)));
        assert_eq!(score(Metric::F1, &classes), Ok(Some(0.8)));
        assert_score(score(Metric::Spearman, &values).unwrap(), -1.0);
        let error = score(Metric::Pearson, &classes).unwrap_err();
        assert_eq!(error.to_string(), "metric Pearson does not score classes");
        assert_eq!(
            error.hint().unwrap(),
            "classes are scored by accuracy, f1, f1_macro or matthews"
        );
        assert!(score(Metric::Matthews, &values).is_err());
    }

    #[test]
    fn texts_and_options_have_metrics_of_their_own() {
        let text = |predicted: &str, expected: &str| Outcome {
            predicted: predicted.to_owned(),
            expected: expected.to_owned(),
        };
        let texts = Predictions::Texts(vec![text("a 3", "a 3"), text("4", "b 5")]);
        assert_eq!(score(Metric::RougeL, &texts), Ok(Some(0.5)));
        assert_eq!(score(Metric::LastNumber, &texts), Ok(Some(0.5)));
        let error = score(Metric::Accuracy, &texts).unwrap_err();
        assert_eq!(
            error.hint().unwrap(),
            "texts are scored by rouge_l or last_number"
        );
        let option = |likeliest, per_token, per_byte| OptionOutcome {
            likeliest,
            per_token,
            per_byte,
            expected: 1,
        };
        let options = Predictions::Options(vec![option(1, 0, 1), option(0, 1, 1)]);
        assert_eq!(score(Metric::Accuracy, &options), Ok(Some(0.5)));
        assert_eq!(score(Metric::AccuracyPerToken, &options), Ok(Some(0.5)));
        assert_eq!(score(Metric::AccuracyPerByte, &options), Ok(Some(1.0)));
        assert!(score(Metric::F1, &options).is_err());
        assert_eq!(
            score(Metric::RougeL, &Predictions::Texts(Vec::new())),
            Ok(None)
        );
    }
}
