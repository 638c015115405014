//! One place that sends requests: size cap, redirects, secrets, and the class of every failure.

mod base_url;
mod error_body;
mod headers;

use std::error::Error as _;
use std::fmt;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use super::class::{ErrorClass, Sent, TeacherError};
use super::hints::RateHints;
use super::retry_header::{retry_after, should_retry};
use crate::config::ServerConfig;
use crate::secret::Secret;

use error_body::{ErrorBody, never_retried};
use headers::headers;

pub use base_url::BaseUrl;
pub(super) use base_url::is_loopback;
pub(super) use error_body::shorten;
pub(crate) use headers::KeyHeader;

const MAX_REDIRECTS: usize = 5;
/// Idle connections are closed before servers close theirs, commonly after 5 seconds: a request that meets the closing
/// fails with a broken pipe.
const MAX_IDLE: Duration = Duration::from_secs(4);
/// Connections without a request that are kept. A request that finds none idle opens one, so a burst leaves more of
/// them than are ever used at a time, each with its buffers.
const MAX_IDLE_CONNECTIONS: usize = 16;
/// Bytes of the shortest secret that is taken out of replies, and not of errors alone.
const MIN_SECRET_BYTES: usize = 8;

/// A reply with a status of success.
#[derive(Debug)]
pub(crate) struct HttpReply {
    pub(crate) body: Vec<u8>,
    pub(crate) hints: RateHints,
}

/// A client for one server.
pub(crate) struct Endpoint {
    client: Client,
    base: BaseUrl,
    secrets: Vec<Secret>,
    max_reply_bytes: usize,
}

