//! Errors of teachers, by what can be done about them.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// What can be done about an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorClass {
    /// Too many requests: ask again later.
    Rate,
    /// The server is overloaded: ask again later.
    Overload,
    /// A fault that may pass: ask again.
    Transient,
    /// The same request fails again: never retried.
    Deterministic,
    /// The key is missing, wrong or without rights: stops the run.
    Credentials,
    /// No money or allowance is left: stops the run.
    Quota,
    /// Not an error of the teacher: the run was stopped before the request was sent again.
    Interrupted,
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rate => "rate",
            Self::Overload => "overload",
            Self::Transient => "transient",
            Self::Deterministic => "deterministic",
            Self::Credentials => "credentials",
            Self::Quota => "quota",
            Self::Interrupted => "interrupted",
        })
    }
}

/// A question that was not answered.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct TeacherError {
    /// What can be done about it.
    pub class: ErrorClass,
    /// What happened, on one line.
    pub message: String,
    /// What the user can do, where the teacher knows better than the class.
    pub advice: Option<String>,
    /// When the server wants to be asked again.
    pub retry_after: Option<Duration>,
    /// Whether the server forbade to ask again.
    pub retry_forbidden: bool,
    /// Requests sent.
    pub tries: u32,
}

impl TeacherError {
    /// An error of this class.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            advice: None,
            retry_after: None,
            retry_forbidden: false,
            tries: 0,
        }
    }

    /// The same error with advice to the user.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Whether the request may be sent again.
    pub fn is_retryable(&self) -> bool {
        let passing = matches!(
            self.class,
            ErrorClass::Rate | ErrorClass::Overload | ErrorClass::Transient
        );
        passing && !self.retry_forbidden
    }

    /// Whether every other request would fail the same way, so that the run has to stop.
    pub fn stops_the_run(&self) -> bool {
        matches!(self.class, ErrorClass::Credentials | ErrorClass::Quota)
    }

    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        if self.advice.is_some() {
            return self.advice.clone();
        }
        let hint = match self.class {
            ErrorClass::Rate => "lower `run.concurrency`, or raise `run.max_tries`",
            ErrorClass::Overload | ErrorClass::Transient => {
                "check the server, then run again: committed rows are kept"
            }
            ErrorClass::Credentials => {
                "check the variable that `teacher.api_key_env` names and the key's rights"
            }
            ErrorClass::Quota => "top up the account, then run again: committed rows are kept",
            ErrorClass::Deterministic | ErrorClass::Interrupted => return None,
        };
        Some(hint.to_owned())
    }
}
