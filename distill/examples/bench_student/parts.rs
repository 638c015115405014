//! Parts of a step in isolation: forward and backward at the shapes of one layer, times the layers.
//!
//! `scripts/bench_student.py` computes the same in PyTorch. Attention of DeBERTa is without its relative positions, which
//! PyTorch has no fused operation for either: they are in the step and in none of the parts.
//!
//! Shape suffixes: `n` rows (batch times positions), `b` batch rows, `s` and `t` positions, `h` heads, `k` head width, `i`
//! input width, `o` output width, `d` hidden width, `v` vocabulary.

use std::time::Instant;

use burn::tensor::{Device, Distribution, FloatDType, Int, Tensor, activation, module};
use distill::device::Precision;
use distill::dropout::Dropout;
use serde_json::{Map, Value};

/// The sizes of one layer, read from a `config.json` that the student has accepted.
pub(crate) struct Layer {
    pub(crate) rows: usize,
    pub(crate) positions: usize,
    width: usize,
    num_layers: usize,
    num_heads: usize,
    head_width: usize,
    inner: usize,
    vocabulary: usize,
    /// Input and output of every linear map.
    maps: Vec<[usize; 2]>,
    /// Of encoders. The others have RMS norm, gated feed-forward and no dropout.
    dropout: Option<f64>,
    is_frozen: bool,
    precision: Precision,
}

impl Layer {
    pub(crate) fn new(
        config: &Value,
        [rows, positions]: [usize; 2],
        is_frozen: bool,
        precision: Precision,
    ) -> Result<Self, String> {
        let optional = |field: &str| Some(config[field].as_u64()? as usize);
        let size = |field: &str| optional(field).ok_or(format!("config.json has no `{field}`"));
        let (width, inner) = (size("hidden_size")?, size("intermediate_size")?);
        let num_heads = size("num_attention_heads")?;
        let head_width = optional("head_dim").unwrap_or(width / num_heads);
        let attended = num_heads * head_width;
        let (maps, dropout) = if let Some(groups) = optional("num_key_value_heads") {
            let shared = [width, groups * head_width];
            let (up, down) = ([width, inner], [inner, width]);
            let maps = vec![
                [width, attended],
                shared,
                shared,
                [attended, width],
                up,
                up,
                down,
            ];
            (maps, None)
        } else {
            let square = [width, width];
            let maps = vec![
                square,
                square,
                square,
                square,
                [width, inner],
                [inner, width],
            ];
            (
                maps,
                Some(config["hidden_dropout_prob"].as_f64().unwrap_or(0.1)),
            )
        };
        Ok(Self {
            rows,
            positions,
            width,
            num_layers: size("num_hidden_layers")?,
            num_heads,
            head_width,
            inner,
            vocabulary: size("vocab_size")?,
            maps,
            dropout,
            is_frozen,
            precision,
        })
    }

    /// Seconds of each part in all layers together.
    pub(crate) fn seconds(&self, device: &Device, repeats: usize) -> Map<String, Value> {
        let all = self.num_layers as f64;
        let parts = [
            (
                "linear maps",
                all * seconds(device, repeats, self.linear_maps(device)),
            ),
            (
                "attention",
                all * seconds(device, repeats, self.attention(device)),
            ),
            (
                "norms, residuals",
                all * seconds(device, repeats, self.norms(device)),
            ),
            (
                "activation",
                all * seconds(device, repeats, self.activation(device)),
            ),
            (
                "embedding",
                seconds(device, repeats, self.embedding(device)),
            ),
        ];
        parts
            .map(|(name, seconds)| (name.to_owned(), seconds.into()))
            .into_iter()
            .collect()
    }

    fn compute(&self) -> FloatDType {
        match self.precision {
            Precision::F32 => FloatDType::F32,
            Precision::Bf16 => FloatDType::BF16,
        }
    }

    fn num_tokens(&self) -> usize {
        self.rows * self.positions
    }

