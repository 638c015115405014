//! Every student beside `transformers`, in f32 and in bf16 on the CPU: `distill::student::parity`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use burn::tensor::Device;
use distill::student::parity::{CAUSAL, ENCODERS, IN_BF16, compare};

/// Relative to the largest value of a tensor.
const TOLERANCE: f64 = 1e-4;

#[test]
fn students_compute_what_transformers_computes() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let comparisons = compare(&Device::flex(), &fixtures).unwrap();
    for row in &comparisons {
        if row.quantity.ends_with(IN_BF16) {
            // Rounded, but only so far.
            assert!(row.difference > 0.0 && row.within(0.1), "{row:?}");
        } else {
            assert!(row.within(TOLERANCE), "{row:?}");
        }
    }
    // Of an encoder hidden states, pooled, logits and those in bf16, and gradients by two or three weights; of the others
    // the same with the loss, two gradients, for either padding.
    let with_three_weights = 2;
    let of_encoders = 6 * ENCODERS.len() + with_three_weights;
    let of_causal = 2 * 7 * CAUSAL.len();
    // Six models go on from three prompts each, and weigh texts.
    assert_eq!(comparisons.len(), of_encoders + of_causal + 6 * 4);
}
