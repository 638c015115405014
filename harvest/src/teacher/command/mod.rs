//! A child process that speaks one JSON line in, one out: how any local model joins without being compiled in.
//!
//! The protocol is described in `docs/teachers/command.md`.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod process;
mod program;
mod protocol;

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use schemas::{LabelKind, TeacherIdentity};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{
    Answers, BatchLimits, Description, ErrorClass, Offer, OfferKind, OpenContext, Paid, Reply,
    Request, Teacher, TeacherError, TeacherKind, Usage,
};
use crate::config::{ConfigError, Section};
use crate::stop::Stop;
use process::{Process, Start};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// `[teacher]` with `kind = "command"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandConfig {
    /// Program and arguments; no shell reads them.
    pub command: Vec<String>,
    /// Model, as it shall stand in the manifest.
    pub model: String,
    /// What the program gives, by name.
    pub signals: BTreeMap<String, SignalConfig>,
    /// What else changes its answers, for the manifest.
    #[serde(default)]
    pub settings: BTreeMap<String, toml::Value>,
    /// Copies that run at a time; each has one row at a time.
    #[serde(default = "default_processes")]
    pub processes: NonZeroUsize,
    /// Seconds after which a row counts as lost and its process is ended.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: NonZeroU64,
    /// Seconds that a process has until its first line.
    #[serde(default = "default_start_seconds")]
    pub start_seconds: NonZeroU64,
    /// Longest line that is read, in MiB.
    #[serde(default = "default_max_line_mib")]
    pub max_line_mib: NonZeroU32,
    /// Processes that may be lost one after the other, without a single answer in between.
    #[serde(default = "default_max_restarts")]
    pub max_restarts: u32,
}

/// A signal of a program.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignalConfig {
    /// What it is.
    pub kind: SignalKindName,
    /// What its values mean, in words.
    pub meaning: String,
    /// The most entries at a position, of `logprobs`.
    pub k: Option<NonZeroU32>,
}

/// The kinds of signal, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SignalKindName {
    /// One vector for the whole example.
    Feature,
    /// One logit for each class of the task.
    ClassLogits,
    /// Text.
    Text,
    /// An encoded picture.
    Image,
    /// The most probable tokens at each position.
    Logprobs,
}

fn default_processes() -> NonZeroUsize {
    NonZeroUsize::MIN
}

fn default_timeout_seconds() -> NonZeroU64 {
    const { NonZeroU64::new(60).expect("not zero") }
}

fn default_start_seconds() -> NonZeroU64 {
    const { NonZeroU64::new(600).expect("not zero") }
}

fn default_max_line_mib() -> NonZeroU32 {
    const { NonZeroU32::new(64).expect("not zero") }
}

fn default_max_restarts() -> u32 {
    20
}

pub(super) fn read(section: Section<'_>) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let whole = section.clone();
    let config: CommandConfig = section.rest()?;
    if config.command.first().is_none_or(String::is_empty) {
        return Err(whole.refuse_key("command", "it names no program"));
    }
    if config.signals.is_empty() {
        return Err(whole.refuse_key("signals", "it names no signal"));
    }
    for (name, signal) in &config.signals {
        if (signal.kind == SignalKindName::Logprobs) != signal.k.is_some() {
            let problem =
                format!("`{name}`: `k` belongs to signals of the kind `logprobs`, which need it");
            return Err(whole.refuse_key("signals", &problem));
        }
    }
    Ok(Arc::new(config))
}

impl TeacherKind for CommandConfig {
    fn open(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Teacher>, TeacherError> {
        Ok(context.guard(self.teacher(context)?))
    }

    fn starts_a_program(&self) -> bool {
        true
    }
}

impl CommandConfig {
    fn teacher(&self, context: &OpenContext<'_>) -> Result<Command, TeacherError> {
        let program = program::find(&self.command[0])?;
        let offers = self.offers(context)?;
        let identity = TeacherIdentity {
            kind: "command".into(),
            model: self.model.clone(),
            settings: serde_json::json!(self.settings),
        };
        Ok(Command {
            description: Description {
                identity,
                offers,
                batch: BatchLimits::SINGLE,
                max_in_flight: Some(self.processes.get()),
            },
            start: Start {
                program,
                arguments: self.command[1..].to_vec(),
                timeout: Duration::from_secs(self.start_seconds.get()),
                max_line: self.max_line_mib.get() as usize * (1 << 20),
            },
            timeout: Duration::from_secs(self.timeout_seconds.get()),
            permits: Semaphore::new(self.processes.get()),
            idle: Mutex::default(),
            has_started: AtomicBool::new(false),
            num_lost: AtomicU32::new(0),
            max_restarts: self.max_restarts,
            data_folder: context.data_folder.clone(),
            stop: context.stop.clone(),
        })
    }

