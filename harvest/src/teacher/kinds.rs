//! The kinds of teacher that a configuration can name: one line for each.

use std::sync::Arc;

use crate::config::{CommonConfig, ConfigError, Section, ServerConfig, TeacherEntry};

use super::exchange::{Direct, ExchangeKind};
use super::http::KeyHeader;
use super::{
    TeacherKind, anthropic, batch, chat, command, completions, embeddings, gemini, images, ollama,
    sketch, tei,
};

/// Reads what a kind has besides [`CommonConfig`].
type Read = for<'a> fn(Section<'a>) -> Result<Arc<dyn TeacherKind>, ConfigError>;

/// Reads what an exchange has besides the keys of its server.
type ReadExchange =
    for<'a> fn(ServerConfig, Section<'a>) -> Result<Arc<dyn ExchangeKind>, ConfigError>;

/// How a kind is read.
#[derive(Clone, Copy)]
enum Reader {
    Own(Read),
    /// Its requests can go into a file, too, instead of being sent one by one.
    Exchange(ReadExchange),
}

use Reader::{Exchange, Own};

const KINDS: &[(&str, Reader)] = &[
    ("anthropic", Own(anthropic::read)),
    ("batch", Own(batch::read)),
    ("chat", Exchange(chat::read)),
    ("command", Own(command::read)),
    ("completions", Exchange(completions::read)),
    ("embeddings", Exchange(embeddings::read)),
    ("gemini", Own(gemini::read)),
    ("images", Own(images::read)),
    ("ollama", Own(ollama::read)),
    ("sketch", Own(sketch::read)),
    ("tei", Own(tei::read)),
];

/// Names of all kinds.
pub fn names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}

/// Whether what is asked is a server, and no program of one's own.
pub(crate) fn asks_a_server(kind: &str) -> bool {
    !matches!(kind, "command" | "sketch")
}

/// Reads one `[teacher]`.
///
/// # Errors
/// [`ConfigError::Refused`].
pub(crate) fn read(
    name: Option<String>,
    mut section: Section<'_>,
) -> Result<TeacherEntry, ConfigError> {
    let reader = find(&section, Some)?;
    let common: CommonConfig = section.part(&CommonConfig::KEYS)?;
    let kind = match reader {
        Own(read) => read(section)?,
        Exchange(read) => {
            let server: ServerConfig = section.part(&ServerConfig::KEYS)?;
            Direct::of(read(server, section)?, KeyHeader::Bearer)
        }
    };
    Ok(TeacherEntry { name, common, kind })
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
    let read = find(&section, |reader| match reader {
        Exchange(read) => Some(read),
        Own(_) => None,
    })?;
    section.part::<Kind>(&["kind"])?;
    read(server, section)
}

/// What reads the section's kind, of those that `take` takes.
fn find<R>(section: &Section<'_>, take: fn(Reader) -> Option<R>) -> Result<R, ConfigError> {
    let kind = section.kind()?;
    let taken = || {
        let kinds = KINDS.iter();
        kinds.filter_map(|(name, reader)| Some((*name, take(*reader)?)))
    };
    let found = taken().find(|(name, _)| *name == kind);
    found.map(|(_, reader)| reader).ok_or_else(|| {
        let names: Vec<String> = taken().map(|(name, _)| format!("`{name}`")).collect();
        let problem = format!("unknown variant, expected one of {}", names.join(", "));
        section.refuse_key("kind", &problem)
    })
}
