//! Euclidean norms whose gradient at zero is zero.

use burn::tensor::Tensor;

/// ‖xᵢ‖₂ of every row, `[b, n] -> [b]`.
///
/// The derivative of √s at s = 0 is infinite, and 0 · ∞ in the chain rule is `NaN`. Rows whose squares sum to exactly zero
/// (which in `f32` includes components under about 1e-23) are therefore taken out of the square root: their norm is 0
/// and so is their gradient, a valid choice from the subdifferential.
pub(super) fn row_norms(rows_bn: Tensor<2>) -> Tensor<1> {
    safe_sqrt(rows_bn.square().sum_dim(1).squeeze_dim(1))
}

/// ‖x‖₂ of a vector, `[n] -> [1]`, with the same gradient at zero as [`row_norms`].
pub(super) fn vector_norm(vector_n: Tensor<1>) -> Tensor<1> {
    safe_sqrt(vector_n.square().sum())
}

fn safe_sqrt(squares: Tensor<1>) -> Tensor<1> {
    let zero = squares.clone().equal_elem(0.0_f32);
    squares
        .mask_fill(zero.clone(), 1.0_f32)
        .sqrt()
        .mask_fill(zero, 0.0_f32)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_near, matrix, values};
    use super::*;

    #[test]
    fn norms_and_their_gradients_are_finite_at_zero() {
        let rows = matrix([[3.0, 4.0], [0.0, 0.0], [-5.0, 12.0]]).require_grad();
        let norms = row_norms(rows.clone());
        assert_near(&values(norms.clone()), &[5.0, 0.0, 13.0]);
        let gradients = norms.sum().backward();
        assert_near(
            &values(rows.grad(&gradients).unwrap()),
            &[0.6, 0.8, 0.0, 0.0, -5.0 / 13.0, 12.0 / 13.0],
        );
    }

    #[test]
    fn smallest_representable_squares_keep_a_finite_gradient() {
        let rows = matrix([[1e-22, 0.0]]).require_grad();
        let gradients = row_norms(rows.clone()).sum().backward();
        let gradient = values(rows.grad(&gradients).unwrap());
        assert!(
            gradient.iter().all(|g| g.is_finite() && g.abs() <= 1.1),
            "{gradient:?}"
        );
    }
}
