//! Attention as most architectures have it.
//!
//! Shape suffixes: `b` batch rows, `h` heads, `g` heads of keys and values, `s` and `t` positions of queries and keys,
//! `k` head width.

use burn::tensor::{Tensor, activation};

use super::layers::{to_f32, to_precision};
use crate::device::Precision;
use crate::dropout::Dropout;
use crate::kernels;
use crate::kernels::attention::Attention;

/// `dropout(softmax(q kᵀ / √k + unseen)) v`: queries `[b, h, s, k]`, keys and values `[b, g, t, k]` to `[b, h, s, k]`.
///
/// `h / g` neighbouring heads share one head of keys and values (Ainslie et al., arXiv 2305.13245). `unseen_b1st` is
/// low where a key is not seen; its first and third axis may have length 1.
pub(super) fn attend(
    query_bhsk: Tensor<4>,
    [key_bgtk, value_bgtk]: [Tensor<4>; 2],
    unseen_b1st: Tensor<4>,
    dropout: &Dropout,
    precision: Precision,
) -> Tensor<4> {
    let [batch, num_heads, positions, width] = query_bhsk.dims();
    let [_, groups, total, _] = key_bgtk.dims();
    let scale = 1.0 / (width as f32).sqrt();
    if kernels::fits(&query_bhsk) && kernels::fits(&unseen_b1st) {
        let attention = Attention {
            scale,
            dropout: dropout.mask(&query_bhsk),
        };
        return attention.forward(query_bhsk, key_bgtk, value_bgtk, unseen_b1st);
    }
    // Heads of one group become more rows of one product, so that keys and values are not repeated.
    let rows = num_heads / groups * positions;
    let query = query_bhsk
        .mul_scalar(scale)
        .reshape([batch, groups, rows, width]);
    let score = to_f32(query.matmul(key_bgtk.swap_dims(2, 3)), precision);
    let score_bhst = score.reshape([batch, num_heads, positions, total]) + unseen_b1st;
    let probability_bhst = dropout.forward(activation::softmax(score_bhst, 3));
    to_precision(probability_bhst, precision)
        .reshape([batch, groups, rows, total])
        .matmul(value_bgtk)
        .reshape([batch, num_heads, positions, width])
}
