//! Manifold term `elementwise`: the distance of each row from its own teacher row.

use burn::tensor::Tensor;

use super::norm::row_norms;
use super::to_f32;

/// `(1/b) Σᵢ ‖p_t,i - p_s,i‖₂`, with gradient zero for rows that coincide.
///
/// # Shapes
/// - `teacher_bk`, `student_bk`: `[b, k]`
/// - returns `[1]`
///
/// # Source
/// `elementwise` of the `paper` preset; the `reference` preset uses [`super::mean_squared`].
pub fn elementwise_norm(teacher_bk: Tensor<2>, student_bk: Tensor<2>) -> Tensor<1> {
    row_norms(to_f32(teacher_bk) - to_f32(student_bk)).mean()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_near, matrix, values};
    use super::*;

    #[test]
    fn averages_row_distances_and_ignores_coinciding_rows() {
        let student = matrix([[3.0, 4.0], [1.0, 1.0]]).require_grad();
        let loss = elementwise_norm(matrix([[0.0, 0.0], [1.0, 1.0]]), student.clone());
        assert_near(&values(loss.clone()), &[2.5]);
        let gradient = values(student.grad(&loss.backward()).unwrap());
        assert_near(&gradient, &[0.3, 0.4, 0.0, 0.0]);
    }
}
