//! Normalisation of the last axis, with dropout and a residual before it: `norm(dropout(x) + residual)`.
//!
//! With means removed, layer normalisation (Ba et al., arXiv 1607.06450); without, that by the root mean square (Zhang
//! and Sennrich, arXiv 1910.07467).
//!
//! Shape suffixes: `n` rows, `d` width.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, Flex, backend_extension,
};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{BLOCK_ROWS, multiply, owned, row_sum, rows_and_width, tensor_of, total, vectorised};
use crate::dropout::Mask;

/// What a normalisation is beside its tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    /// Whether the mean is removed.
    pub(crate) centred: bool,
    /// Added to the variance or mean square.
    pub(crate) epsilon: f64,
    /// Of the input, before the residual is added.
    pub(crate) dropout: Option<Mask>,
}

impl Norm {
    /// `[n, d]` to `[n, d]`, for tensors that [`super::fits`].
    pub(crate) fn forward(
        self,
        input_nd: Tensor<2>,
        residual_nd: Option<Tensor<2>>,
        weight_d: Tensor<1>,
        bias_d: Option<Tensor<1>>,
    ) -> Tensor<2> {
        Tensor::from_dispatch(<Dispatch as Normalise>::fused_norm(
            input_nd.into_dispatch(),
            residual_nd.map_or(Optional::Absent, |tensor| {
                Optional::Present(tensor.into_dispatch())
            }),
            weight_d.into_dispatch(),
            bias_d.map_or(Optional::Absent, |tensor| {
                Optional::Present(tensor.into_dispatch())
            }),
            self,
        ))
    }
}

/// An `Option` that the dispatch of extensions understands.
#[derive(ExtensionType)]
enum Optional<B: Backend> {
    Present(FloatTensor<B>),
    Absent,
}

impl<B: Backend> Optional<B> {
    fn option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Present(tensor) => Some(tensor),
            Self::Absent => None,
        }
    }
}

#[backend_extension(Flex, Autodiff)]
trait Normalise: Backend {
    fn fused_norm(
        input: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
        norm: Norm,
    ) -> FloatTensor<Self>;
}

impl Normalise for Flex {
    fn fused_norm(
        input: FlexTensor,
        residual: Optional<Self>,
        weight: FlexTensor,
        bias: Optional<Self>,
        norm: Norm,
    ) -> FlexTensor {
        forward(input, residual.option(), &weight, bias.option(), norm).0
    }
}

impl<C: CheckpointStrategy> Normalise for Autodiff<Flex, C> {
    fn fused_norm(
        input: FloatTensor<Self>,
        residual: Optional<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let (input, input_node) = input.into_parts();
        let (weight, weight_node) = weight.into_parts();
        // The graph wants a node for what is absent: a constant.
        let split = |tensor: Optional<Self>| {
            let parts = tensor.option().map(FloatTensor::<Self>::into_parts);
            parts.map_or_else(
                || {
                    let constant = tensor_of(vec![0.0], [1]);
                    (None, <Self as AutodiffBackend>::from_inner(constant).node())
                },
                |(tensor, node)| (Some(tensor), node),
            )
        };
        let (residual, residual_node) = split(residual);
        let (bias, bias_node) = split(bias);
        let nodes = [input_node, residual_node, weight_node, bias_node];
        match Pull.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (output, normed, scale) = forward(input, residual, &weight, bias, norm);
                prepared.finish((normed, scale, weight, norm), output)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(forward(input, residual, &weight, bias, norm).0)
            }
        }
    }
}

#[derive(Debug)]
struct Pull;

impl Backward<Flex, 4> for Pull {
    /// The normalised rows before weight and bias, what each row was multiplied with, the weight.
    type State = (FlexTensor, Vec<f32>, FlexTensor, Norm);

    fn backward(self, ops: Ops<Self::State, 4>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = owned(gradients.consume::<Flex>(&ops.node));
        let [input, residual, weight, bias] = ops.parents;
        let pulled = backward(gradient, &ops.state);
        if let Some(node) = input {
            let dropped = pulled.dropped.unwrap_or_else(|| pulled.sum.clone());
            gradients.register::<Flex>(node.id, dropped);
        }
        if let Some(node) = residual {
            gradients.register::<Flex>(node.id, pulled.sum);
        }
        let width = pulled.weight.len();
        if let Some(node) = weight {
            gradients.register::<Flex>(node.id, tensor_of(pulled.weight, [width]));
        }
        if let Some(node) = bias {
            gradients.register::<Flex>(node.id, tensor_of(pulled.bias, [width]));
        }
    }
}

