//! What every architecture computes, in parts: embedding, one layer after the other, the end.
//!
//! The parts are apart so that a layer can be computed a second time in the backward pass.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `n` = b·s rows, `d` hidden width.

use burn::module::Module;
use burn::tensor::{Int, Tensor};

use super::layers::Linear;
use super::{BackboneOutput, TokenBatch};
use crate::device::Precision;

/// Added to the attention score of a key that is not seen: its exponential is exactly zero in f32.
pub(super) const UNSEEN_SCORE: f32 = -1e9;

/// A stack of transformer layers.
pub trait Trunk: Module {
    /// What all layers of one forward pass share: masks, rotary tables, relative positions. Where it depends on
    /// parameters, it is part of the graph.
    type Pass;

    /// Prepares a forward pass whose matrix products are computed in `precision`.
    fn pass(&self, batch: &TokenBatch, precision: Precision) -> Self::Pass;

    /// Token ids to the input of the first layer, f32 `[n, d]`.
    fn embed(&self, batch: &TokenBatch, pass: &Self::Pass) -> Tensor<2>;

    /// Number of layers.
    fn num_layers(&self) -> usize;

    /// One layer, f32 `[n, d]` to `[n, d]`.
    fn layer(&self, index: usize, hidden_nd: Tensor<2>, pass: &Self::Pass) -> Tensor<2>;

    /// What follows the last layer: `[n, d]` to hidden states `[b, s, d]` and pooled vectors `[b, d]`.
    fn finish(&self, hidden_nd: Tensor<2>, batch: &TokenBatch, pass: &Self::Pass)
    -> BackboneOutput;

    /// Visits every linear map of the layers with its published name within the trunk, as in
    /// `encoder.layer.0.attention.self.query`.
    fn visit_linears(&mut self, visit: &mut dyn FnMut(&str, &mut Linear));

    /// All parts in order.
    fn forward(&self, batch: &TokenBatch, precision: Precision) -> BackboneOutput {
        let pass = self.pass(batch, precision);
        let embedded_nd = self.embed(batch, &pass);
        let hidden_nd = (0..self.num_layers()).fold(embedded_nd, |hidden_nd, index| {
            self.layer(index, hidden_nd, &pass)
        });
        self.finish(hidden_nd, batch, &pass)
    }
}

/// 0 for a real key, [`UNSEEN_SCORE`] for padding, `[b, 1, 1, s]`.
pub(super) fn padding_score(attention_mask_bs: &Tensor<2, Int>) -> Tensor<4> {
    let [batch, positions] = attention_mask_bs.dims();
    attention_mask_bs
        .clone()
        .float()
        .neg()
        .add_scalar(1.0)
        .mul_scalar(UNSEEN_SCORE)
        .reshape([batch, 1, 1, positions])
}
