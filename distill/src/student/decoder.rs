//! What causal students share: who sees whom, positions, attention with keys and values kept, the last token.
//!
//! Shape suffixes: `b` batch rows, `s` new positions, `t` all positions up to now, `n` = b·s rows, `d` hidden width,
//! `h` heads, `g` heads of keys and values, `k` head width.

use burn::tensor::{Bool, Int, Tensor};

use super::TokenBatch;
use super::attention::attend;
use super::layers::Embedding;
use super::trunk::{Trunk, UNSEEN_SCORE, padding_score};
use crate::device::Precision;
use crate::dropout::Dropout;

/// A trunk whose positions see only what stands before them.
pub(super) trait CausalTrunk {
    /// The table that tied language-model heads multiply by.
    fn word_embedding(&self) -> &Embedding;

    /// Hidden states `[b, s, d]` of positions that follow those in the cache, which grows by them.
    fn advance(&self, batch: &TokenBatch, cache: &mut Cache, precision: Precision) -> Tensor<3>;
}

/// A trunk whose layers go on from keys and values that were computed before.
pub(super) trait Decoder: Trunk {
    /// The table of token vectors.
    fn word_embedding(&self) -> &Embedding;

    /// Prepares a pass over the last `positions` positions of a mask.
    fn pass_after(
        &self,
        mask_bt: &Tensor<2, Int>,
        positions: usize,
        precision: Precision,
    ) -> Self::Pass;

    /// One layer for the new positions, f32 `[n, d]` to `[n, d]`.
    fn layer_after(
        &self,
        index: usize,
        hidden_nd: Tensor<2>,
        pass: &Self::Pass,
        earlier: &mut KeyValues,
    ) -> Tensor<2>;
}

impl<T: Decoder> CausalTrunk for T {
    fn word_embedding(&self) -> &Embedding {
        Decoder::word_embedding(self)
    }

    fn advance(&self, batch: &TokenBatch, cache: &mut Cache, precision: Precision) -> Tensor<3> {
        let [_, positions] = batch.token_ids_bs.dims();
        let mask_bt = cache.extend_mask(batch.attention_mask_bs.clone());
        let pass = self.pass_after(&mask_bt, positions, precision);
        cache
            .layers
            .resize_with(self.num_layers(), KeyValues::default);
        let mut hidden_nd = self.embed(batch, &pass);
        for (index, earlier) in cache.layers.iter_mut().enumerate() {
            hidden_nd = self.layer_after(index, hidden_nd, &pass, earlier);
        }
        self.finish(hidden_nd, batch, &pass).hidden_bsd
    }
}

/// Keys, values and mask of all positions that a language model has read, so that the next ones cost only themselves.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    mask_bt: Option<Tensor<2, Int>>,
    layers: Vec<KeyValues>,
}

impl Cache {
    /// Positions read, padding included.
    pub fn num_positions(&self) -> usize {
        self.mask_bt.as_ref().map_or(0, |mask_bt| mask_bt.dims()[1])
    }

    fn extend_mask(&mut self, new_bs: Tensor<2, Int>) -> Tensor<2, Int> {
        let mask_bt = match self.mask_bt.take() {
            Some(before) => Tensor::cat(vec![before, new_bs], 1),
            None => new_bs,
        };
        self.mask_bt.insert(mask_bt).clone()
    }
}

/// One layer's keys and values, each `[b, g, t, k]`.
#[derive(Debug, Clone, Default)]
pub(super) struct KeyValues {
    both: Option<(Tensor<4>, Tensor<4>)>,
}

impl KeyValues {
    fn extend(&mut self, key_bgsk: Tensor<4>, value_bgsk: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let both = match self.both.take() {
            Some((keys, values)) => (
                Tensor::cat(vec![keys, key_bgsk], 2),
                Tensor::cat(vec![values, value_bgsk], 2),
            ),
            None => (key_bgsk, value_bgsk),
        };
        self.both.insert(both).clone()
    }
}

