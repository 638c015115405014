//! Statistics over seeds.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Differences that vary less than this, relative to the values they are differences of, are equal up to rounding.
const ROUNDING: f64 = 1e-12;

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation, with n - 1 in the denominator; `None` of fewer than two values.
pub fn sample_deviation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// One seed's two scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// With what is tested.
    pub treatment: f64,
    /// Without it.
    pub control: f64,
}

/// The result of a paired t-test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedTest {
    /// Mean of treatment minus control.
    pub mean_difference: f64,
    /// The test statistic: the mean difference in units of its standard error.
    pub t: f64,
    /// Pairs less one.
    pub degrees_of_freedom: usize,
    /// Two-sided: how likely a |t| this large would be if the true mean difference were zero.
    pub p_value: f64,
}

/// Paired t-test of treatment against control: Student's t of the differences, two-sided.
///
/// `None` with fewer than two pairs, and where all differences are equal (up to rounding), as t is not defined then:
/// equal scores say nothing about chance.
pub fn paired_t_test(pairs: &[Pair]) -> Option<PairedTest> {
    let differences: Vec<f64> = pairs
        .iter()
        .map(|pair| pair.treatment - pair.control)
        .collect();
    let mean_difference = mean(&differences)?;
    let deviation = sample_deviation(&differences)?;
    let magnitude = pairs
        .iter()
        .flat_map(|pair| [pair.treatment.abs(), pair.control.abs()])
        .fold(0.0, f64::max);
    if deviation.is_nan() || deviation <= ROUNDING * magnitude {
        return None;
    }
    let degrees_of_freedom = pairs.len() - 1;
    let t = mean_difference / (deviation / (pairs.len() as f64).sqrt());
    let student = StudentsT::new(0.0, 1.0, degrees_of_freedom as f64).ok()?;
    Some(PairedTest {
        mean_difference,
        t,
        degrees_of_freedom,
        p_value: 2.0 * student.sf(t.abs()),
    })
}

/// Expected values were printed by `scripts/golden/metrics.py` (NumPy 2.4.6, SciPy 1.17.1).
#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(treatment: &[f64], control: &[f64]) -> Vec<Pair> {
        assert_eq!(treatment.len(), control.len());
        treatment
            .iter()
            .zip(control)
            .map(|(&treatment, &control)| Pair { treatment, control })
            .collect()
    }

    fn assert_near(actual: f64, expected: f64) {
        assert!(
            (actual - expected).abs() <= 1e-10 * expected.abs(),
            "{actual} is not {expected}"
        );
    }

    #[test]
    fn mean_and_deviation_match_numpy() {
        let scores = [71.2, 70.4, 72.9, 71.8, 70.1];
        assert_near(mean(&scores).unwrap(), 71.28);
        assert_near(sample_deviation(&scores).unwrap(), 1.125_610_945_220_418_8);
        assert_near(sample_deviation(&[0.62, 0.64, 0.63]).unwrap(), 0.01);
        assert_eq!(mean(&[]), None);
        assert_eq!(sample_deviation(&[1.0]), None);
        assert_eq!(sample_deviation(&[2.0, 2.0]), Some(0.0));
    }

    #[test]
    fn paired_test_matches_scipy() {
        let cases = [
            (
                pairs(
                    &[71.2, 70.4, 72.9, 71.8, 70.1],
                    &[69.8, 70.6, 70.9, 70.2, 69.9],
                ),
                (1.0, 2.357_022_603_955_162, 0.077_915_621_244_715_64),
            ),
            (
                pairs(&[0.62, 0.64, 0.63], &[0.60, 0.61, 0.62]),
                (0.02, 3.464_101_615_137_754_4, 0.074_179_900_227_448_55),
            ),
            (
                pairs(&[10.0, 11.0, 12.0, 13.0], &[0.1, 0.9, 2.2, 2.9]),
                (9.975, 133.000_000_000_000_45, 9.371_895_645_351_52e-7),
            ),
        ];
        for (pairs, (mean_difference, t, p_value)) in cases {
            let test = paired_t_test(&pairs).unwrap();
            assert_near(test.mean_difference, mean_difference);
            assert_near(test.t, t);
            assert_near(test.p_value, p_value);
            assert_eq!(test.degrees_of_freedom, pairs.len() - 1);
        }
    }

    #[test]
    fn a_worse_treatment_has_the_same_p() {
        let better = paired_t_test(&pairs(&[0.62, 0.64, 0.63], &[0.60, 0.61, 0.62])).unwrap();
        let worse = paired_t_test(&pairs(&[0.60, 0.61, 0.62], &[0.62, 0.64, 0.63])).unwrap();
        assert_near(worse.t, -better.t);
        assert_near(worse.p_value, better.p_value);
    }

    #[test]
    fn is_undefined_without_variation() {
        assert_eq!(paired_t_test(&[]), None);
        assert_eq!(paired_t_test(&pairs(&[1.0], &[2.0])), None);
        assert_eq!(paired_t_test(&pairs(&[1.0, 2.0], &[1.0, 2.0])), None);
        assert_eq!(
            paired_t_test(&pairs(&[0.3, 0.6, 0.9], &[0.2, 0.5, 0.8])),
            None,
            "equal up to rounding"
        );
        assert_eq!(paired_t_test(&pairs(&[f64::NAN, 1.0], &[0.0, 0.0])), None);
    }
}
