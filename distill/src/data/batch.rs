//! Rows to tensors.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::data::{HostResponses, Labels, Rows};
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
    /// Positions of a batch whose longest row has `longest`.
    pub fn length(self, longest: usize) -> usize {
        match self {
            Self::Longest => longest,
            Self::Multiple { of, limit } => longest.next_multiple_of(of).min(limit).max(longest),
        }
    }
}

/// One padded batch of encodings on the host, ready to be sent to a device.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "the suffix is the shape")]
pub struct HostTokens {
    token_ids_bs: TensorData,
    type_ids_bs: TensorData,
    attention_mask_bs: TensorData,
}

impl HostTokens {
    /// Pads encodings to one length.
    pub fn new(encodings: &[&Encoding], pad_id: u32, padding: Padding) -> Self {
        let longest = encodings
            .iter()
            .map(|encoding| encoding.ids.len())
            .max()
            .unwrap_or(0);
        let length = padding.length(longest.max(1));
        let rows = encodings.len();
        let data = |value: &dyn Fn(&Encoding, usize) -> u32| {
            let mut values_bs = Vec::with_capacity(rows * length);
            for encoding in encodings {
                values_bs.extend((0..length).map(|position| i64::from(value(encoding, position))));
            }
            TensorData::new(values_bs, [rows, length])
        };
        Self {
            token_ids_bs: data(&|encoding, position| {
                encoding.ids.get(position).copied().unwrap_or(pad_id)
            }),
            type_ids_bs: data(&|encoding, position| {
                encoding.type_ids.get(position).copied().unwrap_or(0)
            }),
            attention_mask_bs: data(&|encoding, position| u32::from(position < encoding.ids.len())),
        }
    }

    /// The batch on `device`.
    pub fn into_device(self, device: &Device) -> TokenBatch {
        let tensor = |data| Tensor::<2, Int>::from_data(data, device);
        TokenBatch {
            token_ids_bs: tensor(self.token_ids_bs),
            type_ids_bs: tensor(self.type_ids_bs),
            attention_mask_bs: tensor(self.attention_mask_bs),
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
    HostTokens::new(encodings, pad_id, padding).into_device(device)
}

/// The labels of some rows on the host, `[b]`.
#[derive(Clone, Debug)]
pub enum HostTargets {
    /// Class indices.
    Classes(TensorData),
    /// Numbers in f32.
    Values(TensorData),
    /// Texts to be written.
    Responses(HostResponses),
}

impl HostTargets {
    /// Labels of `rows`. Of texts to be written, the tokens count as [`HostResponses::new`] says for a step whose rows
    /// have `tokens_per_row` of them.
    ///
    /// # Panics
    /// The rows have no labels; training and validation rows always have.
    pub fn new(all: &Rows, rows: &[usize], tokens_per_row: f64, padding: Padding) -> Self {
        if !all.writings.is_empty() {
            let writings = rows.iter().map(|&row| &all.writings[row]);
            return Self::Responses(HostResponses::new(writings, tokens_per_row, padding));
        }
        match &all.labels {
            Labels::Classes(classes) => {
                let values_b: Vec<i64> = rows.iter().map(|&row| i64::from(classes[row])).collect();
                Self::Classes(TensorData::new(values_b, [rows.len()]))
            }
            Labels::Values(values) => {
                let values_b: Vec<f32> = rows.iter().map(|&row| values[row] as f32).collect();
                Self::Values(TensorData::new(values_b, [rows.len()]))
            }
            Labels::Texts(_) | Labels::Absent => {
                unreachable!(
                    "labels of training and validation rows are checked when they are read"
                )
            }
        }
    }

    /// The labels on `device`.
    pub fn into_device(self, device: &Device) -> Targets {
        match self {
            Self::Classes(data) => Targets::Classes(Tensor::from_data(data, device)),
            Self::Values(data) => Targets::Values(Tensor::from_data(data, (device, DType::F32))),
            Self::Responses(responses) => Targets::Responses(responses.into_device(device)),
        }
    }
}

/// The labels of some rows.
///
/// # Panics
/// As [`HostTargets::new`].
pub fn targets(all: &Rows, rows: &[usize], tokens_per_row: f64, device: &Device) -> Targets {
    HostTargets::new(all, rows, tokens_per_row, Padding::Longest).into_device(device)
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
