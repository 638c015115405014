//! The tokens to be written in a batch.
//!
//! Shape suffixes: `b` batch rows, `r` response tokens of the batch, all rows one after the other.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::data::Padding;
use crate::data::prompts::Writing;
use crate::objective::Responses;

/// Responses of a batch on the host, ready to be sent to a device.
#[derive(Clone, Debug)]
pub struct HostResponses {
    rows_r: Vec<i64>,
    columns_r: Vec<i64>,
    tokens_r: Vec<i64>,
    weights_r: Vec<f32>,
    prompt_ends_b: Vec<i64>,
}

impl HostResponses {
    /// Responses of rows that are padded on the right.
    ///
    /// `tokens_per_row` is the mean number of response tokens over all rows of the optimiser's step: losses of its
    /// parts, weighted with their shares of the rows, add up to the mean over its response tokens, however these are
    /// spread over the parts. [`tokens_per_row`] computes it. Tokens of weight zero round their number up as `padding`
    /// says, so that a GPU meets few different numbers.
    pub fn new<'a>(
        writings: impl Iterator<Item = &'a Writing>,
        tokens_per_row: f64,
        padding: Padding,
    ) -> Self {
        let mut responses = Self {
            rows_r: Vec::new(),
            columns_r: Vec::new(),
            tokens_r: Vec::new(),
            weights_r: Vec::new(),
            prompt_ends_b: Vec::new(),
        };
        for (row, writing) in (0..).zip(writings) {
            let sequence = &writing.whole;
            let start = i64::try_from(sequence.response_start);
            let last_of_prompt = start.expect("a sequence is shorter than 2^63") - 1;
            responses.prompt_ends_b.push(last_of_prompt);
            for (column, &token) in (last_of_prompt..).zip(sequence.response()) {
                responses.rows_r.push(row);
                responses.columns_r.push(column);
                responses.tokens_r.push(i64::from(token));
            }
        }
        let weight = 1.0 / (tokens_per_row * responses.prompt_ends_b.len() as f64);
        let num_tokens = responses.tokens_r.len();
        responses.weights_r = vec![weight as f32; num_tokens];
        if let Padding::Multiple { of, .. } = padding {
            let length = num_tokens.next_multiple_of(of);
            responses.weights_r.resize(length, 0.0);
            for integers in [
                &mut responses.rows_r,
                &mut responses.columns_r,
                &mut responses.tokens_r,
            ] {
                integers.resize(length, 0);
            }
        }
        responses
    }

    /// The responses on `device`.
    pub fn into_device(self, device: &Device) -> Responses {
        let integers = |values: Vec<i64>| -> Tensor<1, Int> {
            let shape = [values.len()];
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        let shape = [self.weights_r.len()];
        let weights = TensorData::new(self.weights_r, shape);
        Responses {
            rows_r: integers(self.rows_r),
            columns_r: integers(self.columns_r),
            tokens_r: integers(self.tokens_r),
            weights_r: Tensor::from_data(weights, (device, DType::F32)),
            prompt_ends_b: integers(self.prompt_ends_b),
        }
    }
}

/// Mean number of response tokens of some rows.
pub fn tokens_per_row<'a>(writings: impl Iterator<Item = &'a Writing>) -> f64 {
    let (mut num_rows, mut num_tokens) = (0_usize, 0_usize);
    for writing in writings {
        num_rows += 1;
        num_tokens += writing.whole.response().len();
    }
    num_tokens as f64 / num_rows.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::prompts::Sequence;

    fn writing(ids: &[u32], response_start: usize) -> Writing {
        Writing {
            whole: Sequence {
                ids: ids.to_vec(),
                response_start,
            },
            prompt: Vec::new(),
            options: Vec::new(),
        }
    }

    #[test]
    fn every_token_is_predicted_from_the_one_before() {
        let rows = [writing(&[5, 6, 7, 8], 2), writing(&[9, 4, 3], 1)];
        let responses =
            HostResponses::new(rows.iter(), tokens_per_row(rows.iter()), Padding::Longest);
        assert_eq!(responses.rows_r, [0, 0, 1, 1]);
        assert_eq!(responses.columns_r, [1, 2, 0, 1]);
        assert_eq!(responses.tokens_r, [7, 8, 4, 3]);
        assert_eq!(responses.weights_r, [0.25; 4]);
        assert_eq!(responses.prompt_ends_b, [1, 0]);
        let padding = Padding::Multiple { of: 3, limit: 8 };
        let padded = HostResponses::new(rows.iter(), 2.0, padding);
        assert_eq!(padded.weights_r, [0.25, 0.25, 0.25, 0.25, 0.0, 0.0]);
        assert_eq!(padded.tokens_r, [7, 8, 4, 3, 0, 0]);
        assert_eq!(padded.prompt_ends_b, [1, 0]);
    }

    #[test]
    fn parts_of_a_step_add_up_to_the_mean_over_its_tokens() {
        // 1, 4 and 1 response tokens, in parts of two rows and of one.
        let rows = [
            writing(&[1, 2], 1),
            writing(&[1, 2, 3, 4, 5], 1),
            writing(&[1, 2, 3], 2),
        ];
        let mean = tokens_per_row(rows.iter());
        for (part, share) in [(&rows[..2], 2.0 / 3.0), (&rows[2..], 1.0 / 3.0)] {
            for weight in HostResponses::new(part.iter(), mean, Padding::Longest).weights_r {
                assert!((weight * share - 1.0 / 6.0).abs() < 1e-7);
            }
        }
    }
}
