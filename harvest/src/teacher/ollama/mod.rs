//! The native protocol of Ollama: `/api/chat` and `/api/embed`.

mod chat;
mod embed;

use std::sync::Arc;

use serde::Deserialize;

use super::TeacherKind;
use crate::config::{ConfigError, Section, ServerConfig};

#[derive(Deserialize)]
struct Purpose {
    #[serde(rename = "use", default)]
    purpose: Use,
}

/// What the model is asked for.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Use {
    #[default]
    Chat,
    Embed,
}

/// How long the server keeps a model in memory: seconds, or a text such as `10m`.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
#[serde(untagged)]
enum KeepAlive {
    Seconds(i64),
    Text(String),
}

pub(super) fn read(mut section: Section<'_>) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let server: ServerConfig = section.part(&ServerConfig::KEYS)?;
    let Purpose { purpose } = section.part(&["use"])?;
    match purpose {
        Use::Chat => chat::read(server, section),
        Use::Embed => embed::read(server, section),
    }
}

#[cfg(test)]
mod tests;
