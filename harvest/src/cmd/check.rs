//! `harvest check`: probe before spending.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::{Manifest, SignalSpec, SignalValue};

use super::draws::warn_of_equal_draws;
use super::projection::Work;
use super::{describe_signal, open_teacher, runtime, warn_of_skipped};
use crate::audit::Unsettled;
use crate::budget::Budget;
use crate::cache::{check_same_source, each_key, read_manifest};
use crate::cli::{CheckArgs, print};
use crate::config::{CacheConfig, Config};
use crate::error::{Error, Status};
use crate::pipeline::pictures::Opening;
use crate::pipeline::{expected_manifest, new_manifest, teacher_section};
use crate::place::{Place, throwaway_folder};
use crate::plan::Plan;
use crate::reporter::Watch;
use crate::stop::Stop;
use crate::survey::{Known, Survey};
use crate::teacher::{self, ErrorClass, Reply, Request, Teacher, TeacherError};

/// Bytes of a row besides its signals: id, draw and provenance.
const ROW_BYTES: u64 = 64;

/// Asks about a few examples, throws the replies away, and prints what a run gives and takes.
///
/// # Errors
/// [`Error`].
pub fn run(args: &CheckArgs) -> Result<Status, Error> {
    let config = Config::read(&args.config)?;
    let (teachers, run_config) = teacher_section(&config, &args.config, "check")?;
    let plan = Plan::open(&config, args.skip_bad_rows, args.slice)?;
    let place = Place::of(&config, args.slice)?;
    let stop = Stop::default();
    let runtime = runtime()?;
    let state = throwaway_folder()?;
    // What a check takes is no part of what the cache may take, and never more than that.
    let watch = Watch {
        budget: Arc::new(Budget::open(&config.budget, state.path(), None)?),
        ..Watch::default()
    };
    let teacher = open_teacher(&plan, state.path(), teachers, run_config, &watch, &stop)?;
    let (survey, is_new) = look_at_cache(&place, &plan, &teacher, &config)?;
    warn_of_skipped(&survey);
    warn_of_equal_draws(&plan, teacher.describe());
    let mut work = Work::of(&plan, &survey, teacher.as_ref(), is_new)?;
    let mut requests: Vec<Request> = plan
        .sample(&survey, args.sample.get())?
        .into_iter()
        .map(|pending| pending.request)
        .collect();
    if requests.is_empty() {
        requests.extend(survey.first.clone());
    }
    let sample = runtime.block_on(ask(&plan, teacher.as_ref(), &config.cache, requests))?;
    let opening = Opening {
        plan: &plan,
        run: run_config,
        watch: &watch,
        stop: &stop,
    };
    let shown = sample.answered.iter().cloned();
    let shown: Vec<_> = shown.map(|(row, reply)| (row, Some(reply))).collect();
    let before = watch.budget.spent();
    let pictures = runtime.block_on(opening.look(teachers, &shown))?;
    if is_new && teachers.iter().all(|entry| !entry.kind.takes_long()) {
        work = work.and_looking(watch.budget.spent().minus(before));
    }
    let concurrency = run_config
        .concurrency
        .get()
        .min(teacher.describe().max_in_flight.unwrap_or(usize::MAX));
    let mut lines = vec![(
        "teacher",
        format!(
            "{} {}",
            sample.manifest.teacher.kind, sample.manifest.teacher.model
        ),
    )];
    lines.extend(signal_lines(&sample));
    lines.extend(watch.observed.all());
    lines.extend(pictures.iter().map(|found| ("pictures", found.to_string())));
    lines.extend(
        survey
            .rows
            .iter()
            .map(|(split, num_rows)| ("rows", format!("{num_rows} {split}"))),
    );
    lines.extend([
        ("duplicates", survey.num_duplicates.to_string()),
        ("copies", survey.num_copies.to_string()),
        ("earlier", survey.num_failed.to_string()),
        (
            "there",
            (survey.num_wanted - survey.num_missing - survey.num_failed).to_string(),
        ),
        ("sampled", sample.describe()),
    ]);
    lines.extend(work.lines(
        &sample,
        teacher.as_ref(),
        teachers,
        survey.num_missing,
        concurrency,
    ));
    print(&lines)?;
    Ok(Status::Done)
}

/// What a few replies were like.
pub(super) struct Sample {
    manifest: Manifest,
    answered: Vec<(Request, Reply)>,
    num_failed: usize,
    /// Mean of a row that is asked by itself.
    pub(super) latency: Duration,
}

impl Sample {
    fn replies(&self) -> impl Iterator<Item = &Reply> {
        self.answered.iter().map(|(_, reply)| reply)
    }

