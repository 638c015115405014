//! `x Φ(x)` with the error function (Hendrycks and Gimpel, arXiv 1606.08415).

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::math::normal;
use super::{BLOCK, owned, tensor_of, vectorised};

/// `1 / √(2π)`.
const DENSITY_SCALE: f32 = 0.398_942_3;

/// As burn's `gelu` with an absolute error of 4e-7, for tensors that [`super::fits`].
pub(crate) fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Gelu>::fused_gelu(input.into_dispatch()))
}

#[backend_extension(Flex, Autodiff)]
trait Gelu: Backend {
    fn fused_gelu(input: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl Gelu for Flex {
    fn fused_gelu(input: FlexTensor) -> FlexTensor {
        let input = input.to_contiguous();
        let values = input.storage::<f32>();
        let mut output = vec![0.0; values.len()];
        output
            .par_chunks_mut(BLOCK)
            .zip(values.par_chunks(BLOCK))
            .for_each(|(output, values)| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (output, x) in output.iter_mut().zip(values) {
                            *output = x * normal(*x).0;
                        }
                    },
                );
            });
        tensor_of(output, input.layout().shape().clone())
    }
}

impl<C: CheckpointStrategy> Gelu for Autodiff<Flex, C> {
    fn fused_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let (input, node) = input.into_parts();
        match Pull.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let output = Flex::fused_gelu(input.clone());
                prepared.finish(input, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(Flex::fused_gelu(input)),
        }
    }
}

#[derive(Debug)]
struct Pull;

impl Backward<Flex, 1> for Pull {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let mut gradient = owned(gradients.consume::<Flex>(&ops.node));
        let [input] = ops.parents;
        let Some(input) = input else { return };
        let values = ops.state.to_contiguous();
        gradient
            .storage_mut::<f32>()
            .par_chunks_mut(BLOCK)
            .zip(values.storage::<f32>().par_chunks(BLOCK))
            .for_each(|(gradient, values)| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (gradient, x) in gradient.iter_mut().zip(values) {
                            let (distribution, density) = normal(*x);
                            *gradient *= distribution + x * density * DENSITY_SCALE;
                        }
                    },
                );
            });
        gradients.register::<Flex>(input.id, gradient);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation;

    use super::super::testing::{Case, compare};
    use super::*;

    #[test]
    fn equals_the_composed_operation() {
        for shape in [[7, 33], [300, 128]] {
            compare(
                &[Case::random(shape, 3.0)],
                |inputs| gelu(inputs[0].clone()),
                |inputs| activation::gelu(inputs[0].clone()),
            );
        }
    }
}
