//! One place that sends requests: size cap, redirects, secrets, and the class of every failure.

use std::error::Error as _;
use std::fmt;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};

use super::class::{ErrorClass, TeacherError};
use super::retry_header::{retry_after, should_retry};
use crate::secret::Secret;

/// Largest reply that is read. A batch of 2,048 vectors of 1,024 JSON numbers stays below it.
const MAX_REPLY_BYTES: usize = 64 << 20;
const MAX_REDIRECTS: usize = 5;
/// Idle connections are closed before servers close theirs, commonly after 5 seconds: a request that meets the closing
/// fails with a broken pipe.
const MAX_IDLE: Duration = Duration::from_secs(4);
/// Characters of a server's message that are kept.
const MAX_MESSAGE_CHARS: usize = 300;

/// The base address of an API, such as `https://api.openai.com/v1`. It holds no secret.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BaseUrl(Url);

impl TryFrom<String> for BaseUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let url = Url::parse(&text).map_err(|error| format!("not an address: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("expected an address that starts with http:// or https://".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "an address carries no user or password: name a variable in `api_key_env`".into(),
            );
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("an address carries no query or fragment: name a variable for a key in `api_key_env`".into());
        }
        Ok(Self(url))
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl BaseUrl {
    fn endpoint(&self, segments: &[&str]) -> Url {
        let mut url = self.0.clone();
        url.path_segments_mut()
            .expect("http addresses have a path")
            .pop_if_empty()
            .extend(segments);
        url
    }

    fn is_loopback(&self) -> bool {
        match self.0.host_str() {
            Some("localhost" | "[::1]") => true,
            Some(host) => host
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|address| address.is_loopback()),
            None => false,
        }
    }
}

/// A client for one endpoint.
pub(super) struct Endpoint {
    client: Client,
    url: Url,
    key: Option<Secret>,
}

/// Without the client, which repeats its headers.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &self.url.as_str())
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(super) fn new(
        base: &BaseUrl,
        segments: &[&str],
        key: Option<Secret>,
        timeout: Duration,
    ) -> Result<Self, TeacherError> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Another part of the process may have installed one already.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let url = base.endpoint(segments);
        let mut builder = Client::builder()
            .timeout(timeout)
            .pool_idle_timeout(MAX_IDLE)
            .redirect(Policy::custom(same_origin_only))
            .user_agent(concat!("armada-harvest/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &key {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| {
                    TeacherError::new(
                        ErrorClass::Credentials,
                        "the key holds characters that a header cannot carry",
                    )
                })?;
            value.set_sensitive(true);
            builder = builder.default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]));
        }
        if url.scheme() == "http" {
            // No certificate is ever checked, so a machine without a certificate store will do.
            builder = builder.tls_certs_only([]);
        }
        if base.is_loopback() {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            TeacherError::new(
                ErrorClass::Deterministic,
                format!("cannot set up the HTTP client: {}", causes(&error)),
            )
        })?;
        Ok(Self { client, url, key })
    }

    /// Sends `body` and reads the whole reply.
    pub(super) async fn post(&self, body: &impl Serialize) -> Result<Vec<u8>, TeacherError> {
        let response = self.client.post(self.url.clone()).json(body).send().await;
        let response = response.map_err(|error| self.unsent(error))?;
        let status = response.status();
        let headers = response.headers().clone();
        let reply = self.read(response).await;
        if status.is_success() {
            return reply;
        }
        Err(self.refused(status, &headers, &reply.unwrap_or_default()))
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, TeacherError> {
        let too_large = || {
            let limit = MAX_REPLY_BYTES >> 20;
            TeacherError::new(
                ErrorClass::Deterministic,
                format!("the reply is larger than {limit} MiB"),
            )
        };
        let announced = response.content_length().unwrap_or(0);
        if announced > MAX_REPLY_BYTES as u64 {
            return Err(too_large());
        }
        let mut reply = Vec::with_capacity(announced as usize);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if reply.len() + chunk.len() > MAX_REPLY_BYTES => {
                    return Err(too_large());
                }
                Ok(Some(chunk)) => reply.extend_from_slice(&chunk),
                Ok(None) => return Ok(reply),
                Err(error) => {
                    let message = format!("the reply broke off: {}", causes(&error.without_url()));
                    return Err(TeacherError::new(
                        ErrorClass::Transient,
                        self.redact(&message),
                    ));
                }
            }
        }
    }

    fn unsent(&self, error: reqwest::Error) -> TeacherError {
        let is_lasting = error.is_redirect() || error.is_builder();
        let class = if is_lasting {
            ErrorClass::Deterministic
        } else {
            ErrorClass::Transient
        };
        let what = if error.is_timeout() {
            "no reply in time".to_owned()
        } else {
            causes(&error.without_url())
        };
        TeacherError::new(class, self.redact(&format!("{}: {what}", self.url)))
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap, reply: &[u8]) -> TeacherError {
        let said = ErrorBody::read(reply);
        let mut class = said.class(status);
        let should_retry = should_retry(headers);
        if should_retry == Some(true)
            && class == ErrorClass::Deterministic
            && !never_retried(status)
        {
            class = ErrorClass::Transient;
        }
        let mut error = TeacherError::new(
            class,
            self.redact(&format!("the server answered {status}: {}", said.message)),
        );
        error.retry_after = retry_after(headers, SystemTime::now());
        error.retry_forbidden = should_retry == Some(false);
        if said.is_context_overflow() {
            error.advice = Some("shorten the text, or raise the server's context".into());
        }
        error
    }

    fn redact(&self, text: &str) -> String {
        self.key
            .as_ref()
            .map_or_else(|| text.to_owned(), |key| key.redact(text))
    }
}

