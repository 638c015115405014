//! Matrices as `PyTorch` and as burn lay them out.

/// `PyTorch` stores a linear layer's matrix as `[output, input]`, burn as `[input, output]`.
pub(super) fn is_transposed(owner: &str, num_axes: usize) -> bool {
    owner == "Linear" && num_axes == 2
}

/// Swaps the axes of a row-major `[rows, columns]` matrix.
pub(super) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut transposed = Vec::with_capacity(values.len());
    for column in 0..columns {
        transposed.extend((0..rows).map(|row| values[row * columns + column]));
    }
    transposed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transpose_swaps_axes() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(transpose(&values, 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
