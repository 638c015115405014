//! Manifold term `euclid`: the distance between the batch means, in the scale of each preset.

use burn::tensor::Tensor;

use super::batch_mean;
use super::norm::vector_norm;

/// `‖p̄_t - p̄_s‖₂`, with gradient zero where the means coincide.
///
/// # Shapes
/// - `teacher_bk`, `student_bk`: `[b, k]`
/// - returns `[1]`
///
/// # Source
/// `euclid` of the `paper` preset.
pub fn euclid_norm(teacher_bk: Tensor<2>, student_bk: Tensor<2>) -> Tensor<1> {
    vector_norm(batch_mean(teacher_bk) - batch_mean(student_bk))
}

/// Mean over k of `(p̄_t - p̄_s)²`.
///
/// # Shapes
/// - `teacher_bk`, `student_bk`: `[b, k]`
/// - returns `[1]`
///
/// # Source
/// `euclid` of the `reference` preset: the square of [`euclid_norm`] divided by k.
pub fn euclid_mean_squared(teacher_bk: Tensor<2>, student_bk: Tensor<2>) -> Tensor<1> {
    (batch_mean(teacher_bk) - batch_mean(student_bk))
        .square()
        .mean()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_near, matrix, values};
    use super::*;

    #[test]
    fn both_scales_of_one_distance() {
        // Means (1, 0) and (4, 4): distance 5.
        let teacher = matrix([[2.0, 1.0], [0.0, -1.0]]);
        let student = matrix([[8.0, 0.0], [0.0, 8.0]]);
        assert_near(
            &values(euclid_norm(teacher.clone(), student.clone())),
            &[5.0],
        );
        assert_near(&values(euclid_mean_squared(teacher, student)), &[12.5]);
    }

    #[test]
    fn coinciding_means_have_no_gradient() {
        let student = matrix([[1.0, 0.0], [1.0, 0.0]]).require_grad();
        let loss = euclid_norm(matrix([[2.0, 1.0], [0.0, -1.0]]), student.clone());
        assert_eq!(values(student.grad(&loss.backward()).unwrap()), [0.0; 4]);
    }
}
