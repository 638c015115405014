//! Pictures behind addresses.

use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Response, StatusCode, Url};

use super::super::http::{causes, install_tls, is_loopback};
use super::super::{ErrorClass, Sent, TeacherError};
use super::{MAX_BYTES, refusal, too_large};

const TIMEOUT: Duration = Duration::from_mins(1);
const MAX_REDIRECTS: usize = 5;

/// Fetches from the configured hosts, without any key or cookie.
#[derive(Debug)]
pub(super) struct Fetch {
    hosts: Arc<[String]>,
    /// `None` where no host is configured.
    client: Option<Client>,
}

impl Fetch {
    pub(super) fn new(hosts: &[String]) -> Result<Self, TeacherError> {
        let hosts: Arc<[String]> = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        if hosts.is_empty() {
            return Ok(Self {
                hosts,
                client: None,
            });
        }
        install_tls();
        let allowed = Arc::clone(&hosts);
        let mut builder = Client::builder()
            .timeout(TIMEOUT)
            .redirect(Policy::custom(move |attempt| redirect(&allowed, attempt)))
            .user_agent(concat!("armada-harvest/", env!("CARGO_PKG_VERSION")));
        let name = |host: &String| {
            host.split_once(':')
                .map_or(host.clone(), |(name, _)| name.into())
        };
        if hosts.iter().map(name).all(|host| is_loopback(&host)) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            TeacherError::new(
                ErrorClass::Deterministic,
                format!(
                    "cannot set up the HTTP client for pictures: {}",
                    causes(&error)
                ),
            )
        })?;
        Ok(Self {
            hosts,
            client: Some(client),
        })
    }

    pub(super) async fn read(&self, name: &str) -> Result<Vec<u8>, TeacherError> {
        let url = Url::parse(name).map_err(|error| {
            unasked(name, &format!("it is no address: {error}")).advise("check the data")
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(unasked(name, "an address carries no user or password")
                .advise("copy the pictures into the data set's folder"));
        }
        let client = self
            .client
            .as_ref()
            .filter(|_| is_allowed(&self.hosts, &url));
        let Some(client) = client else {
            let host = host_and_port(&url);
            return Err(unasked(
                name,
                &format!("pictures are not fetched from the host `{host}`"),
            )
            .advise(format!(
                "add \"{host}\" to the teacher's `image_hosts` if it may be asked"
            )));
        };
        let response = client.get(url).send().await;
        let response = response.map_err(|error| unsent(name, error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(name, status));
        }
        read_body(name, response).await
    }
}

async fn read_body(name: &str, mut response: Response) -> Result<Vec<u8>, TeacherError> {
    let announced = response.content_length().unwrap_or(0);
    if announced > MAX_BYTES as u64 {
        return Err(too_large(name).having(Sent::Unusable));
    }
    let mut bytes = Vec::with_capacity(announced as usize);
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if bytes.len() + chunk.len() > MAX_BYTES => {
                return Err(too_large(name).having(Sent::Unusable));
            }
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return Ok(bytes),
            Err(error) => return Err(unsent(name, error)),
        }
    }
}

/// The host, with the port where it is not the scheme's own.
fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn is_allowed(hosts: &[String], url: &Url) -> bool {
    hosts.contains(&host_and_port(url))
}

/// Redirects lead to configured hosts only, and never from https to http.
fn redirect(hosts: &[String], attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    let was_https = attempt.previous().iter().any(|url| url.scheme() == "https");
    if was_https && attempt.url().scheme() != "https" {
        return attempt.error("the host redirects from https to http, which is refused");
    }
    if is_allowed(hosts, attempt.url()) {
        return attempt.follow();
    }
    let target = host_and_port(attempt.url());
    attempt.error(format!(
        "the host redirects to `{target}`, which is not among `image_hosts`"
    ))
}

/// A refusal of our own: nobody was asked for the picture.
fn unasked(name: &str, problem: &str) -> TeacherError {
    refusal(name, problem).having(Sent::Nothing)
}

fn unsent(name: &str, error: reqwest::Error) -> TeacherError {
    let lasting = error.is_redirect() || error.is_builder();
    let what = if error.is_timeout() {
        "no reply in time".to_owned()
    } else {
        causes(&error.without_url())
    };
    let refused = refusal(name, &what);
    if lasting {
        return refused
            .having(Sent::Nothing)
            .advise("name the address that the redirect leads to, and its host in `image_hosts`");
    }
    TeacherError {
        class: ErrorClass::Transient,
        ..refused
    }
}

/// A picture's host is not the teacher: whatever it refuses costs the row and never stops the run.
fn refused(name: &str, status: StatusCode) -> TeacherError {
    let refused = refusal(name, &format!("its host answered {status}")).having(Sent::Refused);
    let class = match status.as_u16() {
        429 => ErrorClass::Rate,
        408 | 500 | 502..=599 => ErrorClass::Transient,
        _ => return refused.advise("check the address; the request carries no key"),
    };
    TeacherError { class, ..refused }
}
