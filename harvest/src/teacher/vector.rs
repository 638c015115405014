//! Embeddings as servers write them: numbers, base64, one vector or one for each token.

use std::fmt;
use std::num::NonZeroU32;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use super::binary;
use super::class::{ErrorClass, TeacherError};

/// How one vector is made of one for each token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Pool {
    /// Their mean.
    Mean,
    /// That of the last token.
    Last,
    /// That of the first token.
    First,
}

/// What a server wrote for one input, not checked yet.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Embedding {
    /// One vector, in numbers.
    Pooled(Vec<f32>),
    /// One vector, in base64.
    Encoded(Vec<f32>),
    /// One vector for each token.
    PerToken(Vec<Vec<f32>>),
    /// Text that is no vector, with the reason.
    Unusable(String),
}

impl Embedding {
    /// The one vector of an input.
    ///
    /// # Errors
    /// Deterministic where there is none, one for each token came back unasked, a value is not finite or the width is not
    /// `width`.
    pub(super) fn into_vector(
        self,
        pool: Option<Pool>,
        width: Option<NonZeroU32>,
    ) -> Result<Vec<f32>, TeacherError> {
        let unusable = |problem: String| TeacherError::new(ErrorClass::Deterministic, problem);
        let vector = match (self, pool) {
            (Self::Pooled(vector) | Self::Encoded(vector), _) => vector,
            (Self::PerToken(vectors), Some(pool)) => pooled(vectors, pool).map_err(unusable)?,
            (Self::PerToken(_), None) => {
                return Err(unusable("one vector per token came back".into()).advise(
                    "ask the server for pooled embeddings, or set `pool` of the teacher to \"mean\", \"last\" or \"first\"",
                ));
            }
            (Self::Unusable(problem), _) => return Err(unusable(problem)),
        };
        if vector.is_empty() {
            return Err(unusable("the reply has a vector of width 0".into()));
        }
        if let Some(index) = vector.iter().position(|value| !value.is_finite()) {
            return Err(unusable(format!(
                "value {index} of the vector is {}",
                vector[index]
            )));
        }
        if let Some(width) = width
            && vector.len() != width.get() as usize
        {
            let problem = format!(
                "the vector has {} values, {width} dimensions were asked for",
                vector.len()
            );
            return Err(unusable(problem)
                .advise("leave `dimensions` of the teacher out where the model offers one width"));
        }
        Ok(vector)
    }
}

fn pooled(vectors: Vec<Vec<f32>>, pool: Pool) -> Result<Vec<f32>, String> {
    let num_tokens = vectors.len();
    let width = vectors.first().map_or(0, Vec::len);
    if let Some(other) = vectors.iter().find(|vector| vector.len() != width) {
        return Err(format!(
            "the vectors of its tokens have widths {width} and {}",
            other.len()
        ));
    }
    let one = match pool {
        Pool::First => vectors.into_iter().next(),
        Pool::Last => vectors.into_iter().next_back(),
        Pool::Mean => {
            let mut sum = vec![0.0_f64; width];
            for vector in &vectors {
                for (sum, value) in sum.iter_mut().zip(vector) {
                    *sum += f64::from(*value);
                }
            }
            Some(
                sum.into_iter()
                    .map(|sum| (sum / num_tokens as f64) as f32)
                    .collect(),
            )
        }
    };
    Ok(one.unwrap_or_default())
}

/// Embeddings that carry no index belong to the inputs in order, so there have to be as many.
///
/// # Errors
/// Deterministic where there are more or fewer.
pub(super) fn in_order(
    embeddings: Vec<Embedding>,
    num_inputs: usize,
) -> Result<Vec<Embedding>, TeacherError> {
    if embeddings.len() == num_inputs {
        return Ok(embeddings);
    }
    let problem = format!(
        "the reply has {} vectors for {num_inputs} inputs",
        embeddings.len()
    );
    Err(TeacherError::new(ErrorClass::Deterministic, problem))
}

impl<'de> Deserialize<'de> for Embedding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EmbeddingVisitor)
    }
}

struct EmbeddingVisitor;

