//! F1, the harmonic mean of precision and recall.

use std::collections::BTreeSet;

use super::Outcome;

/// F1 of class 1, `2 TP / (2 TP + FP + FN)`.
///
/// 0 where class 1 is neither predicted nor expected, as scikit-learn has it; `None` without examples.
pub fn f1(outcomes: &[Outcome<usize>]) -> Option<f64> {
    (!outcomes.is_empty()).then(|| f1_of_class(outcomes, 1))
}

/// Unweighted mean of the F1 of every class that is predicted or expected at least once; `None` without examples.
pub fn f1_macro(outcomes: &[Outcome<usize>]) -> Option<f64> {
    let classes: BTreeSet<usize> = outcomes
        .iter()
        .flat_map(|outcome| [outcome.predicted, outcome.expected])
        .collect();
    if classes.is_empty() {
        return None;
    }
    let sum: f64 = classes
        .iter()
        .map(|&class| f1_of_class(outcomes, class))
        .sum();
    Some(sum / classes.len() as f64)
}

fn f1_of_class(outcomes: &[Outcome<usize>], class: usize) -> f64 {
    let num_predicted = outcomes
        .iter()
        .filter(|outcome| outcome.predicted == class)
        .count();
    let num_expected = outcomes
        .iter()
        .filter(|outcome| outcome.expected == class)
        .count();
    let num_right = outcomes
        .iter()
        .filter(|outcome| outcome.predicted == class && outcome.expected == class)
        .count();
    match num_predicted + num_expected {
        0 => 0.0,
        total => 2.0 * num_right as f64 / total as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_score, binary, outcomes, three};
    use super::*;

    #[test]
    fn matches_scikit_learn() {
        assert_score(f1(&binary()), 0.666_666_666_666_666_6);
        assert_score(f1_macro(&binary()), 0.583_333_333_333_333_3);
        assert_score(f1_macro(&three()), 0.694_444_444_444_444_3);
    }

    #[test]
    fn degenerate_cases_match_scikit_learn() {
        let constant = outcomes(&[0, 1, 1, 0], &[1, 1, 1, 1]);
        assert_score(f1(&constant), 0.666_666_666_666_666_6);
        assert_score(f1_macro(&constant), 0.333_333_333_333_333_3);
        let no_positive = outcomes(&[0, 0], &[0, 0]);
        assert_score(f1(&no_positive), 0.0);
        assert_score(f1_macro(&no_positive), 1.0);
        assert_score(
            f1_macro(&outcomes(&[0, 0, 1], &[0, 2, 1])),
            0.555_555_555_555_555_5,
        );
        assert_eq!(f1(&[]), None);
        assert_eq!(f1_macro(&[]), None);
    }
}
