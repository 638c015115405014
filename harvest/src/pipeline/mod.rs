//! Source -> bounded queue -> teacher -> journal -> shards.
//!
//! Memory is bounded by the configuration: `concurrency` batches are in flight, and twice as many wait in the queue.
//! Replies are on the disk, in the journal, until their shard is written from there. What grows with the data is in
//! [`survey`](crate::survey).

mod committer;
mod copies;
mod driver;
mod open_shard;
pub(crate) mod pictures;
mod probe;
pub(crate) mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::{Manifest, TeacherRecord};
use tokio::runtime::Handle;

use crate::cache::Cache;
use crate::config::{CacheConfig, Config, ConfigError, RunConfig, Source, TeacherEntry};
use crate::error::Error;
use crate::events::Event;
use crate::failures::Failure;
use crate::parts::Parts;
use crate::plan::Plan;
use crate::reporter::{Reporter, Watch};
use crate::reserve::Reserve;
use crate::stop::Stop;
use crate::survey::Survey;
use crate::teacher::sight::Sight;
use crate::teacher::{Description, ErrorClass, Reply, Request, Teacher, TeacherError};

use driver::Driver;
use pictures::Opening;
use probe::Probe;

/// How a run ended.
#[derive(Clone, PartialEq, Debug)]
pub enum Ending {
    /// Every row was asked about.
    Complete,
    /// Ctrl-C or SIGTERM.
    Stopped,
    /// The key, the allowance, the budget, the server or what it lacks lets no request succeed.
    Refused(TeacherError),
    /// No row succeeded, so the run gave up; the error is the last one.
    AllFailed(TeacherError),
    /// Too large a share of the rows failed; the error is the last one.
    TooManyFailed(TeacherError),
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
    /// Those of them that got the reply of another row, whose request is the same.
    pub num_copied: u64,
    /// Rows that failed.
    pub num_failed: u64,
    /// The first twenty of them.
    pub first_failures: Vec<Failure>,
}

impl Summary {
    /// Rows that are still to be asked about. A data set that changes during the run can have more rows than were
    /// found.
    pub fn num_left(&self) -> u64 {
        let settled = self.num_committed + self.num_failed;
        self.survey.num_missing.saturating_sub(settled)
    }
}

/// A run that broke off.
#[derive(Debug)]
pub struct Broken {
    /// Why.
    pub error: Error,
    /// What it did until then, where it came to know its rows.
    pub summary: Option<Box<Summary>>,
}

