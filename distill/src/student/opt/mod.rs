//! The OPT decoder (Zhang et al., arXiv 2205.01068) as `transformers` computes it.
//!
//! Parameters, the residual stream, layer normalisation and softmax are f32. With [`Precision::Bf16`] the matrix
//! products and the activation between them are computed in bf16 from weights cast on the fly.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `n` = b·s rows, `d` hidden width, `h` heads, `k` head width.

mod config;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, module};

pub use config::OptConfig;

use super::activation::Activation;
use super::decoder::{CausalPass, Decoder, KeyValues, last_token};
use super::layers::{Embedding, LayerNorm, Linear, to_f32, to_precision};
use super::trunk::Trunk;
use super::{BackboneOutput, TokenBatch};
use crate::device::Precision;
use crate::dropout::Dropout;

/// The first row of the position embedding that a position uses: the rows before are left from padding ids.
const POSITION_OFFSET: u32 = 2;
/// Added to the variance in layer normalisation; no field of the configuration changes it.
const LAYER_NORM_EPSILON: f64 = 1e-5;

/// A decoder; fields are named as in published checkpoints.
#[derive(Module, Debug)]
pub struct Opt {
    embed_tokens: Embedding,
    embed_positions: Embedding,
    project_in: Option<Linear>,
    layers: Vec<Layer>,
    final_layer_norm: Option<Norm>,
    project_out: Option<Linear>,
}

#[derive(Module, Debug)]
struct Layer {
    self_attn: Attention,
    self_attn_layer_norm: Norm,
    fc1: Linear,
    fc2: Linear,
    final_layer_norm: Norm,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
    norm_before: bool,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    dropout: Dropout,
    num_heads: usize,
}

/// A layer norm, with or without weight and bias.
#[derive(Module, Debug)]
enum Norm {
    Affine(LayerNorm),
    Plain(PlainNorm),
}

/// `(x − mean) / √(variance + ε)`.
#[derive(Module, Debug)]
struct PlainNorm {
    width: usize,
}

/// One architecture's parts, made on one device.
struct Parts<'a> {
    config: &'a OptConfig,
    device: &'a Device,
}

impl Parts<'_> {
    fn linear(&self, input: usize, output: usize) -> Linear {
        if self.config.has_bias {
            Linear::new(input, output, self.device)
        } else {
            Linear::without_bias(input, output, self.device)
        }
    }

    fn norm(&self) -> Norm {
        let width = self.config.layer_width;
        if self.config.norms_are_affine {
            Norm::Affine(LayerNorm::new(width, LAYER_NORM_EPSILON, self.device))
        } else {
            Norm::Plain(PlainNorm { width })
        }
    }

    fn layer(&self) -> Layer {
        let (width, between) = (self.config.layer_width, self.config.feed_forward_size);
        Layer {
            self_attn: Attention {
                q_proj: self.linear(width, width),
                k_proj: self.linear(width, width),
                v_proj: self.linear(width, width),
                out_proj: self.linear(width, width),
                dropout: Dropout::new(self.config.attention_dropout),
                num_heads: self.config.num_heads,
            },
            self_attn_layer_norm: self.norm(),
            fc1: self.linear(width, between),
            fc2: self.linear(between, width),
            final_layer_norm: self.norm(),
            dropout: Dropout::new(self.config.dropout),
            activation: self.config.activation,
            norm_before: self.config.norm_before,
        }
    }
}

impl Opt {
    /// A decoder whose parameters are drawn when first read, unless they are loaded before.
    pub(super) fn uninitialised(config: &OptConfig, device: &Device) -> Self {
        let parts = Parts { config, device };
        let (width, embedding) = (config.layer_width, config.embedding_width);
        let projection = |input, output| {
            (width != embedding).then(|| Linear::without_bias(input, output, device))
        };
        let position_rows = config.max_positions + POSITION_OFFSET as usize;
        Self {
            embed_tokens: Embedding::new(config.vocab_size, embedding, device),
            embed_positions: Embedding::new(position_rows, width, device),
            project_in: projection(embedding, width),
            layers: (0..config.num_layers).map(|_| parts.layer()).collect(),
            final_layer_norm: (config.norm_before && !config.without_final_norm)
                .then(|| parts.norm()),
            project_out: projection(width, embedding),
        }
    }
}

impl Norm {
    /// `[n, d]` to `[n, d]`, in f32.
    fn forward(&self, input_nd: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Affine(norm) => norm.forward(input_nd),
            Self::Plain(PlainNorm { width }) => {
                let ones = Tensor::ones([*width], &input_nd.device());
                module::layer_norm(input_nd, ones, None, LAYER_NORM_EPSILON)
            }
        }
    }
}

