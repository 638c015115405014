//! Reads JSON that a server sent with a status of success.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::error::Category;

use super::class::{ErrorClass, TeacherError};
use super::http::shorten;

/// Reads a reply as a `T`; `what` names it in errors: "chat completion".
///
/// # Errors
/// Transient where the text is not whole JSON. Deterministic where it is no `T` or holds a number that JSON has no word
/// for. An error that a router wraps in a status of success is given back by its own code.
pub(super) fn read<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, TeacherError> {
    serde_json::from_slice(body).map_err(|error| unreadable(body, what, &error))
}

fn unreadable(body: &[u8], what: &str, error: &serde_json::Error) -> TeacherError {
    if error.classify() == Category::Data {
        if let Some(wrapped) = wrapped_error(body) {
            return wrapped;
        }
        // It repeats a text that it did not expect, whole.
        let problem = shorten(&error.to_string());
        let message = format!("the reply is no {what}: {problem}");
        return TeacherError::new(ErrorClass::Deterministic, message)
            .advise("check `teacher.url` and that the server speaks this protocol");
    }
    if error.classify() == Category::Syntax && is_near_a_non_number(body, error) {
        return TeacherError::new(
            ErrorClass::Deterministic,
            "the reply holds a number that is not finite",
        );
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(2048)]);
    TeacherError::new(
        ErrorClass::Transient,
        format!("the reply is not whole JSON ({error}): {}", shorten(&text)),
    )
}

/// Python writes `NaN` and `Infinity` for values that JSON has no word for.
fn is_near_a_non_number(body: &[u8], error: &serde_json::Error) -> bool {
    let before = body.split_inclusive(|byte| *byte == b'\n');
    let line: usize = before
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let near = body
        .get((line + error.column()).saturating_sub(10)..)
        .unwrap_or_default();
    let near = String::from_utf8_lossy(&near[..near.len().min(20)]);
    near.contains("NaN") || near.contains("Infinity")
}

/// `{"error": {"code": 429, "message": ...}}` under the status 200.
fn wrapped_error(body: &[u8]) -> Option<TeacherError> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error").filter(|error| !error.is_null())?;
    let message = error.get("message").and_then(Value::as_str);
    let message = message.map_or_else(|| error.to_string(), str::to_owned);
    let class = match error.get("code").and_then(Value::as_u64) {
        Some(429) => ErrorClass::Rate,
        Some(402) => ErrorClass::Quota,
        Some(401) => ErrorClass::Credentials,
        Some(503 | 529) => ErrorClass::Overload,
        Some(408 | 500 | 502..=599) => ErrorClass::Transient,
        _ => ErrorClass::Deterministic,
    };
    let message = format!("the server answered with an error: {}", shorten(&message));
    Some(TeacherError::new(class, message))
}

/// A count that servers leave out, write as `null`, or write as a float.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let value = Option::<f64>::deserialize(deserializer)?;
    Ok(value.and_then(|value| u32::try_from(value as i64).ok()))
}

/// `usage` of a reply.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default, deserialize_with = "count")]
    pub(super) prompt_tokens: Option<u32>,
    #[serde(default, deserialize_with = "count")]
    pub(super) completion_tokens: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(body: &str) -> (ErrorClass, String) {
        #[derive(Debug, Deserialize)]
        struct Reply {
            #[serde(rename = "choices")]
            _choices: Vec<f64>,
        }
        let error = read::<Reply>(body.as_bytes(), "chat completion").unwrap_err();
        (error.class, error.message)
    }

    #[test]
    fn what_is_wrong_with_a_reply_decides_its_class() {
        use ErrorClass::{Deterministic, Quota, Rate, Transient};
        for (body, expected, message) in [
            ("", Transient, "not whole JSON"),
            ("<html>504</html>", Transient, "<html>504</html>"),
            (r#"{"choices":[1,"#, Transient, "not whole JSON"),
            (r#"{"choices":[NaN]}"#, Deterministic, "not finite"),
            (
                "{\n \"choices\": [\n  -Infinity\n ]\n}",
                Deterministic,
                "not finite",
            ),
            (r#"{"data":[]}"#, Deterministic, "no chat completion"),
            (
                r#"{"error":{"code":429,"message":"slow down"}}"#,
                Rate,
                "slow down",
            ),
            (
                r#"{"error":{"code":402,"message":"no credit"}}"#,
                Quota,
                "no credit",
            ),
            (r#"{"error":"boom"}"#, Deterministic, "boom"),
        ] {
            let (class, found) = class(body);
            assert_eq!(class, expected, "{body}");
            assert!(found.contains(message), "{found}");
        }
    }

    #[test]
    fn a_long_text_in_a_wrong_place_is_not_repeated_whole() {
        let long = "a".repeat(100_000);
        for body in [
            format!(r#"{{"choices":"{long}"}}"#),
            format!(r#"{{"error":"{long}"}}"#),
        ] {
            let (_, found) = class(&body);
            assert!(found.len() < 1000, "{} bytes", found.len());
        }
    }

    #[test]
    fn counts_are_read_whatever_way_they_are_written() {
        let usage = |text: &str| serde_json::from_str::<Usage>(text).unwrap().prompt_tokens;
        assert_eq!(usage(r#"{"prompt_tokens":7}"#), Some(7));
        assert_eq!(usage(r#"{"prompt_tokens":7.0}"#), Some(7));
        assert_eq!(usage(r#"{"prompt_tokens":null}"#), None);
        assert_eq!(usage(r#"{"prompt_tokens":-1}"#), None);
        assert_eq!(usage("{}"), None);
    }
}