/// What every layer of one forward pass shares.
#[derive(Debug)]
pub struct CausalPass {
    batch: usize,
    positions: usize,
    /// The number format of the matrix products.
    pub(super) precision: Precision,
    /// Number of real tokens before each new position, `[b, s]`; under padding without meaning.
    pub(super) position_ids_bs: Tensor<2, Int>,
    unseen_score_b1st: Tensor<4>,
}

impl CausalPass {
    /// A pass over the last `positions` positions of a mask.
    pub(super) fn new(mask_bt: &Tensor<2, Int>, positions: usize, precision: Precision) -> Self {
        let [batch, total] = mask_bt.dims();
        let before = total - positions;
        let counts_bt = mask_bt.clone().cumsum(1);
        let position_ids_bt = counts_bt.sub_scalar(1).clamp_min(0);
        let shape = [batch, 1, positions, total];
        let offset = i64::try_from(before).expect("a sequence is shorter than 2^63");
        let future_st = Tensor::<2, Bool>::tril_mask([positions, total], offset, &mask_bt.device());
        let unseen_score_b1st = padding_score(mask_bt)
            .expand(shape)
            .mask_fill(future_st.unsqueeze::<4>().expand(shape), UNSEEN_SCORE);
        Self {
            batch,
            positions,
            precision,
            position_ids_bs: position_ids_bt.narrow(1, before, positions),
            unseen_score_b1st,
        }
    }

    /// `[n, h·k]` to `[b, s, h, k]`.
    pub(super) fn heads(&self, projected: Tensor<2>, num_heads: usize) -> Tensor<4> {
        let [_, width] = projected.dims();
        projected.reshape([self.batch, self.positions, num_heads, width / num_heads])
    }

    /// `[n, d]` to `[b, s, d]`.
    pub(super) fn rows(&self, hidden_nd: Tensor<2>) -> Tensor<3> {
        let [_, width] = hidden_nd.dims();
        hidden_nd.reshape([self.batch, self.positions, width])
    }

    /// `softmax(q kᵀ / √k) v` over what each position sees, heads side by side: `[n, h·k]`.
    ///
    /// Queries `[b, s, h, k]`, keys and values `[b, s, g, k]`, where `h / g` neighbouring heads share one head of keys
    /// and values (Ainslie et al., arXiv 2305.13245). Those of `earlier` positions stand before the new ones.
    pub(super) fn attend(
        &self,
        query_bshk: Tensor<4>,
        key_bsgk: Tensor<4>,
        value_bsgk: Tensor<4>,
        dropout: &Dropout,
        earlier: Option<&mut KeyValues>,
    ) -> Tensor<2> {
        let [batch, positions, num_heads, width] = query_bshk.dims();
        let (key, value) = (key_bsgk.swap_dims(1, 2), value_bsgk.swap_dims(1, 2));
        let (key_bgtk, value_bgtk) = match earlier {
            Some(earlier) => earlier.extend(key, value),
            None => (key, value),
        };
        attend(
            query_bshk.swap_dims(1, 2),
            [key_bgtk, value_bgtk],
            self.unseen_score_b1st.clone(),
            dropout,
            self.precision,
        )
        .swap_dims(1, 2)
        .reshape([batch * positions, num_heads * width])
    }
}

/// The hidden state `[b, d]` of every row's last real token, wherever its padding stands.
pub(super) fn last_token(hidden_bsd: &Tensor<3>, mask_bs: &Tensor<2, Int>) -> Tensor<2> {
    let [batch, positions, width] = hidden_bsd.dims();
    let (device, dtype) = (mask_bs.device(), mask_bs.dtype());
    let end = |end: usize| i64::try_from(end).expect("a batch is smaller than 2^63");
    let count_s = Tensor::<1, Int>::arange(1..end(positions + 1), (&device, dtype));
    let counted_bs = mask_bs.clone() * count_s.unsqueeze::<2>();
    let last_b1 = counted_bs.max_dim(1).sub_scalar(1);
    let last_b = last_b1.clamp_min(0).reshape([batch]);
    let rows = 0..end(batch * positions);
    let start_b = Tensor::<1, Int>::arange_step(rows, positions, (&device, dtype));
    hidden_bsd
        .clone()
        .reshape([batch * positions, width])
        .select(0, start_b + last_b)
}