/// The output, the normalised rows before weight and bias, and what each row was multiplied with.
fn forward(
    input: FlexTensor,
    residual: Option<FlexTensor>,
    weight: &FlexTensor,
    bias: Option<FlexTensor>,
    norm: Norm,
) -> (FlexTensor, FlexTensor, Vec<f32>) {
    let mut normed = owned(input);
    let (rows, width) = rows_and_width(&normed);
    let residual = residual.map(|residual| residual.to_contiguous());
    let weight = weight.to_contiguous();
    let bias = bias.map_or_else(
        || tensor_of(vec![0.0; width], [width]),
        |bias| bias.to_contiguous(),
    );
    let (weight, bias) = (weight.storage::<f32>(), bias.storage::<f32>());
    let residual = residual.as_ref().map(FlexTensor::storage::<f32>);
    let mut output = vec![0.0; rows * width];
    let mut scales = vec![0.0; rows];
    let block = BLOCK_ROWS * width;
    output
        .par_chunks_mut(block)
        .zip(normed.storage_mut::<f32>().par_chunks_mut(block))
        .zip(scales.par_chunks_mut(BLOCK_ROWS))
        .enumerate()
        .for_each(|(place, ((output, normed), scales))| {
            if let Some(mask) = norm.dropout {
                // The output's memory is free until the end.
                mask.factors(place as u64, output);
                multiply(normed, output);
            }
            if let Some(residual) = residual {
                add(normed, &residual[place * block..]);
            }
            vectorised(
                #[inline(always)]
                || {
                    let rows = normed
                        .chunks_exact_mut(width)
                        .zip(output.chunks_exact_mut(width));
                    for ((normed, output), scale) in rows.zip(scales) {
                        *scale = normalise(normed, norm);
                        let affine = weight.iter().zip(bias);
                        for ((output, normed), (weight, bias)) in
                            output.iter_mut().zip(normed).zip(affine)
                        {
                            *output = *normed * weight + bias;
                        }
                    }
                },
            );
        });
    let output = tensor_of(output, normed.layout().shape().clone());
    (output, normed, scales)
}

/// Normalises a row in place and returns what it was multiplied with.
#[inline(always)]
fn normalise(row: &mut [f32], norm: Norm) -> f32 {
    let share = 1.0 / row.len() as f32;
    if norm.centred {
        let mean = row_sum(row, row, |value, _| value) * share;
        for value in row.iter_mut() {
            *value -= mean;
        }
    }
    let square = row_sum(row, row, |value, _| value * value) * share;
    let scale = 1.0 / (square + norm.epsilon as f32).sqrt();
    for value in row.iter_mut() {
        *value *= scale;
    }
    scale
}

struct Pulled {
    /// Of the sum of dropped input and residual.
    sum: FlexTensor,
    /// Of the input, where dropout stands between.
    dropped: Option<FlexTensor>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

fn backward(
    mut gradient: FlexTensor,
    (normed, scales, weight, norm): &<Pull as Backward<Flex, 4>>::State,
) -> Pulled {
    let (rows, width) = rows_and_width(&gradient);
    let weight = weight.to_contiguous();
    let (weight, normed) = (weight.storage::<f32>(), normed.storage::<f32>());
    let block = BLOCK_ROWS * width;
    let parts: Vec<(Vec<f32>, Vec<f32>)> = gradient
        .storage_mut::<f32>()
        .par_chunks_mut(block)
        .zip(normed.par_chunks(block))
        .zip(scales.par_chunks(BLOCK_ROWS))
        .map(|((gradient, normed), scales)| {
            vectorised(
                #[inline(always)]
                || pull_block(gradient, normed, scales, weight, norm.centred),
            )
        })
        .collect();
    let dropped = norm.dropout.map(|mask| {
        let mut dropped = vec![0.0; rows * width];
        dropped
            .par_chunks_mut(block)
            .zip(gradient.storage::<f32>().par_chunks(block))
            .enumerate()
            .for_each(|(place, (dropped, sum))| {
                mask.factors(place as u64, dropped);
                multiply(dropped, sum);
            });
        tensor_of(dropped, gradient.layout().shape().clone())
    });
    let (weight, bias): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    Pulled {
        sum: gradient,
        dropped,
        weight: total(weight, width),
        bias: total(bias, width),
    }
}

/// Pulls the gradient of a block of rows back in place; returns its parts of those of weight and bias.
#[inline(always)]
fn pull_block(
    gradient: &mut [f32],
    normed: &[f32],
    scales: &[f32],
    weight: &[f32],
    centred: bool,
) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let mut weight_part = vec![0.0; width];
    let mut bias_part = vec![0.0; width];
    let rows = gradient
        .chunks_exact_mut(width)
        .zip(normed.chunks_exact(width));
    for ((gradient, normed), scale) in rows.zip(scales) {
        for ((value, normed), part) in gradient.iter().zip(normed).zip(&mut weight_part) {
            *part += value * normed;
        }
        for (value, part) in gradient.iter().zip(&mut bias_part) {
            *part += value;
        }
        for (value, weight) in gradient.iter_mut().zip(weight) {
            *value *= weight;
        }
        pull_row(gradient, normed, *scale, centred);
    }
    (weight_part, bias_part)
}

