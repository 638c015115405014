//! Eigenvalues of a symmetric matrix.
//!
//! Householder reflections make it tridiagonal, and bisection on Sturm sequences finds each eigenvalue of that
//! (Golub and Van Loan, Matrix Computations, 4th edition, sections 8.3.1 and 8.4.1). No eigenvectors are needed here,
//! and bisection is backward stable and cannot fail to converge.

/// Bisections for one eigenvalue; each halves the interval, and an `f64` has 52 fractional bits.
const NUM_BISECTIONS: usize = 60;

/// The eigenvalues of the symmetric matrix `rows` of size `n` x `n`, row by row, in ascending order.
pub(super) fn eigenvalues(mut rows: Vec<f64>, n: usize) -> Vec<f64> {
    assert_eq!(rows.len(), n * n, "the matrix is square");
    let (diagonal, beside) = tridiagonal(&mut rows, n);
    let reach = |i: usize| {
        let left = if i == 0 { 0.0 } else { beside[i - 1].abs() };
        left + beside.get(i).copied().unwrap_or(0.0).abs()
    };
    // Gershgorin: no eigenvalue lies outside.
    let low = (0..n).map(|i| diagonal[i] - reach(i)).fold(0.0, f64::min);
    let high = (0..n).map(|i| diagonal[i] + reach(i)).fold(0.0, f64::max);
    (0..n)
        .map(|index| {
            let (mut low, mut high) = (low, high);
            for _ in 0..NUM_BISECTIONS {
                let middle = low + (high - low) / 2.0;
                if num_below(&diagonal, &beside, middle) > index {
                    high = middle;
                } else {
                    low = middle;
                }
            }
            low + (high - low) / 2.0
        })
        .collect()
}

/// The diagonal and the entries beside it of a tridiagonal matrix with the same eigenvalues.
fn tridiagonal(a: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; n.saturating_sub(1)];
    for k in 0..n.saturating_sub(1) {
        // Row k equals column k: what stands right of the diagonal is what the reflection has to gather.
        let mut v: Vec<f64> = a[k * n + k + 1..(k + 1) * n].to_vec();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let alpha = -norm.copysign(v[0]);
        beside[k] = alpha;
        v[0] -= alpha;
        let square: f64 = v.iter().map(|x| x * x).sum();
        if square == 0.0 {
            beside[k] = 0.0;
            continue;
        }
        let below = |i: usize| (k + 1 + i) * n + k + 1..(k + 2 + i) * n;
        let scale = 2.0 / square;
        let mut w: Vec<f64> = (0..v.len())
            .map(|i| scale * dot(&a[below(i)], &v))
            .collect();
        let shift = scale / 2.0 * dot(&w, &v);
        for (w, v) in w.iter_mut().zip(&v) {
            *w -= shift * v;
        }
        for i in 0..v.len() {
            for (entry, (v_j, w_j)) in a[below(i)].iter_mut().zip(v.iter().zip(&w)) {
                *entry -= v[i] * w_j + w[i] * v_j;
            }
        }
    }
    let diagonal = (0..n).map(|i| a[i * n + i]).collect();
    (diagonal, beside)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// How many eigenvalues of the tridiagonal matrix are less than `x`: the negative terms of its Sturm sequence.
fn num_below(diagonal: &[f64], beside: &[f64], x: f64) -> usize {
    let mut num = 0;
    let mut q = 1.0;
    for (i, d) in diagonal.iter().enumerate() {
        let e = if i == 0 { 0.0 } else { beside[i - 1] };
        q = d - x - e * e / q;
        if q == 0.0 {
            q = f64::MIN_POSITIVE.sqrt();
        }
        if q < 0.0 {
            num += 1;
        }
    }
    num
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }

    #[test]
    fn small_matrices_by_hand() {
        assert_near(&eigenvalues(vec![7.0], 1), &[7.0]);
        assert_near(&eigenvalues(vec![2.0, 1.0, 1.0, 2.0], 2), &[1.0, 3.0]);
        // [[2,-1,0],[-1,2,-1],[0,-1,2]] has 2 - sqrt 2, 2, 2 + sqrt 2.
        let chain = vec![2.0, -1.0, 0.0, -1.0, 2.0, -1.0, 0.0, -1.0, 2.0];
        let root = 2.0_f64.sqrt();
        assert_near(&eigenvalues(chain, 3), &[2.0 - root, 2.0, 2.0 + root]);
        assert_near(&eigenvalues(vec![0.0; 9], 3), &[0.0; 3]);
        // All ones: one eigenvalue n, the others 0.
        assert_near(&eigenvalues(vec![1.0; 16], 4), &[0.0, 0.0, 0.0, 4.0]);
    }

    #[test]
    fn a_full_matrix_keeps_trace_and_squares() {
        let n = 24;
        let entry = |i: usize, j: usize| ((i * j + i + j) as f64 * 0.7).sin();
        let matrix: Vec<f64> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
        let found = eigenvalues(matrix.clone(), n);
        let trace: f64 = (0..n).map(|i| matrix[i * n + i]).sum();
        let squares: f64 = matrix.iter().map(|x| x * x).sum();
        assert!((found.iter().sum::<f64>() - trace).abs() < 1e-9);
        assert!((found.iter().map(|x| x * x).sum::<f64>() - squares).abs() < 1e-8);
        assert!(found.is_sorted());
    }
}
