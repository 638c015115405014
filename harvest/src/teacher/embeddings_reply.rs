//! Reads the reply of `/v1/embeddings`.

use serde::Deserialize;

use super::class::{ErrorClass, TeacherError};
use super::json;
use super::vector::Embedding;

/// A reply with one entry for each input, in the order of the inputs.
#[derive(Debug, PartialEq)]
pub(super) struct EmbeddingsReply {
    pub(super) embeddings: Vec<Embedding>,
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
    usage: Option<json::Usage>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    index: Option<usize>,
    embedding: Embedding,
}

impl EmbeddingsReply {
    /// Reads a reply to `num_inputs` inputs. The vectors are not checked: each is its own row's.
    ///
    /// # Errors
    /// Transient where the text is not the JSON of a whole reply, deterministic where it is and its vectors cannot be
    /// told which input they belong to.
    pub(super) fn parse(body: &[u8], num_inputs: usize) -> Result<Self, TeacherError> {
        let body: Body = json::read(body, "list of embeddings")?;
        let unusable = |problem: String| Err(TeacherError::new(ErrorClass::Deterministic, problem));
        let num_items = body.data.len();
        let mut embeddings: Vec<Option<Embedding>> = vec![None; num_inputs];
        for (position, item) in body.data.into_iter().enumerate() {
            let index = item.index.unwrap_or(position);
            match embeddings.get_mut(index) {
                Some(slot @ None) => *slot = Some(item.embedding),
                Some(Some(_)) => {
                    return unusable(format!("the reply has two vectors with index {index}"));
                }
                None => {
                    return unusable(format!(
                        "the reply has a vector with index {index} for {num_inputs} inputs"
                    ));
                }
            }
        }
        let Some(embeddings) = embeddings.into_iter().collect() else {
            return unusable(format!(
                "the reply has {num_items} vectors for {num_inputs} inputs"
            ));
        };
        Ok(Self {
            embeddings,
            model: body.model,
            fingerprint: body.system_fingerprint,
            tokens_in: body.usage.and_then(|usage| usage.prompt_tokens),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rows = Vec<Result<Vec<f32>, String>>;

    fn parse(body: &str, num_inputs: usize) -> Result<Rows, (ErrorClass, String)> {
        let reply = EmbeddingsReply::parse(body.as_bytes(), num_inputs)
            .map_err(|error| (error.class, error.message))?;
        let vector = |embedding: Embedding| embedding.into_vector(None, None);
        let rows = reply.embeddings.into_iter().map(vector);
        Ok(rows.map(|row| row.map_err(|error| error.message)).collect())
    }

    #[test]
    fn vectors_follow_index_and_either_encoding() {
        let body =
            r#"{"data":[{"index":1,"embedding":[1,-2.5]},{"index":0,"embedding":"AACAPwAAAEA="}]}"#;
        assert_eq!(
            parse(body, 2),
            Ok(vec![Ok(vec![1.0, 2.0]), Ok(vec![1.0, -2.5])])
        );
        assert_eq!(
            parse(r#"{"data":[{"embedding":"AACAPwAAAEA"}]}"#, 1),
            Ok(vec![Ok(vec![1.0, 2.0])])
        );
    }

    #[test]
    fn a_row_s_own_fault_is_its_own() {
        let body = r#"{"data":[{"embedding":[1]},{"embedding":[null]},{"embedding":"?"},{"embedding":[2]}]}"#;
        let rows = parse(body, 4).unwrap();
        assert_eq!((&rows[0], &rows[3]), (&Ok(vec![1.0]), &Ok(vec![2.0])));
        assert_eq!(rows[1], Err("value 0 of the vector is NaN".to_owned()));
        assert!(
            rows[2]
                .as_ref()
                .unwrap_err()
                .starts_with("the vector's base64")
        );
    }

    #[test]
    fn replies_without_a_match_to_their_inputs_are_deterministic() {
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
                r#"{"data":[{"embedding":[0,NaN]}]}"#,
                "the reply holds a number that is not finite",
            ),
            (
                "{\n  \"data\": [\n    {\n      \"embedding\": [\n        0,\n        NaN\n      ]\n    }\n  ]\n}",
                "the reply holds a number that is not finite",
            ),
        ] {
            assert_eq!(
                parse(body, 1),
                Err((ErrorClass::Deterministic, problem.to_owned())),
                "{body}"
            );
        }
    }

    #[test]
    fn an_odd_count_costs_no_vector() {
        for (count, expected) in [("7.0", Some(7)), ("-1", None), ("5e9", None)] {
            let body =
                format!(r#"{{"data":[{{"embedding":[1]}}],"usage":{{"prompt_tokens":{count}}}}}"#);
            let reply = EmbeddingsReply::parse(body.as_bytes(), 1).unwrap();
            assert_eq!(reply.tokens_in, expected);
        }
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
