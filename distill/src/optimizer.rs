//! AdamW over a whole module, with gradient clipping by global norm and a state that can be stored exactly.
//!
//! burn's own wrapper keeps states by parameter id, which is drawn anew in every process, and clips each tensor by itself.
//! This one keeps them by the parameter's name and clips as PyTorch's `clip_grad_norm_` does. The update is burn's, on the
//! CPU in one pass.

use std::collections::BTreeMap;
use std::f32::consts::LN_2;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{
    AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, GradientsParams, Optimizer,
};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::device::Precision;
use crate::generator::{self, Others};
use crate::kernels;
use crate::kernels::adamw;
use crate::random::{Purpose, Randomness};
use crate::student::weights::WeightsError;

const FIRST: &str = ".moment_1";
const SECOND: &str = ".moment_2";
const TIME: &str = ".time";

/// Both moments of one parameter, flat.
#[derive(Clone, Debug)]
struct Moments {
    time: usize,
    first: Tensor<1>,
    second: Tensor<1>,
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101) with PyTorch's defaults β = (0.9, 0.999), ε = 1e-8. Weight decay is
/// decoupled and acts on every parameter that has a gradient, biases and norms included, as `torch.optim.AdamW` does
/// when it is given all parameters in one group.
///
/// With a state in bf16 ([`ModuleAdamW::with_state`]) the update is computed in f32 from moments that are stored in bf16,
/// half the memory. It is an approximation: every moment is rounded up or down at random, right on average.
pub struct ModuleAdamW {
    update: AdamW,
    weight_decay: f32,
    moments: BTreeMap<String, Moments>,
    /// Where the moments are stored in bf16: what their rounding is drawn from.
    rounding: Option<Randomness>,
}

impl std::fmt::Debug for ModuleAdamW {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ModuleAdamW")
            .field("num_parameters", &self.moments.len())
            .finish_non_exhaustive()
    }
}

impl ModuleAdamW {
    /// An optimiser that has not seen a gradient yet.
    pub fn new(weight_decay: f64) -> Self {
        let weight_decay = weight_decay as f32;
        let config = AdamWConfig::new()
            .with_beta_1(adamw::BETAS[0])
            .with_beta_2(adamw::BETAS[1])
            .with_epsilon(adamw::EPSILON)
            .with_weight_decay(weight_decay);
        Self {
            update: config.build(),
            weight_decay,
            moments: BTreeMap::new(),
            rounding: None,
        }
    }

