//! What can end a command, with a hint on what to do next and an exit status.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data::{JoinError, PromptError};
use crate::device::DeviceError;
use crate::golden::GoldenError;
use crate::metrics::MetricError;
use crate::student::StudentError;
use crate::student::weights::WeightsError;

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
    /// A student cannot be read, built or written.
    #[error("student: {0}")]
    Student(#[from] StudentError),
    /// Stored weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Data set and cache do not fit.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// A text cannot be written or weighed.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The task's metric does not score its labels.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// The file of expected losses cannot be used.
    #[error(transparent)]
    Golden(#[from] GoldenError),
    /// A file of expected values cannot be used.
    #[error("`{}` holds no expected values: {problem}", path.display())]
    Fixture {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The loss left the range of numbers.
    #[error("the gradient at step {step} is not finite: the run has diverged")]
    Diverged {
        /// The step.
        step: u64,
    },
    /// A run folder in which another process trains.
    #[error("run folder `{}` is in use by another process", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A row to predict that cannot be used.
    #[error("{origin}:{line}: {problem}")]
    BadInput {
        /// The file, or `standard input`.
        origin: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A run of a comparison failed.
    #[error("run {run} of the comparison failed with {status}")]
    FailedRun {
        /// Variant and seed.
        run: String,
        /// How its process ended.
        status: std::process::ExitStatus,
    },
    /// A device that does not compute what the CPU does.
    #[error(
        "{count} quantities are not on {device} what they should be; f32 is allowed {tolerance}"
    )]
    DeviceDiffers {
        /// The device.
        device: String,
        /// Quantities over the tolerance.
        count: usize,
        /// The tolerance.
        tolerance: f64,
    },
}

/// The process's exit status, as documented in `docs/distill.md`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Everything was done.
    Done = 0,
    /// The user has something to mend.
    UserError = 1,
    /// Something failed that should not.
    Unexpected = 2,
    /// Stopped before the end; the state is saved.
    StoppedEarly = 3,
}

impl Error {
    /// An operating system's failure about `path`; `action` is the verb that failed.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Schemas(schemas::Error::io(&path, action, source))
    }

    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            Self::Schemas(error) => error.hint(),
            Self::Student(error) => error.hint(),
            Self::Weights(error) => error.hint(),
            Self::Device(error) => error.hint(),
            Self::Join(error) => error.hint(),
            Self::Prompt(error) => error.hint(),
            Self::Metric(error) => error.hint(),
            Self::Golden(error) => error.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Diverged { .. } => Some(
                "lower `training.student_learning_rate` or `training.aligner_learning_rate`, or choose a bounded manifold term"
                    .to_owned(),
            ),
            Self::Locked { .. } => Some("wait for it to end, or name another folder in `output.path`".to_owned()),
            Self::BadInput { .. } => Some("a line is a JSON object with the task's fields as texts".to_owned()),
            Self::FailedRun { .. } => {
                Some("its message is above; the same command, without --restart, goes on with the runs that are left".to_owned())
            }
            Self::Fixture { .. } => Some("use tests/fixtures of this version".to_owned()),
            Self::DeviceDiffers { .. } => Some("check driver and NVRTC versions; do not trust results of this device".to_owned()),
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
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::NotADirectory
                | ErrorKind::IsADirectory => Status::UserError,
                _ => Status::Unexpected,
            },
            Self::FailedRun { status, .. } if status.code() != Some(1) => Status::Unexpected,
            _ => Status::UserError,
        }
    }
}
