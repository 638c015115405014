//! Every loss, total and gradient of the golden file, in `f32` on the CPU.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::Device;
use distill::golden::{Comparison, compare};

const EXPECTED: &str = include_str!("../../tests/golden/armada_losses.json");

/// Relative to the value, or to the largest entry of a gradient.
const TOLERANCE: f64 = 1e-5;

#[test]
fn losses_and_gradients_match_double_precision() {
    let comparisons = compare(&Device::flex(), EXPECTED).unwrap();
    // 54 cases of 5 terms, 2 totals and 3 gradients.
    assert_eq!(comparisons.len(), 540);
    let worst = comparisons
        .iter()
        .map(Comparison::relative)
        .fold(0.0, f64::max);
    let failures: Vec<_> = comparisons
        .iter()
        .filter(|row| !row.within(TOLERANCE))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of 540, worst {worst:.2e}: {failures:#?}",
        failures.len()
    );
}

#[test]
fn a_wrong_expectation_is_noticed() {
    let altered = EXPECTED.replacen("\"task\":0.791520816", "\"task\":0.79155", 1);
    let comparisons = compare(&Device::flex(), &altered).unwrap();
    let failures: Vec<_> = comparisons
        .iter()
        .filter(|row| !row.within(TOLERANCE))
        .collect();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].quantity, "task");
}

#[test]
fn another_file_is_refused() {
    let error = compare(&Device::flex(), "{\"cases\": 3}").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the file of expected losses is not readable")
    );
}
