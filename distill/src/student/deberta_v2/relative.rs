//! Relative positions of disentangled attention, without a gather: what attention reads depends on the distance of two
//! tokens alone, so scores are computed for every distance that occurs and shifted into place.
//!
//! Shape suffixes: `h` heads, `b` batch rows, `s` and `t` sequence positions, `r` distances, `u` rows of the relative
//! embedding that occur, `d` hidden width.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::config::Distances;
use crate::device::Precision;
use crate::student::layers::{Linear, to_precision};

impl Distances {
    /// Rows of the relative embedding.
    pub(super) fn num_rows(self) -> usize {
        2 * self.span()
    }

    fn span(self) -> usize {
        self.num_buckets.unwrap_or(self.max_distance)
    }

    /// The row of a distance, query minus key.
    fn row(self, distance: isize) -> usize {
        let bucket = self.bucket(distance.unsigned_abs()).cast_signed() * distance.signum();
        let row = bucket + self.span().cast_signed();
        row.clamp(0, self.num_rows().cast_signed() - 1)
            .unsigned_abs()
    }

    /// Distances up to half the buckets are exact, beyond that logarithmic (the code that the DeBERTa authors published
    /// with v2; in f32, as a bucket's edge depends on the rounding).
    #[expect(
        clippy::cast_sign_loss,
        reason = "distance and largest distance are over the exact ones: both logarithms are positive"
    )]
    fn bucket(self, distance: usize) -> usize {
        let Some(num_buckets) = self.num_buckets else {
            return distance;
        };
        let exact = num_buckets / 2;
        if distance <= exact {
            return distance;
        }
        let ratio = (distance as f32 / exact as f32).ln()
            / ((self.max_distance - 1) as f32 / exact as f32).ln();
        (ratio * (exact - 1) as f32).ceil() as usize + exact
    }
}

/// The part of the relative embedding that sequences of one length read.
#[derive(Debug)]
pub(super) struct RelativeRows {
    rows_ud: Tensor<2>,
    /// 1 where distance -s, ..., s reads a row; `None` where that is the identity.
    spread_ru: Option<Tensor<2>>,
}

impl RelativeRows {
    /// Of an embedding `[rows, d]` for `positions` tokens.
    pub(super) fn new(
        embedding: Tensor<2>,
        distances: Distances,
        positions: usize,
        device: &Device,
    ) -> Self {
        let farthest = positions.cast_signed();
        let row_of: Vec<usize> = (-farthest..=farthest)
            .map(|distance| distances.row(distance))
            .collect();
        let first = row_of[0];
        let num_rows = row_of[2 * positions] - first + 1;
        Self {
            rows_ud: embedding.narrow(0, first, num_rows),
            spread_ru: (num_rows < row_of.len()).then(|| one_hot(&row_of, first, num_rows, device)),
        }
    }

    /// The rows, to be changed before they are projected.
    pub(super) fn rows(&self) -> Tensor<2> {
        self.rows_ud.clone()
    }

    /// Projected rows in the order of the distances -s, ..., s: `[r, d]`.
    pub(super) fn project(
        &self,
        rows_ud: Tensor<2>,
        linear: &Linear,
        precision: Precision,
    ) -> Tensor<2> {
        let projected_ud = linear.forward(rows_ud, precision);
        match &self.spread_ru {
            None => projected_ud,
            Some(spread_ru) => to_precision(spread_ru.clone(), precision).matmul(projected_ud),
        }
    }
}

/// A matrix product with it takes rows, and its gradient adds them up in a fixed order.
fn one_hot(row_of: &[usize], first: usize, num_rows: usize, device: &Device) -> Tensor<2> {
    let places: Vec<i64> = row_of
        .iter()
        .map(|row| (row - first).cast_signed() as i64)
        .collect();
    let data = TensorData::new(places, [row_of.len(), 1]);
    let places_r1 = Tensor::<2, Int>::from_data(data, device);
    let rows_1u =
        Tensor::<1, Int>::arange(0..num_rows.cast_signed() as i64, device).unsqueeze::<2>();
    let shape = [row_of.len(), num_rows];
    places_r1.expand(shape).equal(rows_1u.expand(shape)).float()
}

/// Scores of position i for the places i-s, ..., i+s-1, `[h, b, s, 2s]`, to scores for the places 0, ..., s-1,
/// `[h, b, s, t]`: one place less per row shifts each row against the one before (Huang et al., arXiv 1809.04281).
pub(super) fn shift(score_hbsr: Tensor<4>) -> Tensor<4> {
    let [heads, batch, positions, num_places] = score_hbsr.dims();
    score_hbsr
        .reshape([heads, batch, positions * num_places])
        .narrow(2, positions, positions * (num_places - 1))
        .reshape([heads, batch, positions, num_places - 1])
        .narrow(3, 0, positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifted_scores_stand_at_their_place() {
        for positions in [1_usize, 2, 5] {
            // The score is the place it is for.
            let places: Vec<f32> = (0..positions)
                .flat_map(|i| (0..2 * positions).map(move |r| (i + r) as f32 - positions as f32))
                .collect();
            let data = TensorData::new(places, [1, 1, positions, 2 * positions]);
            let shifted = shift(Tensor::from_data(data, &Device::flex()));
            assert_eq!(shifted.dims(), [1, 1, positions, positions]);
            let expected: Vec<f32> = (0..positions)
                .flat_map(|_| (0..positions).map(|place| place as f32))
                .collect();
            assert_eq!(shifted.to_data().try_to_vec::<f32>().unwrap(), expected);
        }
    }

    #[test]
    fn without_buckets_far_distances_share_the_outermost_rows() {
        let distances = Distances {
            num_buckets: None,
            max_distance: 3,
        };
        let rows: Vec<usize> = (-5..=5).map(|distance| distances.row(distance)).collect();
        assert_eq!(rows, [0, 0, 0, 1, 2, 3, 4, 5, 5, 5, 5]);
    }

    /// `make_log_bucket_position` of `transformers`, written by `scripts/fixtures/make_encoders.py`.
    #[test]
    fn buckets_are_those_of_transformers() {
        #[derive(serde::Deserialize)]
        struct Table {
            num_buckets: usize,
            max_distance: usize,
            buckets: Vec<usize>,
        }
        let text = include_str!("../../../../tests/fixtures/encoders/buckets.json");
        let tables: Vec<Table> = serde_json::from_str(text).unwrap();
        assert_eq!(tables.len(), 3);
        for table in tables {
            let distances = Distances {
                num_buckets: Some(table.num_buckets),
                max_distance: table.max_distance,
            };
            let found: Vec<usize> = (0..table.buckets.len())
                .map(|distance| distances.bucket(distance))
                .collect();
            assert_eq!(found, table.buckets);
        }
    }
}
