//! Reads the reply of `/v1/embeddings`.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::class::{ErrorClass, TeacherError};
use super::http::shorten;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A reply with one vector for each input, in the order of the inputs.
#[derive(Debug, PartialEq)]
pub(super) struct EmbeddingsReply {
    pub(super) vectors: Vec<Vec<f32>>,
    pub(super) model: Option<String>,
    pub(super) fingerprint: Option<String>,
    pub(super) tokens_in: Option<u32>,
}

#[derive(Deserialize)]
struct Body {
    data: Vec<Item>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    system_fingerprint: Option<String>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    index: Option<usize>,
    embedding: Vector,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u32>,
}

impl EmbeddingsReply {
    /// Reads a reply to `num_inputs` inputs.
    ///
    /// # Errors
    /// Transient where the text is not the JSON of a whole reply, deterministic where it is and cannot be used.
    pub(super) fn parse(body: &[u8], num_inputs: usize) -> Result<Self, TeacherError> {
        let Body {
            data,
            model,
            system_fingerprint,
            usage,
        } = serde_json::from_slice(body).map_err(|error| unreadable(body, &error))?;
        let unusable = |problem: String| TeacherError::new(ErrorClass::Deterministic, problem);
        let num_items = data.len();
        let mut vectors: Vec<Option<Vec<f32>>> = vec![None; num_inputs];
        for (position, item) in data.into_iter().enumerate() {
            let index = item.index.unwrap_or(position);
            match vectors.get_mut(index) {
                Some(slot @ None) => *slot = Some(item.embedding.0),
                Some(Some(_)) => {
                    return Err(unusable(format!(
                        "the reply has two vectors with index {index}"
                    )));
                }
                None => {
                    return Err(unusable(format!(
                        "the reply has a vector with index {index} for {num_inputs} inputs"
                    )));
                }
            }
        }
        let vectors = vectors.into_iter().collect::<Option<Vec<_>>>();
        let vectors = vectors.ok_or_else(|| {
            unusable(format!(
                "the reply has {num_items} vectors for {num_inputs} inputs"
            ))
        })?;
        for vector in &vectors {
            if vector.is_empty() {
                return Err(unusable("the reply has a vector of width 0".into()));
            }
            if let Some(index) = vector.iter().position(|value| !value.is_finite()) {
                return Err(unusable(format!(
                    "value {index} of the vector is {}",
                    vector[index]
                )));
            }
        }
        Ok(Self {
            vectors,
            model,
            fingerprint: system_fingerprint,
            tokens_in: usage.and_then(|usage| usage.prompt_tokens),
        })
    }
}

fn unreadable(body: &[u8], error: &serde_json::Error) -> TeacherError {
    use serde_json::error::Category;
    let text = String::from_utf8_lossy(&body[..body.len().min(2048)]);
    // Python writes these for values that JSON has no word for.
    let lines = body.split_inclusive(|&byte| byte == b'\n');
    let num_before: usize = lines
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let near = body
        .get((num_before + error.column()).saturating_sub(10)..)
        .unwrap_or_default();
    let near = String::from_utf8_lossy(&near[..near.len().min(20)]).into_owned();
    if error.classify() == Category::Syntax && (near.contains("NaN") || near.contains("Infinity")) {
        return TeacherError::new(
            ErrorClass::Deterministic,
            "the reply holds a value that is not finite",
        );
    }
    match error.classify() {
        Category::Data => TeacherError::new(
            ErrorClass::Deterministic,
            format!("the reply is no list of embeddings: {error}"),
        ),
        _ => TeacherError::new(
            ErrorClass::Transient,
            format!("the reply is not whole JSON ({error}): {}", shorten(&text)),
        ),
    }
}

/// A vector in either encoding, whichever was asked for.
#[derive(Debug)]
struct Vector(Vec<f32>);

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VectorVisitor).map(Self)
    }
}

struct VectorVisitor;

