//! Accuracy.

use super::Outcome;

/// Share of examples predicted right; `None` without examples.
pub fn accuracy(outcomes: &[Outcome<usize>]) -> Option<f64> {
    if outcomes.is_empty() {
        return None;
    }
    let num_right = outcomes
        .iter()
        .filter(|outcome| outcome.predicted == outcome.expected)
        .count();
    Some(num_right as f64 / outcomes.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_score, binary, outcomes, three};
    use super::*;

    #[test]
    fn matches_scikit_learn() {
        assert_score(accuracy(&binary()), 0.6);
        assert_score(accuracy(&three()), 0.7);
        assert_score(accuracy(&outcomes(&[0, 1], &[1, 0])), 0.0);
        assert_eq!(accuracy(&[]), None);
    }
}
