//! What servers say of what they refuse.

use std::time::Duration;

use reqwest::StatusCode;

use crate::teacher::ErrorClass;

/// Characters of a server's message that are kept.
const MAX_MESSAGE_CHARS: usize = 300;

/// Statuses that the same request earns again, whatever the server's headers say.
pub(super) fn never_retried(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 413 | 422 | 501)
}

/// What a server says about a refused request.
pub(super) struct ErrorBody {
    pub(super) message: String,
    /// Machine-readable names, where there are some.
    names: String,
    /// When to ask again, where the body says it: Google's does, and the headers beside it do not.
    pub(super) retry_delay: Option<Duration>,
}

impl ErrorBody {
    pub(super) fn read(reply: &[u8]) -> Self {
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(reply) else {
            return Self {
                message: shorten(&String::from_utf8_lossy(reply)),
                names: String::new(),
                retry_delay: None,
            };
        };
        let inner = json
            .get("error")
            .filter(|error| error.is_object())
            .unwrap_or(&json);
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let message = ["message", "detail", "error"]
            .into_iter()
            .filter_map(|key| inner.get(key))
            .find(|value| !value.is_null())
            .map(|value| text(value).unwrap_or_else(|| value.to_string()));
        let names = ["code", "type", "error_type", "status"]
            .into_iter()
            .filter_map(|key| text(inner.get(key)?));
        // Google says what is wrong in a list of details.
        let details = inner.get("details").and_then(serde_json::Value::as_array);
        let details = details.into_iter().flatten();
        let reasons = details
            .clone()
            .filter_map(|detail| text(detail.get("reason")?));
        let delay = |detail: &serde_json::Value| {
            let seconds = detail.get("retryDelay")?.as_str()?.strip_suffix('s')?;
            Duration::try_from_secs_f64(seconds.parse().ok()?).ok()
        };
        let names: Vec<String> = names.chain(reasons).collect();
        Self {
            message: shorten(&message.unwrap_or_else(|| json.to_string())),
            names: names.join(" "),
            retry_delay: details.clone().find_map(delay),
        }
    }

    pub(super) fn is_context_overflow(&self) -> bool {
        ["context_length", "exceed_context", "context_window"]
            .into_iter()
            .any(|name| self.names.contains(name))
    }

    fn named(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.names.contains(name))
    }

    /// Whether there is no money left, in the words of OpenAI, those who speak like it, and Anthropic. A message may repeat
    /// the text of a row, but does not start with it.
    fn is_about_money(&self) -> bool {
        self.named(&["insufficient_quota", "billing", "current_quota"])
            || self.message.starts_with("Your credit balance is too low")
    }

    /// Whether the server refuses every request alike: it does not have the path, the model or the signal.
    pub(super) fn is_of_no_row(&self, status: StatusCode) -> bool {
        matches!(status.as_u16(), 404 | 405 | 501) || self.named(&["model_not_found"])
    }

    /// What the user can do, where it shows.
    pub(super) fn advice(&self, status: StatusCode) -> Option<&'static str> {
        match status.as_u16() {
            _ if self.is_context_overflow() => {
                Some("shorten the text, or raise the server's context")
            }
            501 => Some(
                "leave the signal that the server does not have out of the configuration, or ask another server",
            ),
            400 | 422 if self.message.contains("logprobs") => Some(
                "lower `top_logprobs`, or leave the log-probabilities out of the configuration",
            ),
            _ if self.is_of_no_row(status) => Some("check `url` and `model` of the teacher"),
            _ => None,
        }
    }

    pub(super) fn class(&self, status: StatusCode) -> ErrorClass {
        let named = |names: &[&str]| self.named(names);
        if self.is_context_overflow() {
            return ErrorClass::Deterministic;
        }
        match status.as_u16() {
            400 if named(&["API_KEY_INVALID"]) => ErrorClass::Credentials,
            402 => ErrorClass::Quota,
            400 | 403 | 429 if self.is_about_money() => ErrorClass::Quota,
            429 if named(&["overload"]) => ErrorClass::Overload,
            429 => ErrorClass::Rate,
            403 if named(&["content", "moderation"]) => ErrorClass::Deterministic,
            401 | 403 => ErrorClass::Credentials,
            503 | 529 => ErrorClass::Overload,
            501 => ErrorClass::Deterministic,
            // text-embeddings-inference says 424 where its backend failed.
            408 | 409 | 424 | 500..=599 => ErrorClass::Transient,
            _ => ErrorClass::Deterministic,
        }
    }
}

/// `text` on one line, cut where it is long.
pub(in crate::teacher) fn shorten(text: &str) -> String {
    crate::failures::shorten(text, MAX_MESSAGE_CHARS)
}
