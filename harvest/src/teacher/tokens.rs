//! From the log-probabilities of a server to [`TopKPosition`].

use schemas::record::{ScoredToken, Token, TopKPosition};
use serde::Deserialize;

use super::class::{ErrorClass, TeacherError};

/// What servers write for a token that is less likely than they can say: OpenAI and vLLM this very number, llama.cpp the
/// lowest float.
pub(super) const VERY_UNLIKELY: f32 = -9999.0;

/// How far rounding may carry a sum of probabilities above one.
const SUM_TOLERANCE: f64 = 1e-2;
/// How far rounding may carry a log-probability above zero.
const LOGPROB_TOLERANCE: f32 = 1e-3;

/// A token with its log-probability as chat endpoints and llama.cpp write it.
#[derive(Debug, Deserialize)]
pub(super) struct WrittenToken {
    #[serde(default)]
    id: Option<u32>,
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    bytes: Option<Vec<u8>>,
    logprob: f32,
}

/// One position as chat endpoints and llama.cpp write it.
#[derive(Debug, Deserialize)]
pub(super) struct WrittenPosition {
    // As `WrittenToken`: flattening one would hold a whole vocabulary in memory twice.
    #[serde(default)]
    id: Option<u32>,
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    bytes: Option<Vec<u8>>,
    logprob: f32,
    #[serde(default)]
    top_logprobs: Option<Vec<WrittenToken>>,
}

impl WrittenPosition {
    /// The position with at most `k` entries.
    ///
    /// # Errors
    /// As [`position`].
    pub(super) fn read(self, k: u32) -> Result<TopKPosition, TeacherError> {
        let entries = self.top_logprobs.unwrap_or_default().into_iter();
        let entries = entries.map(WrittenToken::read).collect();
        let chosen = WrittenToken {
            id: self.id,
            token: self.token,
            bytes: self.bytes,
            logprob: self.logprob,
        };
        position(Some(chosen.read()), entries, k)
    }
}

impl WrittenToken {
    fn read(self) -> ScoredToken {
        let text = self.token.map(|text| token(&text));
        let (named_id, text) = text.map_or((None, None), |token| (token.id, token.bytes));
        let bytes = match named_id {
            // The bytes are those of the id's name, where there are any.
            Some(_) => None,
            None => self.bytes.or(text),
        };
        ScoredToken {
            token: Token {
                id: self.id.or(named_id),
                bytes,
            },
            logprob: self.logprob,
        }
    }
}

/// A token that is written as text: vLLM, when asked, writes `token_id:<id>`; OpenAI's completions write a part of a
/// character as `bytes:\xe2\x80`.
pub(super) fn token(text: &str) -> Token {
    let id = text
        .strip_prefix("token_id:")
        .and_then(|id| id.parse().ok());
    if id.is_some() {
        return Token { id, bytes: None };
    }
    let escaped = text.strip_prefix("bytes:").and_then(escaped_bytes);
    Token {
        id: None,
        bytes: Some(escaped.unwrap_or_else(|| text.as_bytes().to_vec())),
    }
}

/// The bytes of `\xe2\x80`.
fn escaped_bytes(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split("\\x");
    let is_escaped = parts.next() == Some("");
    let byte = |part: &str| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?;
    let bytes = parts.map(byte).collect::<Option<Vec<u8>>>()?;
    (is_escaped && !bytes.is_empty()).then_some(bytes)
}

/// A position of a chosen token and the most probable ones, in any order. At most `k` are kept, the most probable; what
/// the server calls [`VERY_UNLIKELY`] is no entry. What is not among them is the mass left over.
///
/// # Errors
/// A deterministic [`TeacherError`] where the numbers are no log-probabilities.
pub(super) fn position(
    chosen: Option<ScoredToken>,
    mut entries: Vec<ScoredToken>,
    k: u32,
) -> Result<TopKPosition, TeacherError> {
    let all = chosen.iter().chain(&entries).map(|scored| scored.logprob);
    for logprob in all {
        if !logprob.is_finite() || logprob > LOGPROB_TOLERANCE {
            return Err(no_probabilities(&format!("a log-probability is {logprob}")));
        }
    }
    entries.retain(|scored| scored.logprob > VERY_UNLIKELY);
    // Stable: of tokens that are equally probable, the server's order stays.
    entries.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
    entries.truncate(k as usize);
    let mass: f64 = entries
        .iter()
        .map(|entry| f64::from(entry.logprob).exp())
        .sum();
    if mass > 1.0 + SUM_TOLERANCE {
        let problem = format!("the probabilities at a position add up to {mass:.3}");
        return Err(no_probabilities(&problem));
    }
    Ok(TopKPosition {
        chosen,
        remaining_mass: (1.0 - mass).clamp(0.0, 1.0) as f32,
        entries,
    })
}

fn no_probabilities(problem: &str) -> TeacherError {
    TeacherError::new(ErrorClass::Deterministic, problem.to_owned()).advise(
        "have the server give log-probabilities: vLLM by `--logprobs-mode raw_logprobs`, its default",
    )
}

