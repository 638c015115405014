//! Errors of teachers, by what can be done about them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Serialize};

use super::hints::RateHints;
use crate::failures::harmless;

/// What can be done about an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
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
    /// The configured budget is used up: stops the run.
    Budget,
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
            Self::Budget => "budget",
            Self::Interrupted => "interrupted",
        })
    }
}

impl FromStr for ErrorClass {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = |_| format!("`{name}` is no class of errors");
        Self::deserialize(name.into_deserializer())
            .map_err(|error: serde::de::value::Error| unknown(error))
    }
}

/// How far a request that failed has got: what may have been billed, and whether the request can be to blame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Sent {
    /// It was never sent.
    Nothing,
    /// No connection came about, or the server's certificate or redirect was refused.
    Unconnected,
    /// It was sent as far as is known, and no answer came.
    #[default]
    Unanswered,
    /// The server refused it with a status.
    Refused,
    /// The server answered with success, and the reply cannot be used.
    Unusable,
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
    /// What the server said about its limits.
    pub hints: RateHints,
    /// Whether the teacher lacks what the configuration asks for, so that every row will fail alike.
    pub is_lacking: bool,
    /// How far the request has got.
    pub sent: Sent,
    /// Requests sent.
    pub tries: u32,
}

impl TeacherError {
    /// An error of this class.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self {
            class,
            message: harmless(&message.into()),
            advice: None,
            retry_after: None,
            retry_forbidden: false,
            hints: RateHints::default(),
            is_lacking: false,
            sent: Sent::default(),
            tries: 0,
        }
    }

    /// The same error with advice to the user.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The same error of a teacher that lacks what is asked for.
    #[must_use]
    pub fn lacking(mut self) -> Self {
        self.is_lacking = true;
        self
    }

    /// The same error about a request that has got this far.
    #[must_use]
    pub fn having(mut self, sent: Sent) -> Self {
        self.sent = sent;
        self
    }

    /// Whether a part of the request may succeed where the whole has failed for good: it is refused whatever happens, or
    /// the server answers for a fault that does not pass.
    pub fn may_be_of_one_row(&self) -> bool {
        match self.class {
            ErrorClass::Deterministic => self.sent != Sent::Unconnected,
            ErrorClass::Transient => matches!(self.sent, Sent::Refused | Sent::Unusable),
            _ => false,
        }
    }

    /// Whether the request may be sent again.
    pub fn is_retryable(&self) -> bool {
        let passing = matches!(
            self.class,
            ErrorClass::Rate | ErrorClass::Overload | ErrorClass::Transient
        );
        passing && !self.retry_forbidden
    }

    /// Whether no connection came about, or one that must not be used (its certificate, a redirect to another host), which
    /// says nothing of the request.
    pub fn finds_no_server(&self) -> bool {
        self.sent == Sent::Unconnected
    }

    /// Whether every other request would fail the same way, so that the run has to stop.
    pub fn stops_the_run(&self) -> bool {
        matches!(
            self.class,
            ErrorClass::Credentials | ErrorClass::Quota | ErrorClass::Budget
        )
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
            ErrorClass::Budget => {
                "raise [budget] and run again: committed rows are kept, and what was spent counts"
            }
            ErrorClass::Deterministic => {
                "mend what it names: the row, the teacher's section or the server"
            }
            ErrorClass::Interrupted => return None,
        };
        Some(hint.to_owned())
    }
}
