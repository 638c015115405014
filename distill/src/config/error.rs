//! Why a configuration is refused.

use std::io;
use std::path::PathBuf;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something in it is refused.
    #[error("`{}`: {message}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// No digest names the cache.
    #[error("the run does not say which frozen state of cache `{}` it learns from", cache.display())]
    NoCacheDigest {
        /// The cache's folder.
        cache: PathBuf,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => {
                "name a run configuration, for instance data/scenes/distill.toml".to_owned()
            }
            Self::Refused { .. } => "docs/distill.md has every key".to_owned(),
            Self::NoCacheDigest { .. } => {
                "set `cache.digest` or give --cache-digest: `harvest freeze` prints the digest"
                    .to_owned()
            }
        })
    }
}
