//! The LLaMA decoder (Touvron et al., arXiv 2302.13971 and 2307.09288; LLaMA 3: arXiv 2407.21783) as `transformers`
//! computes it, with the additions of Qwen2 and Qwen3.
//!
//! Parameters, the residual stream, norms, rotation and softmax are f32. With [`Precision::Bf16`] the matrix products
//! and the activation between them are computed in bf16 from weights cast on the fly.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `n` = b·s rows, `d` hidden width, `h` heads, `g` heads of
//! keys and values, `k` head width.

mod config;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

pub use config::{Family, LlamaConfig};

use super::activation::Activation;
use super::decoder::{CausalPass, Decoder, KeyValues, last_token};
use super::layers::{Embedding, Linear, RmsNorm, to_f32, to_precision};
use super::rotary::RotaryTables;
use super::trunk::Trunk;
use super::{BackboneOutput, TokenBatch};
use crate::device::Precision;
use crate::dropout::Dropout;

/// A decoder; fields are named as in published checkpoints.
#[derive(Module, Debug)]
pub struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    #[module(skip)]
    config: LlamaConfig,
}

#[derive(Module, Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Qwen3 normalises every head's queries and keys.
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    dropout: Dropout,
    num_heads: usize,
    num_key_value_heads: usize,
}

/// `down(activation(gate(x)) ∘ up(x))` (Shazeer, arXiv 2002.05202).
#[derive(Module, Debug)]
struct FeedForward {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

/// What every layer of one forward pass shares.
#[derive(Debug)]
pub struct Pass {
    causal: CausalPass,
    rotary: RotaryTables,
}

impl Llama {
    /// A decoder whose parameters are drawn when first read, unless they are loaded before.
    pub(super) fn uninitialised(config: &LlamaConfig, device: &Device) -> Self {
        let layer = || Layer {
            input_layernorm: RmsNorm::new(config.hidden_size, config.rms_norm_epsilon, device),
            self_attn: Attention::uninitialised(config, device),
            post_attention_layernorm: RmsNorm::new(
                config.hidden_size,
                config.rms_norm_epsilon,
                device,
            ),
            mlp: FeedForward::uninitialised(config, device),
        };
        Self {
            embed_tokens: Embedding::new(config.vocab_size, config.hidden_size, device),
            layers: std::iter::repeat_with(layer)
                .take(config.num_layers)
                .collect(),
            norm: RmsNorm::new(config.hidden_size, config.rms_norm_epsilon, device),
            config: config.clone(),
        }
    }
}

impl Attention {
    fn uninitialised(config: &LlamaConfig, device: &Device) -> Self {
        let query_width = config.num_heads * config.head_size;
        let key_width = config.num_key_value_heads * config.head_size;
        let project = |width| {
            linear(
                config.hidden_size,
                width,
                config.query_key_value_bias,
                device,
            )
        };
        let head_norm = || {
            (config.family == Family::Qwen3)
                .then(|| RmsNorm::new(config.head_size, config.rms_norm_epsilon, device))
        };
        Self {
            q_proj: project(query_width),
            k_proj: project(key_width),
            v_proj: project(key_width),
            o_proj: linear(
                query_width,
                config.hidden_size,
                config.attention_output_bias,
                device,
            ),
            q_norm: head_norm(),
            k_norm: head_norm(),
            dropout: Dropout::new(config.attention_dropout),
            num_heads: config.num_heads,
            num_key_value_heads: config.num_key_value_heads,
        }
    }

    fn forward(
        &self,
        hidden_nd: Tensor<2>,
        pass: &Pass,
        earlier: Option<&mut KeyValues>,
    ) -> Tensor<2> {
        let precision = pass.causal.precision;
        let hidden_nd = to_precision(hidden_nd, precision);
        let turned = |linear: &Linear, norm: &Option<RmsNorm>, num_heads: usize| {
            let projected = to_f32(linear.forward(hidden_nd.clone(), precision), precision);
            let heads = pass.causal.heads(projected, num_heads);
            let heads = match norm {
                Some(norm) => norm.forward(heads),
                None => heads,
            };
            to_precision(pass.rotary.turn(heads), precision)
        };
        let query_bshk = turned(&self.q_proj, &self.q_norm, self.num_heads);
        let key_bsgk = turned(&self.k_proj, &self.k_norm, self.num_key_value_heads);
        let value = self.v_proj.forward(hidden_nd.clone(), precision);
        let value_bsgk = pass.causal.heads(value, self.num_key_value_heads);
        let context = pass
            .causal
            .attend(query_bshk, key_bsgk, value_bsgk, &self.dropout, earlier);
        to_f32(self.o_proj.forward(context, precision), precision)
    }
}

impl FeedForward {
    fn uninitialised(config: &LlamaConfig, device: &Device) -> Self {
        let (width, between) = (config.hidden_size, config.intermediate_size);
        let bias = config.feed_forward_bias;
        Self {
            gate_proj: linear(width, between, bias, device),
            up_proj: linear(width, between, bias, device),
            down_proj: linear(between, width, bias, device),
            activation: config.activation,
        }
    }

