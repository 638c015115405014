//! Secrets: read from the environment by name, never printed and never written.

use std::fmt;

use serde::Deserialize;

/// The name of an environment variable that holds a secret.
///
/// Only capital letters, digits and `_` are accepted, so that a secret written into the configuration by mistake is
/// refused; the refusal does not repeat it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretName(String);

impl TryFrom<String> for SecretName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let starts_well = name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_');
        let valid = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        if starts_well && name.chars().all(valid) {
            return Ok(Self(name));
        }
        Err(
            "expected the name of an environment variable (capital letters, digits and `_`), never the secret itself",
        )
    }
}

impl SecretName {
    /// The variable's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the secret; `None` where the variable is unset, empty or not text.
    pub fn read(&self) -> Option<Secret> {
        let value = std::env::var(&self.0).ok()?;
        let value = value.trim();
        (!value.is_empty()).then(|| Secret::new(value))
    }
}

/// A value that cannot be printed, compared or written.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one place that sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// `text` without this secret, for what a server says about a request.
    pub fn redact(&self, text: &str) -> String {
        let text = text.replace(&self.0, REDACTED);
        let parts: Vec<String> = text
            .split(CUT)
            .map(|part| self.redact_start(part))
            .collect();
        parts.join(CUT)
    }

    /// `text` without the start of the secret at its end: a text may have been cut there.
    fn redact_start(&self, text: &str) -> String {
        let lengths = (MIN_START..self.0.len()).rev();
        let starts = lengths.filter_map(|length| self.0.get(..length));
        let mut rests = starts.filter_map(|start| text.strip_suffix(start));
        match rests.next() {
            Some(rest) => format!("{rest}{REDACTED}"),
            None => text.to_owned(),
        }
    }
}

const REDACTED: &str = "REDACTED";
/// What stands where a text was cut, see [`shorten`](crate::failures::shorten).
const CUT: &str = "...";
/// The first bytes of a secret that say something of it.
const MIN_START: usize = 4;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_redacted() {
        let secret = Secret::new("sk-123");
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "REDACTED REDACTED Some(REDACTED)"
        );
        assert_eq!(secret.redact("bad key sk-123."), "bad key REDACTED.");
    }

    #[test]
    fn a_secret_that_a_cut_goes_through_is_redacted() {
        let secret = Secret::new("sk-123456");
        for (text, redacted) in [
            ("bad key sk-12345", "bad key REDACTED"),
            ("bad key sk-1... (code)", "bad key REDACTED... (code)"),
            ("a sk-123456 and sk-123...", "a REDACTED and REDACTED..."),
            ("ask-", "ask-"),
            ("sk-", "sk-"),
            ("sk-1 is no key", "sk-1 is no key"),
        ] {
            assert_eq!(secret.redact(text), redacted, "{text}");
        }
    }

    #[test]
    fn a_secret_in_place_of_a_name_is_refused_without_repeating_it() {
        let refusal = SecretName::try_from("sk-123".to_owned()).unwrap_err();
        assert!(!refusal.contains("sk-123"));
        assert_eq!(
            SecretName::try_from("OPENAI_API_KEY".to_owned())
                .unwrap()
                .as_str(),
            "OPENAI_API_KEY"
        );
    }
}
