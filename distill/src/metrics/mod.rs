//! How well predictions match labels, in double precision, on plain slices.
//!
//! Every function answers `None` where the score is not defined (no rows; a correlation with a constant), where
//! scikit-learn and SciPy give NaN or raise. Where those define a degenerate score, so do we, with the same value.

mod accuracy;
mod correlation;
mod f1;
mod matthews;

pub use accuracy::accuracy;
pub use correlation::{pearson, spearman};
pub use f1::{f1, f1_macro};
pub use matthews::matthews;

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
}

impl Predictions {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(outcomes) => outcomes.len(),
            Self::Values(outcomes) => outcomes.len(),
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
    /// `classes` or `numbers`.
    pub labels: &'static str,
}

impl MetricError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let fitting = if self.labels == "classes" {
            "accuracy, f1, f1_macro or matthews"
        } else {
            "pearson or spearman"
        };
        Some(format!("{} are scored by {fitting}", self.labels))
    }
}

/// The score of `predictions`; higher is better for every metric. `None` where it is not defined.
///
/// # Errors
/// [`MetricError`] where the metric scores the other kind of label.
pub fn score(metric: Metric, predictions: &Predictions) -> Result<Option<f64>, MetricError> {
    match (metric, predictions) {
        (Metric::Accuracy, Predictions::Classes(outcomes)) => Ok(accuracy(outcomes)),
        (Metric::F1, Predictions::Classes(outcomes)) => Ok(f1(outcomes)),
        (Metric::F1Macro, Predictions::Classes(outcomes)) => Ok(f1_macro(outcomes)),
        (Metric::Matthews, Predictions::Classes(outcomes)) => Ok(matthews(outcomes)),
        (Metric::Pearson, Predictions::Values(outcomes)) => Ok(pearson(outcomes)),
        (Metric::Spearman, Predictions::Values(outcomes)) => Ok(spearman(outcomes)),
        (Metric::Pearson | Metric::Spearman, Predictions::Classes(_)) => Err(MetricError {
            metric,
            labels: "classes",
        }),
        (
            Metric::Accuracy | Metric::F1 | Metric::F1Macro | Metric::Matthews,
            Predictions::Values(_),
        ) => Err(MetricError {
            metric,
            labels: "numbers",
        }),
    }
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
}
