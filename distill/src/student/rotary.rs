//! Rotary position embeddings (Su et al., arXiv 2104.09864) with the rules by which longer texts than those of
//! pretraining are reached.
//!
//! A head's vector is read as k/2 pairs, value i with value i + k/2; pair i at position p is turned by the angle p ω(i).
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `h` heads, `k` head width, `f` = k/2 frequencies.

use std::f64::consts::PI;

use burn::tensor::{DType, Int, Tensor, TensorData};
use serde_json::{Value, json};

use super::StudentError;
use super::fields::Fields;

/// θ where the configuration does not say.
const DEFAULT_THETA: f64 = 10_000.0;
const RULES: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// Frequencies of one model: every value has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    theta: f64,
    scaling: Scaling,
    head_size: usize,
    /// `max_position_embeddings` of the configuration.
    max_positions: usize,
}

/// How the frequencies ω(i) = θ^(−2i/k) of pretraining are changed.
#[derive(Debug, Clone, PartialEq)]
enum Scaling {
    /// Not at all.
    Default,
    /// ω / factor (Chen et al., arXiv 2306.15595).
    Linear { factor: f64 },
    /// θ grows with a sequence longer than those of pretraining (section 3.1 of arXiv 2309.00071).
    Dynamic { factor: f64 },
    /// ω / factor for long waves, ω for short ones, a ramp between (LLaMA 3.1: arXiv 2407.21783).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_positions: usize,
    },
    /// As `llama3` with a ramp over the pair's number, and cosine and sine scaled (Peng et al., arXiv 2309.00071).
    Yarn(Yarn),
    /// ω over a factor for each pair, of which there are two lists, for short and for long sequences (Ding et al.,
    /// arXiv 2402.13753).
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        attention_factor: f64,
        original_positions: usize,
    },
}

#[derive(Debug, Clone, PartialEq)]
struct Yarn {
    factor: f64,
    attention_factor: f64,
    beta_fast: f64,
    beta_slow: f64,
    truncate: bool,
    original_positions: usize,
}

/// Cosine and sine of every angle.
#[derive(Debug)]
pub(super) struct RotaryTables {
    cos_bs1f: Tensor<4>,
    sin_bs1f: Tensor<4>,
}

