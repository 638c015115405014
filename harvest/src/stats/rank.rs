//! The effective rank of the vectors of a cache.
//!
//! Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007: the exponential of the
//! entropy (natural logarithm) of the singular values, divided by their sum. It is `d` for vectors that spread evenly
//! over `d` dimensions and 1 for vectors on a line. The singular values are those of the rows with their mean taken
//! off, so that an offset that all rows share counts as no dimension.

use serde::Serialize;

use super::eigen::eigenvalues;

/// The widest vectors whose covariance is kept: 8 MiB of `f64`.
const MAX_COVARIANCE_WIDTH: usize = 1024;
/// Rows that enter a covariance.
const MAX_COVARIANCE_ROWS: u64 = 16_384;
/// Rows that are kept where vectors are wider; `n` rows have at most `n - 1` directions around their mean.
const MAX_GRAM_ROWS: u64 = 1024;

/// The effective rank and what it comes from.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct EffectiveRank {
    /// The effective rank, from 1 to `bound`; 0 where all vectors are equal.
    pub value: f64,
    /// Rows it was computed from, evenly spread over the cache.
    pub num_rows: u64,
    /// The greatest value that these rows could have given.
    pub bound: u64,
}

/// Takes an even sample of the rows.
///
/// Up to a width of 1,024 the `d` x `d` covariance of at most 16,384 rows is streamed. Beyond, 1,024 rows are kept and
/// their `n` x `n` Gram matrix, which has the same singular values, is used: memory and time stay bounded, and a rank
/// beyond 1,023 cannot be seen.
#[derive(Clone, Debug)]
pub(super) struct RankCollector {
    width: usize,
    num_expected: u64,
    num_seen: u64,
    num_taken: u64,
    first: Vec<f64>,
    kept: Kept,
}

#[derive(Clone, Debug)]
enum Kept {
    /// Sums, and sums of products (upper triangle), of the rows less the first one.
    Moments { sums: Vec<f64>, products: Vec<f64> },
    /// The rows less the first one.
    Rows(Vec<f64>),
}

impl RankCollector {
    /// Of vectors of this width, of which about `num_expected` will come.
    pub(super) fn new(width: usize, num_expected: u64) -> Self {
        let kept = if width <= MAX_COVARIANCE_WIDTH {
            Kept::Moments {
                sums: vec![0.0; width],
                products: vec![0.0; width * width],
            }
        } else {
            Kept::Rows(Vec::new())
        };
        Self {
            width,
            num_expected,
            num_seen: 0,
            num_taken: 0,
            first: Vec::new(),
            kept,
        }
    }

    fn max_rows(&self) -> u64 {
        match self.kept {
            Kept::Moments { .. } => MAX_COVARIANCE_ROWS,
            Kept::Rows(_) => MAX_GRAM_ROWS,
        }
    }

    /// Adds a finite vector.
    pub(super) fn add(&mut self, vector: &[f32]) {
        let max_rows = self.max_rows();
        let place = |row: u64| {
            (u128::from(row) * u128::from(max_rows)) / u128::from(self.num_expected.max(1))
        };
        let row = self.num_seen;
        self.num_seen += 1;
        let wanted = self.num_expected <= max_rows || place(row) != place(row + 1);
        if !wanted || self.num_taken == max_rows {
            return;
        }
        if self.first.is_empty() {
            self.first = vector.iter().copied().map(f64::from).collect();
        }
        self.num_taken += 1;
        // Less the first row, so that a large offset costs no precision.
        let shifted: Vec<f64> = vector
            .iter()
            .zip(&self.first)
            .map(|(value, first)| f64::from(*value) - first)
            .collect();
        match &mut self.kept {
            Kept::Rows(rows) => rows.extend(shifted),
            Kept::Moments { sums, products } => {
                for (i, value) in shifted.iter().enumerate() {
                    sums[i] += value;
                    if *value == 0.0 {
                        continue;
                    }
                    let row = &mut products[i * self.width + i..(i + 1) * self.width];
                    for (product, other) in row.iter_mut().zip(&shifted[i..]) {
                        *product += value * other;
                    }
                }
            }
        }
    }

    /// The effective rank; `None` with fewer than two rows.
    pub(super) fn finish(self) -> Option<EffectiveRank> {
        if self.num_taken < 2 {
            return None;
        }
        let num_rows = self.num_taken;
        let bound = (self.width as u64).min(num_rows - 1);
        let (matrix, size) = match self.kept {
            Kept::Moments { sums, products } => {
                (covariance(&sums, &products, num_rows as f64), self.width)
            }
            Kept::Rows(rows) => (gram(rows, self.width), num_rows as usize),
        };
        Some(EffectiveRank {
            value: of_squares(&eigenvalues(matrix, size)),
            num_rows,
            bound,
        })
    }
}

