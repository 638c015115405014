//! Distillation of outputs: the distance between teacher and student outputs softened by a temperature.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use super::norm::row_norms;
use super::to_f32;

/// Where outputs are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Class probabilities: `softmax(o/τ)`.
    Probabilities,
    /// Numbers, for regression: `o/τ`.
    Values,
}

fn soften(outputs_bc: Tensor<2>, temperature: f32, space: Space) -> Tensor<2> {
    let scaled_bc = to_f32(outputs_bc).div_scalar(temperature);
    match space {
        Space::Probabilities => softmax(scaled_bc, 1),
        Space::Values => scaled_bc,
    }
}

/// `(1/b) Σᵢ ‖f(tᵢ/τ) - f(sᵢ/τ)‖₂`, f the softmax or, in [`Space::Values`], the identity.
///
/// # Shapes
/// - `teacher_bc`, `student_bc`: `[b, c]`
/// - returns `[1]`
///
/// # Source
/// kd of the `paper` preset. Not multiplied by τ: with a higher temperature it shrinks.
pub fn softened_norm(
    teacher_bc: Tensor<2>,
    student_bc: Tensor<2>,
    temperature: f32,
    space: Space,
) -> Tensor<1> {
    row_norms(soften(teacher_bc, temperature, space) - soften(student_bc, temperature, space))
        .mean()
}

/// `τ² · mean over b and c of (softmax(t/τ) - softmax(s/τ))²`.
///
/// # Shapes
/// - `teacher_bc`, `student_bc`: `[b, c]`
/// - returns `[1]`
///
/// # Source
/// kd of the `reference` preset for class labels; its regression form is [`super::mean_squared`], without τ.
pub fn softened_squared(
    teacher_bc: Tensor<2>,
    student_bc: Tensor<2>,
    temperature: f32,
) -> Tensor<1> {
    let space = Space::Probabilities;
    let difference_bc =
        soften(teacher_bc, temperature, space) - soften(student_bc, temperature, space);
    difference_bc
        .square()
        .mean()
        .mul_scalar(temperature * temperature)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_near, matrix, values};
    use super::*;

    // With two classes and logits (x, 0) the first probability is sigmoid(x/τ); ln 3 at τ = 1 gives 3/4.
    fn teacher() -> Tensor<2> {
        matrix([[2.0 * 3.0_f32.ln(), 0.0]])
    }

    fn student() -> Tensor<2> {
        matrix([[0.0, 0.0]])
    }

    #[test]
    fn norm_form_of_probabilities() {
        // (3/4, 1/4) against (1/2, 1/2): √(2/16).
        let loss = softened_norm(teacher(), student(), 2.0, Space::Probabilities);
        assert_near(&values(loss), &[0.125_f32.sqrt()]);
    }

    #[test]
    fn squared_form_is_scaled_by_the_squared_temperature() {
        // 4 · mean(1/16, 1/16).
        assert_near(
            &values(softened_squared(teacher(), student(), 2.0)),
            &[0.25],
        );
    }

    #[test]
    fn norm_form_of_values_is_the_mean_absolute_difference_over_temperature() {
        let loss = softened_norm(
            matrix([[1.0], [-3.0]]),
            matrix([[2.0], [0.0]]),
            4.0,
            Space::Values,
        );
        assert_near(&values(loss), &[0.5]);
    }

    #[test]
    fn equal_outputs_have_zero_loss_and_zero_gradient() {
        let student = teacher().require_grad();
        let loss = softened_norm(teacher(), student.clone(), 5.0, Space::Probabilities);
        assert_near(&values(loss.clone()), &[0.0]);
        assert_eq!(values(student.grad(&loss.backward()).unwrap()), [0.0, 0.0]);
    }
}
