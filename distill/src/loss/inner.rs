//! Manifold term `inner`: the paper's Eq. 3 as printed.

use burn::tensor::Tensor;

use super::batch_mean;

/// `1 - ⟨p̄_t, p̄_s⟩`.
///
/// **Unbounded below**: the student can lower it for ever by growing its projection, whatever its direction. It exists
/// to follow the paper to the letter; [`super::cosine`] is what the reference script computes.
///
/// # Shapes
/// - `teacher_bk`, `student_bk`: `[b, k]`
/// - returns `[1]`
///
/// # Source
/// Eq. 3 of arXiv 2603.10877. The same in both presets.
pub fn inner(teacher_bk: Tensor<2>, student_bk: Tensor<2>) -> Tensor<1> {
    let product = (batch_mean(teacher_bk) * batch_mean(student_bk)).sum();
    product.neg().add_scalar(1.0_f32)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_near, matrix, values};
    use super::*;

    #[test]
    fn is_one_minus_the_product_of_the_means() {
        let loss = inner(
            matrix([[2.0, 1.0], [0.0, -1.0]]),
            matrix([[6.0, 0.0], [0.0, 8.0]]),
        );
        assert_near(&values(loss), &[-2.0]);
    }
}