impl Rotary {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling` of earlier versions.
    pub(super) fn from_fields(
        fields: &Fields,
        head_size: usize,
        max_positions: usize,
    ) -> Result<Self, StudentError> {
        fields.expect_number("partial_rotary_factor", 1.0, "1")?;
        let scaling = fields.nested("rope_scaling")?;
        let parameters = match scaling.filter(|scaling| !scaling.is_empty()) {
            Some(scaling) => Some(scaling),
            None => fields.nested("rope_parameters")?,
        };
        let theta = fields.optional_positive("rope_theta")?;
        let theta = theta.unwrap_or(DEFAULT_THETA);
        let Some(parameters) = parameters else {
            return Ok(Self {
                theta,
                scaling: Scaling::Default,
                head_size,
                max_positions,
            });
        };
        parameters.expect_number("partial_rotary_factor", 1.0, "1")?;
        for layers in ["full_attention", "sliding_attention", "chunked_attention"] {
            parameters.expect_none(layers, "one rule for all layers")?;
        }
        let original_positions = match fields.optional_size("original_max_position_embeddings")? {
            Some(positions) => positions,
            None => parameters.size_or("original_max_position_embeddings", max_positions)?,
        };
        let growth = max_positions as f64 / original_positions as f64;
        let scaling = Scaling::from_fields(&parameters, original_positions, growth, head_size / 2)?;
        parameters.expect_none("mrope_section", "none")?;
        Ok(Self {
            theta: parameters.optional_positive("rope_theta")?.unwrap_or(theta),
            scaling,
            head_size,
            max_positions,
        })
    }

    /// Longest sequence that the rule is made for.
    pub(super) fn reach(&self) -> usize {
        #[expect(clippy::cast_sign_loss, reason = "factors are above 0")]
        let times = |positions: usize, factor: f64| (positions as f64 * factor) as usize;
        match &self.scaling {
            Scaling::Default | Scaling::Llama3 { .. } | Scaling::LongRope { .. } => {
                self.max_positions
            }
            Scaling::Linear { factor } | Scaling::Dynamic { factor } => {
                times(self.max_positions, *factor)
            }
            Scaling::Yarn(yarn) => {
                times(yarn.original_positions, yarn.factor).max(self.max_positions)
            }
        }
    }

    /// Adds `rope_parameters`, and the same as `rope_theta` and `rope_scaling`, which versions of `transformers` before
    /// 5 read.
    pub(super) fn insert_into(&self, config: &mut serde_json::Map<String, Value>) {
        let scaling = self.scaling.to_hugging_face();
        let mut parameters = scaling.clone();
        parameters["rope_theta"] = json!(self.theta);
        config.insert("rope_parameters".to_owned(), parameters);
        config.insert("rope_theta".to_owned(), json!(self.theta));
        let earlier = match self.scaling {
            Scaling::Default => Value::Null,
            _ => scaling,
        };
        config.insert("rope_scaling".to_owned(), earlier);
    }

    /// Tables for the positions `[b, s]` of sequences of up to `length` positions.
    ///
    /// Two rules depend on `length`: `dynamic` beyond `max_position_embeddings` and `longrope` beyond its original
    /// length. There keys computed for a shorter sequence differ from those of the whole one.
    pub(super) fn tables(&self, position_ids_bs: Tensor<2, Int>, length: usize) -> RotaryTables {
        let [rows, positions] = position_ids_bs.dims();
        let frequencies: Vec<f32> = self
            .frequencies(length)
            .into_iter()
            .map(|frequency| frequency as f32)
            .collect();
        let device = position_ids_bs.device();
        let pairs = frequencies.len();
        let frequency_111f = Tensor::<4>::from_data(
            TensorData::new(frequencies, [1, 1, 1, pairs]),
            (&device, DType::F32),
        );
        let angle_bs1f = position_ids_bs.float().reshape([rows, positions, 1, 1]) * frequency_111f;
        let factor = self.scaling.attention_factor();
        RotaryTables {
            cos_bs1f: angle_bs1f.clone().cos().mul_scalar(factor),
            sin_bs1f: angle_bs1f.sin().mul_scalar(factor),
        }
    }

    /// ω(i) for every pair.
    fn frequencies(&self, length: usize) -> Vec<f64> {
        let width = self.head_size as f64;
        let exponents: Vec<f64> = (0..self.head_size / 2)
            .map(|pair| 2.0 * pair as f64 / width)
            .collect();
        let of_pretraining = || exponents.iter().map(|exponent| self.theta.powf(-exponent));
        match &self.scaling {
            Scaling::Default => of_pretraining().collect(),
            Scaling::Linear { factor } => of_pretraining()
                .map(|frequency| frequency / factor)
                .collect(),
            Scaling::Dynamic { factor } => {
                let growth = length.max(self.max_positions) as f64 / self.max_positions as f64;
                let growth = (factor * growth - (factor - 1.0)).powf(width / (width - 2.0));
                let theta = self.theta * growth;
                exponents
                    .iter()
                    .map(|exponent| theta.powf(-exponent))
                    .collect()
            }
            Scaling::Llama3 {
                factor,
                low,
                high,
                original_positions,
            } => of_pretraining()
                .map(|frequency| {
                    let turns = *original_positions as f64 * frequency / (2.0 * PI);
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    frequency * (kept + (1.0 - kept) / factor)
                })
                .collect(),
            Scaling::Yarn(yarn) => of_pretraining()
                .zip(yarn.ramp(self.theta, self.head_size))
                .map(|(frequency, interpolated)| {
                    frequency * (1.0 - interpolated + interpolated / yarn.factor)
                })
                .collect(),
            Scaling::LongRope {
                short,
                long,
                original_positions,
                ..
            } => {
                let factors = if length > *original_positions {
                    long
                } else {
                    short
                };
                of_pretraining()
                    .zip(factors)
                    .map(|(frequency, factor)| frequency / factor)
                    .collect()
            }
        }
    }
}

impl Scaling {
    fn from_fields(
        fields: &Fields,
        original_positions: usize,
        growth: f64,
        pairs: usize,
    ) -> Result<Self, StudentError> {
        let rule = match fields.text("rope_type")? {
            Some(rule) => Some(rule),
            None => fields.text("type")?,
        };
        match rule.unwrap_or("default") {
            "default" => Ok(Self::Default),
            "linear" => Ok(Self::Linear {
                factor: fields.positive("factor")?,
            }),
            "dynamic" => Ok(Self::Dynamic {
                factor: fields.positive("factor")?,
            }),
            "llama3" => Ok(Self::Llama3 {
                factor: fields.positive("factor")?,
                low: fields.positive("low_freq_factor")?,
                high: fields.positive("high_freq_factor")?,
                original_positions,
            }),
            "yarn" => Ok(Self::Yarn(Yarn::from_fields(
                fields,
                original_positions,
                growth,
            )?)),
            "longrope" => Self::long_rope(fields, original_positions, growth, pairs),
            other => Err(fields.refuse("rope_type", other, RULES)),
        }
    }

    fn long_rope(
        fields: &Fields,
        original_positions: usize,
        growth: f64,
        pairs: usize,
    ) -> Result<Self, StudentError> {
        let factor = fields.optional_positive("factor")?.unwrap_or(growth);
        let usual = if factor <= 1.0 {
            1.0
        } else {
            (1.0 + factor.ln() / (original_positions as f64).ln()).sqrt()
        };
        let attention_factor = fields.optional_positive("attention_factor")?;
        Ok(Self::LongRope {
            short: fields.positives("short_factor", pairs)?,
            long: fields.positives("long_factor", pairs)?,
            attention_factor: attention_factor.unwrap_or(usual),
            original_positions,
        })
    }

    /// What cosine and sine are multiplied by.
    fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn(yarn) => yarn.attention_factor,
            Self::LongRope {
                attention_factor, ..
            } => *attention_factor,
            _ => 1.0,
        }
    }

    fn to_hugging_face(&self) -> Value {
        match self {
            Self::Default => json!({"rope_type": "default"}),
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
            Self::Llama3 {
                factor,
                low,
                high,
                original_positions,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original_positions,
            }),
            Self::Yarn(yarn) => json!({
                "rope_type": "yarn",
                "factor": yarn.factor,
                "attention_factor": yarn.attention_factor,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "truncate": yarn.truncate,
                "original_max_position_embeddings": yarn.original_positions,
            }),
            Self::LongRope {
                short,
                long,
                attention_factor,
                original_positions,
            } => json!({
                "rope_type": "longrope",
                "short_factor": short,
                "long_factor": long,
                "attention_factor": attention_factor,
                "original_max_position_embeddings": original_positions,
            }),
        }
    }
}

impl Yarn {
    fn from_fields(
        fields: &Fields,
        original_positions: usize,
        growth: f64,
    ) -> Result<Self, StudentError> {
        let factor = fields.optional_positive("factor")?.unwrap_or(growth);
        let temperature = |weight: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * weight * factor.ln() + 1.0
            }
        };
        let weights = (
            fields.optional_positive("mscale")?,
            fields.optional_positive("mscale_all_dim")?,
        );
        let attention_factor = match (fields.optional_positive("attention_factor")?, weights) {
            (Some(given), _) => given,
            (None, (Some(one), Some(all))) => temperature(one) / temperature(all),
            (None, _) => temperature(1.0),
        };
        Ok(Self {
            factor,
            attention_factor,
            beta_fast: fields.optional_positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: fields.optional_positive("beta_slow")?.unwrap_or(1.0),
            truncate: fields.flag_or("truncate", true)?,
            original_positions,
        })
    }

    /// The share of interpolation for every pair: 0 for those that turn more than `beta_fast` times within the original
    /// length, 1 for those that turn less than `beta_slow` times.
    fn ramp(&self, theta: f64, head_size: usize) -> impl Iterator<Item = f64> {
        let width = head_size as f64;
        let pair_turning = |turns: f64| {
            let wave = self.original_positions as f64 / (turns * 2.0 * PI);
            width * wave.ln() / (2.0 * theta.ln())
        };
        let (mut first, mut last) = (pair_turning(self.beta_fast), pair_turning(self.beta_slow));
        if self.truncate {
            (first, last) = (first.floor(), last.ceil());
        }
        let (first, last) = (first.max(0.0), last.min(width - 1.0));
        // Where both are one pair, it is the end of a steep ramp instead of a division by zero.
        let span = if last - first == 0.0 {
            0.001
        } else {
            last - first
        };
        (0..head_size / 2).map(move |pair| ((pair as f64 - first) / span).clamp(0.0, 1.0))
    }
}

impl RotaryTables {
    /// Turns every head's vector, f32 `[b, s, h, k]`.
    pub(super) fn turn(&self, input_bshk: Tensor<4>) -> Tensor<4> {
        let [_, _, _, width] = input_bshk.dims();
        let first_bshf = input_bshk.clone().narrow(3, 0, width / 2);
        let second_bshf = input_bshk.narrow(3, width / 2, width / 2);
        let (cos, sin) = (&self.cos_bs1f, &self.sin_bs1f);
        let turned_first = first_bshf.clone() * cos.clone() - second_bshf.clone() * sin.clone();
        let turned_second = second_bshf * cos.clone() + first_bshf * sin.clone();
        Tensor::cat(vec![turned_first, turned_second], 3)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        config: serde_json::Map<String, Value>,
        length: usize,
        inverse_frequencies: Vec<f64>,
        attention_factor: f64,
    }

    fn parse(config: serde_json::Map<String, Value>) -> Result<Rotary, StudentError> {
        Rotary::from_fields(&Fields::new("config.json", config), 16, 64)
    }

    #[test]
    fn every_rule_equals_transformers_and_survives_export() {
        let path = "../tests/fixtures/causal/rotary.json";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in cases {
            let rotary = parse(case.config.clone()).unwrap();
            let frequencies = rotary.frequencies(case.length);
            assert_eq!(frequencies.len(), case.inverse_frequencies.len());
            for (ours, theirs) in frequencies.iter().zip(&case.inverse_frequencies) {
                let error = (ours / theirs - 1.0).abs();
                assert!(error < 1e-6, "{:?}: {ours} {theirs}", case.config);
            }
            let factor = rotary.scaling.attention_factor();
            assert!((factor - case.attention_factor).abs() < 1e-9);

            let mut written = serde_json::Map::new();
            rotary.insert_into(&mut written);
            assert_eq!(parse(written).unwrap(), rotary);
        }
    }

    #[test]
    fn unknown_and_incomplete_rules_are_refused_by_name() {
        for (config, expected) in [
            (
                json!({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}),
                "config.json: `rope_scaling`: `rope_type` is `mrope`, supported: \
                 default, linear, dynamic, llama3, yarn, longrope",
            ),
            (
                json!({"rope_parameters": {"rope_type": "linear"}}),
                "config.json: `rope_parameters`: `factor` is `left out`, supported: a value",
            ),
            (
                json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
                "config.json: `rope_scaling`: `short_factor` is `[1.0]`, supported: \
                 one number above 0 for every two of a head's values",
            ),
            (
                json!({"partial_rotary_factor": 0.5}),
                "config.json: `partial_rotary_factor` is `0.5`, supported: 1",
            ),
            (
                json!({"rope_scaling": {}, "rope_parameters": {"partial_rotary_factor": 0.25}}),
                "config.json: `rope_parameters`: `partial_rotary_factor` is `0.25`, supported: 1",
            ),
            (
                json!({"rope_scaling": {"type": "default", "mrope_section": [4, 6, 6]}}),
                "config.json: `rope_scaling`: `mrope_section` is `[4,6,6]`, supported: none",
            ),
            (
                json!({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}),
                "config.json: `rope_parameters`: `full_attention` is `{\"rope_theta\":5.0}`, supported: \
                 one rule for all layers",
            ),
        ] {
            let error = parse(config.as_object().unwrap().clone()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_rule_reaches_as_far_as_its_factor_says() {
        for (scaling, reach) in [
            (json!({"type": "linear", "factor": 4.0}), 256),
            (json!({"type": "dynamic", "factor": 2.0}), 128),
            (
                json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
                256,
            ),
            (
                json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}),
                64,
            ),
            (Value::Null, 64),
        ] {
            let config = json!({"rope_scaling": scaling})
                .as_object()
                .unwrap()
                .clone();
            assert_eq!(parse(config).unwrap().reach(), reach);
        }
    }
}
