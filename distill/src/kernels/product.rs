//! Products of small matrices that lie in the cache, as attention has for every head.

use pulp::{Simd, WithSimd};

/// Rows of the result must be a multiple of this.
pub(super) const ROWS: usize = 4;

/// Columns of the result must be a multiple of this: two of the widest vectors.
pub(super) const COLUMNS: usize = 32;

/// The left factor of a product.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    /// `[rows, width]`, of which the first `depth` columns count.
    Rows(&'a [f32], usize),
    /// Transposed: `[depth, width]`, of which the first `rows` columns count.
    Columns(&'a [f32], usize),
}

/// Overwrites `output` `[rows, columns]` with the product of `left` `[rows, depth]` and `right` `[depth, columns]`.
pub(super) fn product(
    output: &mut [f32],
    left: Left<'_>,
    right: &[f32],
    depth: usize,
    columns: usize,
) {
    debug_assert!(columns.is_multiple_of(COLUMNS) && output.len().is_multiple_of(ROWS * columns));
    pulp::Arch::new().dispatch(Product {
        output,
        left,
        right: &right[..depth * columns],
        columns,
    });
}

struct Product<'a> {
    output: &'a mut [f32],
    left: Left<'a>,
    right: &'a [f32],
    columns: usize,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.columns / S::F32_LANES;
        let (right, _) = S::as_simd_f32s(self.right);
        let (output, _) = S::as_mut_simd_f32s(self.output);
        let depth = right.len() / vectors;
        for (place, rows) in output.chunks_exact_mut(ROWS * vectors).enumerate() {
            for column in (0..vectors).step_by(2) {
                let pairs = right
                    .chunks_exact(vectors)
                    .map(|row| [row[column], row[column + 1]]);
                let sums = match self.left {
                    Left::Rows(values, width) => {
                        let row = |row: usize| &values[(place * ROWS + row) * width..][..depth];
                        let lefts = row(0).iter().zip(row(1)).zip(row(2)).zip(row(3));
                        tile(simd, lefts.map(|(((a, b), c), d)| [*a, *b, *c, *d]), pairs)
                    }
                    Left::Columns(values, width) => {
                        let lefts = values.chunks_exact(width).map(|row| {
                            let four = &row[place * ROWS..][..ROWS];
                            [four[0], four[1], four[2], four[3]]
                        });
                        tile(simd, lefts, pairs)
                    }
                };
                for (row, sums) in rows.chunks_exact_mut(vectors).zip(sums) {
                    row[column] = sums[0];
                    row[column + 1] = sums[1];
                }
            }
        }
    }
}

/// `Σ left · right` over the depth, for four rows and two vectors of columns.
#[inline(always)]
fn tile<S: Simd>(
    simd: S,
    lefts: impl Iterator<Item = [f32; ROWS]>,
    pairs: impl Iterator<Item = [S::f32s; 2]>,
) -> [[S::f32s; 2]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    for (left, right) in lefts.zip(pairs) {
        for row in 0..ROWS {
            let value = simd.splat_f32s(left[row]);
            sums[row][0] = simd.mul_add_e_f32s(value, right[0], sums[row][0]);
            sums[row][1] = simd.mul_add_e_f32s(value, right[1], sums[row][1]);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_left_factor_give_the_product() {
        let (rows, depth, columns) = (8, 5, 64);
        let left = |row: usize, place: usize| ((row * 7 + place * 3) % 11) as f32 - 5.0;
        let right: Vec<f32> = (0..depth * columns)
            .map(|i| (i % 13) as f32 - 6.0)
            .collect();
        let expected: Vec<f32> = (0..rows * columns)
            .map(|i| {
                (0..depth)
                    .map(|place| left(i / columns, place) * right[place * columns + i % columns])
                    .sum()
            })
            .collect();
        let wide: Vec<f32> = (0..rows * 6).map(|i| left(i / 6, i % 6)).collect();
        let tall: Vec<f32> = (0..depth * 9).map(|i| left(i % 9, i / 9)).collect();
        for left in [Left::Rows(&wide, 6), Left::Columns(&tall, 9)] {
            let mut output = vec![f32::NAN; rows * columns];
            product(&mut output, left, &right, depth, columns);
            // Small integers: every order of sums is exact.
            assert_eq!(output, expected);
        }
    }
}