/// From the gradient of a normalised row to that of the row, in place.
#[inline(always)]
fn pull_row(row: &mut [f32], normed: &[f32], scale: f32, centred: bool) {
    let share = 1.0 / row.len() as f32;
    let mean = if centred {
        row_sum(row, normed, |gradient, _| gradient) * share
    } else {
        0.0
    };
    let projection = row_sum(row, normed, |gradient, normed| gradient * normed) * share;
    for (gradient, normed) in row.iter_mut().zip(normed) {
        *gradient = scale * (*gradient - mean - normed * projection);
    }
}

fn add(values: &mut [f32], others: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (value, other) in values.iter_mut().zip(others) {
                *value += other;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use burn::tensor::module;

    use super::super::testing::{Case, compare};
    use super::*;

    const EPSILON: f64 = 1e-5;

    fn cases(rows: usize, width: usize) -> [Case; 4] {
        [
            Case::random([rows, width], 2.0).around(0.5),
            Case::random([rows, width], 1.0),
            Case::random([1, width], 0.3).around(1.0),
            Case::random([1, width], 1.0),
        ]
    }

    fn flat(input: &Tensor<2>) -> Tensor<1> {
        input.clone().reshape([-1])
    }

    fn norm(centred: bool) -> Norm {
        Norm {
            centred,
            epsilon: EPSILON,
            dropout: None,
        }
    }

    #[test]
    fn equals_the_composed_operation() {
        for (rows, width) in [(1, 3), (33, 48), (100, 130)] {
            compare(
                &cases(rows, width),
                |inputs| {
                    let [input, residual, weight, bias] = inputs else {
                        unreachable!("four cases")
                    };
                    norm(true).forward(
                        input.clone(),
                        Some(residual.clone()),
                        flat(weight),
                        Some(flat(bias)),
                    )
                },
                |inputs| {
                    let sum = inputs[0].clone() + inputs[1].clone();
                    module::layer_norm(sum, flat(&inputs[2]), Some(flat(&inputs[3])), EPSILON)
                },
            );
        }
    }

    #[test]
    fn without_mean_and_bias_it_divides_by_the_root_mean_square() {
        let [input, _, weight, _] = cases(70, 96);
        compare(
            &[input, weight],
            |inputs| norm(false).forward(inputs[0].clone(), None, flat(&inputs[1]), None),
            |inputs| {
                let square = (inputs[0].clone() * inputs[0].clone()).mean_dim(1);
                let scale = square.add_scalar(EPSILON).sqrt().recip();
                inputs[0].clone() * scale * inputs[1].clone()
            },
        );
    }

    #[test]
    fn dropout_acts_on_the_input_alone() {
        let mask = Mask::for_tests(0.7);
        let (rows, width) = (90, 64);
        let mut factors = vec![0.0; rows * width];
        for (place, block) in factors.chunks_mut(BLOCK_ROWS * width).enumerate() {
            mask.factors(place as u64, block);
        }
        compare(
            &cases(rows, width),
            |inputs| {
                let norm = Norm {
                    dropout: Some(mask),
                    ..norm(true)
                };
                norm.forward(
                    inputs[0].clone(),
                    Some(inputs[1].clone()),
                    flat(&inputs[2]),
                    Some(flat(&inputs[3])),
                )
            },
            |inputs| {
                let device = inputs[0].device();
                let factors = Tensor::<1>::from_floats(factors.as_slice(), &device);
                let dropped = inputs[0].clone() * factors.reshape([rows, width]);
                let sum = dropped + inputs[1].clone();
                module::layer_norm(sum, flat(&inputs[2]), Some(flat(&inputs[3])), EPSILON)
            },
        );
    }
}
