//! A linear map that stays exactly semi-orthogonal while it is trained.
//!
//! Shape suffixes: `i` input width, `o` output width, `n` the larger of the two, `m` the smaller, `b` rows,
//! `g` blocks of reflections, `w` reflections in a block, `s` half the width of a block on a diagonal.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor, s};

/// Reflections that are applied at once. Rounding errors grow with the width of a block when its vectors come close to
/// parallel, and the number of steps shrinks with it.
const BLOCK_WIDTH: usize = 32;

/// Semi-orthogonal map `x ↦ x W`, `W: [i, o]`, without bias: `WᵀW = I` if `i ≥ o`, `WWᵀ = I` if `i ≤ o`.
///
/// # Parametrisation
/// The raw parameter `V: [n, m]` holds m vectors. With each scaled to length one, `W` (or its transpose) is the first m
/// columns of the product of Householder reflections `Q = (I - 2v₁v₁ᵀ) ⋯ (I - 2v_m v_mᵀ)`. Any value of V gives an
/// orthogonal Q: gradient steps and weight decay cannot leave the manifold, and a vector of length zero stands for the
/// identity. As V is scaled first, its gradient is perpendicular to each vector, and weight decay changes only how far one
/// step turns it. Reflections have determinant -1: a square Q has determinant `(-1)^m` and keeps it.
///
/// # Computation
/// A block of w reflections is one product of matrices in compact WY form, `I - 2 V T Vᵀ` with
/// `T = (I + 2 striu(VᵀV))⁻¹`, striu the part strictly above the diagonal. Blocks are applied to rows one after the other,
/// at a cost of O(bnm); Q itself is never formed. T is inverted outside the graph. One Newton step inside the graph,
/// `T ← 2T - T U T` with `U = T⁻¹`, leaves its value in place and has the derivative of the inverse, `-T dU T`.
/// Everything is computed in `f32`, whatever the precision of the input.
///
/// Source: Schreiber and Van Loan, "A storage-efficient WY representation for products of Householder transformations",
/// 1989; Joffrain et al., "Accumulating Householder transformations, revisited", 2006 (T as an inverse).
#[derive(Module, Debug)]
pub struct Orthogonal {
    /// V before scaling, `[n, m]`, always `f32`.
    vectors_nm: Param<Tensor<2>>,
    input_width: usize,
    output_width: usize,
}

impl Orthogonal {
    /// A random map from width `input_width` to `output_width`, drawn from the device's generator.
    pub fn new(input_width: usize, output_width: usize, device: &Device) -> Self {
        let larger = input_width.max(output_width);
        let smaller = input_width.min(output_width);
        // Columns of length about 1, as wide a step per update as an ordinary linear layer of this width has.
        let normal = Distribution::Normal(0.0, (larger as f64).sqrt().recip());
        let vectors_nm = Tensor::random([larger, smaller], normal, (device, DType::F32));
        Self {
            vectors_nm: Param::from_tensor(vectors_nm),
            input_width,
            output_width,
        }
    }

    /// Maps rows.
    ///
    /// # Shapes
    /// - `input_bi`: `[b, i]`, any float precision
    /// - returns `[b, o]`, `f32`
    pub fn forward(&self, input_bi: Tensor<2>) -> Tensor<2> {
        let input_bi = input_bi.cast(FloatDType::F32);
        let blocks = Blocks::new(self.vectors_nm.val().cast(FloatDType::F32));
        if self.input_width >= self.output_width {
            blocks.apply(input_bi).slice(s![.., 0..self.output_width])
        } else {
            let padding = self.output_width - self.input_width;
            blocks.apply_transposed(input_bi.pad((0, padding, 0, 0), 0.0_f32))
        }
    }

    /// W, `[i, o]`, `f32`, on the parameter's device and in its graph.
    pub fn weight(&self) -> Tensor<2> {
        let identity = Tensor::<2>::eye(self.input_width, &self.vectors_nm.val().device());
        self.forward(identity)
    }
}

/// Reflections in blocks of equal width, the last filled up with vectors of length zero.
struct Blocks {
    vectors_gnw: Tensor<3>,
    /// U of each block.
    upper_gww: Tensor<3>,
    /// T of each block, a constant.
    inverse_gww: Tensor<3>,
}