impl<'de> Visitor<'de> for VectorVisitor {
    type Value = Vec<f32>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vector of numbers, or base64 of little-endian f32")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<f32>, E> {
        let bytes = BASE64
            .decode(text)
            .map_err(|error| E::custom(format!("the vector's base64: {error}")))?;
        let (chunks, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(E::custom(format!(
                "the vector's base64 holds {} bytes, no multiple of 4",
                bytes.len()
            )));
        }
        Ok(chunks
            .iter()
            .map(|chunk| f32::from_le_bytes(*chunk))
            .collect())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<f32>, A::Error> {
        let mut values = Vec::new();
        while let Some(Element(value)) = elements.next_element()? {
            values.push(value);
        }
        Ok(values)
    }
}

struct Element(f32);

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor).map(Self)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = f32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_f64<E>(self, value: f64) -> Result<f32, E> {
        Ok(value as f32)
    }

    fn visit_u64<E>(self, value: u64) -> Result<f32, E> {
        Ok(value as f32)
    }

    fn visit_i64<E>(self, value: i64) -> Result<f32, E> {
        Ok(value as f32)
    }

    /// Several servers write `null` for NaN.
    fn visit_unit<E>(self) -> Result<f32, E> {
        Ok(f32::NAN)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<f32, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Err(de::Error::custom(
            "one vector per token came back: ask the server for pooled embeddings",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str, num_inputs: usize) -> Result<Vec<Vec<f32>>, (ErrorClass, String)> {
        let reply = EmbeddingsReply::parse(body.as_bytes(), num_inputs);
        reply
            .map(|reply| reply.vectors)
            .map_err(|error| (error.class, error.message))
    }

    #[test]
    fn vectors_follow_index_and_either_encoding() {
        let body =
            r#"{"data":[{"index":1,"embedding":[1,-2.5]},{"index":0,"embedding":"AACAPwAAAEA="}]}"#;
        assert_eq!(parse(body, 2), Ok(vec![vec![1.0, 2.0], vec![1.0, -2.5]]));
        assert_eq!(
            parse(r#"{"data":[{"embedding":"AACAPwAAAEA"}]}"#, 1),
            Ok(vec![vec![1.0, 2.0]])
        );
    }

    #[test]
    fn unusable_replies_are_deterministic() {
        for (body, problem) in [
            (r#"{"data":[]}"#, "the reply has 0 vectors for 1 inputs"),
            (
                r#"{"data":[{"index":1,"embedding":[1]}]}"#,
                "the reply has a vector with index 1 for 1 inputs",
            ),
            (
                r#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}"#,
                "the reply has two vectors with index 0",
            ),
            (
                r#"{"data":[{"embedding":[]}]}"#,
                "the reply has a vector of width 0",
            ),
            (
                r#"{"data":[{"embedding":[0,null]}]}"#,
                "value 1 of the vector is NaN",
            ),
            (
                r#"{"data":[{"embedding":[0,NaN]}]}"#,
                "the reply holds a value that is not finite",
            ),
            (
                "{\n  \"data\": [\n    {\n      \"embedding\": [\n        0,\n        NaN\n      ]\n    }\n  ]\n}",
                "the reply holds a value that is not finite",
            ),
            (
                r#"{"data":[{"embedding":[1e39]}]}"#,
                "value 0 of the vector is inf",
            ),
            (
                r#"{"data":[{"embedding":"AADAfw=="}]}"#,
                "value 0 of the vector is NaN",
            ),
        ] {
            assert_eq!(
                parse(body, 1),
                Err((ErrorClass::Deterministic, problem.to_owned())),
                "{body}"
            );
        }
        let (class, message) = parse(r#"{"data":[{"embedding":[[1,2],[3,4]]}]}"#, 1).unwrap_err();
        assert_eq!(class, ErrorClass::Deterministic);
        assert!(
            message.contains("one vector per token came back"),
            "{message}"
        );
    }

    #[test]
    fn broken_replies_are_transient() {
        for body in [r#"{"data":[{"embedding":[1,"#, "", "<html>504</html>"] {
            assert_eq!(
                parse(body, 1).unwrap_err().0,
                ErrorClass::Transient,
                "{body}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(body in ".{0,200}") {
            let _ = parse(&body, 1);
            let _ = parse(&format!(r#"{{"data":[{{"embedding":{body}}}]}}"#), 1);
        }
    }
}