    /// Products with their casts, and the gradients of input and, unless it is frozen, of weight.
    fn linear_maps(&self, device: &Device) -> impl Fn() {
        let operands = |[input, output]: &[usize; 2]| {
            let weight_io: Tensor<2> = if self.is_frozen {
                values([*input, *output], device).cast(self.compute())
            } else {
                leaf([*input, *output], device)
            };
            (leaf([self.num_tokens(), *input], device), weight_io)
        };
        let operands: Vec<(Tensor<2>, Tensor<2>)> = self.maps.iter().map(operands).collect();
        let compute = self.compute();
        move || {
            for (input_ni, weight_io) in &operands {
                let cast = |tensor: &Tensor<2>| tensor.clone().cast(compute);
                backward(module::linear(cast(input_ni), cast(weight_io), None));
            }
        }
    }

    fn attention(&self, device: &Device) -> impl Fn() {
        let shape = [self.rows, self.num_heads, self.positions, self.head_width];
        let leaves: [Tensor<4>; 3] = [(); 3].map(|()| leaf(shape, device));
        move || {
            let [query, key, value] = leaves.clone().map(|leaf| leaf.cast(self.compute()));
            let score_bhst = query.matmul(key.swap_dims(2, 3)).cast(FloatDType::F32);
            let probability_bhst = self.dropped(activation::softmax(score_bhst, 3));
            backward(probability_bhst.cast(self.compute()).matmul(value));
        }
    }

    /// Both of a layer, each with the sum before it.
    fn norms(&self, device: &Device) -> impl Fn() {
        let shape = [self.num_tokens(), self.width];
        let (input_nd, residual_nd) = (leaf(shape, device), leaf(shape, device));
        let weight_d: Tensor<1> = leaf([self.width], device);
        move || {
            for _ in 0..2 {
                let sum_nd = self.dropped(input_nd.clone()) + residual_nd.clone();
                let weight_d = weight_d.clone();
                backward(if self.dropout.is_some() {
                    module::layer_norm(sum_nd, weight_d.clone(), Some(weight_d), 1e-12)
                } else {
                    let mean_square = (sum_nd.clone() * sum_nd.clone()).mean_dim(1);
                    let scale = mean_square.add_scalar(1e-5).sqrt().recip();
                    sum_nd * scale * weight_d.unsqueeze::<2>()
                });
            }
        }
    }

    fn activation(&self, device: &Device) -> impl Fn() {
        let shape = [self.num_tokens(), self.inner];
        let leaves: [Tensor<2>; 2] = [(); 2].map(|()| leaf(shape, device));
        move || {
            let [input, gate] = leaves.clone().map(|leaf| leaf.cast(self.compute()));
            backward(if self.dropout.is_some() {
                activation::gelu(input)
            } else {
                activation::silu(input) * gate
            });
        }
    }

    fn embedding(&self, device: &Device) -> impl Fn() {
        let shape = [self.rows, self.positions];
        let last = self.vocabulary as f64 - 1.0;
        let ids_bs = Tensor::<2, Int>::random(shape, Distribution::Uniform(0.0, last), device);
        let table_vd: Tensor<2> = values([self.vocabulary, self.width], device);
        let table_vd = table_vd.set_require_grad(!self.is_frozen);
        move || {
            let output = module::embedding(table_vd.clone(), ids_bs.clone());
            if self.is_frozen {
                drop(output);
            } else {
                backward(output);
            }
        }
    }

    fn dropped<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        match self.dropout {
            Some(probability) => Dropout::new(probability).forward(input),
            None => input,
        }
    }
}

fn values<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::full(shape, 0.01, device)
}

fn leaf<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    values(shape, device).require_grad()
}

fn backward<const D: usize>(output: Tensor<D>) {
    drop(output.cast(FloatDType::F32).sum().backward());
}

/// Mean seconds of a computation, after two that do not count.
pub(crate) fn seconds(device: &Device, repeats: usize, compute: impl Fn()) -> f64 {
    let synchronise = || device.sync().expect("the device works");
    for _ in 0..2 {
        compute();
    }
    synchronise();
    let start = Instant::now();
    for _ in 0..repeats {
        compute();
    }
    synchronise();
    start.elapsed().as_secs_f64() / repeats as f64
}