impl<'de> Visitor<'de> for EmbeddingVisitor {
    type Value = Embedding;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vector of numbers, or base64 of little-endian f32")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Embedding, E> {
        Ok(from_base64(text).map_or_else(Embedding::Unusable, Embedding::Encoded))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Embedding, E> {
        Ok(Embedding::Unusable(
            "the reply has no vector for this input".into(),
        ))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Embedding, A::Error> {
        let mut values = Vec::new();
        let mut vectors = Vec::new();
        while let Some(element) = elements.next_element()? {
            match element {
                Element::Number(value) => values.push(value),
                Element::Vector(vector) => vectors.push(vector),
            }
        }
        match (values.is_empty(), vectors.is_empty()) {
            (_, true) => Ok(Embedding::Pooled(values)),
            (true, false) => Ok(Embedding::PerToken(vectors)),
            (false, false) => Ok(Embedding::Unusable("it mixes numbers and vectors".into())),
        }
    }
}

fn from_base64(text: &str) -> Result<Vec<f32>, String> {
    let bytes = binary::from_base64(text);
    let bytes = bytes.map_err(|error| format!("the vector's base64: {error}"))?;
    let (chunks, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        let num_bytes = bytes.len();
        return Err(format!(
            "the vector's base64 holds {num_bytes} bytes, no multiple of 4"
        ));
    }
    Ok(chunks
        .iter()
        .map(|chunk| f32::from_le_bytes(*chunk))
        .collect())
}

enum Element {
    Number(f32),
    Vector(Vec<f32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_f64<E>(self, value: f64) -> Result<Element, E> {
        Ok(Element::Number(value as f32))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Element, E> {
        Ok(Element::Number(value as f32))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Element, E> {
        Ok(Element::Number(value as f32))
    }

    /// Several servers write `null` for NaN.
    fn visit_unit<E>(self) -> Result<Element, E> {
        Ok(Element::Number(f32::NAN))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Element, A::Error> {
        let mut vector = Vec::new();
        while let Some(value) = elements.next_element::<Option<f32>>()? {
            vector.push(value.unwrap_or(f32::NAN));
        }
        Ok(Element::Vector(vector))
    }
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    fn vector(json: &str, pool: Option<Pool>) -> Result<Vec<f32>, String> {
        let embedding: Embedding = json::read(json.as_bytes(), "vector").map_err(|e| e.message)?;
        embedding.into_vector(pool, None).map_err(|e| e.message)
    }

    #[test]
    fn vectors_of_tokens_are_pooled_only_when_asked() {
        let nested = "[[1,2],[3,6],[5,1]]";
        assert_eq!(vector(nested, Some(Pool::Mean)), Ok(vec![3.0, 3.0]));
        assert_eq!(vector(nested, Some(Pool::Last)), Ok(vec![5.0, 1.0]));
        assert_eq!(vector(nested, Some(Pool::First)), Ok(vec![1.0, 2.0]));
        let refusal = json::read::<Embedding>(nested.as_bytes(), "vector")
            .and_then(|embedding| embedding.into_vector(None, None))
            .unwrap_err();
        assert_eq!(refusal.message, "one vector per token came back");
        assert!(refusal.hint().unwrap().contains("`pool`"));
        assert_eq!(vector("[4,5]", Some(Pool::Mean)), Ok(vec![4.0, 5.0]));
    }

    #[test]
    fn unusable_vectors_say_why() {
        for (json, pool, problem) in [
            ("[]", None, "the reply has a vector of width 0"),
            (
                "[[]]",
                Some(Pool::Mean),
                "the reply has a vector of width 0",
            ),
            ("[0,null]", None, "value 1 of the vector is NaN"),
            (
                "[[0,null]]",
                Some(Pool::First),
                "value 1 of the vector is NaN",
            ),
            ("[1e39]", None, "value 0 of the vector is inf"),
            ("\"AADAfw==\"", None, "value 0 of the vector is NaN"),
            (
                "\"AAAA\"",
                None,
                "the vector's base64 holds 3 bytes, no multiple of 4",
            ),
            ("null", None, "the reply has no vector for this input"),
            ("[1,[2]]", Some(Pool::Mean), "it mixes numbers and vectors"),
            (
                "[[1,2],[3]]",
                Some(Pool::Mean),
                "the vectors of its tokens have widths 2 and 1",
            ),
            (
                "[0,NaN]",
                None,
                "the reply holds a number that is not finite",
            ),
        ] {
            assert_eq!(vector(json, pool), Err(problem.to_owned()), "{json}");
        }
    }

    #[test]
    fn another_width_than_asked_for_is_refused() {
        let asked = NonZeroU32::new(3);
        let refusal = Embedding::Pooled(vec![1.0, 2.0])
            .into_vector(None, asked)
            .unwrap_err();
        assert_eq!(
            refusal.message,
            "the vector has 2 values, 3 dimensions were asked for"
        );
    }
}
