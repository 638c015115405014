//! Source -> bounded queue -> teacher -> journal -> shards.
//!
//! Memory is bounded by the configuration: `concurrency` requests are in flight, twice as many wait in the queue, and
//! at most two shards are open, the one that takes requests and the one whose last replies are still to come. What
//! grows with the data are the set of known keys, 20 bytes a row, and the split that is being read.

mod driver;
mod open_shard;
mod probe;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use schemas::{Manifest, TeacherRecord};
use tokio::sync::mpsc;

use crate::cache::{Cache, Key, check_same_source};
use crate::config::{CacheConfig, Config, ConfigError, RunConfig, Source};
use crate::error::Error;
use crate::failures::{Failure, Failures};
use crate::plan::{Pending, Plan, Survey};
use crate::stop::Stop;
use crate::teacher::{Description, ErrorClass, Reply, Request, Teacher, TeacherError};

use driver::Driver;
use probe::Probe;

/// How a run ended.
#[derive(Clone, PartialEq, Debug)]
pub enum Ending {
    /// Every row was asked about.
    Complete,
    /// Ctrl-C or SIGTERM.
    Stopped,
    /// The key or the allowance is used up, so that no request can succeed.
    Refused(TeacherError),
    /// No row succeeded, so the run gave up; the error is the last one.
    AllFailed(TeacherError),
}

/// What a run did.
#[derive(Debug)]
pub struct Summary {
    /// How it ended.
    pub ending: Ending,
    /// The data set as it was found.
    pub survey: Survey,
    /// Rows taken over from the journal of a run that did not end.
    pub num_recovered: u64,
    /// Rows answered and committed by this run.
    pub num_committed: u64,
    /// Rows that failed.
    pub num_failed: u64,
    /// The first twenty of them.
    pub first_failures: Vec<Failure>,
}

impl Summary {
    fn with(mut self, failures: Failures) -> Self {
        self.num_failed = failures.num_failed();
        self.first_failures = failures.into_first();
        self
    }
}

/// The configured teacher, run section and cache section.
///
/// # Errors
/// [`ConfigError::OtherSort`] where the configuration describes an import.
pub fn teacher_section<'a>(
    config: &'a Config,
    path: &Path,
    verb: &'static str,
) -> Result<(&'a crate::config::TeacherConfig, &'a RunConfig), ConfigError> {
    match &config.source {
        Source::Teacher(teacher, run) => Ok((teacher, run)),
        Source::Import(_) => Err(ConfigError::OtherSort {
            path: path.to_owned(),
            found: "an import",
            wanted: "a teacher",
            verb,
        }),
    }
}

/// Asks the teacher about every row that the cache lacks.
///
/// # Errors
/// [`Error`]. What was received before is in shards or in the journal, and the next run starts from there.
pub async fn run(
    plan: Arc<Plan>,
    teacher: Arc<dyn Teacher>,
    cache_config: &CacheConfig,
    run_config: &RunConfig,
    mut cache: Cache,
    stop: Stop,
) -> Result<Summary, Error> {
    let replays = cache.replay()?;
    if let Some(manifest) = cache.manifest() {
        let expected = expected_manifest(manifest, &plan, teacher.describe(), cache_config)?;
        check_same_source(cache.folder(), manifest, &expected)?;
    }
    let num_recovered = cache.recover(replays)?;
    let survey = plan.survey(cache.known())?;
    let mut summary = Summary {
        ending: Ending::Complete,
        num_recovered,
        num_committed: 0,
        num_failed: 0,
        first_failures: Vec::new(),
        survey,
    };
    if summary.survey.num_missing == 0 {
        return Ok(summary);
    }
    let mut failures = Failures::start(cache.folder())?;
    let mut known = cache.take_known();
    let (manifest, first) = if let Some(manifest) = cache.manifest() {
        (manifest.clone(), None)
    } else {
        let probe = Probe {
            plan: &plan,
            teacher: teacher.as_ref(),
            cache_config,
            stop: &stop,
        };
        let found = probe
            .first_reply(&summary.survey.first_missing, &mut failures, &mut known)
            .await?;
        match found {
            Ok((manifest, record)) => (manifest, Some(record)),
            Err(ending) => {
                summary.ending = ending;
                return Ok(summary.with(failures));
            }
        }
    };
    let concurrency = run_config
        .concurrency
        .get()
        .min(teacher.describe().max_in_flight.unwrap_or(usize::MAX));
    let queue = start_source(plan, known, 2 * concurrency);
    let driver = Driver::new(
        cache,
        manifest,
        teacher,
        cache_config.rows_per_shard.get(),
        failures,
        summary,
    );
    driver.run(queue, concurrency, first, &stop).await
}

/// The manifest of a new cache, its signals as wide as `reply` shows them.
///
/// # Errors
/// A [`TeacherError`] where the reply lacks a signal.
pub fn new_manifest(
    plan: &Plan,
    teacher: &Description,
    reply: &Reply,
    cache_config: &CacheConfig,
) -> Result<Manifest, TeacherError> {
    let mut signals = teacher.specs(reply, cache_config.dtype);
    if let Err(error) = &mut signals {
        error.tries = reply.provenance.tries;
    }
    let signals = signals?;
    Ok(Manifest::new(
        teacher.identity.clone(),
        plan.identity().clone(),
        plan.draws(),
        signals,
    ))
}

/// The manifest that the configuration asks for, with the widths that the cache has: those are known from replies
/// only, and a reply of another width fails by itself.
///
/// # Errors
/// [`Error::Schemas`] where a signal cannot be described.
pub fn expected_manifest(
    cached: &Manifest,
    plan: &Plan,
    teacher: &Description,
    cache_config: &CacheConfig,
) -> Result<Manifest, Error> {
    let width = |name: &str| {
        cached
            .signal(name)
            .and_then(schemas::SignalSpec::vector)
            .map_or(1, |(width, _)| width as u32)
    };
    let signals = teacher
        .offers
        .iter()
        .map(|offer| offer.spec(width(offer.name), cache_config.dtype));
    let signals = signals.collect::<Result<Vec<_>, _>>()?;
    Ok(Manifest::new(
        teacher.identity.clone(),
        plan.identity().clone(),
        plan.draws(),
        signals,
    ))
}

/// The row that a reply becomes in a cache with this manifest.
fn record(
    request: &Request,
    reply: Reply,
    manifest: &Manifest,
) -> Result<TeacherRecord, TeacherError> {
    let Reply {
        signals,
        provenance,
    } = reply;
    let tries = provenance.tries;
    let record = TeacherRecord {
        id: request.id,
        draw: request.draw,
        signals,
        provenance,
    };
    record.fit(&manifest.signals).map_err(|error| {
        let mut error = TeacherError::new(ErrorClass::Deterministic, error.to_string());
        error.tries = tries;
        error
    })
}

type Queue = mpsc::Receiver<Result<Pending, Error>>;

/// Reads the data set on a thread of its own, as far ahead as the queue has room; leaves out what is `known`.
fn start_source(plan: Arc<Plan>, known: HashSet<Key>, room: usize) -> Queue {
    let (sender, receiver) = mpsc::channel(room);
    tokio::task::spawn_blocking(move || {
        let sent = plan.each_pending(known, |pending| sender.blocking_send(Ok(pending)).is_ok());
        if let Err(error) = sent {
            // Nobody listens any more where the run has ended already.
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}