    /// The same optimiser keeping its moments in `precision`.
    #[must_use]
    pub fn with_state(mut self, precision: Precision, randomness: Randomness) -> Self {
        self.rounding = match precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(randomness),
        };
        self
    }

    fn state_dtype(&self) -> (DType, Dtype) {
        match self.rounding {
            None => (DType::F32, Dtype::F32),
            Some(_) => (DType::BF16, Dtype::BF16),
        }
    }

    /// Both moments of a parameter as they are stored.
    fn stored(&self, time: usize, [first, second]: [Tensor<1>; 2]) -> Moments {
        let stored = |moment| match self.rounding {
            None => moment,
            Some(_) => rounded(moment),
        };
        Moments {
            time,
            first: stored(first),
            second: stored(second),
        }
    }

    /// Moves every parameter that has a gradient.
    pub fn step<M: Module>(&mut self, rate: f64, module: M, gradients: GradientsParams) -> M {
        let rounding = self.rounding.zip(module.devices().into_iter().next());
        let last = self.moments.values().map(|moments| moments.time).max();
        let mut updater = Updater {
            optimizer: self,
            rate,
            gradients,
            path: Vec::new(),
        };
        let Some((randomness, device)) = rounding else {
            return module.map(&mut updater);
        };
        // One seed for all parameters, which draw in the order of the fields.
        let number = last.unwrap_or(0) as u64;
        let seed = randomness.device_seed(Purpose::MomentRounding, number);
        generator::drawing(&device, seed, Others::Draw, || module.map(&mut updater))
    }

    /// The state as safetensors: `<parameter>.moment_1`, `.moment_2` (flat, f32 or bf16) and `.time` (i64). Equal states give
    /// equal bytes.
    ///
    /// # Errors
    /// [`WeightsError::Format`] where the format cannot hold them.
    #[expect(clippy::disallowed_methods, reason = "a checkpoint")]
    pub fn to_safetensors(&self) -> Result<Vec<u8>, WeightsError> {
        let (_, dtype) = self.state_dtype();
        let mut stored: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for (name, moments) in &self.moments {
            for (suffix, values) in [(FIRST, &moments.first), (SECOND, &moments.second)] {
                let data = values.to_data();
                let entry = (dtype, data.shape().to_vec(), data.as_bytes().to_vec());
                stored.insert(format!("{name}{suffix}"), entry);
            }
            let time = (moments.time as u64).to_le_bytes().to_vec();
            stored.insert(format!("{name}{TIME}"), (Dtype::I64, vec![1], time));
        }
        let mut views = BTreeMap::new();
        for (name, (dtype, shape, bytes)) in &stored {
            views.insert(
                name.as_str(),
                TensorView::new(*dtype, shape.clone(), bytes)?,
            );
        }
        Ok(safetensors::serialize(views, None)?)
    }

    /// Takes over a stored state; the tensors go to `device`, without autodiff.
    ///
    /// # Errors
    /// The bytes are not safetensors, or a parameter's state is not complete.
    pub fn load_safetensors(&mut self, bytes: &[u8], device: &Device) -> Result<(), WeightsError> {
        let stored = SafeTensors::deserialize(bytes)?;
        let (dtype, _) = self.state_dtype();
        let names = stored.names();
        let parameters = names.iter().filter_map(|name| name.strip_suffix(TIME));
        let mut all = BTreeMap::new();
        for name in parameters {
            let moment = |suffix: &str| -> Result<Tensor<1>, WeightsError> {
                let view = stored.tensor(&format!("{name}{suffix}"))?;
                let data =
                    TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
                Ok(Tensor::from_data(data, (device, dtype)))
            };
            let time = stored.tensor(&format!("{name}{TIME}"))?;
            let time = time
                .data()
                .first_chunk()
                .map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let moments = Moments {
                time: time as usize,
                first: moment(FIRST)?,
                second: moment(SECOND)?,
            };
            all.insert(name.to_owned(), moments);
        }
        self.moments = all;
        Ok(())
    }
}

/// Values in bf16, rounded up or down at random so that the mean is exact.
///
/// Rounding to nearest would not do: with β₂ = 0.999 a second moment changes by a thousandth of itself in a step, less
/// than half the distance between two bf16 numbers, and would never fall again. The distance is `2^(e-7)` for values
/// from `2^e` on; noise of that width, added before rounding to nearest, moves the result up as often as it should.
fn rounded(values: Tensor<1>) -> Tensor<1> {
    let exponent = values.clone().abs().log().div_scalar(LN_2).floor();
    // Zero has exponent -∞ and so distance zero.
    let distance = exponent.sub_scalar(7.0).mul_scalar(LN_2).exp();
    let noise = values.random_like(Distribution::Uniform(-0.5, 0.5));
    (values + noise * distance).cast(FloatDType::BF16)
}

struct Updater<'a> {
    optimizer: &'a mut ModuleAdamW,
    rate: f64,
    gradients: GradientsParams,
    path: Vec<String>,
}

