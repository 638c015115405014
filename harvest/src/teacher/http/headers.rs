//! Headers of every request, keys among them.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::config::ServerConfig;
use crate::secret::{Secret, SecretName};
use crate::teacher::{ErrorClass, TeacherError};

/// How a server is told the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyHeader {
    /// `Authorization: Bearer <key>`
    Bearer,
    /// The key alone, in the header of this name.
    Named(&'static str),
}

/// The headers of every request; what is secret among them is added to `secrets`.
pub(super) fn headers(
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