impl Attention {
    fn forward(
        &self,
        hidden_nd: Tensor<2>,
        pass: &CausalPass,
        earlier: Option<&mut KeyValues>,
    ) -> Tensor<2> {
        let hidden_nd = to_precision(hidden_nd, pass.precision);
        let project = |linear: &Linear| {
            let projected = linear.forward(hidden_nd.clone(), pass.precision);
            pass.heads(projected, self.num_heads)
        };
        let (query, key) = (project(&self.q_proj), project(&self.k_proj));
        let context = pass.attend(query, key, project(&self.v_proj), &self.dropout, earlier);
        to_f32(
            self.out_proj.forward(context, pass.precision),
            pass.precision,
        )
    }
}

impl Layer {
    fn forward(
        &self,
        hidden_nd: Tensor<2>,
        pass: &CausalPass,
        earlier: Option<&mut KeyValues>,
    ) -> Tensor<2> {
        let attended_nd = self.residual(hidden_nd, &self.self_attn_layer_norm, |input_nd| {
            self.self_attn.forward(input_nd, pass, earlier)
        });
        self.residual(attended_nd, &self.final_layer_norm, |input_nd| {
            let raised = self.fc1.forward(input_nd, pass.precision);
            let raised = self.activation.forward(raised);
            to_f32(self.fc2.forward(raised, pass.precision), pass.precision)
        })
    }

    /// `x + dropout(part(norm(x)))`, or `norm(x + dropout(part(x)))`.
    fn residual(
        &self,
        hidden_nd: Tensor<2>,
        norm: &Norm,
        part: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        if self.norm_before {
            let changed_nd = part(norm.forward(hidden_nd.clone()));
            hidden_nd + self.dropout.forward(changed_nd)
        } else {
            let changed_nd = part(hidden_nd.clone());
            norm.forward(hidden_nd + self.dropout.forward(changed_nd))
        }
    }
}

impl Trunk for Opt {
    type Pass = CausalPass;

    fn pass(&self, batch: &TokenBatch, precision: Precision) -> CausalPass {
        let [_, positions] = batch.token_ids_bs.dims();
        CausalPass::new(&batch.attention_mask_bs, positions, precision)
    }

    fn embed(&self, batch: &TokenBatch, pass: &CausalPass) -> Tensor<2> {
        let words_bsd = self.embed_tokens.forward(batch.token_ids_bs.clone());
        let words_nd = words_bsd.flatten(0, 1);
        let words_nd = match &self.project_in {
            Some(project) => to_f32(project.forward(words_nd, pass.precision), pass.precision),
            None => words_nd,
        };
        let rows_bs = pass.position_ids_bs.clone().add_scalar(POSITION_OFFSET);
        words_nd + self.embed_positions.forward(rows_bs).flatten(0, 1)
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&self, index: usize, hidden_nd: Tensor<2>, pass: &CausalPass) -> Tensor<2> {
        self.layers[index].forward(hidden_nd, pass, None)
    }

    fn finish(
        &self,
        hidden_nd: Tensor<2>,
        batch: &TokenBatch,
        pass: &CausalPass,
    ) -> BackboneOutput {
        let hidden_nd = match &self.final_layer_norm {
            Some(norm) => norm.forward(hidden_nd),
            None => hidden_nd,
        };
        let hidden_nd = match &self.project_out {
            Some(project) => to_f32(project.forward(hidden_nd, pass.precision), pass.precision),
            None => hidden_nd,
        };
        let hidden_bsd = pass.rows(hidden_nd);
        BackboneOutput {
            pooled_bd: last_token(&hidden_bsd, &batch.attention_mask_bs),
            hidden_bsd,
        }
    }

    fn visit_linears(&mut self, visit: &mut dyn FnMut(&str, &mut Linear)) {
        if let Some(project) = &mut self.project_in {
            visit("project_in", project);
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let at = |name: &str| format!("layers.{index}.{name}");
            visit(&at("self_attn.q_proj"), &mut layer.self_attn.q_proj);
            visit(&at("self_attn.k_proj"), &mut layer.self_attn.k_proj);
            visit(&at("self_attn.v_proj"), &mut layer.self_attn.v_proj);
            visit(&at("self_attn.out_proj"), &mut layer.self_attn.out_proj);
            visit(&at("fc1"), &mut layer.fc1);
            visit(&at("fc2"), &mut layer.fc2);
        }
        if let Some(project) = &mut self.project_out {
            visit("project_out", project);
        }
    }
}

impl Decoder for Opt {
    fn word_embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    fn pass_after(
        &self,
        mask_bt: &Tensor<2, Int>,
        positions: usize,
        precision: Precision,
    ) -> CausalPass {
        CausalPass::new(mask_bt, positions, precision)
    }

    fn layer_after(
        &self,
        index: usize,
        hidden_nd: Tensor<2>,
        pass: &CausalPass,
        earlier: &mut KeyValues,
    ) -> Tensor<2> {
        self.layers[index].forward(hidden_nd, pass, Some(earlier))
    }
}