impl Updater<'_> {
    fn move_parameter<const D: usize>(
        &mut self,
        name: String,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
    ) -> Tensor<D> {
        let optimizer = &mut *self.optimizer;
        let before = optimizer.moments.remove(&name).map(|moments| Moments {
            first: moments.first.cast(FloatDType::F32),
            second: moments.second.cast(FloatDType::F32),
            ..moments
        });
        let (updated, time, moments) = if kernels::fits(&parameter) && kernels::fits(&gradient) {
            let time = before.as_ref().map_or(0, |moments| moments.time) + 1;
            let step = adamw::Step {
                rate: self.rate,
                weight_decay: optimizer.weight_decay,
                time,
            };
            let before = before.map(|moments| [moments.first, moments.second]);
            let (updated, moments) = step.apply(parameter, gradient, before);
            (updated, time, moments)
        } else {
            let shape = parameter.shape();
            let state = before.map(|moments| AdamWState {
                momentum: AdaptiveMomentumState {
                    time: moments.time,
                    moment_1: moments.first.reshape(shape.clone()),
                    moment_2: moments.second.reshape(shape),
                    max_moment_2: None,
                },
            });
            let (updated, state) = optimizer.update.step(self.rate, parameter, gradient, state);
            let momentum = state.expect("AdamW keeps a state").momentum;
            let flat = |moment: Tensor<D>| moment.reshape([-1]);
            let moments = [flat(momentum.moment_1), flat(momentum.moment_2)];
            (updated, momentum.time, moments)
        };
        let moments = optimizer.stored(time, moments);
        optimizer.moments.insert(name, moments);
        updated
    }
}

impl ModuleMapper for Updater<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.remove::<D>(parameter.id) else {
            return parameter;
        };
        let (id, tensor, mapper) = parameter.consume();
        let name = self.path.join(".");
        let requires_gradient = tensor.is_require_grad();
        let updated = self.move_parameter(name, tensor.inner(), gradient);
        let mut updated = Tensor::from_inner(updated);
        if requires_gradient {
            updated = updated.require_grad();
        }
        Param::from_mapped_value(id, updated, mapper)
    }
}

/// What clipping did, on the gradients' device; nothing has been read from it.
#[derive(Debug)]
pub struct Clipped {
    /// The gradients, scaled down if need be.
    pub gradients: GradientsParams,
    /// Their global norm before that, `[1]`.
    pub norm: Tensor<1>,
}

/// Scales all gradients of `module` by one factor so that their joint Euclidean norm is at most `max_norm`; the factor is
/// `max_norm / (norm + 1e-6)` where that is under 1, as in PyTorch's `clip_grad_norm_`, and 1 otherwise. Where the norm
/// is not finite, the scaled gradients are of no use.
pub fn clip_global_norm<M: Module>(
    module: &M,
    gradients: GradientsParams,
    max_norm: f64,
) -> Clipped {
    let mut squares = SumOfSquares {
        gradients: &gradients,
        squares: Vec::new(),
    };
    module.visit(&mut squares);
    assert!(
        !squares.squares.is_empty(),
        "a module that is trained has gradients"
    );
    let norm = Tensor::cat(squares.squares, 0).sum().sqrt();
    let factor = norm
        .clone()
        .add_scalar(1e-6)
        .recip()
        .mul_scalar(max_norm)
        .clamp_max(1.0);
    let mut scaler = Scaler {
        gradients,
        factor,
        scaled: GradientsParams::new(),
    };
    module.visit(&mut scaler);
    Clipped {
        gradients: scaler.scaled,
        norm,
    }
}

struct SumOfSquares<'a> {
    gradients: &'a GradientsParams,
    squares: Vec<Tensor<1>>,
}

impl ModuleVisitor for SumOfSquares<'_> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(parameter.id) {
            let square = if kernels::fits(&gradient) {
                let device = gradient.device();
                let square = adamw::sum_of_squares(gradient);
                Tensor::from_data([square as f32], (&device, DType::F32))
            } else {
                gradient.cast(FloatDType::F32).square().sum()
            };
            self.squares.push(square);
        }
    }
}

struct Scaler {
    gradients: GradientsParams,
    factor: Tensor<1>,
    scaled: GradientsParams,
}

