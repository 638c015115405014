//! Addresses of APIs.

use std::fmt;

use reqwest::Url;
use serde::Deserialize;

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
    /// The address of an endpoint below the base.
    pub(super) fn endpoint(&self, segments: &[String]) -> Url {
        let mut url = self.0.clone();
        url.path_segments_mut()
            .expect("http addresses have a path")
            .pop_if_empty()
            .extend(segments);
        url
    }

    /// The host, with the port where it is not the scheme's own.
    pub(in crate::teacher) fn host(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        match self.0.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Whether what is sent there is not encrypted.
    pub(super) fn is_plain(&self) -> bool {
        self.0.scheme() == "http"
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.0.host_str().is_some_and(is_loopback)
    }
}

/// Whether a host, as an address writes it, is this machine.
pub(in crate::teacher) fn is_loopback(host: &str) -> bool {
    match host {
        "localhost" | "[::1]" => true,
        host => host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