    fn offers(&self, context: &OpenContext<'_>) -> Result<Vec<Offer>, TeacherError> {
        let offer = |(name, signal): (&String, &SignalConfig)| {
            let kind = match signal.kind {
                SignalKindName::Feature => OfferKind::Feature,
                SignalKindName::Text => OfferKind::Text,
                SignalKindName::Image => OfferKind::Image,
                SignalKindName::Logprobs => OfferKind::TokenTopK {
                    k: signal.k.map_or(0, NonZeroU32::get),
                },
                SignalKindName::ClassLogits => match context.task.label() {
                    LabelKind::Classes(classes) => OfferKind::ClassLogits {
                        width: classes.len() as u32,
                    },
                    LabelKind::Number | LabelKind::Text | LabelKind::Choice(_) => {
                        return Err(TeacherError::new(
                            ErrorClass::Deterministic,
                            format!("signal `{name}`: the task has no classes, so it has no class logits"),
                        )
                        .advise("ask for a `feature` instead"));
                    }
                },
            };
            Ok(Offer::new(name, kind, &signal.meaning))
        };
        self.signals.iter().map(offer).collect()
    }
}

/// Asks copies of a program.
#[derive(Debug)]
struct Command {
    description: Description,
    start: Start,
    timeout: Duration,
    /// One for each process that may run.
    permits: Semaphore,
    /// Processes without a row.
    idle: Mutex<Vec<Process>>,
    /// Whether a process has ever said hello.
    has_started: AtomicBool,
    /// Processes lost since the last answer.
    num_lost: AtomicU32,
    max_restarts: u32,
    data_folder: PathBuf,
    stop: Stop,
}

impl Command {
    async fn ask(&self, request: &Request) -> Result<Reply, TeacherError> {
        let image = request.image.as_deref();
        let image = image
            .map(|name| confined(&self.data_folder, name))
            .transpose()?;
        let line = protocol::question(request, image.as_deref())?;
        let _permit = self.permits.acquire().await.expect("it is never closed");
        // Dropped with this future, a process that has a row is ended: nobody would read its answer.
        let mut process = self.process().await?;
        let answer = match process.ask(&line, self.timeout).await {
            Ok(answer) => answer,
            Err(error) => {
                self.num_lost.fetch_add(1, Ordering::Relaxed);
                return Err(process.explain(error).await);
            }
        };
        let answer = protocol::Answer::parse(&answer, request).inspect_err(|_| {
            // What it writes next may belong to any row.
            self.num_lost.fetch_add(1, Ordering::Relaxed);
        })?;
        self.num_lost.store(0, Ordering::Relaxed);
        self.idle().push(process);
        answer.reply(&self.description.offers)
    }

    /// A process without a row, started where there is none.
    async fn process(&self) -> Result<Process, TeacherError> {
        let idle = self.idle().pop();
        if let Some(process) = idle {
            return Ok(process);
        }
        let num_lost = self.num_lost.load(Ordering::Relaxed);
        if num_lost > self.max_restarts {
            let problem = format!(
                "the command was lost {num_lost} times without an answer and is not started again"
            );
            let error = TeacherError::new(ErrorClass::Deterministic, problem);
            return Err(self.of_a_start(error).advise("read what it wrote to standard error, mend it, then run again; `--retry-failures` asks for what failed"));
        }
        let start = async {
            if let Some(doublings) = num_lost.checked_sub(1) {
                let backoff = FIRST_BACKOFF * 2_u32.pow(doublings.min(10));
                tokio::time::sleep(backoff.min(LONGEST_BACKOFF)).await;
            }
            self.start.run().await
        };
        let started = tokio::select! {
            started = start => started,
            () = self.stop.requested() => Err(TeacherError::new(
                ErrorClass::Interrupted,
                "stopped before the command was ready",
            )),
        };
        match started {
            Ok(process) => {
                self.has_started.store(true, Ordering::Relaxed);
                Ok(process)
            }
            Err(error) => {
                if error.class != ErrorClass::Interrupted {
                    self.num_lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(self.of_a_start(error))
            }
        }
    }

    /// What keeps a program from ever starting is no row's fault and stops the run.
    fn of_a_start(&self, mut error: TeacherError) -> TeacherError {
        let comes_again = error.class == ErrorClass::Deterministic;
        if comes_again && !self.has_started.load(Ordering::Relaxed) {
            error.class = ErrorClass::Credentials;
        }
        error
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Process>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file that a data set names, where it lies in its folder.
fn confined(folder: &Path, name: &str) -> Result<PathBuf, TeacherError> {
    let refuse = |problem: &str| {
        TeacherError::new(
            ErrorClass::Deterministic,
            format!(
                "the picture `{}` {problem}",
                crate::failures::shorten(name, 200)
            ),
        )
    };
    if name.contains("://") {
        return Err(refuse(
            "is an address; a command is given files of the data set's folder only",
        ));
    }
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(name).components().all(inside) {
        return Err(refuse("leads out of the data set's folder"));
    }
    let found = |path: &Path| {
        path.canonicalize()
            .map_err(|error| refuse(&format!("cannot be read: {error}")))
    };
    let (folder, path) = (found(folder)?, found(&folder.join(name))?);
    if path.starts_with(folder) {
        Ok(path)
    } else {
        Err(refuse("is a link that leads out of the data set's folder"))
    }
}

impl Teacher for Command {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn most(&self, requests: &[Request]) -> Usage {
        Usage {
            requests: requests.len() as u64,
            ..Usage::of_prompts(requests)
        }
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        _paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        Box::pin(async move {
            let mut replies = Vec::with_capacity(requests.len());
            for request in requests {
                replies.push(self.ask(request).await);
            }
            Ok(replies.into())
        })
    }
}

#[cfg(all(test, unix))]
mod tests;