/// An answer without a signal that was asked for: the server ignored the wish.
pub(super) fn lacks(what: &str, signal: &str, advice: &str) -> TeacherError {
    TeacherError::new(
        ErrorClass::Deterministic,
        format!("the reply lacks {what}, which the signal `{signal}` is made of"),
    )
    .advise(advice)
    .lacking()
}

/// Refuses positions with holes. llama.cpp leaves out tokens that end within a character, so that later ones would stand
/// in their places.
///
/// # Errors
/// A deterministic [`TeacherError`] where there are fewer positions than tokens.
pub(super) fn check_whole(
    num_positions: usize,
    num_tokens: Option<u32>,
    signal: &str,
) -> Result<(), TeacherError> {
    match num_tokens {
        Some(num_tokens) if (num_tokens as usize) > num_positions => {
            let problem = format!(
                "signal `{signal}`: the reply has {num_positions} positions for {num_tokens} tokens"
            );
            Err(TeacherError::new(ErrorClass::Deterministic, problem).advise(
                "llama.cpp leaves out tokens that end within a character: have the model use plain letters, or ask a \
                 server that gives every position",
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::teacher) fn scored(id: u32, text: &str, logprob: f32) -> ScoredToken {
        ScoredToken {
            token: Token {
                id: Some(id),
                bytes: Some(text.into()),
            },
            logprob,
        }
    }

    fn read(json: &str, k: u32) -> Result<TopKPosition, TeacherError> {
        serde_json::from_str::<WrittenPosition>(json)
            .unwrap()
            .read(k)
    }

    #[test]
    fn tokens_that_print_alike_are_both_kept() {
        let found = read(
            r#"{"id":2,"token":"a","bytes":[97],"logprob":-1.5,"top_logprobs":[
                {"id":1,"token":"a","bytes":[97],"logprob":-0.5},{"id":2,"token":"a","bytes":[97],"logprob":-1.5}]}"#,
            5,
        )
        .unwrap();
        assert_eq!(found.chosen, Some(scored(2, "a", -1.5)));
        assert_eq!(found.entries, [scored(1, "a", -0.5), scored(2, "a", -1.5)]);
        let left = 1.0 - (-0.5_f32).exp() - (-1.5_f32).exp();
        assert!((found.remaining_mass - left).abs() < 1e-6);
    }

    #[test]
    fn tokens_are_read_in_every_dialect() {
        let both = |id, bytes: Option<&[u8]>| Token {
            id,
            bytes: bytes.map(<[u8]>::to_vec),
        };
        for (json, expected) in [
            // OpenAI: no id; a part of a character; a special token without bytes.
            (
                r#"{"token":"\\xe2","bytes":[226],"logprob":0}"#,
                both(None, Some(&[226])),
            ),
            (
                r#"{"token":"<|end|>","bytes":null,"logprob":0}"#,
                both(None, Some(b"<|end|>")),
            ),
            // llama.cpp
            (
                r#"{"id":7,"token":"b","bytes":[98],"logprob":0}"#,
                both(Some(7), Some(b"b")),
            ),
            // vLLM with `return_tokens_as_token_ids`: the bytes spell the id.
            (
                r#"{"token":"token_id:12","bytes":[116,111],"logprob":0}"#,
                both(Some(12), None),
            ),
            (
                r#"{"token":"token_id:x","logprob":0}"#,
                both(None, Some(b"token_id:x")),
            ),
        ] {
            let found = serde_json::from_str::<WrittenToken>(json).unwrap().read();
            assert_eq!(found.token, expected, "{json}");
        }
        assert_eq!(token("bytes:\\xe2\\x80").bytes.unwrap(), [0xe2, 0x80]);
        assert_eq!(token("bytes: of").bytes.unwrap(), b"bytes: of");
    }

    #[test]
    fn what_is_very_unlikely_is_no_entry_and_only_k_are_kept() {
        let entries = vec![
            scored(1, "a", -9999.0),
            scored(2, "b", f32::MIN),
            scored(3, "c", -3.0),
            scored(4, "d", -2.0),
            scored(5, "e", -1.0),
        ];
        let chosen = scored(9, "z", -9999.0);
        let found = position(Some(chosen.clone()), entries, 2).unwrap();
        assert_eq!(found.chosen, Some(chosen));
        assert_eq!(found.entries, [scored(5, "e", -1.0), scored(4, "d", -2.0)]);
    }

    /// A cold and a cached run differ by about a millionth, so a sum may pass one by as much.
    #[test]
    fn sums_a_little_above_one_are_rounding_and_others_no_probabilities() {
        let at = |logprobs: &[f32]| {
            let entries = logprobs.iter().map(|logprob| scored(1, "a", *logprob));
            position(None, entries.collect(), 20).map(|position| position.remaining_mass)
        };
        assert_eq!(at(&[1e-6]), Ok(0.0));
        assert_eq!(at(&[-0.693_146, -0.693_146]), Ok(0.0));
        for logprobs in [
            &[0.5_f32][..],
            &[-0.5, -0.5],
            &[f32::NAN],
            &[f32::NEG_INFINITY],
        ] {
            assert_eq!(at(logprobs).unwrap_err().class, ErrorClass::Deterministic);
        }
    }
}