/// Without the client, which repeats its headers.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("base", &self.base)
            .field("secrets", &self.secrets)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// A client as configured; nothing is sent yet.
    ///
    /// # Errors
    /// A [`TeacherError`] of class `credentials` where a variable is not set.
    pub(crate) fn open(server: &ServerConfig, key_header: KeyHeader) -> Result<Self, TeacherError> {
        install_tls();
        let mut secrets = Vec::new();
        let headers = headers(server, key_header, &mut secrets)?;
        let mut builder = Client::builder()
            .timeout(Duration::from_secs(server.timeout_seconds.get()))
            .pool_idle_timeout(MAX_IDLE)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .redirect(Policy::custom(same_origin_only))
            .user_agent(concat!("armada-harvest/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers);
        if server.url.is_plain() {
            // No certificate is ever checked, so a machine without a certificate store will do.
            builder = builder.tls_certs_only([]);
        }
        if server.url.is_loopback() {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            TeacherError::new(
                ErrorClass::Deterministic,
                format!("cannot set up the HTTP client: {}", causes(&error)),
            )
        })?;
        Ok(Self {
            client,
            base: server.url.clone(),
            secrets,
            max_reply_bytes: server.max_reply_mib.get() as usize * (1 << 20),
        })
    }

    /// Posts JSON to `path` below the base address and reads the whole reply.
    pub(crate) async fn post(
        &self,
        path: &[String],
        body: Vec<u8>,
    ) -> Result<HttpReply, TeacherError> {
        let request = self
            .client
            .post(self.base.endpoint(path))
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        self.send(request).await
    }

    /// Gets `path` below the base address.
    pub(crate) async fn get(&self, path: &[String]) -> Result<HttpReply, TeacherError> {
        self.send(self.client.get(self.base.endpoint(path))).await
    }

    /// Gets `path` below the base address with these query parameters.
    pub(crate) async fn get_with(
        &self,
        path: &[String],
        query: &[(&str, &str)],
    ) -> Result<HttpReply, TeacherError> {
        let mut url = self.base.endpoint(path);
        url.query_pairs_mut().extend_pairs(query);
        self.send(self.client.get(url)).await
    }

    /// Gets `path` below the base address piece by piece, at most `max_bytes` of it: `take` is given the pieces in
    /// order.
    ///
    /// # Errors
    /// That of `take`, or what became of the request.
    pub(crate) async fn get_pieces(
        &self,
        path: &[String],
        max_bytes: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), TeacherError> + Send,
    ) -> Result<(), TeacherError> {
        let request = self.client.get(self.base.endpoint(path));
        let mut response = request.send().await.map_err(|error| self.unsent(error))?;
        let status = response.status();
        if !status.is_success() {
            let headers = response.headers().clone();
            let body = self.read(response).await.unwrap_or_default();
            return Err(self.refused(status, &headers, &body));
        }
        let mut num_bytes = 0;
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| self.broke_off(error))?
        {
            num_bytes += piece.len() as u64;
            if num_bytes > max_bytes {
                let limit = max_bytes >> 20;
                return Err(TeacherError::new(
                    ErrorClass::Deterministic,
                    format!("the file is larger than {limit} MiB"),
                ));
            }
            take(&piece)?;
        }
        Ok(())
    }

    /// The error of one row of a file, as if the server had answered that row alone with this status and body.
    pub(crate) fn refused_row(&self, status: u16, reply: &[u8]) -> TeacherError {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.refused(status, &HeaderMap::new(), reply)
    }

    /// Posts a form of parts, such as a file, to `path` below the base address.
    pub(crate) async fn post_form(
        &self,
        path: &[String],
        form: reqwest::multipart::Form,
    ) -> Result<HttpReply, TeacherError> {
        let request = self.client.post(self.base.endpoint(path)).multipart(form);
        self.send(request).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<HttpReply, TeacherError> {
        let response = request.send().await.map_err(|error| self.unsent(error))?;
        let status = response.status();
        let headers = response.headers().clone();
        let body = self.read(response).await;
        if status.is_success() {
            return Ok(HttpReply {
                body: self.without_secrets(body.map_err(|error| error.having(Sent::Unusable))?),
                hints: RateHints::read(&headers),
            });
        }
        Err(self.refused(status, &headers, &body.unwrap_or_default()))
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, TeacherError> {
        let too_large = || {
            let limit = self.max_reply_bytes >> 20;
            TeacherError::new(
                ErrorClass::Deterministic,
                format!("the reply is larger than {limit} MiB"),
            )
            .advise("raise `max_reply_mib` of the teacher if replies are meant to be so large")
        };
        let announced = response.content_length().unwrap_or(0);
        if announced > self.max_reply_bytes as u64 {
            return Err(too_large());
        }
        let mut reply = Vec::with_capacity(announced as usize);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if reply.len() + chunk.len() > self.max_reply_bytes => {
                    return Err(too_large());
                }
                Ok(Some(chunk)) => reply.extend_from_slice(&chunk),
                Ok(None) => return Ok(reply),
                Err(error) => return Err(self.broke_off(error)),
            }
        }
    }

    fn broke_off(&self, error: reqwest::Error) -> TeacherError {
        let message = format!("the reply broke off: {}", causes(&error.without_url()));
        TeacherError::new(ErrorClass::Transient, self.redact(&message))
    }

    fn unsent(&self, error: reqwest::Error) -> TeacherError {
        let is_untrusted = is_about_a_certificate(&error);
        let is_redirect = error.is_redirect();
        let is_lasting = is_redirect || error.is_builder() || is_untrusted;
        let is_unconnected = is_lasting || error.is_connect();
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
        let sent = if is_unconnected {
            Sent::Unconnected
        } else {
            Sent::Unanswered
        };
        let message = self.redact(&format!("{:?}: {what}", self.base));
        let mut error = TeacherError::new(class, message).having(sent);
        if is_untrusted {
            error.advice = Some(
                "check `teacher.url`; for an authority of your own, name the PEM file of its certificate in SSL_CERT_FILE"
                    .into(),
            );
        } else if is_redirect {
            error.advice = Some("name the address where the teacher is in `teacher.url`".into());
        }
        error
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap, reply: &[u8]) -> TeacherError {
        // Before it is cut, which could leave a part of a secret that nobody recognises.
        let said = ErrorBody::read(&self.without_secrets(reply.to_vec()));
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
        error.sent = Sent::Refused;
        error.is_lacking = said.is_of_no_row(status);
        error.hints = RateHints::read(headers);
        error.retry_after = retry_after(headers, SystemTime::now()).or(said.retry_delay);
        error.retry_forbidden = should_retry == Some(false);
        error.advice = said.advice(status).map(str::to_owned);
        error
    }

    /// The error without secrets: a server may repeat what it was sent, and with a status of success too.
    pub(super) fn redacted(&self, mut error: TeacherError) -> TeacherError {
        error.message = self.redact(&error.message);
        error
    }

    /// A body without the secrets that a server repeats in it. Placeholders of servers that need no key, such as `EMPTY`,
    /// are words that an honest reply may hold.
    fn without_secrets(&self, body: Vec<u8>) -> Vec<u8> {
        let is_in_it = |secret: &Secret| {
            let secret = secret.expose().as_bytes();
            secret.len() >= MIN_SECRET_BYTES
                && body.windows(secret.len()).any(|part| part == secret)
        };
        if self.secrets.iter().any(is_in_it) {
            self.redact(&String::from_utf8_lossy(&body)).into_bytes()
        } else {
            body
        }
    }

    /// `text` without the secrets of this server.
    fn redact(&self, text: &str) -> String {
        let redact = |text: String, secret: &Secret| secret.redact(&text);
        self.secrets.iter().fold(text.to_owned(), redact)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Endpoint {
    /// A client for nobody, with a key.
    pub(super) fn of_secret(secret: &str) -> Self {
        let server = toml::from_str("url = \"http://127.0.0.1:9\"\nmodel = \"m\"");
        let server = server.expect("it has all keys");
        let mut endpoint = Self::open(&server, KeyHeader::Bearer).expect("no variable is read");
        endpoint.secrets.push(Secret::new(secret));
        endpoint
    }

    /// The error of a reply with this status.
    pub(super) fn refusal(&self, status: u16, headers: &HeaderMap, reply: &[u8]) -> TeacherError {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.refused(status, headers, reply)
    }
}

/// Makes ring the process's provider of cryptography.
pub(crate) fn install_tls() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Another part of the process may have installed one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
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

/// Whether the server's certificate was refused: it will be the next time.
fn is_about_a_certificate(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(rustls::Error::InvalidCertificate(_)) = innermost(cause).downcast_ref() {
            return true;
        }
        source = cause.source();
    }
    false
}

