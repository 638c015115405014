//! Source -> bounded queue -> teacher -> journal -> shards.
//!
//! Memory is bounded by the configuration: `concurrency` requests are in flight, twice as many wait in the queue, and
//! at most two shards are open, the one that takes requests and the one whose last replies are still to come. What
//! grows with the data are the set of known keys, 20 bytes a row, and the split that is being read.

mod driver;
mod open_shard;

use std::path::Path;
use std::sync::Arc;

use schemas::{Manifest, TeacherRecord};
use tokio::sync::mpsc;

use crate::cache::{Cache, check_same_source};
use crate::config::{CacheConfig, Config, ConfigError, RunConfig, Source};
use crate::error::Error;
use crate::failures::Failure;
use crate::plan::{Pending, Plan, Survey};
use crate::stop::Stop;
use crate::teacher::{self, Description, Reply, Request, Teacher, TeacherError};

use driver::Driver;

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
    let Some(first) = summary.survey.first_missing.first().cloned() else {
        return Ok(summary);
    };
    let (manifest, first_record) = match cache.manifest() {
        Some(manifest) => (manifest.clone(), None),
        None => match probe(&plan, teacher.as_ref(), cache_config, &first).await {
            Ok((manifest, record)) => (manifest, Some(record)),
            Err(Error::Teacher(error)) if error.class == teacher::ErrorClass::Interrupted => {
                summary.ending = Ending::Stopped;
                return Ok(summary);
            }
            Err(error) => return Err(error),
        },
    };
    let concurrency = run_config
        .concurrency
        .get()
        .min(teacher.describe().max_in_flight.unwrap_or(usize::MAX));
    let queue = start_source(plan, &mut cache, 2 * concurrency);
    let driver = Driver::new(
        cache,
        manifest,
        teacher,
        cache_config.rows_per_shard.get(),
        summary,
    )?;
    driver.run(queue, concurrency, first_record, &stop).await
}

/// Asks about the first row, to see the widths of the signals. The reply is kept as that row's: it was paid for.
async fn probe(
    plan: &Plan,
    teacher: &dyn Teacher,
    cache_config: &CacheConfig,
    request: &Request,
) -> Result<(Manifest, TeacherRecord), Error> {
    let reply = teacher.query(request).await?;
    let manifest = new_manifest(plan, teacher.describe(), &reply, cache_config)?;
    let record = record(request, reply).fit(&manifest.signals)?;
    Ok((manifest, record))
}

/// The manifest of a new cache, its signals as wide as `reply` shows them.
///
/// # Errors
/// [`Error::Teacher`] where the reply lacks a signal.
pub fn new_manifest(
    plan: &Plan,
    teacher: &Description,
    reply: &Reply,
    cache_config: &CacheConfig,
) -> Result<Manifest, Error> {
    let signals = teacher.specs(reply, cache_config.dtype)?;
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

fn record(request: &Request, reply: Reply) -> TeacherRecord {
    let Reply {
        signals,
        provenance,
    } = reply;
    TeacherRecord {
        id: request.id,
        draw: request.draw,
        signals,
        provenance,
    }
}

type Queue = mpsc::Receiver<Result<Pending, Error>>;

/// Reads the data set on a thread of its own, as far ahead as the queue has room.
fn start_source(plan: Arc<Plan>, cache: &mut Cache, room: usize) -> Queue {
    let (sender, receiver) = mpsc::channel(room);
    let known = cache.take_known();
    tokio::task::spawn_blocking(move || {
        let sent = plan.each_pending(known, |pending| sender.blocking_send(Ok(pending)).is_ok());
        if let Err(error) = sent {
            // Nobody listens any more where the run has ended already.
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}
