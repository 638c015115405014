//! `dropout(softmax(scale · q kᵀ + score)) v` for one head after the other, in the cache.
//!
//! Probabilities are never stored: the backward pass computes them again (Dao et al., arXiv 2205.14135). Neighbouring
//! heads may share one head of keys and values (Ainslie et al., arXiv 2305.13245).
//!
//! Shape suffixes: `b` batch rows, `h` heads, `g` heads of keys and values, `s` and `t` positions of queries and keys,
//! `k` head width; `p` in place of a letter: padded to whole tiles of a product.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::math::exp_of_negative;
use super::product::{COLUMNS, Left, ROWS, product};
use super::{multiply, row_sum, tensor_of, vectorised};
use crate::dropout::Mask;

/// What attention is beside its tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    /// Of the scores.
    pub(crate) scale: f32,
    /// Of the probabilities.
    pub(crate) dropout: Option<Mask>,
}

impl Attention {
    /// Queries `[b, h, s, k]`, keys and values `[b, g, t, k]` to `[b, h, s, k]`, for tensors that [`super::fits`].
    ///
    /// `score_b1st` is added to the scores of all heads; its first and third axis may have length 1. No gradient flows
    /// to it.
    pub(crate) fn forward(
        self,
        query_bhsk: Tensor<4>,
        key_bgtk: Tensor<4>,
        value_bgtk: Tensor<4>,
        score_b1st: Tensor<4>,
    ) -> Tensor<4> {
        Tensor::from_dispatch(<Dispatch as Attend>::fused_attention(
            query_bhsk.into_dispatch(),
            key_bgtk.into_dispatch(),
            value_bgtk.into_dispatch(),
            score_b1st.into_dispatch(),
            self,
        ))
    }
}

#[backend_extension(Flex, Autodiff)]
trait Attend: Backend {
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        score: FloatTensor<Self>,
        attention: Attention,
    ) -> FloatTensor<Self>;
}

impl Attend for Flex {
    fn fused_attention(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        score: FlexTensor,
        attention: Attention,
    ) -> FlexTensor {
        Inputs::new([query, key, value, score], attention).forward()
    }
}

impl<C: CheckpointStrategy> Attend for Autodiff<Flex, C> {
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        score: FloatTensor<Self>,
        attention: Attention,
    ) -> FloatTensor<Self> {
        let (query, query_node) = query.into_parts();
        let (key, key_node) = key.into_parts();
        let (value, value_node) = value.into_parts();
        let inputs = Inputs::new([query, key, value, score.into_primitive()], attention);
        let nodes = [query_node, key_node, value_node];
        match Pull.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let output = inputs.forward();
                prepared.finish(inputs, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(inputs.forward()),
        }
    }
}

#[derive(Debug)]
struct Pull;

impl Backward<Flex, 3> for Pull {
    type State = Inputs;

    fn backward(self, ops: Ops<Inputs, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&ops.node);
        let pulled = ops.state.backward(gradient);
        for (node, pulled) in ops.parents.into_iter().zip(pulled) {
            if let Some(node) = node {
                gradients.register::<Flex>(node.id, pulled);
            }
        }
    }
}

/// Rows of a four-dimensional tensor that lie in memory as they are read.
#[derive(Clone, Debug)]
struct Rows {
    tensor: FlexTensor,
    dims: [usize; 4],
    /// Elements from one place of an axis to the next, zero for an axis of length 1.
    steps: [usize; 3],
}

impl Rows {
    fn new(tensor: FlexTensor) -> Self {
        let layout = tensor.layout();
        let has_rows = layout.shape()[3] == 1 || layout.strides()[3] == 1;
        let tensor = if has_rows && layout.has_positive_strides() {
            tensor
        } else {
            tensor.to_contiguous()
        };
        let (shape, strides) = (tensor.layout().shape(), tensor.layout().strides());
        let dims = [shape[0], shape[1], shape[2], shape[3]];
        let step = |axis: usize| match dims[axis] {
            1 => 0,
            _ => usize::try_from(strides[axis]).expect("no stride is negative"),
        };
        let steps = [step(0), step(1), step(2)];
        Self {
            tensor,
            dims,
            steps,
        }
    }

