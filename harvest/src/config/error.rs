//! Refusals of a configuration.

use std::path::PathBuf;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key is unknown, missing, or has a value that is refused. The value is not repeated, since it may be a
    /// secret in the wrong place.
    #[error("{}:{line}: {}{problem}", path.display(), key.as_ref().map(|key| format!("`{key}`: ")).unwrap_or_default())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key with its section, where one is to blame.
        key: Option<String>,
        /// What is wrong.
        problem: String,
    },
    /// The configuration is of the other sort.
    #[error("`{}` describes {found}, and `harvest {verb}` needs {wanted}", path.display())]
    OtherSort {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: &'static str,
        /// What it should have.
        wanted: &'static str,
        /// The verb.
        verb: &'static str,
    },
}

impl ConfigError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some("name a TOML file, such as data/scenes/harvest.toml".into()),
            Self::Refused { .. } => Some("docs/harvest.md describes every key".into()),
            Self::OtherSort { .. } => Some(
                "`harvest run` reads [teacher] and [run]; `harvest import` reads [import]".into(),
            ),
        }
    }
}
