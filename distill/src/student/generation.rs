//! A language model writes texts and weighs them.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `r` weighed tokens of the batch, `v` vocabulary.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;

use super::sampling::Sampling;
use super::{Cache, LanguageModel, TokenBatch};
use crate::loss::{predicting_states, token_log_probabilities};

/// How texts are written.
#[derive(Clone, Copy, Debug)]
pub struct Style<'a> {
    /// Most tokens of one text.
    pub max_new_tokens: usize,
    /// Tokens are drawn; without it the likeliest is taken.
    pub sampling: Option<Sampling>,
    /// Each of these ends a text; none of them is part of it.
    pub ends: &'a [u32],
}

/// Goes on from each prompt, all in one batch with padding on the left. Row n draws its tokens from `streams[n]`, so that
/// they do not depend on the rows beside it.
///
/// `model` is in evaluation mode, see [`Module::valid`](burn::module::Module::valid), and lies on `device`.
///
/// # Panics
/// A prompt is empty, there are fewer streams than prompts, or a prompt and `max_new_tokens` are together longer than the
/// model's positions.
pub fn write(
    model: &LanguageModel,
    prompts: &[&[u32]],
    style: Style<'_>,
    streams: &mut [ChaCha8Rng],
    device: &Device,
) -> Vec<Vec<u32>> {
    let mut texts: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let mut is_open = vec![true; prompts.len()];
    let mut cache = Cache::default();
    let mut batch = padded(prompts, Side::Left, device);
    for _ in 0..style.max_new_tokens {
        let logits_bv = model.next_logits(&batch, &mut cache);
        let tokens = next_tokens(logits_bv, style.sampling, streams, &is_open);
        for ((text, is_open), &token) in texts.iter_mut().zip(&mut is_open).zip(&tokens) {
            *is_open &= !style.ends.contains(&token);
            if *is_open {
                text.push(token);
            }
        }
        if !is_open.contains(&true) {
            break;
        }
        let rows: Vec<&[u32]> = tokens.iter().map(std::slice::from_ref).collect();
        batch = padded(&rows, Side::Left, device);
    }
    texts
}

/// One token for each row; rows that have ended draw none.
#[expect(
    clippy::disallowed_methods,
    reason = "the next token is chosen on the host"
)]
fn next_tokens(
    logits_bv: Tensor<2>,
    sampling: Option<Sampling>,
    streams: &mut [ChaCha8Rng],
    is_open: &[bool],
) -> Vec<u32> {
    let Some(sampling) = sampling else {
        let tokens_b1 = logits_bv.argmax(1).into_data().convert::<i64>();
        let tokens = tokens_b1.iter::<i64>();
        return tokens
            .map(|token| u32::try_from(token).expect("an id counts columns"))
            .collect();
    };
    let [_, width] = logits_bv.dims();
    let values: Vec<f32> = logits_bv.into_data().try_to_vec().expect("logits are f32");
    let rows = values.chunks(width).zip(streams).zip(is_open);
    rows.map(|((logits, stream), is_open)| {
        let token = if *is_open {
            sampling.draw(logits, stream)
        } else {
            0
        };
        token as u32
    })
    .collect()
}

/// The logarithm of the probability of every token from `start` on, for each `(ids, start)`, all in one batch.
///
/// `model` as for [`write()`].
///
/// # Panics
/// A start is 0, or a sequence is longer than the model's positions.
#[expect(clippy::disallowed_methods, reason = "the answer of a batch")]
pub fn log_probabilities(
    model: &LanguageModel,
    sequences: &[(&[u32], usize)],
    device: &Device,
) -> Vec<Vec<f32>> {
    let rows: Vec<&[u32]> = sequences.iter().map(|(ids, _)| *ids).collect();
    let batch = padded(&rows, Side::Right, device);
    let [_, length] = batch.token_ids_bs.dims();
    let (mut positions, mut tokens): (Vec<i64>, Vec<i64>) = (Vec::new(), Vec::new());
    for (row, (ids, start)) in sequences.iter().enumerate() {
        for (column, &token) in (start - 1..).zip(&ids[*start..]) {
            let position = i64::try_from(row * length + column);
            positions.push(position.expect("a batch is smaller than 2^63"));
            tokens.push(i64::from(token));
        }
    }
    if tokens.is_empty() {
        return vec![Vec::new(); sequences.len()];
    }
    let integers = |values: Vec<i64>| -> Tensor<1, Int> {
        let shape = [values.len()];
        Tensor::from_data(TensorData::new(values, shape), device)
    };
    let hidden_bsd = model.backbone().forward(&batch).hidden_bsd;
    let logits_rv = model.logits_of(predicting_states(hidden_bsd, integers(positions)));
    let values: Vec<f32> = token_log_probabilities(logits_rv, integers(tokens))
        .into_data()
        .try_to_vec()
        .expect("log-probabilities are f32");
    let mut values = values.into_iter();
    let count = |(ids, start): &(&[u32], usize)| ids.len() - start;
    sequences
        .iter()
        .map(|sequence| values.by_ref().take(count(sequence)).collect())
        .collect()
}

/// Where the padding of shorter rows stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// One batch of rows of different lengths. Padding carries id 0, which the mask hides.
fn padded(rows: &[&[u32]], side: Side, device: &Device) -> TokenBatch {
    let length = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let tensor = |value: &dyn Fn(u32) -> i64| -> Tensor<2, Int> {
        let mut values_bs = Vec::with_capacity(rows.len() * length);
        for row in rows {
            let padding = std::iter::repeat_n(0, length - row.len());
            let values = row.iter().map(|&id| value(id));
            match side {
                Side::Left => values_bs.extend(padding.chain(values)),
                Side::Right => values_bs.extend(values.chain(padding)),
            }
        }
        Tensor::from_data(TensorData::new(values_bs, [rows.len(), length]), device)
    };
    TokenBatch {
        token_ids_bs: tensor(&|id| i64::from(id)),
        type_ids_bs: tensor(&|_| 0),
        attention_mask_bs: tensor(&|_| 1),
    }
}
