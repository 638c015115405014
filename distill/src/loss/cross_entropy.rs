//! The task loss of classification.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

use super::to_f32;

/// Mean cross-entropy, `-(1/b) Σᵢ log softmax(oᵢ)[yᵢ]`, computed with a log-sum-exp that cannot overflow.
///
/// # Shapes
/// - `logits_bc`: `[b, c]`
/// - `classes_b`: `[b]`, each in `0..c`
/// - returns `[1]`
///
/// # Source
/// T(·,·) of the method for class labels; the same value as PyTorch's `cross_entropy` with `reduction="mean"`.
pub fn cross_entropy(logits_bc: Tensor<2>, classes_b: Tensor<1, Int>) -> Tensor<1> {
    let log_probabilities_bc = log_softmax(to_f32(logits_bc), 1);
    log_probabilities_bc
        .gather(1, classes_b.unsqueeze_dim(1))
        .mean()
        .neg()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_near, device, matrix, values};
    use super::*;

    #[test]
    fn matches_the_closed_form() {
        let logits = matrix([[0.0, 2.0_f32.ln()], [1000.0, 0.0]]).require_grad();
        let loss = cross_entropy(logits.clone(), Tensor::from_ints([0, 0], &device()));
        // Row 1: -ln(1/3); row 2: 0 although exp(1000) overflows.
        assert_near(&values(loss.clone()), &[3.0_f32.ln() / 2.0]);
        let gradients = loss.backward();
        assert_near(
            &values(logits.grad(&gradients).unwrap()),
            &[-1.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
        );
    }
}
