//! What can end a command, with a hint on what to do next and an exit status.

use std::io::ErrorKind;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::lease::LeaseError;
use crate::plan::NUM_LISTED;
use crate::store::StoreError;
use crate::teacher::TeacherError;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A data set, shard or manifest cannot be used, or the operating system failed.
    #[error(transparent)]
    Schemas(#[from] schemas::Error),
    /// The teacher cannot be asked.
    #[error("teacher: {0}")]
    Teacher(Box<TeacherError>),
    /// Another process writes the cache.
    #[error("cache `{}` is being written by another process", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Replies, parts of some, or batches that another division of the work left behind.
    #[error("`{}` has what a run with another division into slices has paid for and not committed", folder.display())]
    JournalLeft {
        /// The work folder.
        folder: PathBuf,
    },
    /// Another worker holds the cache, or took it.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A location that is none.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache was filled from another source than the configuration describes.
    #[error(
        "`{location}` was filled with {key} = {cached}, and the configuration says {configured}"
    )]
    DifferentSource {
        /// The cache, shard or journal.
        location: String,
        /// The key that differs.
        key: String,
        /// Its value in the cache.
        cached: String,
        /// Its value in the configuration.
        configured: String,
    },
    /// A split that the data set does not have.
    #[error("the data set has no split `{split}`")]
    NoSuchSplit {
        /// The split asked for.
        split: String,
        /// The splits it has.
        present: Vec<String>,
    },
    /// A data set without rows.
    #[error("data set `{}` has no rows", path.display())]
    NoRows {
        /// Where it lies.
        path: PathBuf,
    },
    /// A prompt template that does not fit the task.
    #[error("`teacher.prompt`: {problem}")]
    InvalidPrompt {
        /// What is wrong.
        problem: String,
    },
    /// A verb that needs more than the cache.
    #[error("`harvest {what}` needs the configuration, and a cache was named")]
    NeedsConfig {
        /// The verb.
        what: &'static str,
    },
    /// A data set that changed while it was asked about.
    #[error("data set `{}` changed while it was read", path.display())]
    DatasetChanged {
        /// The file that changed, or the first one.
        path: PathBuf,
    },
    /// A field that the data set does not have.
    #[error("`{key}`: the data set has no field `{field}`")]
    NoSuchField {
        /// The key that names it.
        key: &'static str,
        /// The field.
        field: String,
        /// The fields it has.
        present: Vec<String>,
    },
    /// The run gave up, because no row succeeded.
    #[error("the first {num_failed} rows all failed, the last with: {last}")]
    AllFailed {
        /// Rows that failed.
        num_failed: u64,
        /// The last failure.
        last: Box<TeacherError>,
    },
    /// The run gave up, because too large a share of the rows failed.
    #[error(
        "{num_failed} rows failed, a larger share than `run.max_failure_share` allows; the last with: {last}"
    )]
    TooManyFailed {
        /// Rows that failed.
        num_failed: u64,
        /// The last failure.
        last: Box<TeacherError>,
    },
    /// A cache that is not fit to be frozen.
    #[error("cache `{location}` is not fit to be frozen: {}", problems.join("; "))]
    NotFit {
        /// Where it is.
        location: String,
        /// What is wrong, one sentence each.
        problems: Vec<String>,
        /// What to do.
        hint: Option<String>,
    },
    /// Examples for which there is no feature to import.
    #[error("{num_missing} of {num_examples} examples have no feature in `{}`: {}{}", path.display(), first.join(", "),
        if first.len() == NUM_LISTED && *num_missing > NUM_LISTED as u64 { ", ..." } else { "" })]
    MissingFeatures {
        /// What was imported.
        path: PathBuf,
        /// Examples without a feature.
        num_missing: u64,
        /// All examples.
        num_examples: u64,
        /// The first twenty features that are missing; several examples can share one.
        first: Vec<String>,
    },
    /// A file of features that cannot be used.
    #[error("`{}`: {problem}", path.display())]
    BadFeature {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A list of failed rows that cannot be read.
    #[error("list of failed rows `{}`: {problem}", path.display())]
    BadFailures {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A ledger of the budget that cannot be read.
    #[error("`{}`, line {line}, is damaged: nobody can tell what of the budget is spent", path.display())]
    BadLedger {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
    },
    /// Caches cannot be joined.
    #[error(transparent)]
    Merge(#[from] crate::merge::MergeError),
    /// A data card cannot be written.
    #[error(transparent)]
    Card(#[from] crate::card::CardError),
    /// An address for scrapers that cannot be had.
    #[error("cannot listen at `{address}`: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A task of this program died, which is a defect.
    #[error("a task of this program ended unexpectedly: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl From<TeacherError> for Error {
    fn from(error: TeacherError) -> Self {
        Self::Teacher(Box::new(error))
    }
}

/// The process's exit status, as documented in `docs/harvest.md`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Everything was done.
    Done = 0,
    /// The user has something to mend.
    UserError = 1,
    /// Something failed that should not.
    Unexpected = 2,
    /// Stopped before the end; what was received is committed.
    StoppedEarly = 3,
}

impl Error {
    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            Self::Schemas(error) => error.hint(),
            Self::Teacher(error) | Self::AllFailed { last: error, .. } => error.hint(),
            Self::TooManyFailed { .. } => {
                Some("mend the cause and run again with --retry-failures, or raise the limit".into())
            }
            Self::Lease(error) => error.hint(),
            Self::Store(error) => Some(error.hint.clone()),
            Self::JournalLeft { .. } => {
                Some("run without --slice, or with the slice that left it, until nothing is left; of rows that failed, --retry-failures. Where `harvest check` finds nothing missing, the folder `batches` and the file `parts.journal` there may be removed".into())
            }
            Self::Locked { .. } => Some("wait for it to end, or give each process a cache of its own".into()),
            Self::DifferentSource { .. } => Some("mend the configuration, or name another folder in `cache.path`".into()),
            Self::NoSuchSplit { present, .. } => Some(format!("its splits are {}", present.join(", "))),
            Self::NoRows { .. } => Some("check `dataset.path` and the chosen splits".into()),
            Self::InvalidPrompt { .. } => Some("write fields of the task in braces: {premise}".into()),
            Self::NeedsConfig { .. } => Some("name the configuration that fills the cache".into()),
            Self::DatasetChanged { .. } => {
                Some("run again: what was received is kept, and what is missing is found anew".into())
            }
            Self::NoSuchField { present, .. } => Some(format!("its fields are {}", present.join(", "))),
            Self::NotFit { hint, .. } => hint.clone(),
            Self::MissingFeatures { .. } => {
                Some("make the missing features, or leave splits out with `import.splits`; none is ever filled in".into())
            }
            Self::BadFeature { .. } => {
                Some("mend the file, or name another one in `[import]`".into())
            }
            Self::BadFailures { .. } => {
                Some("copy it again from where it came; or delete it, and the next run asks about its rows again".into())
            }
            Self::BadLedger { .. } => {
                Some("copy it again from where it came; or remove it to count from zero, with what is left of the budget in the configuration".into())
            }
            Self::Listen { .. } => {
                Some("give `--metrics-listen` an address of this machine with a port that is free; port 0 takes any".into())
            }
            Self::Merge(error) => error.hint(),
            Self::Card(error) => error.hint(),
            Self::Task(_) => Some("please report it with the log of RUST_LOG=debug".into()),
        }
    }

    /// The exit status that tells a user's error from an unexpected one.
    pub fn status(&self) -> Status {
        match self {
            Self::Schemas(schemas::Error::Io { source, .. }) => match source.kind() {
                ErrorKind::NotFound
                | ErrorKind::PermissionDenied
                | ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::FileTooLarge
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::NotADirectory
                | ErrorKind::AlreadyExists
                | ErrorKind::IsADirectory => Status::UserError,
                _ => Status::Unexpected,
            },
            Self::Task(_) => Status::Unexpected,
            Self::Lease(
                LeaseError::Stopped { .. } | LeaseError::Lost { .. } | LeaseError::Silent { .. },
            ) => Status::StoppedEarly,
            _ => Status::UserError,
        }
    }
}
