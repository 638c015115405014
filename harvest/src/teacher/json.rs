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
/// Transient where the text breaks off or is none of JSON. Deterministic where it came whole and is no `T` all the same:
/// it was paid for, and the same comes again. An error that a router wraps in a status of success is given back by its own
/// code.
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
    let text = shorten(&text);
    if error.classify() == Category::Syntax && is_enclosed(body) {
        let problem = format!("the reply came whole and is no valid JSON ({error}): {text}");
        return TeacherError::new(ErrorClass::Deterministic, problem).advise(
            "half a surrogate pair, bytes that are no UTF-8 and numbers beyond f64 are the server's to mend",
        );
    }
    let problem = format!("the reply is not whole JSON ({error}): {text}");
    TeacherError::new(ErrorClass::Transient, problem)
}

/// Whether a text begins and ends as an object or a list does.
fn is_enclosed(body: &[u8]) -> bool {
    let body = body.trim_ascii();
    matches!(
        (body.first(), body.last()),
        (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']'))
    )
}

/// The error of a reply that could be read and has nothing of what was asked for: the one that it wraps, or `problem`.
pub(super) fn without_answer(body: &[u8], problem: &str) -> TeacherError {
    let found = || TeacherError::new(ErrorClass::Deterministic, problem);
    wrapped_error(body).unwrap_or_else(found)
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

/// `{"error": {"code": 429, "message": ...}}` under the status 200; some write the code as a text, or name a type.
fn wrapped_error(body: &[u8]) -> Option<TeacherError> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error").filter(|error| !error.is_null())?;
    let message = error.get("message").and_then(Value::as_str);
    let message = message.map_or_else(|| error.to_string(), str::to_owned);
    let code = error.get("code").unwrap_or(&Value::Null);
    let number = code.as_u64().or_else(|| code.as_str()?.parse().ok());
    let words = [Some(code), error.get("type")].into_iter().flatten();
    let named = words.filter_map(Value::as_str).find_map(class_of_name);
    let class = match number {
        Some(429) => named.unwrap_or(ErrorClass::Rate),
        Some(402) => ErrorClass::Quota,
        Some(401) => ErrorClass::Credentials,
        Some(503 | 529) => ErrorClass::Overload,
        Some(408 | 500 | 502..=599) => ErrorClass::Transient,
        _ => named.unwrap_or(ErrorClass::Deterministic),
    };
    let message = format!("the server answered with an error: {}", shorten(&message));
    Some(TeacherError::new(class, message))
}

/// What OpenAI and Anthropic call their errors.
fn class_of_name(name: &str) -> Option<ErrorClass> {
    Some(match name {
        "rate_limit_error" | "rate_limit_exceeded" => ErrorClass::Rate,
        "overloaded_error" => ErrorClass::Overload,
        "insufficient_quota" | "billing_error" => ErrorClass::Quota,
        "authentication_error" | "invalid_api_key" | "permission_error" => ErrorClass::Credentials,
        "api_error" | "server_error" | "timeout_error" => ErrorClass::Transient,
        _ => return None,
    })
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
        use ErrorClass::{Deterministic, Overload, Quota, Rate, Transient};
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
            (r#"{"error":{"code":"429","message":"slow"}}"#, Rate, "slow"),
            (
                r#"{"error":{"code":429,"type":"insufficient_quota","message":"empty"}}"#,
                Quota,
                "empty",
            ),
            (
                r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#,
                Overload,
                "busy",
            ),
            // What came whole was paid for.
            (r#"{"choices":["\ud800"]}"#, Deterministic, "came whole"),
            (r#"{"choices":[1e400]}"#, Deterministic, "came whole"),
            ("upstream {down}", Transient, "not whole JSON"),
        ] {
            let (class, found) = class(body);
            assert_eq!(class, expected, "{body}");
            assert!(found.contains(message), "{found}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_not_paid_for_again() {
        let error = read::<Value>(b"{\"text\":\"\xff\"}", "text").unwrap_err();
        assert_eq!(error.class, ErrorClass::Deterministic, "{error}");
        let error = read::<Value>(b"{\"text\":\"\xff", "text").unwrap_err();
        assert_eq!(error.class, ErrorClass::Transient, "{error}");
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
