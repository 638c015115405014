//! Matthews correlation coefficient.

use std::collections::BTreeMap;

use super::Outcome;

/// Matthews correlation coefficient for any number of classes:
/// `(c s - Σ p_k t_k) / √((s² - Σ p_k²)(s² - Σ t_k²))`, s the examples, c those right, p_k and t_k how often class k is
/// predicted and expected.
///
/// 0 where predictions or labels are constant, as scikit-learn has it; `None` without examples.
///
/// Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
pub fn matthews(outcomes: &[Outcome<usize>]) -> Option<f64> {
    if outcomes.is_empty() {
        return None;
    }
    let mut counts: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for outcome in outcomes {
        counts.entry(outcome.predicted).or_default().0 += 1.0;
        counts.entry(outcome.expected).or_default().1 += 1.0;
    }
    let total = outcomes.len() as f64;
    let num_right = outcomes
        .iter()
        .filter(|outcome| outcome.predicted == outcome.expected)
        .count() as f64;
    let sum_over = |product: fn(f64, f64) -> f64| -> f64 {
        counts
            .values()
            .map(|&(predicted, expected)| product(predicted, expected))
            .sum()
    };
    let covariance = num_right * total - sum_over(|predicted, expected| predicted * expected);
    let predicted_variance = total * total - sum_over(|predicted, _| predicted * predicted);
    let expected_variance = total * total - sum_over(|_, expected| expected * expected);
    // Sums of whole numbers are exact, so a constant gives exactly zero.
    if predicted_variance == 0.0 || expected_variance == 0.0 {
        return Some(0.0);
    }
    Some(covariance / (predicted_variance.sqrt() * expected_variance.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_score, binary, outcomes, three};
    use super::*;

    #[test]
    fn matches_scikit_learn() {
        assert_score(matthews(&binary()), 0.166_666_666_666_666_66);
        assert_score(matthews(&three()), 0.545_454_545_454_545_4);
        assert_score(matthews(&outcomes(&[0, 1], &[1, 0])), -1.0);
        assert_score(
            matthews(&outcomes(&[0, 0, 1], &[0, 2, 1])),
            0.612_372_435_695_794_6,
        );
    }

    #[test]
    fn constants_score_zero() {
        assert_score(matthews(&outcomes(&[0, 1, 1, 0], &[1, 1, 1, 1])), 0.0);
        assert_score(matthews(&outcomes(&[1, 1], &[1, 1])), 0.0);
        assert_eq!(matthews(&[]), None);
    }
}