    /// The mean over the rows that have a number.
    pub(super) fn mean(&self, of: impl Fn(&Request, &Reply) -> Option<f64>) -> Option<f64> {
        let answered = self.answered.iter();
        let values: Vec<f64> = answered
            .filter_map(|(request, reply)| of(request, reply))
            .collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    fn describe(&self) -> String {
        let answered = format!("{} answered", self.answered.len());
        match self.num_failed {
            0 => answered,
            failed => format!("{answered}, {failed} failed"),
        }
    }

    pub(super) fn num_answered(&self) -> u64 {
        self.answered.len() as u64
    }

    /// Bytes of the rows.
    pub(super) fn num_bytes(&self) -> u64 {
        self.replies()
            .map(|reply| row_bytes(&self.manifest, reply))
            .sum()
    }
}

/// The signals with what the server really gave of them.
fn signal_lines(sample: &Sample) -> Vec<(&'static str, String)> {
    let line = |signal: &SignalSpec| {
        let mut text = describe_signal(signal);
        let given = sample
            .replies()
            .find_map(|reply| match reply.signals.get(signal.name()) {
                Some(SignalValue::TokenTopK(top_k)) => Some(top_k),
                _ => None,
            });
        if let Some(top_k) = given {
            text = format!("{text}, {}", top_k.describe());
        }
        ("signal", text)
    };
    sample.manifest.signals.iter().map(line).collect()
}

/// Asks about each row in turn; rows that cannot be answered are passed over while another one can.
async fn ask(
    plan: &Plan,
    teacher: &dyn Teacher,
    cache: &CacheConfig,
    requests: Vec<Request>,
) -> Result<Sample, TeacherError> {
    let mut manifest = None;
    let mut answered = Vec::new();
    let mut num_failed = 0;
    let mut spent = Duration::ZERO;
    let mut last = None;
    for request in requests {
        let asked = Instant::now();
        let answer = teacher::ask_alone(teacher, &request)
            .await
            .and_then(|reply| {
                let shown = new_manifest(plan, teacher.describe(), &reply, cache)?;
                Ok((shown, reply))
            });
        match answer {
            Ok((shown, reply)) => {
                spent += asked.elapsed();
                manifest.get_or_insert(shown);
                answered.push((request, reply));
            }
            // What a teacher does not have, it has for no row.
            Err(error) if error.is_lacking && manifest.is_none() => return Err(error),
            Err(error) if error.class == ErrorClass::Deterministic => {
                tracing::warn!("row {} failed: {error}", request.id);
                num_failed += 1;
                last = Some(error);
            }
            Err(error) if error.class == ErrorClass::Budget && manifest.is_some() => {
                tracing::warn!("the sample ends here: {error}");
                break;
            }
            Err(error) => return Err(error),
        }
    }
    match manifest {
        Some(manifest) => Ok(Sample {
            manifest,
            latency: spent / u32::try_from(answered.len()).unwrap_or(u32::MAX),
            num_failed,
            answered,
        }),
        None => Err(last.expect("a survey has a row, and it failed")),
    }
}

/// Compares the data set with what the cache has, the journal included, and tells whether there is no cache yet; takes
/// no lock.
fn look_at_cache(
    place: &Place,
    plan: &Plan,
    teacher: &Arc<dyn Teacher>,
    config: &Config,
) -> Result<(Survey, bool), Error> {
    let mut known = Known::default();
    let mut is_new = true;
    if place.store.local().is_none_or(Path::is_dir) {
        if let Some(manifest) = read_manifest(place)? {
            let expected = expected_manifest(&manifest, plan, teacher.describe(), &config.cache)?;
            check_same_source(&place.store.location(), &manifest, &expected)?;
            is_new = false;
        }
        let mut unsettled = Unsettled::read(place)?;
        each_key(place, |key| {
            unsettled.committed(&key);
            known.committed(key)
        })?;
        for key in unsettled.journalled {
            known.committed(key)?;
        }
        for key in unsettled.failed {
            known.failed(key)?;
        }
    }
    Ok((plan.survey(&mut known)?, is_new))
}

fn row_bytes(manifest: &Manifest, reply: &Reply) -> u64 {
    let vectors = manifest.signals.iter().filter_map(|signal| {
        let (width, dtype) = signal.vector()?;
        let element = match dtype {
            schemas::FloatType::F16 => 2,
            schemas::FloatType::F32 => 4,
        };
        Some(width as u64 * element)
    });
    let others = reply.signals.values().map(|value| match value {
        SignalValue::Vector(_) => 0,
        SignalValue::Text(text) => text.len() as u64,
        SignalValue::Image(bytes) => bytes.len() as u64,
        SignalValue::TokenTopK(top_k) => top_k.to_bytes().len() as u64,
    });
    ROW_BYTES + vectors.chain(others).sum::<u64>()
}