impl Blocks {
    fn new(vectors_nm: Tensor<2>) -> Self {
        let [larger, smaller] = vectors_nm.dims();
        let width = BLOCK_WIDTH.min(smaller.next_power_of_two());
        let num_blocks = smaller.div_ceil(width);
        let padding = num_blocks * width - smaller;
        let vectors_gnw = unit_columns(vectors_nm)
            .pad((0, padding, 0, 0), 0.0_f32)
            .reshape([larger, num_blocks, width])
            .swap_dims(0, 1);
        let gram_gww = vectors_gnw
            .clone()
            .swap_dims(1, 2)
            .matmul(vectors_gnw.clone());
        let identity_1ww = Tensor::<2>::eye(width, &vectors_gnw.device())
            .cast(FloatDType::F32)
            .unsqueeze_dim(0);
        let upper_gww = gram_gww.triu(1).mul_scalar(2.0_f32) + identity_1ww;
        let inverse_gww = inverse_unit_upper(upper_gww.clone().inner());
        Self {
            vectors_gnw,
            upper_gww,
            inverse_gww,
        }
    }

    /// `x Q`, `[b, n] -> [b, n]`.
    fn apply(&self, rows_bn: Tensor<2>) -> Tensor<2> {
        (0..self.num_blocks()).fold(rows_bn, |rows_bn, block| {
            let upper_ww = nth(&self.upper_gww, block);
            self.reflect(rows_bn, block, upper_ww, nth(&self.inverse_gww, block))
        })
    }

    /// `x Qᵀ`, `[b, n] -> [b, n]`: the last block first, each with its triangle transposed.
    fn apply_transposed(&self, rows_bn: Tensor<2>) -> Tensor<2> {
        (0..self.num_blocks())
            .rev()
            .fold(rows_bn, |rows_bn, block| {
                let upper_ww = nth(&self.upper_gww, block).transpose();
                self.reflect(
                    rows_bn,
                    block,
                    upper_ww,
                    nth(&self.inverse_gww, block).transpose(),
                )
            })
    }

    /// `x - 2 ((x V) U⁻¹) Vᵀ` for one block; the inverse is taken with its Newton step, `2 y T - ((y T) U) T`.
    fn reflect(
        &self,
        rows_bn: Tensor<2>,
        block: usize,
        upper_ww: Tensor<2>,
        inverse_ww: Tensor<2>,
    ) -> Tensor<2> {
        let vectors_nw = nth(&self.vectors_gnw, block);
        let estimate_bw = rows_bn
            .clone()
            .matmul(vectors_nw.clone())
            .matmul(inverse_ww.clone());
        let correction_bw = estimate_bw.clone().matmul(upper_ww).matmul(inverse_ww);
        let turned_bw = estimate_bw.mul_scalar(2.0_f32) - correction_bw;
        rows_bn - turned_bw.matmul(vectors_nw.transpose()).mul_scalar(2.0_f32)
    }

    fn num_blocks(&self) -> usize {
        self.vectors_gnw.dims()[0]
    }
}

fn nth(blocks: &Tensor<3>, block: usize) -> Tensor<2> {
    blocks
        .clone()
        .slice(s![block..=block, .., ..])
        .squeeze_dim(0)
}

/// Each column divided by its length; a column of length zero stays zero and gets a finite gradient.
fn unit_columns(vectors_nm: Tensor<2>) -> Tensor<2> {
    let squares_1m = vectors_nm.clone().square().sum_dim(0);
    let zero = squares_1m.clone().equal_elem(0.0_f32);
    vectors_nm.div(squares_1m.mask_fill(zero, 1.0_f32).sqrt())
}

/// The inverses of upper triangular matrices with ones on their diagonals, `[g, w, w]`, w a power of two.
///
/// Doubles the blocks on the diagonal until one is left: the inverse of `[[A, B], [0, C]]` is
/// `[[A⁻¹, -A⁻¹ B C⁻¹], [0, C⁻¹]]`, for all blocks of one size in one batched product. As stable as back substitution, unlike
/// the power series of the nilpotent part, whose terms grow like binomial coefficients before they cancel.
fn inverse_unit_upper(upper_gww: Tensor<3>) -> Tensor<3> {
    let device = upper_gww.device();
    let [num_matrices, width, _] = upper_gww.dims();
    // With one spare row, the blocks on a diagonal begin at multiples of `2 * half * (width + 1)`.
    let spare = Tensor::zeros([num_matrices, 1, width], (&device, DType::F32));
    let flat = Tensor::cat(vec![upper_gww, spare], 1);
    let mut inverses_gss = Tensor::<3>::ones([num_matrices * width, 1, 1], (&device, DType::F32));
    let mut half = 1;
    while half < width {
        let num_blocks = num_matrices * width / (2 * half);
        let upper_right_gss = flat
            .clone()
            .reshape([num_blocks, 2 * half * (width + 1)])
            .slice(s![.., 0..half * width])
            .reshape([num_blocks, half, width])
            .slice(s![.., .., half..2 * half]);
        let pairs = inverses_gss.reshape([num_blocks, 2, half, half]);
        let first_gss: Tensor<3> = pairs.clone().slice(s![.., 0..1]).squeeze_dim(1);
        let second_gss: Tensor<3> = pairs.slice(s![.., 1..2]).squeeze_dim(1);
        let corner_gss = first_gss
            .clone()
            .matmul(upper_right_gss)
            .matmul(second_gss.clone())
            .neg();
        let zeros_gss = second_gss.zeros_like();
        let top = Tensor::cat(vec![first_gss, corner_gss], 2);
        let bottom = Tensor::cat(vec![zeros_gss, second_gss], 2);
        inverses_gss = Tensor::cat(vec![top, bottom], 1);
        half *= 2;
    }
    inverses_gss
}