/// Credentials belong to one host: scheme, host and port must stay.
fn same_origin_only(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    let first = attempt.previous().first().map(Url::origin);
    if first.is_some_and(|first| first == attempt.url().origin()) {
        return attempt.follow();
    }
    let target = attempt.url().host_str().unwrap_or_default().to_owned();
    attempt.error(format!(
        "the server redirects to another host, {target}, which is refused"
    ))
}

/// Statuses that the same request earns again, whatever the server's headers say.
fn never_retried(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 413 | 422 | 501)
}

/// The error with its causes: the outermost message of an HTTP client seldom says why.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What a server says about a refused request.
struct ErrorBody {
    message: String,
    /// Machine-readable names, where there are some.
    names: String,
}

impl ErrorBody {
    fn read(reply: &[u8]) -> Self {
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(reply) else {
            return Self {
                message: shorten(&String::from_utf8_lossy(reply)),
                names: String::new(),
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
        let names: Vec<String> = ["code", "type", "error_type"]
            .into_iter()
            .filter_map(|key| text(inner.get(key)?))
            .collect();
        Self {
            message: shorten(&message.unwrap_or_else(|| json.to_string())),
            names: names.join(" "),
        }
    }

    fn is_context_overflow(&self) -> bool {
        ["context_length", "exceed_context", "context_window"]
            .into_iter()
            .any(|name| self.names.contains(name))
    }

    fn class(&self, status: StatusCode) -> ErrorClass {
        let named = |names: &[&str]| names.iter().any(|name| self.names.contains(name));
        if self.is_context_overflow() {
            return ErrorClass::Deterministic;
        }
        match status.as_u16() {
            402 => ErrorClass::Quota,
            429 if named(&["insufficient_quota", "billing"]) => ErrorClass::Quota,
            429 if named(&["overload"]) => ErrorClass::Overload,
            429 => ErrorClass::Rate,
            403 if named(&["content", "moderation"]) => ErrorClass::Deterministic,
            401 | 403 => ErrorClass::Credentials,
            503 | 529 => ErrorClass::Overload,
            501 => ErrorClass::Deterministic,
            408 | 409 | 500..=599 => ErrorClass::Transient,
            _ => ErrorClass::Deterministic,
        }
    }
}

/// `text` on one line, cut where it is long.
pub(super) fn shorten(text: &str) -> String {
    crate::failures::shorten(text, MAX_MESSAGE_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_debug_output_shows_a_secret() {
        let base = BaseUrl::try_from("http://localhost:1/v1/".to_owned()).unwrap();
        let key = Some(Secret::new("sk-TOPSECRET"));
        let endpoint = Endpoint::new(&base, &["embeddings"], key, Duration::from_secs(1)).unwrap();
        assert_eq!(endpoint.url.as_str(), "http://localhost:1/v1/embeddings");
        let refusal = endpoint.refused(
            StatusCode::UNAUTHORIZED,
            &HeaderMap::new(),
            b"no sk-TOPSECRET",
        );
        for text in [
            format!("{endpoint:?}"),
            format!("{base:?}"),
            format!("{refusal:?}"),
            refusal.to_string(),
        ] {
            assert!(!text.contains("TOPSECRET"), "{text}");
        }
    }

    #[test]
    fn loopback_addresses_are_known() {
        let is_loopback = |url: &str| BaseUrl::try_from(url.to_owned()).unwrap().is_loopback();
        assert!(
            [
                "http://127.0.0.2:1/v1",
                "http://localhost/v1",
                "http://[::1]:8/"
            ]
            .into_iter()
            .all(is_loopback)
        );
        assert!(
            !["http://10.0.0.1/v1", "https://api.openai.com/v1"]
                .into_iter()
                .any(is_loopback)
        );
    }
}
