//! Functions that compile to vector instructions, which those of the C library do not.

/// 1.5 · 2²³: added to a small number, it leaves the nearest integer in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// ln 2 in two parts; the product of the first with a small integer is exact (Cody and Waite, 1980).
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Under this, the exponential counts as zero.
const SMALLEST: f32 = -87.0;

/// `e^x` for `x` ≤ 0, to 2 units in the last place; zero under -87, NaN for NaN.
///
/// `x = n ln 2 + r` with |r| ≤ ln 2 / 2, and the Taylor polynomial of `e^r`.
#[inline(always)]
pub(super) fn exp_of_negative(x: f32) -> f32 {
    let bounded = if x < SMALLEST { SMALLEST } else { x };
    let rounded = bounded * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (bounded - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut power = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        power = power * r + coefficient;
    }
    let exponent = (rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits());
    let value = power * f32::from_bits(exponent);
    if x < SMALLEST { 0.0 } else { value }
}

/// The standard normal distribution function `Φ(x)` and `e^(-x²/2)`, both with an absolute error of about 1e-7.
///
/// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, whose exponential is the second result.
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    let magnitude = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let mut series = 1.061_405_4_f32;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        series = series * t + coefficient;
    }
    let density = exp_of_negative(-0.5 * x * x);
    let tail = 0.5 * series * t * density;
    (if x < 0.0 { tail } else { 1.0 - tail }, density)
}

#[cfg(test)]
mod tests {
    use statrs::function::erf::erf;

    use super::*;

    #[test]
    fn the_exponential_is_that_of_f64() {
        for step in 0..8700 {
            let x = -(step as f32) / 100.0;
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp_of_negative(x)) - exact).abs() / exact;
            assert!(relative < 2.5e-7, "{x}: {relative}");
        }
        assert_eq!(exp_of_negative(-1e9), 0.0);
        assert_eq!(exp_of_negative(f32::NEG_INFINITY), 0.0);
        assert!(exp_of_negative(f32::NAN).is_nan());
    }

    #[test]
    fn the_normal_distribution_is_that_of_f64() {
        for step in -1000..=1000 {
            let x = step as f32 / 100.0;
            let exact = 0.5 * (1.0 + erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2));
            let (distribution, density) = normal(x);
            assert!((f64::from(distribution) - exact).abs() < 3e-7, "{x}");
            let exact = (-0.5 * f64::from(x).powi(2)).exp();
            assert!((f64::from(density) - exact).abs() < 3e-7, "{x}");
        }
        assert!(normal(f32::NAN).0.is_nan());
    }
}
