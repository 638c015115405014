//! Mean squared differences: the task loss of regression, and three terms of the reference preset.

use burn::tensor::Tensor;

use super::to_f32;

/// Mean over all entries of `(tᵢⱼ - sᵢⱼ)²`.
///
/// # Shapes
/// - `target_bn`, `input_bn`: `[b, n]`
/// - returns `[1]`
///
/// # Source
/// The reference script: distillation of regression outputs (no temperature) and the `elementwise` manifold term.
/// About `2/k` times the squared scale of the norm forms of the paper, so weights do not carry over between presets.
pub fn mean_squared(target_bn: Tensor<2>, input_bn: Tensor<2>) -> Tensor<1> {
    (to_f32(target_bn) - to_f32(input_bn)).square().mean()
}

/// Mean squared error of regression outputs, `(1/b) Σᵢ (oᵢ - yᵢ)²`.
///
/// # Shapes
/// - `outputs_b1`: `[b, 1]`
/// - `values_b`: `[b]`
/// - returns `[1]`
///
/// # Source
/// T(·,·) of the method for numeric labels.
pub fn regression(outputs_b1: Tensor<2>, values_b: Tensor<1>) -> Tensor<1> {
    mean_squared(values_b.unsqueeze_dim(1), outputs_b1)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_near, device, matrix, values};
    use super::*;

    #[test]
    fn averages_over_rows_and_columns() {
        let input = matrix([[1.0, 2.0], [3.0, 4.0]]).require_grad();
        let loss = mean_squared(matrix([[0.0, 2.0], [3.0, 1.0]]), input.clone());
        assert_near(&values(loss.clone()), &[2.5]);
        let gradients = loss.backward();
        assert_near(
            &values(input.grad(&gradients).unwrap()),
            &[0.5, 0.0, 0.0, 1.5],
        );
    }

    #[test]
    fn regression_pairs_each_output_with_its_value() {
        let loss = regression(
            matrix([[1.0], [4.0]]),
            Tensor::from_floats([2.0, 2.0], &device()),
        );
        assert_near(&values(loss), &[2.5]);
    }
}
