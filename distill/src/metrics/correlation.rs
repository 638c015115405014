//! Pearson and Spearman correlation.

use super::Outcome;

/// Pearson correlation of predictions and labels.
///
/// `None` with fewer than two examples, where predictions or labels are constant, or where a value is not finite.
pub fn pearson(outcomes: &[Outcome<f64>]) -> Option<f64> {
    let predicted: Vec<f64> = outcomes.iter().map(|outcome| outcome.predicted).collect();
    let expected: Vec<f64> = outcomes.iter().map(|outcome| outcome.expected).collect();
    correlation(&predicted, &expected)
}

/// Spearman correlation: Pearson's of the ranks, ties sharing the mean of theirs.
///
/// `None` with fewer than two examples, where predictions or labels are constant, or where a value is not finite.
pub fn spearman(outcomes: &[Outcome<f64>]) -> Option<f64> {
    let predicted: Vec<f64> = outcomes.iter().map(|outcome| outcome.predicted).collect();
    let expected: Vec<f64> = outcomes.iter().map(|outcome| outcome.expected).collect();
    if predicted
        .iter()
        .chain(&expected)
        .any(|value| !value.is_finite())
    {
        return None;
    }
    correlation(&ranks(&predicted), &ranks(&expected))
}

fn correlation(left: &[f64], right: &[f64]) -> Option<f64> {
    let left = centred(left)?;
    let right = centred(right)?;
    let product: f64 = left.iter().zip(&right).map(|(l, r)| l * r).sum();
    let coefficient = product / (length(&left) * length(&right));
    coefficient
        .is_finite()
        .then(|| coefficient.clamp(-1.0, 1.0))
}

/// Values less their mean; `None` where they do not vary, which is judged before rounding can make them seem to.
#[expect(
    clippy::float_cmp,
    reason = "constant means every value is the same one"
)]
fn centred(values: &[f64]) -> Option<Vec<f64>> {
    let first = values.first()?;
    if values.iter().all(|value| value == first) {
        return None;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    Some(values.iter().map(|value| value - mean).collect())
}

fn length(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Ranks from 1, equal values sharing the mean of the ranks they take up.
#[expect(clippy::float_cmp, reason = "only equal values are ties")]
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tie in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let shared = start as f64 + f64::midpoint(1.0, tie.len() as f64);
        for &index in tie {
            ranks[index] = shared;
        }
        start += tie.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_score, outcomes};
    use super::*;

    #[test]
    fn matches_scipy() {
        let numbers = outcomes(
            &[0.5, 1.0, 2.5, 3.0, 4.5, 5.0],
            &[1.0, 1.0, 2.0, 3.5, 3.5, 4.75],
        );
        assert_score(pearson(&numbers), 0.951_987_341_417_326_4);
        assert_score(spearman(&numbers), 0.971_008_312_455_224_6);
        let offset = outcomes(&[1e8, 1e8 + 1.0, 1e8 + 3.0], &[2.0, 1.0, 5.0]);
        assert_score(pearson(&offset), 0.838_627_869_377_534_4);
        assert_score(spearman(&offset), 0.5);
        let reversed = outcomes(&[1.0, 2.0, 3.0], &[9.0, 4.0, 1.0]);
        assert_score(pearson(&reversed), -0.989_743_318_610_786_9);
        assert_score(spearman(&reversed), -1.0);
        assert_score(pearson(&outcomes(&[1.0, 2.0], &[3.0, 5.0])), 1.0);
    }

    #[test]
    fn is_undefined_without_variation() {
        for undefined in [
            outcomes(&[1.0, 2.0, 3.0], &[2.0, 2.0, 2.0]),
            outcomes(&[0.1, 0.1, 0.1], &[1.0, 2.0, 3.0]),
            outcomes(&[1.0], &[2.0]),
            outcomes(&[], &[]),
            outcomes(&[1.0, 2.0], &[f64::NAN, 1.0]),
            outcomes(&[1.0, 2.0, 3.0], &[f64::INFINITY, 1.0, 2.0]),
        ] {
            assert_eq!(pearson(&undefined), None);
            assert_eq!(spearman(&undefined), None);
        }
    }

    #[test]
    fn ties_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 0.0, 3.0]), [4.0, 2.0, 4.0, 1.0, 4.0]);
        assert_eq!(ranks(&[0.0, -0.0, 1.0]), [1.5, 1.5, 3.0]);
    }
}
