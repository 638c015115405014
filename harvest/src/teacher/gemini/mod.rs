//! The native protocol of Gemini: `generateContent` and `batchEmbedContents`.

mod embed;
mod generate;

use std::sync::Arc;

use serde::Deserialize;

use super::TeacherKind;
use super::http::KeyHeader;
use crate::config::{ConfigError, Section, ServerConfig};

/// The key goes into a header: an address ends up in logs.
const KEY_HEADER: KeyHeader = KeyHeader::Named("x-goog-api-key");

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
    Generate,
    Embed,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let server: ServerConfig = section.part(&ServerConfig::KEYS)?;
    let Purpose { purpose } = section.part(&["use"])?;
    match purpose {
        Use::Generate => generate::read(server, section),
        Use::Embed => embed::read(server, &section),
    }
}

/// The resource name of a model: one that has no folder is of `models`.
fn resource(model: &str) -> String {
    if model.contains('/') {
        model.to_owned()
    } else {
        format!("models/{model}")
    }
}

/// The path of a method of a model.
fn path(model: &str, method: &str) -> Vec<String> {
    let path = format!("{}:{method}", resource(model));
    path.split('/').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
