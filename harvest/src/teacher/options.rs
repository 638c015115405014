//! Keys of a request that this program does not know, and the settings that a manifest keeps.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{ConfigError, Section};

/// `batch` of a teacher that takes several texts in one request, as text-embeddings-inference does unless told otherwise.
pub(super) fn default_batch() -> NonZeroUsize {
    const { NonZeroUsize::new(32).expect("not zero") }
}

/// `batch_tokens` of such a teacher.
pub(super) fn default_batch_tokens() -> NonZeroUsize {
    const { NonZeroUsize::new(64 << 10).expect("not zero") }
}

/// `options` of a teacher: keys that go into the body of every request as they are.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub(super) struct Options(pub(super) Map<String, Value>);

impl Options {
    /// The keys, where there are some.
    pub(super) fn if_any(&self) -> Option<&Self> {
        Some(self).filter(|options| !options.0.is_empty())
    }

    /// Refuses keys that are this program's own.
    ///
    /// # Errors
    /// [`ConfigError::Refused`].
    pub(super) fn check(&self, section: &Section<'_>, own: &[&str]) -> Result<(), ConfigError> {
        match own.iter().find(|key| self.0.contains_key(**key)) {
            None => Ok(()),
            Some(key) => Err(section.refuse_key(
                "options",
                &format!("`{key}` is written by harvest itself: use the teacher's own keys"),
            )),
        }
    }
}

/// What changes the answers of a teacher, for its identity; what is not configured is left out.
#[derive(Debug)]
pub(super) struct Settings(Map<String, Value>);

impl Settings {
    /// Settings of which the first is there always.
    pub(super) fn new(name: &str, value: impl Serialize) -> Self {
        let mut settings = Self(Map::new());
        settings.insert(name, value);
        settings
    }

    /// Adds what is configured.
    pub(super) fn add(&mut self, name: &str, value: Option<impl Serialize>) {
        if let Some(value) = value {
            self.insert(name, value);
        }
    }

    fn insert(&mut self, name: &str, value: impl Serialize) {
        let value = serde_json::to_value(value).expect("settings have a JSON form");
        self.0.insert(name.to_owned(), value);
    }
}

impl From<Settings> for Value {
    fn from(settings: Settings) -> Self {
        Self::Object(settings.0)
    }
}