    fn forward(&self, hidden_nd: Tensor<2>, precision: Precision) -> Tensor<2> {
        let hidden_nd = to_precision(hidden_nd, precision);
        let gate = self.gate_proj.forward(hidden_nd.clone(), precision);
        let raised = self.activation.forward(gate) * self.up_proj.forward(hidden_nd, precision);
        to_f32(self.down_proj.forward(raised, precision), precision)
    }
}

fn linear(input: usize, output: usize, bias: bool, device: &Device) -> Linear {
    if bias {
        Linear::new(input, output, device)
    } else {
        Linear::without_bias(input, output, device)
    }
}

impl Layer {
    fn forward(
        &self,
        hidden_nd: Tensor<2>,
        pass: &Pass,
        earlier: Option<&mut KeyValues>,
    ) -> Tensor<2> {
        let normed_nd = self.input_layernorm.forward(hidden_nd.clone());
        let attended_nd = hidden_nd + self.self_attn.forward(normed_nd, pass, earlier);
        let normed_nd = self.post_attention_layernorm.forward(attended_nd.clone());
        attended_nd + self.mlp.forward(normed_nd, pass.causal.precision)
    }
}

impl Trunk for Llama {
    type Pass = Pass;

    fn pass(&self, batch: &TokenBatch, precision: Precision) -> Pass {
        let [_, positions] = batch.token_ids_bs.dims();
        self.pass_after(&batch.attention_mask_bs, positions, precision)
    }

    fn embed(&self, batch: &TokenBatch, _pass: &Pass) -> Tensor<2> {
        let words_bsd = self.embed_tokens.forward(batch.token_ids_bs.clone());
        words_bsd.flatten(0, 1)
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&self, index: usize, hidden_nd: Tensor<2>, pass: &Pass) -> Tensor<2> {
        self.layers[index].forward(hidden_nd, pass, None)
    }

    fn finish(&self, hidden_nd: Tensor<2>, batch: &TokenBatch, pass: &Pass) -> BackboneOutput {
        let hidden_bsd = pass.causal.rows(self.norm.forward(hidden_nd));
        BackboneOutput {
            pooled_bd: last_token(&hidden_bsd, &batch.attention_mask_bs),
            hidden_bsd,
        }
    }

    fn visit_linears(&mut self, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let at = |name: &str| format!("layers.{index}.{name}");
            let attention = &mut layer.self_attn;
            visit(&at("self_attn.q_proj"), &mut attention.q_proj);
            visit(&at("self_attn.k_proj"), &mut attention.k_proj);
            visit(&at("self_attn.v_proj"), &mut attention.v_proj);
            visit(&at("self_attn.o_proj"), &mut attention.o_proj);
            visit(&at("mlp.gate_proj"), &mut layer.mlp.gate_proj);
            visit(&at("mlp.up_proj"), &mut layer.mlp.up_proj);
            visit(&at("mlp.down_proj"), &mut layer.mlp.down_proj);
        }
    }
}

impl Decoder for Llama {
    fn word_embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    fn pass_after(&self, mask_bt: &Tensor<2, Int>, positions: usize, precision: Precision) -> Pass {
        let [_, total] = mask_bt.dims();
        let causal = CausalPass::new(mask_bt, positions, precision);
        let rotary = self
            .config
            .rotary
            .tables(causal.position_ids_bs.clone(), total);
        Pass { causal, rotary }
    }

    fn layer_after(
        &self,
        index: usize,
        hidden_nd: Tensor<2>,
        pass: &Pass,
        earlier: &mut KeyValues,
    ) -> Tensor<2> {
        self.layers[index].forward(hidden_nd, pass, Some(earlier))
    }
}