/// What errors of input and output wrap, which they do not name as their source.
fn innermost<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let wrapped = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    wrapped.map_or(error, |inner| innermost(inner))
}

/// The error with its causes: the outermost message of an HTTP client seldom says why.
pub(super) fn causes(error: &reqwest::Error) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_debug_output_shows_a_secret() {
        let base = BaseUrl::try_from("http://localhost:1/v1/".to_owned()).unwrap();
        let at = base.endpoint(&["embeddings".to_owned()]);
        assert_eq!(at.as_str(), "http://localhost:1/v1/embeddings");
        let server = toml::from_str("url = \"http://localhost:1/v1/\"\nmodel = \"m\"").unwrap();
        let mut endpoint = Endpoint::open(&server, KeyHeader::Bearer).unwrap();
        endpoint.secrets.push(Secret::new("sk-TOPSECRET"));
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
    fn a_placeholder_for_a_key_stays_in_replies() {
        let without = |secret: &str, body: &str| {
            let endpoint = Endpoint::of_secret(secret);
            String::from_utf8(endpoint.without_secrets(body.into())).unwrap()
        };
        assert_eq!(without("EMPTY", "the box is EMPTY"), "the box is EMPTY");
        assert_eq!(without("sk-TOPSECRET", "no sk-TOPSECRET"), "no REDACTED");
    }
}
