//! Why a checkpoint cannot be written, read or gone on from.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::FORMAT_VERSION;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is none.
    #[error("`{}` holds no checkpoint", folder.display())]
    None {
        /// The run folder.
        folder: PathBuf,
    },
    /// A file is not what was written.
    #[error("checkpoint file `{}` is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Another version of the format.
    #[error("checkpoint `{}` has format version {found}, and this build reads version {FORMAT_VERSION}", path.display())]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The run folder holds a run of another configuration.
    #[error("run folder `{}` holds a run with {key} = {stored}, and the configuration says {configured}", folder.display())]
    OtherRun {
        /// The run folder.
        folder: PathBuf,
        /// The key that differs.
        key: String,
        /// Its value in the checkpoint.
        stored: Value,
        /// Its value now.
        configured: Value,
    },
}

impl CheckpointError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { .. } => return None,
            Self::None { .. } => "train first: `distill train`".to_owned(),
            Self::Damaged { .. } => "start over with --restart".to_owned(),
            Self::FormatVersion { .. } => {
                "go on with the version that wrote it, or start over with --restart".to_owned()
            }
            Self::OtherRun { .. } => {
                "change it back, name another folder in `output.path`, or train anew with --restart"
                    .to_owned()
            }
        })
    }

    pub(super) fn io<'a>(
        path: &'a Path,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self + use<'a> {
        move |source| Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }
}