#[cfg(test)]
mod tests {
    use burn::optim::{AdamWConfig, GradientsParams};

    use super::*;

    fn device() -> Device {
        Device::flex().autodiff()
    }

    /// Largest entry of |WᵀW - I| or |WWᵀ - I|, whichever is the smaller product.
    fn deviation(weight_io: Tensor<2>) -> f32 {
        let weight_io = weight_io.inner();
        let [input, output] = weight_io.dims();
        let gram = if input >= output {
            weight_io.clone().transpose().matmul(weight_io)
        } else {
            weight_io.clone().matmul(weight_io.transpose())
        };
        let identity = Tensor::eye(input.min(output), &gram.device());
        (gram - identity).abs().max().into_scalar()
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    /// Trains the map toward an arbitrary matrix, which no orthogonal map equals.
    fn train(input: usize, output: usize, steps: usize) -> (Orthogonal, Orthogonal) {
        let device = device();
        let initial = Orthogonal::new(input, output, &device);
        let mut map = initial.clone();
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
        let target = (0..input * output)
            .map(|n| (n as f32 * 0.7).sin())
            .collect::<Vec<_>>();
        let target = Tensor::<1>::from_floats(target.as_slice(), &device).reshape([input, output]);
        for _ in 0..steps {
            let loss = (map.weight() - target.clone()).square().mean();
            let gradients = GradientsParams::from_grads(loss.backward(), &map);
            map = optimizer.step(1e-2, map, gradients);
        }
        (initial, map)
    }

    #[test]
    fn stays_orthogonal_through_500_steps_of_adamw() {
        for (input, output) in [(48, 32), (32, 48), (40, 40)] {
            let (initial, trained) = train(input, output, 500);
            assert!(
                deviation(initial.weight()) < 1e-5,
                "{input}x{output} at the start"
            );
            assert!(
                deviation(trained.weight()) < 1e-5,
                "{input}x{output} after training"
            );
            let moved: f32 = (initial.weight() - trained.weight())
                .abs()
                .max()
                .into_scalar();
            assert!(moved > 0.1, "{input}x{output} moved by {moved} only");
        }
    }

    #[test]
    fn stays_orthogonal_at_width_256() {
        let (_, trained) = train(256, 256, 20);
        assert!(deviation(trained.weight()) < 1e-5);
    }

    #[test]
    fn is_orthogonal_at_the_widths_of_the_presets() {
        for (input, output) in [(768, 768), (1024, 1024), (384, 768)] {
            let (initial, trained) = train(input, output, 2);
            for map in [initial, trained] {
                let deviation = deviation(map.weight());
                assert!(deviation < 1e-5, "{input} x {output}: {deviation:e}");
            }
        }
    }

    #[test]
    fn a_single_vector_is_a_reflection() {
        // v = (3, 4)/5: the first column of I - 2vvᵀ.
        let mut map = Orthogonal::new(2, 1, &device());
        map.vectors_nm = Param::from_data([[3.0], [4.0]], &device());
        let weight = values(map.weight());
        for (actual, expected) in weight.iter().zip([1.0 - 18.0 / 25.0, -24.0 / 25.0]) {
            assert!((actual - expected).abs() < 1e-6, "{weight:?}");
        }
    }

    #[test]
    fn is_the_product_of_its_reflections() {
        let map = Orthogonal::new(80, 70, &device());
        let vectors = map.vectors_nm.val().inner();
        let plain = vectors.device();
        let mut product = Tensor::<2>::eye(80, &plain);
        for column in 0..70 {
            let vector = vectors.clone().slice([0..80, column..column + 1]);
            let length = vector.clone().square().sum_dim(0).sqrt();
            let unit = vector.div(length);
            product = product.matmul(
                Tensor::eye(80, &plain) - unit.clone().matmul(unit.transpose()).mul_scalar(2.0),
            );
        }
        let difference = map.weight().inner() - product.slice([0..80, 0..70]);
        assert!(difference.abs().max().into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn vectors_of_length_zero_are_harmless() {
        let mut map = Orthogonal::new(4, 3, &device());
        map.vectors_nm = Param::from_data(
            [[0.0, 1.0, 0.0], [0.0; 3], [0.0, 2.0, 0.0], [0.0; 3]],
            &device(),
        );
        assert!(deviation(map.weight()) < 1e-6);
        let gradients = map.weight().square().sum().backward();
        let gradient = values(map.vectors_nm.val().grad(&gradients).unwrap());
        assert!(
            gradient.iter().all(|entry| entry.is_finite()),
            "{gradient:?}"
        );
    }

    #[test]
    fn gradient_agrees_with_differences() {
        for (input, output) in [(6, 4), (4, 6), (5, 5)] {
            let mut map = Orthogonal::new(input, output, &device());
            // Fixed, as the generator of the CPU is one for all tests of a process.
            let shape = map.vectors_nm.val().dims();
            let vectors = (0..shape[0] * shape[1])
                .map(|n| (n as f32 * 0.9).sin())
                .collect::<Vec<_>>();
            map.vectors_nm = Param::from_tensor(
                Tensor::<1>::from_floats(vectors.as_slice(), &device()).reshape(shape),
            );
            let weights = (0..input * output)
                .map(|n| (n as f32 * 1.3).cos())
                .collect::<Vec<_>>();
            let weights =
                Tensor::<1>::from_floats(weights.as_slice(), &device()).reshape([input, output]);
            let loss = |map: &Orthogonal| (map.weight() * weights.clone()).sum();
            let gradients = loss(&map).backward();
            let gradient = values(map.vectors_nm.val().grad(&gradients).unwrap());
            let base = values(map.vectors_nm.val());
            let moved = |index: usize, by: f32| {
                let mut entries = base.clone();
                entries[index] += by;
                let mut map = map.clone();
                map.vectors_nm = Param::from_tensor(
                    Tensor::<1>::from_floats(entries.as_slice(), &device()).reshape(shape),
                );
                loss(&map).into_scalar::<f32>()
            };
            for (index, &expected) in gradient.iter().enumerate() {
                let slope = (moved(index, 5e-3) - moved(index, -5e-3)) / 1e-2;
                assert!(
                    (slope - expected).abs() < 5e-3,
                    "{input}x{output} [{index}]: {slope} {expected}"
                );
            }
        }
    }

    #[test]
    fn stays_orthogonal_when_vectors_come_close_to_parallel() {
        let device = device();
        // Inputs are fixed: the generator of the CPU is one for all tests of a process, so a seed would not fix them.
        let waves = |count: usize, frequency: f32| {
            let values: Vec<f32> = (0..count).map(|n| (n as f32 * frequency).sin()).collect();
            Tensor::<1>::from_floats(values.as_slice(), &device)
        };
        for spread in [0.3, 0.03, 0.0] {
            let mut map = Orthogonal::new(128, 96, &device);
            let common = waves(128, 1.3).reshape([128, 1]);
            let own = waves(128 * 96, 0.7).reshape([128, 96]);
            let vectors = own.mul_scalar(spread) + common;
            map.vectors_nm = Param::from_tensor(vectors.detach());
            let deviation = deviation(map.weight());
            assert!(deviation < 1e-5, "spread {spread}: {deviation}");
        }
    }

    #[test]
    fn inverts_triangles() {
        let plain = Device::flex();
        for width in [1, 2, 8, 32] {
            let entries = (0..3 * width * width)
                .map(|n| (n as f32 * 0.9).sin() * 0.5)
                .collect::<Vec<_>>();
            let upper =
                Tensor::<1>::from_floats(entries.as_slice(), &plain).reshape([3, width, width]);
            let identity = Tensor::<2>::eye(width, &plain).unsqueeze_dim::<3>(0);
            let upper = upper.triu(1) + identity.clone();
            let product = upper.clone().matmul(inverse_unit_upper(upper));
            let deviation: f32 = (product - identity).abs().max().into_scalar();
            assert!(deviation < 1e-4, "{width}: {deviation}");
        }
    }
}