fn covariance(sums: &[f64], products: &[f64], num_rows: f64) -> Vec<f64> {
    let n = sums.len();
    let mut matrix = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            let value = products[i * n + j] / num_rows - sums[i] / num_rows * (sums[j] / num_rows);
            matrix[i * n + j] = value;
            matrix[j * n + i] = value;
        }
    }
    matrix
}

fn gram(mut rows: Vec<f64>, width: usize) -> Vec<f64> {
    let n = rows.len() / width;
    let mut mean = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (mean, value) in mean.iter_mut().zip(row) {
            *mean += value / n as f64;
        }
    }
    for row in rows.chunks_exact_mut(width) {
        for (value, mean) in row.iter_mut().zip(&mean) {
            *value -= mean;
        }
    }
    let row = |i: usize| &rows[i * width..(i + 1) * width];
    let mut matrix = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            let value: f64 = row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum();
            matrix[i * n + j] = value;
            matrix[j * n + i] = value;
        }
    }
    matrix
}

/// The effective rank for the squares of singular values; squares that rounding alone can make count as zero.
fn of_squares(squares: &[f64]) -> f64 {
    let largest = squares.iter().copied().fold(0.0, f64::max);
    let noise = largest * squares.len() as f64 * f64::EPSILON;
    let values: Vec<f64> = squares
        .iter()
        .filter(|square| **square > noise)
        .map(|square| square.sqrt())
        .collect();
    if values.is_empty() {
        return 0.0;
    }
    let sum: f64 = values.iter().sum();
    let entropy: f64 = values
        .iter()
        .map(|value| value / sum)
        .map(|share| -share * share.ln())
        .sum();
    entropy.exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(rows: &[Vec<f32>]) -> EffectiveRank {
        let mut collector = RankCollector::new(rows[0].len(), rows.len() as u64);
        for row in rows {
            collector.add(row);
        }
        collector.finish().unwrap()
    }

    /// Plus and minus every unit vector: the covariance is the identity, scaled.
    fn axes(width: usize, num_axes: usize) -> Vec<Vec<f32>> {
        (0..2 * num_axes)
            .map(|row| {
                let mut vector = vec![5.0; width];
                vector[row / 2] += if row % 2 == 0 { 1.0 } else { -1.0 };
                vector
            })
            .collect()
    }

    #[test]
    fn identity_covariance_has_full_rank_and_a_line_has_rank_one() {
        let full = rank(&axes(6, 6));
        assert!((full.value - 6.0).abs() < 1e-9, "{full:?}");
        assert_eq!((full.num_rows, full.bound), (12, 6));
        let line: Vec<Vec<f32>> = (0..9)
            .map(|i| vec![i as f32, 2.0 * i as f32, 1.0])
            .collect();
        assert!((rank(&line).value - 1.0).abs() < 1e-9);
        assert!(rank(&vec![vec![3.0; 4]; 5]).value.abs() < 1e-12);
    }

    #[test]
    fn unequal_singular_values_by_hand() {
        // Singular values 3 and 1: shares 3/4 and 1/4, exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 4 / 3^(3/4).
        let rows = [[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]].map(|row| row.to_vec());
        assert!((rank(&rows).value - 4.0 / 3.0_f64.powf(0.75)).abs() < 1e-9);
    }

    #[test]
    fn wide_vectors_go_through_their_gram_matrix() {
        let found = rank(&axes(MAX_COVARIANCE_WIDTH + 1, 8));
        assert!((found.value - 8.0).abs() < 1e-9, "{found:?}");
        assert_eq!((found.num_rows, found.bound), (16, 15));
    }

    #[test]
    fn the_sample_is_bounded_and_spread_over_all_rows() {
        let num = 3 * MAX_GRAM_ROWS + 5;
        let mut collector = RankCollector::new(MAX_COVARIANCE_WIDTH + 1, num);
        let mut row = vec![0.0; MAX_COVARIANCE_WIDTH + 1];
        for i in 0..num {
            row[0] = i as f32;
            collector.add(&row);
        }
        assert_eq!(collector.num_taken, MAX_GRAM_ROWS);
        let Kept::Rows(rows) = &collector.kept else {
            panic!("wide rows are kept")
        };
        let last = rows[rows.len() - row.len()] + collector.first[0];
        assert!(last >= (num - 4) as f64, "the sample ends at row {last}");
    }
}
