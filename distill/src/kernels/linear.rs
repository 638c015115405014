//! `x W + bias` with the bias added in place, and its gradient summed, on all cores. The products are burn's.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{BLOCK_ROWS, column_sums, rows_and_width, tensor_of, vectorised};

/// `[n, i]` times `[i, o]` plus `[o]`, for tensors that [`super::fits`].
pub(crate) fn linear(input_ni: Tensor<2>, weight_io: Tensor<2>, bias_o: Tensor<1>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Linear>::fused_linear(
        input_ni.into_dispatch(),
        weight_io.into_dispatch(),
        bias_o.into_dispatch(),
    ))
}

#[backend_extension(Flex, Autodiff)]
trait Linear: Backend {
    fn fused_linear(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl Linear for Flex {
    fn fused_linear(input: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let mut output = Self::float_matmul(input, weight);
        let bias = bias.to_contiguous();
        let bias = bias.storage::<f32>();
        output
            .storage_mut::<f32>()
            .par_chunks_mut(BLOCK_ROWS * bias.len())
            .for_each(|rows| {
                vectorised(
                    #[inline(always)]
                    || {
                        for row in rows.chunks_exact_mut(bias.len()) {
                            for (value, bias) in row.iter_mut().zip(bias) {
                                *value += bias;
                            }
                        }
                    },
                );
            });
        output
    }
}

impl<C: CheckpointStrategy> Linear for Autodiff<Flex, C> {
    fn fused_linear(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (pulls_input, pulls_weight) = (input.is_tracked(), weight.is_tracked());
        let (input, input_node) = input.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let (bias, bias_node) = bias.into_parts();
        let nodes = [input_node, weight_node, bias_node];
        match Pull.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                // Beside a frozen weight the input is not kept, and the other way round.
                let state = (
                    pulls_weight.then(|| input.clone()),
                    pulls_input.then(|| weight.clone()),
                );
                prepared.finish(state, Flex::fused_linear(input, weight, bias))
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(Flex::fused_linear(input, weight, bias))
            }
        }
    }
}

#[derive(Debug)]
struct Pull;

impl Backward<Flex, 3> for Pull {
    /// The input, for a tracked weight; the weight, for a tracked input.
    type State = (Option<FlexTensor>, Option<FlexTensor>);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&ops.node).to_contiguous();
        let [input_node, weight_node, bias_node] = ops.parents;
        let (input, weight) = ops.state;
        if let Some(node) = bias_node {
            let (_, width) = rows_and_width(&gradient);
            let sums = column_sums(gradient.storage::<f32>(), width);
            gradients.register::<Flex>(node.id, tensor_of(sums, [width]));
        }
        if let Some((node, input)) = weight_node.zip(input) {
            let pulled = Flex::float_matmul(input.transpose(0, 1), gradient.clone());
            gradients.register::<Flex>(node.id, pulled);
        }
        if let Some((node, weight)) = input_node.zip(weight) {
            let pulled = Flex::float_matmul(gradient, weight.transpose(0, 1));
            gradients.register::<Flex>(node.id, pulled);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::module;

    use super::super::testing::{Case, compare};
    use super::*;

    #[test]
    fn equals_the_composed_operation() {
        for (rows, input, output) in [(1, 1, 1), (300, 40, 24), (65, 7, 130)] {
            let cases = [
                Case::random([rows, input], 1.0),
                Case::random([input, output], 1.0),
                Case::random([1, output], 1.0),
            ];
            check(&cases);
        }
    }

    fn check(cases: &[Case]) {
        let bias = |inputs: &[Tensor<2>]| inputs[2].clone().reshape([-1]);
        compare(
            cases,
            |inputs| linear(inputs[0].clone(), inputs[1].clone(), bias(inputs)),
            |inputs| module::linear(inputs[0].clone(), inputs[1].clone(), Some(bias(inputs))),
        );
    }

    #[test]
    fn what_is_frozen_has_no_gradient() {
        for frozen in [[0].as_slice(), &[1], &[2], &[1, 2], &[0, 1]] {
            let shapes = [[33, 8], [8, 5], [1, 5]];
            let cases: Vec<Case> = shapes
                .into_iter()
                .enumerate()
                .map(|(place, shape)| {
                    let case = Case::random(shape, 1.0);
                    if frozen.contains(&place) {
                        case.frozen()
                    } else {
                        case
                    }
                })
                .collect();
            check(&cases);
        }
    }
}