impl ModuleVisitor for Scaler {
    #[expect(
        clippy::disallowed_methods,
        reason = "on the CPU alone, which has computed it already"
    )]
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(parameter.id) {
            let scaled = if kernels::fits(&gradient) {
                adamw::scaled(gradient, self.factor.clone().into_scalar())
            } else {
                let factor = self.factor.clone().cast(gradient.dtype()).reshape([1; D]);
                gradient * factor
            };
            self.scaled.register(parameter.id, scaled);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};

    use super::*;
    use crate::student::weights;

    #[derive(Module, Debug)]
    struct Pair {
        one: Linear,
        two: Param<Tensor<1>>,
    }

    fn pair(device: &Device) -> Pair {
        let mut one = LinearConfig::new(2, 1).with_bias(false).init(device);
        one.weight = Param::from_tensor(Tensor::from_floats([[1.0], [-2.0]], device));
        Pair {
            one,
            two: Param::from_tensor(Tensor::from_floats([0.5], device)),
        }
    }

    /// Gradient (3, 0) of `one` and 4 of `two`, each times `scale`.
    fn gradients(pair: &Pair, scale: f32) -> GradientsParams {
        let mut gradients = GradientsParams::new();
        let device = pair.two.val().device().inner();
        gradients.register(
            pair.one.weight.id,
            Tensor::<2>::from_floats([[3.0 * scale], [0.0]], &device),
        );
        gradients.register(
            pair.two.id,
            Tensor::<1>::from_floats([4.0 * scale], &device),
        );
        gradients
    }

    fn values(pair: &Pair) -> Vec<f32> {
        let mut values: Vec<f32> = pair.one.weight.val().into_data().try_to_vec().unwrap();
        values.extend(pair.two.val().into_data().try_to_vec::<f32>().unwrap());
        values
    }

    #[test]
    fn clipping_scales_all_tensors_by_one_factor() {
        let device = Device::flex().autodiff();
        let pair = pair(&device);
        let clipped = clip_global_norm(&pair, gradients(&pair, 1.0), 1.0);
        assert!((clipped.norm.into_scalar::<f32>() - 5.0).abs() < 1e-6);
        let one: Vec<f32> = clipped
            .gradients
            .get::<2>(pair.one.weight.id)
            .unwrap()
            .into_data()
            .try_to_vec()
            .unwrap();
        let two: Vec<f32> = clipped
            .gradients
            .get::<1>(pair.two.id)
            .unwrap()
            .into_data()
            .try_to_vec()
            .unwrap();
        assert!((one[0] - 0.6).abs() < 1e-6 && one[1] == 0.0 && (two[0] - 0.8).abs() < 1e-6);

        let short = clip_global_norm(&pair, gradients(&pair, 0.1), 1.0);
        assert!((short.norm.into_scalar::<f32>() - 0.5).abs() < 1e-6);
        let two: Vec<f32> = short
            .gradients
            .get::<1>(pair.two.id)
            .unwrap()
            .into_data()
            .try_to_vec()
            .unwrap();
        assert_eq!(two, [0.4]);
    }

    #[test]
    fn steps_match_pytorch() {
        // torch.optim.AdamW(lr=0.1, weight_decay=0.01) on (1, -2) and (0.5) with the gradients above, scales 1 and -0.5.
        let device = Device::flex().autodiff();
        let mut pair = pair(&device);
        let mut optimizer = ModuleAdamW::new(0.01);
        for (scale, expected) in [
            (1.0, [0.899, -1.998, 0.3995]),
            (-0.5, [0.871_467_35, -1.996_002, 0.372_466_8]),
        ] {
            let gradients = gradients(&pair, scale);
            pair = optimizer.step(0.1, pair, gradients);
            for (actual, expected) in values(&pair).into_iter().zip(expected) {
                assert!(
                    (actual - expected).abs() < 2e-6,
                    "{actual} is not {expected}"
                );
            }
        }
        assert!(pair.two.val().is_require_grad());
    }

    #[test]
    fn a_stored_state_goes_on_bit_for_bit() {
        for precision in [Precision::F32, Precision::Bf16] {
            goes_on_bit_for_bit(precision);
        }
    }

    fn goes_on_bit_for_bit(precision: Precision) {
        let device = Device::flex().autodiff();
        let new = || ModuleAdamW::new(0.01).with_state(precision, Randomness::new(1));
        let (mut pair, mut optimizer) = (pair(&device), new());
        for scale in [1.0, 0.3, -0.7] {
            let gradients = gradients(&pair, scale);
            pair = optimizer.step(0.1, pair, gradients);
        }
        let bytes = optimizer.to_safetensors().unwrap();
        let mut resumed = new();
        resumed
            .load_safetensors(&bytes, &device.clone().inner())
            .unwrap();
        assert_eq!(resumed.to_safetensors().unwrap(), bytes);
        let gradients_one = gradients(&pair, 0.2);
        let gradients_two = gradients(&pair, 0.2);
        let one = optimizer.step(0.1, pair.clone(), gradients_one);
        let two = resumed.step(0.1, pair, gradients_two);
        assert_eq!(
            weights::to_safetensors(&one).unwrap(),
            weights::to_safetensors(&two).unwrap()
        );
    }

    #[test]
    fn a_second_moment_in_bf16_follows_the_exact_one() {
        let device = Device::flex().autodiff();
        let module = Param::from_tensor(Tensor::<1>::zeros([1024], &device));
        let mut optimizer = ModuleAdamW::new(0.0).with_state(Precision::Bf16, Randomness::new(3));
        let (mut module, mut exact) = (module, 0.0_f64);
        for step in 0..300 {
            let gradient = if step == 0 { 1.0 } else { 0.01 };
            exact = 0.999 * exact + 0.001 * gradient * gradient;
            let mut gradients = GradientsParams::new();
            let values = Tensor::<1>::full([1024], gradient, &device.clone().inner());
            gradients.register(module.id, values);
            module = optimizer.step(0.1, module, gradients);
        }
        let moments = optimizer.moments.values().next().unwrap();
        assert_eq!(moments.second.dtype(), DType::BF16);
        let second = moments.second.clone().cast(FloatDType::F32);
        let mean: f32 = second.mean().into_scalar();
        // Rounded to nearest, it stays where the first step left it, a quarter higher.
        assert!(
            (f64::from(mean) / exact - 1.0).abs() < 0.01,
            "{mean} is not {exact}"
        );
    }

    #[test]
    fn equal_parameters_are_rounded_apart() {
        #[derive(Module, Debug)]
        struct Twins {
            one: Param<Tensor<1>>,
            two: Param<Tensor<1>>,
        }
        let device = Device::flex().autodiff();
        let zeros = || Param::from_tensor(Tensor::zeros([1024], &device));
        let twins = Twins {
            one: zeros(),
            two: zeros(),
        };
        let mut gradients = GradientsParams::new();
        for id in [twins.one.id, twins.two.id] {
            let values = Tensor::<1>::full([1024], 0.3, &device.clone().inner());
            gradients.register(id, values);
        }
        let mut optimizer = ModuleAdamW::new(0.0).with_state(Precision::Bf16, Randomness::new(3));
        optimizer.step(0.1, twins, gradients);
        let seconds: Vec<TensorData> = optimizer
            .moments
            .values()
            .map(|moments| moments.second.to_data())
            .collect();
        assert_eq!(seconds.len(), 2);
        assert_ne!(seconds[0], seconds[1]);
    }

    #[test]
    fn a_parameter_without_gradient_stays() {
        let device = Device::flex().autodiff();
        let pair = pair(&device);
        let mut gradients = GradientsParams::new();
        gradients.register(
            pair.two.id,
            Tensor::<1>::from_floats([1.0], &device.clone().inner()),
        );
        let moved = ModuleAdamW::new(0.01).step(0.1, pair, gradients);
        assert_eq!(values(&moved)[..2], [1.0, -2.0]);
        assert!(values(&moved)[2] < 0.5);
    }
}
