//! AdamW and clipping over all elements in one pass, in memory that is there already.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{BLOCK, fits, owned, row_sum, tensor_of, vectorised};

/// Decay rates of the moments, PyTorch's.
pub(crate) const BETAS: [f32; 2] = [0.9, 0.999];

/// Added to the root of the second moment; PyTorch's, burn's default is another.
pub(crate) const EPSILON: f32 = 1e-8;

/// Both moments of a parameter, flat.
pub(crate) type Moments = [Tensor<1>; 2];

/// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101), in the order of burn's operations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Learning rate.
    pub(crate) rate: f64,
    /// Decoupled, before it is multiplied with the rate.
    pub(crate) weight_decay: f32,
    /// Number of this step, from 1.
    pub(crate) time: usize,
}

impl Step {
    /// The new parameter and its moments, for tensors that [`super::fits`]. The gradient's memory becomes the parameter's;
    /// moments are changed in place.
    pub(crate) fn apply<const D: usize>(
        self,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        moments: Option<Moments>,
    ) -> (Tensor<D>, Moments) {
        let len = parameter.shape().num_elements();
        let parameter = primitive(parameter);
        let mut gradient = primitive(gradient);
        let [mut first, mut second] = match moments {
            Some(moments) => moments.map(primitive),
            None => [(); 2].map(|()| tensor_of(vec![0.0; len], [len])),
        };
        gradient
            .storage_mut::<f32>()
            .par_chunks_mut(BLOCK)
            .zip(parameter.storage::<f32>().par_chunks(BLOCK))
            .zip(first.storage_mut::<f32>().par_chunks_mut(BLOCK))
            .zip(second.storage_mut::<f32>().par_chunks_mut(BLOCK))
            .for_each(|(((gradient, parameter), first), second)| {
                vectorised(
                    #[inline(always)]
                    || self.block(gradient, parameter, first, second),
                );
            });
        let moments = [first, second].map(Tensor::from_primitive::<Flex>);
        (Tensor::from_primitive::<Flex>(gradient), moments)
    }

    /// Overwrites the gradient with the new parameter.
    #[inline(always)]
    fn block(self, gradient: &mut [f32], parameter: &[f32], first: &mut [f32], second: &mut [f32]) {
        let [beta_1, beta_2] = BETAS;
        let (share_1, share_2) = (1.0 - beta_1, 1.0 - beta_2);
        let time = i32::try_from(self.time).unwrap_or(i32::MAX);
        let (correction_1, correction_2) = (1.0 - beta_1.powi(time), 1.0 - beta_2.powi(time));
        let kept = (1.0 - self.rate * f64::from(self.weight_decay)) as f32;
        let rate = self.rate as f32;
        let moments = first.iter_mut().zip(second);
        for ((gradient, parameter), (first, second)) in
            gradient.iter_mut().zip(parameter).zip(moments)
        {
            let value = *gradient;
            *first = *first * beta_1 + value * share_1;
            *second = *second * beta_2 + value * value * share_2;
            let change = (*first / correction_1) / ((*second / correction_2).sqrt() + EPSILON);
            *gradient = parameter * kept - change * rate;
        }
    }
}

/// The sum of all squares, for a tensor that [`super::fits`].
pub(crate) fn sum_of_squares<const D: usize>(tensor: Tensor<D>) -> f64 {
    let parts: Vec<f64> = primitive(tensor)
        .storage::<f32>()
        .par_chunks(BLOCK)
        .map(|block| {
            vectorised(
                #[inline(always)]
                || f64::from(row_sum(block, block, |value, _| value * value)),
            )
        })
        .collect();
    parts.into_iter().sum()
}

/// `tensor · factor` in place, for a tensor that [`super::fits`] and a factor of at most 1.
pub(crate) fn scaled<const D: usize>(tensor: Tensor<D>, factor: f32) -> Tensor<D> {
    if factor >= 1.0 {
        return tensor;
    }
    let mut values = primitive(tensor);
    values
        .storage_mut::<f32>()
        .par_chunks_mut(BLOCK)
        .for_each(|block| {
            vectorised(
                #[inline(always)]
                || block.iter_mut().for_each(|value| *value *= factor),
            );
        });
    Tensor::from_primitive::<Flex>(values)
}

/// The tensor's memory, its elements in order.
fn primitive<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    debug_assert!(fits(&tensor));
    let tensor = tensor.try_into_primitive::<Flex>();
    owned(tensor.expect("a tensor that fits is on the CPU, outside any graph"))
}

#[cfg(test)]
mod tests {
    use burn::optim::{AdamWConfig, Optimizer as _};
    use burn::tensor::Device;

    use super::super::testing::drawn;
    use super::*;

    #[test]
    fn steps_are_burns_bit_for_bit() {
        let random = |seed| drawn([170, 101], seed).inner();
        let config = AdamWConfig::new()
            .with_epsilon(EPSILON)
            .with_weight_decay(0.01);
        let update = config.build();
        let mut composed = (random(0), None);
        let mut fused = (composed.0.clone(), None);
        for time in 1..4 {
            let gradient = random(time as u64);
            composed = update.step(1e-3, composed.0, gradient.clone(), composed.1);
            let step = Step {
                rate: 1e-3,
                weight_decay: 0.01,
                time,
            };
            let (parameter, moments) = step.apply(fused.0, gradient, fused.1);
            fused = (parameter, Some(moments));
        }
        assert_eq!(fused.0.into_data(), composed.0.into_data());
        let [first, second] = fused.1.unwrap();
        let momentum = composed.1.unwrap().momentum;
        assert_eq!(
            first.into_data(),
            momentum.moment_1.flatten::<1>(0, 1).into_data()
        );
        assert_eq!(
            second.into_data(),
            momentum.moment_2.flatten::<1>(0, 1).into_data()
        );
    }

    #[test]
    fn what_others_hold_stays_as_it_is() {
        let device = Device::flex();
        let values = Tensor::<1>::full([40_000], 2.0, &device);
        let held = values.clone();
        assert_eq!(sum_of_squares(values.clone()), 160_000.0);
        let scaled = scaled(values, 0.5).into_data();
        assert_eq!(scaled, Tensor::<1>::ones([40_000], &device).into_data());
        assert_eq!(
            held.into_data(),
            Tensor::<1>::full([40_000], 2.0, &device).into_data()
        );
    }
}
