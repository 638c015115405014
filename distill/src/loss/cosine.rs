//! Manifold term `cosine`: the angle between the batch means.

use burn::tensor::Tensor;

use super::batch_mean;
use super::norm::vector_norm;

/// Below this length a mean vector has no direction worth following.
const SMALLEST_NORM: f32 = 1e-8;

/// `1 - cos(p̄_t, p̄_s)`, in `[0, 2]`.
///
/// Where either mean is shorter than 1e-8 the cosine is taken as 0 and the gradient is zero. (PyTorch's
/// `cosine_similarity` clamps the length at the same value instead, which lets a gradient of up to 1e8 through.)
///
/// # Shapes
/// - `teacher_bk`, `student_bk`: `[b, k]`
/// - returns `[1]`
///
/// # Source
/// The reference script. It has no scale: the same in both presets. Eq. 3 of the paper lacks the normalisation; see
/// [`super::inner`].
pub fn cosine(teacher_bk: Tensor<2>, student_bk: Tensor<2>) -> Tensor<1> {
    let (teacher_mean_k, student_mean_k) = (batch_mean(teacher_bk), batch_mean(student_bk));
    let teacher_norm = vector_norm(teacher_mean_k.clone());
    let student_norm = vector_norm(student_mean_k.clone());
    let undefined = teacher_norm
        .clone()
        .lower_equal_elem(SMALLEST_NORM)
        .bool_or(student_norm.clone().lower_equal_elem(SMALLEST_NORM));
    let norms = (teacher_norm * student_norm).mask_fill(undefined.clone(), 1.0_f32);
    let cosine = (teacher_mean_k * student_mean_k)
        .sum()
        .div(norms)
        .mask_fill(undefined, 0.0_f32);
    cosine.neg().add_scalar(1.0_f32)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_near, matrix, values};
    use super::*;

    #[test]
    fn compares_directions_of_the_means() {
        // Means (1, 0) and (3, 4): cos = 3/5.
        let teacher = matrix([[2.0, 1.0], [0.0, -1.0]]);
        let student = matrix([[6.0, 0.0], [0.0, 8.0]]).require_grad();
        let loss = cosine(teacher, student.clone());
        assert_near(&values(loss.clone()), &[0.4]);
        // -(t - cos · ŝ)/‖s‖ = -((1, 0) - 0.6·(0.6, 0.8))/5, halved by the mean.
        let expected = [-0.064, 0.048, -0.064, 0.048];
        assert_near(&values(student.grad(&loss.backward()).unwrap()), &expected);
    }

    #[test]
    fn a_zero_mean_gives_one_and_no_gradient() {
        let student = matrix([[1.0, -2.0], [-1.0, 2.0]]).require_grad();
        let loss = cosine(matrix([[2.0, 1.0], [0.0, -1.0]]), student.clone());
        assert_near(&values(loss.clone()), &[1.0]);
        assert_eq!(values(student.grad(&loss.backward()).unwrap()), [0.0; 4]);
    }
}
