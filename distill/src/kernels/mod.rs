//! Operations of a training step on the CPU, each in one pass over memory and with its own gradient.
//!
//! burn's CPU backend computes element-wise operations one after the other, most of them on one core, each into fresh
//! memory. That costs more than the matrix products do. The operations here are computed block by block, attention row by row of the batch, on all cores. A
//! block's place and size follow from the shape alone, and partial sums are added in the order of blocks, so that a
//! result does not depend on the number of threads. Matrix products of whole layers stay burn's.
//!
//! They take f32 tensors on the CPU ([`fits`]). Elsewhere the layers compose the same of burn's operations, which a GPU
//! backend fuses itself.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's vectors"
)]

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod gelu;
pub(crate) mod linear;
mod math;
pub(crate) mod norm;
mod product;
#[cfg(test)]
mod testing;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use rayon::prelude::*;

/// Elements of a block where rows do not matter.
const BLOCK: usize = 1 << 14;

/// Rows of a block.
const BLOCK_ROWS: usize = 32;

/// Whether the operations here can take `tensor`.
pub(crate) fn fits<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.device().inner() == Device::flex()
}

/// Runs `compute`, a closure that is always inlined, compiled for the widest vectors of this processor. Sums are written so
/// that the width does not change a result: the compiler neither reorders nor contracts them.
fn vectorised<T>(compute: impl FnOnce() -> T) -> T {
    pulp::Arch::new().dispatch(compute)
}

/// The tensor with its elements in order in memory of their own; a copy only where others hold it.
fn owned(tensor: FlexTensor) -> FlexTensor {
    // `to_contiguous` leaves two owners of what is in order already.
    if tensor.is_contiguous() && tensor.storage::<f32>().len() == tensor.layout().num_elements() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

fn tensor_of(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

/// Rows and width of a tensor seen as `[rows, width]`.
fn rows_and_width(tensor: &FlexTensor) -> (usize, usize) {
    let shape = tensor.layout().shape();
    let width = shape[shape.num_dims() - 1];
    (shape.num_elements() / width.max(1), width)
}

/// The sum of `term` over all places of a row, in a fixed order of sixteen lanes.
#[inline(always)]
fn row_sum(first: &[f32], second: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let (first, first_rest) = first.as_chunks::<16>();
    let (second, second_rest) = second.as_chunks::<16>();
    let mut lanes = [0.0_f32; 16];
    for (first, second) in first.iter().zip(second) {
        for lane in 0..16 {
            lanes[lane] += term(first[lane], second[lane]);
        }
    }
    for (lane, (first, second)) in first_rest.iter().zip(second_rest).enumerate() {
        lanes[lane] += term(*first, *second);
    }
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Each value times its factor, in place.
fn multiply(values: &mut [f32], factors: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (value, factor) in values.iter_mut().zip(factors) {
                *value *= factor;
            }
        },
    );
}

/// Adds up the partial sums of all blocks in their order.
fn total(parts: impl IntoIterator<Item = Vec<f32>>, width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for part in parts {
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += part;
        }
    }
    sum
}

/// The sum of all rows of `[rows, width]`.
fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = values
        .par_chunks(8 * BLOCK_ROWS * width)
        .map(|rows| {
            vectorised(
                #[inline(always)]
                || total_of_rows(rows, width),
            )
        })
        .collect();
    total(parts, width)
}

