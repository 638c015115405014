//! One place that sends requests: size cap, redirects, secrets, and the class of every failure.

use std::error::Error as _;
use std::fmt;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::class::{ErrorClass, Sent, TeacherError};
use super::hints::RateHints;
use super::retry_header::{retry_after, should_retry};
use crate::config::ServerConfig;
use crate::secret::{Secret, SecretName};

const MAX_REDIRECTS: usize = 5;
/// Idle connections are closed before servers close theirs, commonly after 5 seconds: a request that meets the closing
/// fails with a broken pipe.
const MAX_IDLE: Duration = Duration::from_secs(4);
/// Bytes of the shortest secret that is taken out of replies, and not of errors alone.
const MIN_SECRET_BYTES: usize = 8;
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
    fn endpoint(&self, segments: &[String]) -> Url {
        let mut url = self.0.clone();
        url.path_segments_mut()
            .expect("http addresses have a path")
            .pop_if_empty()
            .extend(segments);
        url
    }

    /// The host, with the port where it is not the scheme's own.
    pub(super) fn host(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        match self.0.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    fn is_loopback(&self) -> bool {
        self.0.host_str().is_some_and(is_loopback)
    }
}

/// Whether a host, as an address writes it, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    match host {
        "localhost" | "[::1]" => true,
        host => host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback()),
    }
}

/// How a server is told the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyHeader {
    /// `Authorization: Bearer <key>`
    Bearer,
    /// The key alone, in the header of this name.
    Named(&'static str),
}

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
            .redirect(Policy::custom(same_origin_only))
            .user_agent(concat!("armada-harvest/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers);
        if server.url.0.scheme() == "http" {
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
        let is_lasting = error.is_redirect() || error.is_builder() || is_untrusted;
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
        error.is_lacking = status == StatusCode::NOT_IMPLEMENTED;
        error.hints = RateHints::read(headers);
        error.retry_after = retry_after(headers, SystemTime::now()).or(said.retry_delay);
        error.retry_forbidden = should_retry == Some(false);
        if said.is_context_overflow() {
            error.advice = Some("shorten the text, or raise the server's context".into());
        }
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

/// The headers of every request; what is secret among them is added to `secrets`.
fn headers(
    server: &ServerConfig,
    key_header: KeyHeader,
    secrets: &mut Vec<Secret>,
) -> Result<HeaderMap, TeacherError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &server.headers {
        let unusable = |what: &str| {
            TeacherError::new(
                ErrorClass::Deterministic,
                format!("`headers`: {what} of `{name}` is not one that a header can have"),
            )
        };
        let key = HeaderName::try_from(name.as_str()).map_err(|_| unusable("the name"))?;
        let value = HeaderValue::try_from(value.as_str()).map_err(|_| unusable("the value"))?;
        headers.insert(key, value);
    }
    let key = server.api_key_env.iter().map(|variable| match key_header {
        KeyHeader::Bearer => ("authorization", "Bearer ", variable),
        KeyHeader::Named(name) => (name, "", variable),
    });
    let further = server
        .secret_headers
        .iter()
        .map(|(name, variable)| (name.as_str(), "", variable));
    for (name, prefix, variable) in key.chain(further) {
        let secret = variable.read().ok_or_else(|| unset(variable))?;
        let refuse = |what: &str| TeacherError::new(ErrorClass::Credentials, what.to_owned());
        let name = HeaderName::try_from(name)
            .map_err(|_| refuse("`secret_headers` has a name that no header can have"))?;
        let mut value = HeaderValue::try_from(format!("{prefix}{}", secret.expose()))
            .map_err(|_| refuse("the key holds characters that a header cannot carry"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
        secrets.push(secret);
    }
    Ok(headers)
}

fn unset(variable: &SecretName) -> TeacherError {
    let name = variable.as_str();
    TeacherError::new(
        ErrorClass::Credentials,
        format!("the environment variable {name} is not set"),
    )
    .advise(format!(
        "export {name} with the key, or leave its name out of the configuration"
    ))
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

/// Statuses that the same request earns again, whatever the server's headers say.
fn never_retried(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 413 | 422 | 501)
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

/// What a server says about a refused request.
struct ErrorBody {
    message: String,
    /// Machine-readable names, where there are some.
    names: String,
    /// When to ask again, where the body says it: Google's does, and the headers beside it do not.
    retry_delay: Option<Duration>,
}

impl ErrorBody {
    fn read(reply: &[u8]) -> Self {
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
            400 if named(&["API_KEY_INVALID"]) => ErrorClass::Credentials,
            402 => ErrorClass::Quota,
            429 if named(&["insufficient_quota", "billing"]) => ErrorClass::Quota,
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
pub(super) fn shorten(text: &str) -> String {
    crate::failures::shorten(text, MAX_MESSAGE_CHARS)
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
