//! One reply of a teacher about one example.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::example::ExampleId;
use crate::signal::{FloatType, SignalKind, SignalSpec};

pub use crate::top_k::{ScoredToken, Token, TokenTopK, TopKPosition};

/// The value of one signal for one example.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", rename_all = "snake_case")]
pub enum SignalValue {
    /// A feature or class logits.
    #[serde(with = "vector_as_base64")]
    Vector(Vec<f32>),
    /// Token log-probabilities.
    #[serde(with = "top_k_as_base64")]
    TokenTopK(TokenTopK),
    /// Generated text.
    Text(String),
    /// An encoded picture.
    #[serde(with = "bytes_as_base64")]
    Image(Vec<u8>),
}

impl SignalValue {
    /// Checks this value against `spec` and rounds a vector to the stored precision.
    ///
    /// # Errors
    /// A sentence that says what is wrong: another kind, another width, a value that is not finite or does not fit
    /// the stored element type.
    pub fn fit(self, spec: &SignalSpec) -> Result<Self, String> {
        match (self, spec.kind()) {
            (
                Self::Vector(values),
                SignalKind::Feature { width, dtype } | SignalKind::ClassLogits { width, dtype },
            ) => fit_vector(values, *width as usize, *dtype).map(Self::Vector),
            (Self::TokenTopK(top_k), SignalKind::TokenTopK { k }) => match top_k.problem(*k) {
                Some(problem) => Err(problem),
                None => Ok(Self::TokenTopK(top_k)),
            },
            (value @ Self::Text(_), SignalKind::Text)
            | (value @ Self::Image(_), SignalKind::Image) => Ok(value),
            (value, kind) => Err(format!("a {} was given for {kind:?}", value.kind_name())),
        }
    }

    fn kind_name(&self) -> &'static str {
        match self {
            Self::Vector(_) => "vector",
            Self::TokenTopK(_) => "token top-k",
            Self::Text(_) => "text",
            Self::Image(_) => "image",
        }
    }
}

fn fit_vector(mut values: Vec<f32>, width: usize, dtype: FloatType) -> Result<Vec<f32>, String> {
    if values.len() != width {
        return Err(format!("{} values, expected {width}", values.len()));
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(format!("value {index} is {}", values[index]));
    }
    if dtype == FloatType::F16 {
        for (index, value) in values.iter_mut().enumerate() {
            let rounded = half::f16::from_f32(*value).to_f32();
            if !rounded.is_finite() {
                return Err(format!(
                    "value {index} is {value}, outside the range of f16: store f32"
                ));
            }
            *value = rounded;
        }
    }
    Ok(values)
}

/// How a reply came to be. Every entry is what the server said, absent where it said nothing.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// The model that answered.
    pub served_model: Option<String>,
    /// The server's fingerprint of its configuration.
    pub fingerprint: Option<String>,
    /// Why generation stopped.
    pub finish_reason: Option<String>,
    /// Tokens of the request.
    pub tokens_in: Option<u32>,
    /// Tokens of the reply.
    pub tokens_out: Option<u32>,
    /// What the reply cost, in the currency of the configured price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// When the reply was there: milliseconds since 1970, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<i64>,
    /// Requests sent for this reply, the successful one included; 0 where nothing was sent.
    pub tries: u32,
    /// Milliseconds from sending the successful request to the end of its reply.
    pub latency_ms: Option<f32>,
}

/// One reply of a teacher: the signals of one example in one draw.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TeacherRecord {
    /// The example asked about.
    pub id: ExampleId,
    /// Which of several replies to the same example this is, from 0.
    pub draw: u32,
    /// The values by signal name.
    pub signals: BTreeMap<String, SignalValue>,
    /// How the reply came to be.
    pub provenance: Provenance,
}

impl TeacherRecord {
    /// About the bytes that the signals take in memory.
    pub fn num_bytes(&self) -> usize {
        let of = |value: &SignalValue| match value {
            SignalValue::Vector(values) => 4 * values.len(),
            SignalValue::TokenTopK(top_k) => 4 * top_k.num_bytes(),
            SignalValue::Text(text) => text.len(),
            SignalValue::Image(bytes) => bytes.len(),
        };
        self.signals.values().map(of).sum()
    }

    /// Checks every signal against `specs` and rounds vectors to the stored precision.
    ///
    /// # Errors
    /// [`Error::InvalidSignal`] where a signal is missing, unknown, of another kind or width, or not finite.
    pub fn fit(mut self, specs: &[SignalSpec]) -> Result<Self, Error> {
        let invalid = |signal: &str, problem: String| Error::InvalidSignal {
            example: self.id.to_string(),
            signal: signal.to_owned(),
            problem,
        };
        let mut fitted = BTreeMap::new();
        for spec in specs {
            let value = self
                .signals
                .remove(spec.name())
                .ok_or_else(|| invalid(spec.name(), "the reply lacks it".into()))?;
            let value = value
                .fit(spec)
                .map_err(|problem| invalid(spec.name(), problem))?;
            fitted.insert(spec.name().to_owned(), value);
        }
        if let Some(name) = self.signals.keys().next() {
            return Err(invalid(name, "the cache has no such signal".into()));
        }
        self.signals = fitted;
        Ok(self)
    }
}

fn decode_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    BASE64
        .decode(text.as_bytes())
        .map_err(serde::de::Error::custom)
}

mod bytes_as_base64 {
    use base64::Engine as _;

    use super::{BASE64, Deserializer, Serializer, decode_base64};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        decode_base64(deserializer)
    }
}

mod vector_as_base64 {
    use base64::Engine as _;

    use super::{BASE64, Deserializer, Serializer, decode_base64};

    pub(super) fn serialize<S: Serializer>(
        values: &[f32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<f32>, D::Error> {
        let bytes = decode_base64(deserializer)?;
        let (chunks, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(serde::de::Error::custom(
                "the length of a vector is not a multiple of 4 bytes",
            ));
        }
        Ok(chunks
            .iter()
            .map(|chunk| f32::from_le_bytes(*chunk))
            .collect())
    }
}

mod top_k_as_base64 {
    use base64::Engine as _;

    use super::{BASE64, Deserializer, Serializer, TokenTopK, decode_base64};

    pub(super) fn serialize<S: Serializer>(
        top_k: &TokenTopK,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(top_k.to_bytes()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<TokenTopK, D::Error> {
        TokenTopK::from_bytes(&decode_base64(deserializer)?)
            .ok_or_else(|| serde::de::Error::custom("the packed top-k does not follow its layout"))
    }
}
