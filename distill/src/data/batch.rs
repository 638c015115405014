//! Rows to tensors.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::data::Labels;
use crate::objective::Targets;
use crate::student::{Encoding, TokenBatch};

/// How long the rows of a batch become. Padding changes no loss; more of it costs time, and fewer different lengths
/// save a GPU from tuning kernels for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// To the longest row.
    Longest,
    /// To the next multiple of this many positions, but not beyond the limit.
    Multiple {
        /// The step.
        of: usize,
        /// The encoder's or the tokenizer's limit.
        limit: usize,
    },
}

impl Padding {
    fn length(self, longest: usize) -> usize {
        match self {
            Self::Longest => longest,
            Self::Multiple { of, limit } => longest.next_multiple_of(of).min(limit).max(longest),
        }
    }
}

/// One padded batch of encodings.
pub fn token_batch(
    encodings: &[&Encoding],
    pad_id: u32,
    padding: Padding,
    device: &Device,
) -> TokenBatch {
    let longest = encodings
        .iter()
        .map(|encoding| encoding.ids.len())
        .max()
        .unwrap_or(0);
    let length = padding.length(longest.max(1));
    let rows = encodings.len();
    let tensor = |value: &dyn Fn(&Encoding, usize) -> u32| -> Tensor<2, Int> {
        let mut values_bs = Vec::with_capacity(rows * length);
        for encoding in encodings {
            values_bs.extend((0..length).map(|position| i64::from(value(encoding, position))));
        }
        Tensor::from_data(TensorData::new(values_bs, [rows, length]), device)
    };
    TokenBatch {
        token_ids_bs: tensor(&|encoding, position| {
            encoding.ids.get(position).copied().unwrap_or(pad_id)
        }),
        type_ids_bs: tensor(&|encoding, position| {
            encoding.type_ids.get(position).copied().unwrap_or(0)
        }),
        attention_mask_bs: tensor(&|encoding, position| u32::from(position < encoding.ids.len())),
    }
}

/// The labels of some rows.
///
/// # Panics
/// The rows have no labels; training and validation rows always have.
pub fn targets(labels: &Labels, rows: &[usize], device: &Device) -> Targets {
    match labels {
        Labels::Classes(classes) => {
            let values_b: Vec<i64> = rows.iter().map(|&row| i64::from(classes[row])).collect();
            Targets::Classes(Tensor::from_data(
                TensorData::new(values_b, [rows.len()]),
                device,
            ))
        }
        Labels::Values(values) => {
            let values_b: Vec<f32> = rows.iter().map(|&row| values[row] as f32).collect();
            Targets::Values(Tensor::from_data(
                TensorData::new(values_b, [rows.len()]),
                (device, DType::F32),
            ))
        }
        Labels::Absent => {
            unreachable!("labels of training and validation rows are checked when they are read")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_rows_are_padded_and_masked() {
        let one = Encoding {
            ids: vec![2, 7, 3],
            type_ids: vec![0, 0, 1],
        };
        let two = Encoding {
            ids: vec![2, 3],
            type_ids: vec![0, 0],
        };
        let values = |tensor: Tensor<2, Int>| {
            tensor
                .into_data()
                .convert::<i64>()
                .try_to_vec::<i64>()
                .unwrap()
        };
        let batch = token_batch(
            &[&one, &two],
            9,
            Padding::Multiple { of: 4, limit: 128 },
            &Device::flex(),
        );
        assert_eq!(values(batch.token_ids_bs), [2, 7, 3, 9, 2, 3, 9, 9]);
        assert_eq!(values(batch.type_ids_bs), [0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(values(batch.attention_mask_bs), [1, 1, 1, 0, 1, 1, 0, 0]);
        assert_eq!(
            token_batch(&[&one, &two], 9, Padding::Longest, &Device::flex())
                .token_ids_bs
                .dims(),
            [2, 3]
        );
        let limited = token_batch(
            &[&one],
            9,
            Padding::Multiple { of: 4, limit: 3 },
            &Device::flex(),
        );
        assert_eq!(limited.token_ids_bs.dims(), [1, 3]);
    }
}