#[inline(always)]
fn total_of_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use burn::tensor::{activation, module};

    use super::attention::Attention;
    use super::norm::Norm;
    use super::testing::{Case, compare, results};
    use super::*;
    use crate::dropout::Mask;

    fn flat(tensor: &Tensor<2>) -> Tensor<1> {
        tensor.clone().reshape([-1])
    }

    #[test]
    fn views_are_read_as_they_look() {
        let narrow = |input: &Tensor<2>| input.clone().narrow(0, 2, 40).narrow(1, 3, 48);
        let turned = |input: &Tensor<2>| narrow(input).transpose();
        let inputs = [Case::random([44, 60], 1.0)];
        compare(
            &inputs,
            |inputs| gelu::gelu(turned(&inputs[0])),
            |inputs| activation::gelu(turned(&inputs[0])),
        );
        let norm = Norm {
            centred: true,
            epsilon: 1e-5,
            dropout: None,
        };
        let affine = || [Case::random([1, 40], 1.0), Case::random([1, 40], 1.0)];
        let [weight, bias] = affine();
        compare(
            &[Case::random([44, 60], 1.0), weight, bias],
            |inputs| {
                let residual = Some(turned(&inputs[0]));
                let (weight, bias) = (flat(&inputs[1]), flat(&inputs[2]));
                norm.forward(turned(&inputs[0]), residual, weight, Some(bias))
            },
            |inputs| {
                let twice = turned(&inputs[0]).mul_scalar(2.0);
                module::layer_norm(twice, flat(&inputs[1]), Some(flat(&inputs[2])), 1e-5)
            },
        );
        let [_, bias] = affine();
        compare(
            &[
                Case::random([44, 60], 1.0),
                Case::random([40, 48], 1.0),
                bias,
            ],
            |inputs| {
                let weight = inputs[1].clone().transpose();
                linear::linear(narrow(&inputs[0]), weight, flat(&inputs[2]))
            },
            |inputs| {
                let weight = inputs[1].clone().transpose();
                module::linear(narrow(&inputs[0]), weight, Some(flat(&inputs[2])))
            },
        );
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let cases = [
            Case::random([5 * 20, 64], 1.0),
            Case::random([64, 96], 0.2),
            Case::random([1, 96], 1.0),
        ];
        let compute = |inputs: &[Tensor<2>]| {
            let mask = Some(Mask::for_tests(0.8));
            let bias = flat(&inputs[2]);
            let mapped = linear::linear(inputs[0].clone(), inputs[1].clone(), bias.clone());
            let norm = Norm {
                centred: true,
                epsilon: 1e-5,
                dropout: mask,
            };
            let normed = norm.forward(gelu::gelu(mapped.clone()), Some(mapped), bias, None);
            let heads: Tensor<4> = normed.reshape([5, 20, 3, 32]);
            let heads = heads.swap_dims(1, 2);
            let score = Tensor::zeros([5, 1, 1, 20], &heads.device());
            let attention = Attention {
                scale: 0.2,
                dropout: mask,
            };
            attention.forward(heads.clone(), heads.clone(), heads, score)
        };
        let with_threads = |count| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build();
            pool.unwrap().install(|| results(&cases, compute))
        };
        let bits = |all: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
            all.into_iter().map(bits).collect()
        };
        let one = bits(with_threads(1));
        assert_eq!(one.len(), 4);
        for count in [2, 3] {
            assert_eq!(bits(with_threads(count)), one);
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let device = Device::flex();
        let place = |value: f32| Tensor::<2>::from_floats([[1.0, value, 2.0, -1.0]], &device);
        for value in [f32::NAN, f32::INFINITY] {
            assert!(
                !gelu::gelu(place(value))
                    .into_data()
                    .try_to_vec::<f32>()
                    .unwrap()[1]
                    .is_finite()
            );
            let norm = Norm {
                centred: true,
                epsilon: 1e-5,
                dropout: None,
            };
            let ones = Tensor::ones([4], &device);
            let normed = norm.forward(place(value), None, ones, None);
            let normed = normed.into_data().try_to_vec::<f32>().unwrap();
            assert!(normed.iter().all(|value| value.is_nan()));
            let query: Tensor<4> = place(value).reshape([1, 1, 1, 4]);
            let attention = Attention {
                scale: 1.0,
                dropout: None,
            };
            let score = Tensor::zeros([1, 1, 1, 1], &device);
            let seen = attention.forward(query.clone(), query.clone(), query, score);
            assert!(
                seen.into_data()
                    .try_to_vec::<f32>()
                    .unwrap()
                    .iter()
                    .any(|value| value.is_nan())
            );
        }
    }
}
