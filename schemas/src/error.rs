//! Typed errors of the contract, each with a hint on what to do next.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Sha256Digest;

/// What can go wrong with examples, shards and manifests.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation of the operating system failed.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What was tried: read, write, rename ...
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A text that should be a digest is not.
    #[error("`{text}` is not a digest")]
    InvalidDigest {
        /// The text.
        text: String,
    },
    /// A text that should be an example id is not.
    #[error("`{text}` is not an example id")]
    InvalidExampleId {
        /// The text.
        text: String,
    },
    /// A task description that contradicts itself.
    #[error("task `{task}`: {problem}")]
    InvalidTask {
        /// Name of the task.
        task: String,
        /// What is wrong.
        problem: String,
    },
    /// No built-in task has this name.
    #[error("there is no built-in task `{name}`")]
    UnknownTask {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// A row of a data set cannot be used.
    #[error("{path}:{line}: {}{problem}", column.as_ref().map(|c| format!("column `{c}`: ")).unwrap_or_default())]
    BadRow {
        /// The file.
        path: PathBuf,
        /// Line (text formats) or row (Parquet), counted from 1.
        line: u64,
        /// The column, where one is to blame.
        column: Option<String>,
        /// What is wrong.
        problem: String,
    },
    /// A data set as a whole cannot be used.
    #[error("data set `{path}`: {problem}")]
    BadDataset {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A teacher's value does not fit the signal it was given for.
    #[error("example {example}: signal `{signal}`: {problem}")]
    InvalidSignal {
        /// The example.
        example: String,
        /// The signal.
        signal: String,
        /// What is wrong.
        problem: String,
    },
    /// A signal description that cannot be stored.
    #[error("signal `{name}`: {problem}")]
    InvalidSignalSpec {
        /// Name of the signal.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A signal that the cache does not hold.
    #[error("cache `{path}` holds no signal `{signal}`")]
    NoSuchSignal {
        /// The shard or cache.
        path: PathBuf,
        /// The signal asked for.
        signal: String,
        /// The signals it holds.
        present: Vec<String>,
    },
    /// A shard or manifest written by another version of the format.
    #[error("`{path}` has format version {found}, and this build reads version {supported}")]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that this build reads.
        supported: u32,
    },
    /// A file that is not what its name says.
    #[error("`{path}` is not a readable shard: {problem}")]
    InvalidShard {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A line of a journal that is whole and means nothing to this build.
    #[error("`{path}`, line {line}, is not a readable reply: {problem}")]
    InvalidJournal {
        /// The segment.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// A shard whose bytes are not those that were committed.
    #[error("shard `{path}` is corrupt: its digest is {found}, expected {expected}")]
    CorruptShard {
        /// The file.
        path: PathBuf,
        /// The digest of the bytes that are there.
        found: Sha256Digest,
        /// The digest (or its leading digits) that was committed.
        expected: String,
    },
    /// A manifest that cannot be used.
    #[error("manifest `{path}`: {problem}")]
    InvalidManifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A cache that has no manifest.
    #[error("`{path}` is not a teacher cache: there is no manifest.json in it")]
    NotACache {
        /// The folder.
        path: PathBuf,
    },
    /// A cache that is not frozen, where a frozen one is needed.
    #[error("cache `{path}` is not frozen")]
    NotFrozen {
        /// The folder.
        path: PathBuf,
    },
    /// A cache of another digest than the one asked for.
    #[error("cache `{path}` holds no frozen state with digest {expected}")]
    UnknownCacheDigest {
        /// The folder.
        path: PathBuf,
        /// The digest asked for.
        expected: Sha256Digest,
        /// The digest of the newest frozen state, where there is one.
        found: Option<Sha256Digest>,
    },
}

impl Error {
    /// An [`Error::Io`] about `path`; `action` is the verb that failed.
    pub fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }

    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { path, source, .. } if is_address(path) => match source.kind() {
                io::ErrorKind::NotFound => Some("check the bucket and the prefix; a bucket is made before a cache is put in it".into()),
                io::ErrorKind::PermissionDenied => {
                    Some("check the credentials in the environment and what they allow: reading, writing, listing, removing".into())
                }
                _ => None,
            },
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some("check the path; relative paths start at the folder of the configuration file".into()),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("free some space and run the same command again: what was committed is kept".into())
                }
                io::ErrorKind::PermissionDenied => Some("check the owner and the mode of the path".into()),
                _ => None,
            },
            Self::InvalidDigest { .. } => Some("a digest is `sha256:` and 64 lower-case hexadecimal digits, as `harvest freeze` prints it".into()),
            Self::InvalidExampleId { .. } => Some("an example id is 32 lower-case hexadecimal digits".into()),
            Self::UnknownTask { known, .. } => Some(format!(
                "the built-in tasks are {}; describe any other in a task.toml",
                known.join(", ")
            )),
            Self::BadRow { .. } => Some("mend the row, or allow a number of such rows with --skip-bad-rows N".into()),
            Self::BadDataset { hint, .. } => hint.clone(),
            Self::NoSuchSignal { present, .. } => Some(format!("it holds: {}", present.join(", "))),
            Self::FormatVersion { found, supported, .. } if found > supported => {
                Some("a newer Armada wrote it: read it with that version".into())
            }
            Self::FormatVersion { .. } => Some("an older Armada wrote it: harvest again, or read it with that version".into()),
            Self::CorruptShard { .. } | Self::InvalidShard { .. } => Some(
                "copy the shard again from where it came; or delete it and run `harvest run` to ask for its rows again".into(),
            ),
            Self::InvalidJournal { .. } => {
                Some("run the Armada that wrote it, which commits its replies; they are paid for, so it was left as it is".into())
            }
            Self::NotACache { .. } => Some("`harvest run` and `harvest import` make a cache".into()),
            Self::NotFrozen { .. } => Some("run `harvest freeze` on it once it is complete".into()),
            Self::UnknownCacheDigest { found, .. } => found
                .map(|found| format!("its newest frozen state is {found}; name that digest if it is the one you mean")),
            Self::InvalidTask { .. }
            | Self::InvalidSignal { .. }
            | Self::InvalidSignalSpec { .. }
            | Self::InvalidManifest { .. } => None,
        }
    }
}

/// Whether a path is the address of something that is not a file here.
fn is_address(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.contains("://"))
}
