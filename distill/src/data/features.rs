//! Teacher features of the training rows, and what the controls do to them.
//!
//! Shape suffixes: `n` training rows, `b` batch rows, `f` feature width (D in the method).

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use schemas::ExampleId;
use schemas::shard::VectorValues;

use crate::random::{Purpose, Randomness, fill_normal};

/// What a control does to the features.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeatureTransform {
    /// Nothing: the method itself.
    AsHarvested,
    /// One cycle over the training examples, drawn once from the run's seed: every example has a real feature, but
    /// another example's.
    Shuffled,
    /// `z + N(0, σ²)`, σ this many times the features' own standard deviation; drawn once for each example.
    Noise {
        /// σ in units of the features' standard deviation.
        deviations: f64,
    },
}

/// The features of all training rows, in the precision of the cache. Clones share them.
#[derive(Clone, Debug)]
pub struct TeacherFeatures {
    width: usize,
    values: Arc<VectorValues>,
    /// Where each training row's feature is.
    rows: Vec<usize>,
    ids: Arc<[ExampleId]>,
    noise: Option<(Randomness, f32)>,
}

impl TeacherFeatures {
    /// Features of the training rows with these `ids`; `rows[n]` is the place of row n's feature in `values`.
    pub fn new(width: usize, values: VectorValues, rows: Vec<usize>, ids: Vec<ExampleId>) -> Self {
        Self {
            width,
            values: Arc::new(values),
            rows,
            ids: ids.into(),
            noise: None,
        }
    }

    /// D.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The same features as a control sees them.
    #[must_use]
    pub fn transformed(&self, transform: FeatureTransform, randomness: Randomness) -> Self {
        let mut features = self.clone();
        match transform {
            FeatureTransform::AsHarvested => {}
            FeatureTransform::Shuffled => {
                let order = randomness.cycle(Purpose::FeaturePermutation, 0, self.rows.len());
                features.rows = order.into_iter().map(|row| self.rows[row]).collect();
            }
            FeatureTransform::Noise { deviations } => {
                features.noise = Some((randomness, (deviations * self.deviation()) as f32));
            }
        }
        features
    }

    /// The features of some training rows, `[b, D]` in f32.
    pub fn batch(&self, rows: &[usize], device: &Device) -> Tensor<2> {
        Tensor::from_data(self.host_batch(rows), (device, DType::F32))
    }

    /// The features of some training rows on the host, `[b, D]` in f32.
    pub fn host_batch(&self, rows: &[usize]) -> TensorData {
        let mut values_bf = Vec::with_capacity(rows.len() * self.width);
        for &row in rows {
            let begin = values_bf.len();
            self.append(self.rows[row], &mut values_bf);
            if let Some((randomness, deviation)) = self.noise {
                let mut noise = vec![0.0; self.width];
                fill_normal(
                    &mut randomness.stream(Purpose::FeatureNoise, self.ids[row].as_bytes()),
                    &mut noise,
                );
                for (value, noise) in values_bf[begin..].iter_mut().zip(noise) {
                    *value += deviation * noise;
                }
            }
        }
        TensorData::new(values_bf, [rows.len(), self.width])
    }

    fn append(&self, place: usize, to: &mut Vec<f32>) {
        let range = place * self.width..(place + 1) * self.width;
        match &*self.values {
            VectorValues::F16(values) => {
                to.extend(values[range].iter().map(|value| value.to_f32()));
            }
            VectorValues::F32(values) => to.extend(&values[range]),
        }
    }

    /// Root of the mean over all components of their variance over the training rows.
    fn deviation(&self) -> f64 {
        let (mut sums, mut squares) = (vec![0.0_f64; self.width], vec![0.0_f64; self.width]);
        let mut row = Vec::with_capacity(self.width);
        for &place in &self.rows {
            row.clear();
            self.append(place, &mut row);
            for (component, &value) in row.iter().enumerate() {
                sums[component] += f64::from(value);
                squares[component] += f64::from(value).powi(2);
            }
        }
        let n = self.rows.len() as f64;
        let variances = sums
            .iter()
            .zip(&squares)
            .map(|(sum, square)| (square / n - (sum / n).powi(2)).max(0.0));
        (variances.sum::<f64>() / self.width as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> TeacherFeatures {
        let ids = (0..4_u8).map(|n| ExampleId::from([n; 16])).collect();
        let values = VectorValues::F32(vec![0.0, 1.0, 2.0, 1.0, 4.0, 1.0, 6.0, 1.0]);
        TeacherFeatures::new(2, values, vec![3, 2, 1, 0], ids)
    }

    fn values(features: &TeacherFeatures, rows: &[usize]) -> Vec<f32> {
        features
            .batch(rows, &Device::flex())
            .into_data()
            .try_to_vec()
            .unwrap()
    }

    #[test]
    fn rows_find_their_own_feature() {
        assert_eq!(values(&features(), &[0, 3]), [6.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn shuffling_permutes_whole_features_once() {
        let random = Randomness::new(5);
        let shuffled = features().transformed(FeatureTransform::Shuffled, random);
        let all = values(&shuffled, &[0, 1, 2, 3]);
        let mut firsts: Vec<f32> = all.iter().step_by(2).copied().collect();
        assert_eq!(all[2..4], values(&shuffled, &[1]));
        firsts.sort_by(f32::total_cmp);
        assert_eq!(firsts, [0.0, 2.0, 4.0, 6.0]);
        for seed in 0..20 {
            let random = Randomness::new(seed);
            let shuffled = features().transformed(FeatureTransform::Shuffled, random);
            for row in 0..4 {
                assert_ne!(values(&shuffled, &[row]), values(&features(), &[row]));
            }
        }
    }

    #[test]
    fn noise_is_drawn_once_for_each_example() {
        // Variances 5 and 0, so the deviation is the root of 2.5.
        assert!((features().deviation() - 2.5_f64.sqrt()).abs() < 1e-12);
        let noisy = features().transformed(
            FeatureTransform::Noise { deviations: 2.0 },
            Randomness::new(5),
        );
        let batch = values(&noisy, &[1, 2]);
        assert_eq!(values(&noisy, &[2]), batch[2..]);
        assert_ne!(batch[1] - 1.0, batch[3] - 1.0);
    }
}