impl<E: Into<Error>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            summary: None,
        }
    }
}

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// What is asked.
    pub plan: Arc<Plan>,
    /// Who is asked.
    pub teacher: Arc<dyn Teacher>,
    /// The same as configured.
    pub teachers: Vec<TeacherEntry>,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[run]`
    pub run: RunConfig,
    /// Whether rows that failed before are asked about again.
    pub retry_failures: bool,
    /// Who is told of it.
    pub watch: Watch,
    /// Digest of the configuration, for those who are told.
    pub config_digest: String,
    /// Where its numbers are written.
    pub metrics_file: Option<PathBuf>,
}

/// The configured teachers and run section.
///
/// # Errors
/// [`ConfigError::OtherSort`] where the configuration describes an import.
pub fn teacher_section<'a>(
    config: &'a Config,
    path: &Path,
    verb: &'static str,
) -> Result<(&'a [TeacherEntry], &'a RunConfig), ConfigError> {
    match &config.source {
        Source::Teachers(teachers, run) => Ok((teachers, run)),
        Source::Import(_) => Err(ConfigError::OtherSort {
            path: path.to_owned(),
            found: "an import",
            wanted: "a teacher",
            verb,
        }),
    }
}

/// Asks the teacher about every row that the cache lacks. Blocks; requests are sent on `runtime`, which must not be the
/// one whose worker calls this.
///
/// # Errors
/// [`Broken`]. What was received before is in shards or in the journal, and the next run starts from there.
pub fn run(runtime: &Handle, job: &Job, mut cache: Cache, stop: &Stop) -> Result<Summary, Broken> {
    let Job { plan, teacher, .. } = job;
    let replays = cache.replay()?;
    cache.check_source(plan, teacher.describe(), &job.cache)?;
    let num_recovered = cache.recover(replays)?;
    let survey = plan.survey(&mut cache.known(job.retry_failures)?)?;
    let location = cache.place().store.location();
    job.watch.events.emit(&Event::Started {
        config_digest: &job.config_digest,
        cache: Path::new(&location),
        rows_wanted: survey.num_wanted,
        rows_known: survey.num_wanted - survey.num_missing - survey.num_failed,
        rows_missing: survey.num_missing,
    });
    let mut reporter = Reporter::new(
        survey.num_requests(),
        job.watch.clone(),
        job.metrics_file.clone(),
    );
    let mut summary = Summary {
        ending: Ending::Complete,
        num_recovered,
        num_committed: 0,
        num_copied: 0,
        num_failed: 0,
        first_failures: Vec::new(),
        survey,
    };
    let result = ask(runtime, job, &mut cache, stop, &mut summary, &mut reporter);
    summary.num_failed = cache.failures().num_new();
    summary.first_failures = cache.failures().first_new().to_vec();
    let written = cache.failures().write();
    match result.and(written) {
        Ok(()) => Ok(summary),
        Err(error) => Err(Broken {
            error,
            summary: Some(Box::new(summary)),
        }),
    }
}

fn ask(
    runtime: &Handle,
    job: &Job,
    cache: &mut Cache,
    stop: &Stop,
    summary: &mut Summary,
    reporter: &mut Reporter,
) -> Result<(), Error> {
    let notes = job.plan.notes();
    let mut manifest = cache
        .manifest()
        .map(|manifest| manifest.clone().with_notes(notes.clone()));
    if summary.survey.num_requests() > 0 {
        let first;
        let mut settled = Vec::new();
        // Before anything is paid: what is in flight when the disk is full must fit.
        let in_flight = concurrency(job) * job.teacher.describe().batch.max_requests;
        let reserved = Reserve::bytes_for(job.teacher.describe(), in_flight);
        let reserve = Arc::new(Reserve::take(&cache.place().work, reserved)?);
        let parts = cache.parts(&job.teacher.describe().identity, job.plan.identity())?;
        let probe = Probe::new(job, Arc::clone(&parts), stop);
        let manifest = if let Some(manifest) = &manifest {
            first = probe.kept(&summary.survey, manifest);
            settled.extend(first.iter().map(|(_, record)| (record.id, record.draw)));
            manifest.clone()
        } else {
            let found = probe.first_reply(&summary.survey, cache, &mut settled, reporter);
            match runtime.block_on(found)? {
                Err(ending) => {
                    summary.ending = ending;
                    return Ok(());
                }
                Ok(found) => {
                    look_at_pictures(runtime, job, &summary.survey, &found.row, &probe, stop)
                        .inspect_err(|error| reporter.stopping(&error.to_string()))?;
                    first = Some(found.row);
                    manifest.insert(found.manifest).clone()
                }
            }
        };
        let limits = job.teacher.describe().batch;
        let concurrency = concurrency(job);
        let queue = source::start(
            runtime,
            Arc::clone(&job.plan),
            summary.survey.clone(),
            settled,
            limits,
            2 * concurrency,
        );
        let carried = Arc::clone(&parts);
        runtime.block_on(async {
            let driver = Driver::new(job, cache, manifest, carried, reserve, summary, reporter);
            driver.run(queue, concurrency, first, stop).await
        })?;
        parts.compact()?;
        if summary.ending == Ending::Complete {
            finish(runtime, job, cache);
        }
    } else {
        // A process that was killed between its last row and its end left what nobody needs any more.
        if Parts::is_in(&cache.place().work) {
            let teacher = &job.teacher.describe().identity;
            cache.parts(teacher, job.plan.identity())?.compact()?;
        }
        finish(runtime, job, cache);
    }
    if let Some(manifest) = &manifest {
        summary.num_copied = copies::make(cache, manifest, summary.survey.copies(), reporter)?;
        summary.num_committed += summary.num_copied;
    }
    Ok(())
}

fn finish(runtime: &Handle, job: &Job, cache: &mut Cache) {
    let failed = cache.failures().keys().collect();
    runtime.block_on(job.teacher.finished(&failed));
}

/// Finds out whether pictures are looked at before more than the first row is paid for, unless `harvest check` alone can
/// wait for that.
fn look_at_pictures(
    runtime: &Handle,
    job: &Job,
    survey: &Survey,
    (position, first): &(u64, TeacherRecord),
    probe: &Probe,
    stop: &Stop,
) -> Result<(), Error> {
    if job.teachers.iter().any(|entry| entry.kind.takes_long()) {
        return Ok(());
    }
    let opening = Opening {
        plan: &job.plan,
        run: &job.run,
        watch: &job.watch,
        stop,
    };
    let rows = survey.first_missing.iter();
    let rows = rows.skip_while(|pending| pending.position != *position);
    let sample: Vec<_> = rows
        .enumerate()
        .map(|(number, pending)| {
            let reply = (number == 0).then(|| Reply {
                signals: first.signals.clone(),
                provenance: first.provenance.clone(),
            });
            (pending.request.clone(), reply)
        })
        .collect();
    if let Some((asked, _)) = sample.first() {
        probe.keep(asked, first)?;
    }
    let looked = runtime.block_on(opening.look(&job.teachers, &sample));
    if matches!(&looked, Err(Error::Teacher(error)) if error.is_lacking) {
        // It was answered blindly.
        probe.forget(first)?;
    }
    for found in looked? {
        match found.sight {
            Sight::Seen(_) => tracing::info!("pictures: {found}"),
            Sight::Unknown(_) => tracing::warn!("pictures: {found}"),
        }
    }
    Ok(())
}

/// Batches in flight.
fn concurrency(job: &Job) -> usize {
    let most = job.teacher.describe().max_in_flight.unwrap_or(usize::MAX);
    job.run.concurrency.get().min(most)
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
    )
    .with_notes(plan.notes().clone()))
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
        .map(|offer| offer.spec(width(&offer.name), cache_config.dtype));
    let signals = signals.collect::<Result<Vec<_>, _>>()?;
    Ok(Manifest::new(
        teacher.identity.clone(),
        plan.identity().clone(),
        plan.draws(),
        signals,
    )
    .with_notes(plan.notes().clone()))
}

/// The row that a reply becomes in a cache with this manifest. The first signal that does not fit it is handed to
/// `forget`, which forgets the parts that hold it: they never will.
fn record(
    request: &Request,
    reply: Reply,
    manifest: &Manifest,
    forget: impl FnOnce(&str) -> Result<(), TeacherError>,
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
        if let schemas::Error::InvalidSignal { signal, .. } = &error
            && let Err(not_forgotten) = forget(signal)
        {
            return not_forgotten;
        }
        let mut error = TeacherError::new(ErrorClass::Deterministic, error.to_string());
        error.tries = tries;
        error
    })
}
