//! The kinds of teacher that a configuration can name: one line for each.

use std::sync::Arc;

use crate::config::{CommonConfig, ConfigError, Section, ServerConfig, TeacherEntry};

use super::exchange::ExchangeKind;
use super::{
    TeacherKind, anthropic, batch, chat, command, completions, embeddings, gemini, images, ollama,
    sketch, tei,
};

/// Reads what a kind has besides [`CommonConfig`].
type Read = for<'a> fn(Section<'a>) -> Result<Arc<dyn TeacherKind>, ConfigError>;

const KINDS: &[(&str, Read)] = &[
    ("anthropic", anthropic::read),
    ("batch", batch::read),
    ("chat", chat::read),
    ("command", command::read),
    ("completions", completions::read),
    ("embeddings", embeddings::read),
    ("gemini", gemini::read),
    ("images", images::read),
    ("ollama", ollama::read),
    ("sketch", sketch::read),
    ("tei", tei::read),
];

/// Reads what an exchange has besides the keys of its server, `kind` taken out.
type ReadExchange =
    for<'a> fn(ServerConfig, Section<'a>) -> Result<Arc<dyn ExchangeKind>, ConfigError>;

/// The kinds whose requests can go into a file instead of being sent one by one.
const EXCHANGES: &[(&str, ReadExchange)] = &[
    ("chat", chat::read_exchange),
    ("completions", completions::read_exchange),
    ("embeddings", embeddings::read_exchange),
];

/// Names of all kinds.
pub fn names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}

/// Reads one `[teacher]`.
///
/// # Errors
/// [`ConfigError::Refused`].
pub(crate) fn read(
    name: Option<String>,
    mut section: Section<'_>,
) -> Result<TeacherEntry, ConfigError> {
    let read = find(KINDS, &section)?;
    let common: CommonConfig = section.part(&CommonConfig::KEYS)?;
    Ok(TeacherEntry {
        name,
        common,
        kind: read(section)?,
    })
}

/// Reads a section that names what is asked of a server that is configured elsewhere.
///
/// # Errors
/// [`ConfigError::Refused`].
pub(super) fn read_exchange(
    server: ServerConfig,
    mut section: Section<'_>,
) -> Result<Arc<dyn ExchangeKind>, ConfigError> {
    #[derive(serde::Deserialize)]
    struct Kind {
        #[serde(rename = "kind")]
        _kind: String,
    }
    let read = find(EXCHANGES, &section)?;
    section.part::<Kind>(&["kind"])?;
    read(server, section)
}

/// What reads the section's kind.
fn find<R: Copy>(kinds: &[(&str, R)], section: &Section<'_>) -> Result<R, ConfigError> {
    let kind = section.kind()?;
    let found = kinds.iter().find(|(name, _)| *name == kind);
    found.map(|(_, read)| *read).ok_or_else(|| {
        let names: Vec<String> = kinds.iter().map(|(name, _)| format!("`{name}`")).collect();
        let problem = format!("unknown variant, expected one of {}", names.join(", "));
        section.refuse_key("kind", &problem)
    })
}