    fn dims(&self) -> [usize; 4] {
        self.dims
    }

    /// The rows of a head, in order; an axis of length 1 has the same everywhere.
    fn rows(&self, batch: usize, head: usize) -> impl Iterator<Item = &[f32]> {
        let [batches, heads, row] = self.steps;
        let start = self.tensor.layout().start_offset() + batch * batches + head * heads;
        let (values, width) = (&self.tensor.storage::<f32>()[start..], self.dims[3]);
        (0..).map(move |place| &values[place * row..][..width])
    }

    /// The rows of a head one after the other, each padded to `width` with zeros.
    fn head(&self, batch: usize, head: usize, width: usize, output: &mut [f32]) {
        let rows = self.rows(batch, head).take(self.dims[2]);
        for (row, output) in rows.zip(output.chunks_exact_mut(width)) {
            output[..row.len()].copy_from_slice(row);
        }
    }

    /// The transposed head: `[k, width]`.
    fn transposed(&self, batch: usize, head: usize, width: usize, output: &mut [f32]) {
        let rows = self.rows(batch, head).take(self.dims[2]);
        for (place, row) in rows.enumerate() {
            for (output, value) in output.chunks_exact_mut(width).zip(row) {
                output[place] = *value;
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Inputs {
    query: Rows,
    key: Rows,
    value: Rows,
    score: Rows,
    attention: Attention,
}

/// The lengths of the axes.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    groups: usize,
    queries: usize,
    keys: usize,
    width: usize,
    padded_queries: usize,
    padded_keys: usize,
    padded_width: usize,
}

impl Inputs {
    fn new([query, key, value, score]: [FlexTensor; 4], attention: Attention) -> Self {
        Self {
            query: Rows::new(query),
            key: Rows::new(key),
            value: Rows::new(value),
            score: Rows::new(score),
            attention,
        }
    }

    fn sizes(&self) -> Sizes {
        let [batch, heads, queries, width] = self.query.dims();
        let [_, groups, keys, _] = self.key.dims();
        Sizes {
            batch,
            heads,
            groups,
            queries,
            keys,
            width,
            padded_queries: queries.next_multiple_of(ROWS),
            padded_keys: keys.next_multiple_of(COLUMNS),
            padded_width: width.next_multiple_of(COLUMNS),
        }
    }

    fn forward(&self) -> FlexTensor {
        let sizes = self.sizes();
        let mut output = vec![0.0; sizes.batch * sizes.queries * sizes.heads * sizes.width];
        output
            .par_chunks_mut(sizes.queries * sizes.heads * sizes.width)
            .enumerate()
            .for_each(|(batch, output_shk)| {
                let mut head = Head::new(self, batch);
                for place in 0..sizes.heads {
                    head.read(place);
                    if self.attention.dropout.is_some() {
                        multiply(&mut head.probability, &head.factor);
                    }
                    let probability = Left::Rows(&head.probability, sizes.padded_keys);
                    let context = &mut head.by_query;
                    product(
                        context,
                        probability,
                        &head.value,
                        sizes.keys,
                        sizes.padded_width,
                    );
                    write(output_shk, context, place, sizes.heads, sizes, 1.0);
                }
            });
        by_heads(
            output,
            [sizes.batch, sizes.queries, sizes.heads, sizes.width],
        )
    }

    /// The gradients of queries, keys and values.
    fn backward(&self, gradient: FlexTensor) -> [FlexTensor; 3] {
        let sizes = self.sizes();
        let gradient = Rows::new(gradient);
        let query_block = sizes.queries * sizes.heads * sizes.width;
        let key_block = sizes.keys * sizes.groups * sizes.width;
        let mut query = vec![0.0; sizes.batch * query_block];
        let mut key = vec![0.0; sizes.batch * key_block];
        let mut value = vec![0.0; sizes.batch * key_block];
        query
            .par_chunks_mut(query_block)
            .zip(key.par_chunks_mut(key_block))
            .zip(value.par_chunks_mut(key_block))
            .enumerate()
            .for_each(|(batch, ((query_shk, key_tgk), value_tgk))| {
                let mut head = Head::new(self, batch);
                let mut scratch = Scratch::new(sizes);
                for place in 0..sizes.heads {
                    head.read(place);
                    gradient.head(batch, place, sizes.padded_width, &mut scratch.gradient);
                    head.pull(place, &mut scratch, [query_shk, key_tgk, value_tgk]);
                }
            });
        let dims = [sizes.batch, sizes.keys, sizes.groups, sizes.width];
        [
            by_heads(
                query,
                [sizes.batch, sizes.queries, sizes.heads, sizes.width],
            ),
            by_heads(key, dims),
            by_heads(value, dims),
        ]
    }
}

/// `[b, s, h, k]` in memory, seen as `[b, h, s, k]`.
fn by_heads(values: Vec<f32>, dims: [usize; 4]) -> FlexTensor {
    tensor_of(values, dims).permute(&[0, 2, 1, 3])
}

/// Adds a head's rows to its places among those of all heads.
fn write(output: &mut [f32], rows: &[f32], head: usize, heads: usize, sizes: Sizes, scale: f32) {
    let padded = rows.chunks_exact(sizes.padded_width);
    for (output, row) in output.chunks_exact_mut(heads * sizes.width).zip(padded) {
        let output = &mut output[head * sizes.width..][..sizes.width];
        for (output, value) in output.iter_mut().zip(row) {
            *output += value * scale;
        }
    }
}

/// One head of one batch row at a time, and memory for all of it.
struct Head<'a> {
    inputs: &'a Inputs,
    sizes: Sizes,
    batch: usize,
    /// Queries times the scale, `[sp, kp]`.
    query: Vec<f32>,
    /// `[t, kp]`.
    value: Vec<f32>,
    /// `[sp, tp]`; what is beyond `s` and `t` has no meaning.
    probability: Vec<f32>,
    /// What dropout multiplies the probabilities with, `[sp, tp]`.
    factor: Vec<f32>,
    /// `[k, tp]`.
    transposed: Vec<f32>,
    /// A result `[sp, kp]`.
    by_query: Vec<f32>,
}

/// Memory for the gradients of one head at a time.
struct Scratch {
    /// Of the result, `[sp, kp]`.
    gradient: Vec<f32>,
    /// Of the probabilities, then of the scores, `[sp, tp]`.
    pulled: Vec<f32>,
    /// Of values, then of keys, `[tp, kp]`.
    by_key: Vec<f32>,
}

impl Scratch {
    fn new(sizes: Sizes) -> Self {
        Self {
            gradient: vec![0.0; sizes.padded_queries * sizes.padded_width],
            pulled: vec![0.0; sizes.padded_queries * sizes.padded_keys],
            by_key: vec![0.0; sizes.padded_keys * sizes.padded_width],
        }
    }
}

impl<'a> Head<'a> {
    fn new(inputs: &'a Inputs, batch: usize) -> Self {
        let sizes = inputs.sizes();
        let square = sizes.padded_queries * sizes.padded_keys;
        let factors = inputs.attention.dropout.map_or(0, |_| square);
        Self {
            inputs,
            sizes,
            batch,
            query: vec![0.0; sizes.padded_queries * sizes.padded_width],
            value: vec![0.0; sizes.keys * sizes.padded_width],
            probability: vec![0.0; square],
            factor: vec![0.0; factors],
            transposed: vec![0.0; sizes.width * sizes.padded_keys],
            by_query: vec![0.0; sizes.padded_queries * sizes.padded_width],
        }
    }

    /// The head of keys and values that a head of queries reads.
    fn group(&self, head: usize) -> usize {
        head / (self.sizes.heads / self.sizes.groups)
    }

    /// Queries, values, probabilities without dropout, and dropout's factors.
    fn read(&mut self, head: usize) {
        let (sizes, batch, group) = (self.sizes, self.batch, self.group(head));
        let inputs = self.inputs;
        inputs
            .query
            .head(batch, head, sizes.padded_width, &mut self.query);
        let scale = inputs.attention.scale;
        self.query.iter_mut().for_each(|value| *value *= scale);
        inputs
            .value
            .head(batch, group, sizes.padded_width, &mut self.value);
        let keys = &mut self.transposed;
        inputs.key.transposed(batch, group, sizes.padded_keys, keys);
        let query = Left::Rows(&self.query, sizes.padded_width);
        let score = &mut self.probability;
        product(score, query, keys, sizes.width, sizes.padded_keys);
        let rows = self.probability.chunks_exact_mut(sizes.padded_keys);
        let scores = inputs.score.rows(batch, 0).take(sizes.queries);
        for (row, score) in rows.zip(scores) {
            vectorised(
                #[inline(always)]
                || softmax(&mut row[..sizes.keys], score),
            );
        }
        if let Some(mask) = inputs.attention.dropout {
            mask.factors((batch * sizes.heads + head) as u64, &mut self.factor);
        }
    }

    /// Adds this head's gradients to those of queries `[s, h, k]`, keys and values `[t, g, k]`.
    fn pull(&mut self, head: usize, scratch: &mut Scratch, outputs: [&mut [f32]; 3]) {
        let (sizes, batch, group) = (self.sizes, self.batch, self.group(head));
        let [query_shk, key_tgk, value_tgk] = outputs;
        let (padded_keys, padded_width) = (sizes.padded_keys, sizes.padded_width);
        let Scratch {
            gradient,
            pulled,
            by_key,
        } = scratch;

        // Gradients of the probabilities, in the order of dropout, softmax and scores.
        self.inputs
            .value
            .transposed(batch, group, padded_keys, &mut self.transposed);
        let left = Left::Rows(gradient, padded_width);
        product(pulled, left, &self.transposed, sizes.width, padded_keys);
        if self.factor.is_empty() {
            let left = Left::Columns(&self.probability, padded_keys);
            product(by_key, left, gradient, sizes.queries, padded_width);
        } else {
            multiply(pulled, &self.factor);
            multiply(&mut self.factor, &self.probability);
            let left = Left::Columns(&self.factor, padded_keys);
            product(by_key, left, gradient, sizes.queries, padded_width);
        }
        write(value_tgk, by_key, group, sizes.groups, sizes, 1.0);
        let rows = pulled.chunks_exact_mut(padded_keys);
        for (pulled, probability) in rows.zip(self.probability.chunks_exact(padded_keys)) {
            vectorised(
                #[inline(always)]
                || pull_softmax(&mut pulled[..sizes.keys], &probability[..sizes.keys]),
            );
        }

        let left = Left::Columns(pulled, padded_keys);
        product(by_key, left, &self.query, sizes.queries, padded_width);
        write(key_tgk, by_key, group, sizes.groups, sizes, 1.0);
        let keys = &mut self.value;
        self.inputs.key.head(batch, group, padded_width, keys);
        let left = Left::Rows(pulled, padded_keys);
        product(&mut self.by_query, left, keys, sizes.keys, padded_width);
        let scale = self.inputs.attention.scale;
        write(query_shk, &self.by_query, head, sizes.heads, sizes, scale);
    }
}

/// The softmax of `row + score` in place.
#[inline(always)]
fn softmax(row: &mut [f32], score: &[f32]) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let larger = |one: f32, other: f32| if other > one { other } else { one };
    for (row, score) in row.chunks_mut(16).zip(score.chunks(16)) {
        for ((value, score), lane) in row.iter_mut().zip(score).zip(&mut lanes) {
            *value += score;
            *lane = larger(*lane, *value);
        }
    }
    let largest = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
    for value in row.iter_mut() {
        *value = exp_of_negative(*value - largest);
    }
    let scale = 1.0 / row_sum(row, row, |value, _| value);
    for value in row.iter_mut() {
        *value *= scale;
    }
}

/// From the gradient of a softmax to that of its input, in place.
#[inline(always)]
fn pull_softmax(gradient: &mut [f32], probability: &[f32]) {
    let mean = row_sum(gradient, probability, |gradient, p| gradient * p);
    for (gradient, probability) in gradient.iter_mut().zip(probability) {
        *gradient = probability * (*gradient - mean);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation;

    use super::super::testing::{Case, compare, drawn};
    use super::*;

    const UNSEEN_SCORE: f32 = -1e9;

    /// batch rows, heads, heads of keys and values, positions of queries and of keys, head width
    type Lengths = [usize; 6];

    fn cases([batch, heads, groups, queries, keys, width]: Lengths) -> [Case; 3] {
        [
            Case::random([batch * queries, heads * width], 1.0),
            Case::random([batch * keys, groups * width], 1.0),
            Case::random([batch * keys, groups * width], 1.0),
        ]
    }

    fn split(
        inputs: &[Tensor<2>],
        [batch, heads, groups, queries, keys, width]: Lengths,
    ) -> [Tensor<4>; 3] {
        let split = |place: usize, positions, heads| {
            let rows: Tensor<4> = inputs[place]
                .clone()
                .reshape([batch, positions, heads, width]);
            rows.swap_dims(1, 2)
        };
        [
            split(0, queries, heads),
            split(1, keys, groups),
            split(2, keys, groups),
        ]
    }

    fn composed(
        inputs: &[Tensor<2>],
        lengths: Lengths,
        score: &Tensor<4>,
        factors: Option<&[f32]>,
    ) -> Tensor<4> {
        let [batch, heads, groups, queries, keys, width] = lengths;
        let [query, key, value] = split(inputs, lengths);
        let repeat = |tensor: Tensor<4>| {
            let tensor: Tensor<5> = tensor.unsqueeze_dim(2);
            tensor
                .repeat_dim(2, heads / groups)
                .reshape([batch, heads, keys, width])
        };
        let scores = query.matmul(repeat(key).swap_dims(2, 3)).mul_scalar(0.3);
        let mut probability = activation::softmax(scores + score.clone(), 3);
        if let Some(factors) = factors {
            let factors = Tensor::<1>::from_floats(factors, &score.device());
            probability = probability * factors.reshape([batch, heads, queries, keys]);
        }
        probability.matmul(repeat(value))
    }

    fn score(shape: [usize; 4]) -> Tensor<4> {
        let drawn: Tensor<4> = drawn([shape[0] * shape[2], shape[3]], 5).reshape(shape);
        let seen = drawn.clone().lower_equal_scalar(0.5);
        // Nothing is seen from the first row.
        drawn
            .mask_fill(seen.bool_not(), UNSEEN_SCORE)
            .slice_fill([0..1, 0..1, 0..1, 0..shape[3]], UNSEEN_SCORE)
    }

    #[test]
    fn equals_the_composed_operation() {
        for (lengths, score_dims) in [
            ([2, 3, 3, 9, 9, 32], [2, 1, 1, 9]),
            ([3, 4, 2, 5, 70, 8], [3, 1, 5, 70]),
            ([1, 2, 1, 1, 1, 40], [1, 1, 1, 1]),
        ] {
            let score = score(score_dims);
            let attention = Attention {
                scale: 0.3,
                dropout: None,
            };
            compare(
                &cases(lengths),
                |inputs| {
                    let [query, key, value] = split(inputs, lengths);
                    attention.forward(query, key, value, score.clone())
                },
                |inputs| composed(inputs, lengths, &score, None),
            );
        }
    }

    #[test]
    fn dropout_acts_on_the_probabilities() {
        let lengths = [2, 2, 1, 6, 32, 16];
        let mask = Mask::for_tests(0.6);
        // 6 queries are padded to 8 rows; 32 keys need no padding.
        let mut factors = Vec::new();
        for head in 0..4 {
            let mut block = vec![0.0; 8 * 32];
            mask.factors(head, &mut block);
            factors.extend_from_slice(&block[..6 * 32]);
        }
        let score = score([2, 1, 1, 32]);
        let attention = Attention {
            scale: 0.3,
            dropout: Some(mask),
        };
        compare(
            &cases(lengths),
            |inputs| {
                let [query, key, value] = split(inputs, lengths);
                attention.forward(query, key, value, score.clone())
            },
            |inputs| composed(inputs, lengths, &score, Some(&factors)),
        );
    }
}
