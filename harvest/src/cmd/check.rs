//! `harvest check`: probe before spending.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::shard::list_shards;
use schemas::{Manifest, SignalValue};

use super::{describe_signal, runtime, warn_of_skipped};
use crate::cache::{check_same_source, keys_of};
use crate::cli::{ConfigArgs, print};
use crate::config::{CacheConfig, Config};
use crate::error::{Error, Status};
use crate::journal::{Replay, list_segments};
use crate::pipeline::{expected_manifest, new_manifest, teacher_section};
use crate::plan::{Plan, Survey};
use crate::progress::{human_bytes, human_time};
use crate::stop::Stop;
use crate::teacher::{self, ErrorClass, Reply, Teacher, TeacherError};

/// Rows that are asked about before the teacher is given up; each request costs.
const MAX_ROWS: usize = 5;

/// Bytes of a row besides its signals: id, draw and provenance.
const ROW_BYTES: u64 = 48;

/// Asks about one example, throws the reply away, and prints what a run gives and takes.
///
/// # Errors
/// [`Error`].
pub fn run(args: &ConfigArgs) -> Result<Status, Error> {
    let config = Config::read(&args.config)?;
    let (teacher_config, run_config) = teacher_section(&config, &args.config, "check")?;
    let plan = Plan::open(&config, args.skip_bad_rows)?;
    let stop = Stop::default();
    let teacher = teacher::open(teacher_config, run_config, &stop)?;
    let folder = config.cache_folder();
    let survey = look_at_cache(&folder, &plan, &teacher, &config)?;
    warn_of_skipped(&survey);

    let Answer {
        reply,
        manifest,
        latency,
    } = runtime()?.block_on(ask(&plan, teacher.as_ref(), &config.cache, &survey))?;

    let in_flight = run_config
        .concurrency
        .get()
        .min(teacher.describe().max_in_flight.unwrap_or(usize::MAX));
    let bytes = survey.num_wanted * row_bytes(&manifest, &reply);
    let time = latency.mul_f64(survey.num_missing as f64 / in_flight as f64);
    let mut lines = vec![(
        "teacher",
        format!("{} {}", manifest.teacher.kind, manifest.teacher.model),
    )];
    lines.extend(
        manifest
            .signals
            .iter()
            .map(|signal| ("signal", describe_signal(signal))),
    );
    lines.extend(
        survey
            .rows
            .iter()
            .map(|(split, num_rows)| ("rows", format!("{num_rows} {split}"))),
    );
    lines.extend([
        ("duplicates", survey.num_duplicates.to_string()),
        (
            "there",
            (survey.num_wanted - survey.num_missing).to_string(),
        ),
        ("requests", survey.num_missing.to_string()),
        (
            "bytes",
            format!("{bytes} ({} before compression)", human_bytes(bytes)),
        ),
        ("time", describe_time(time, latency, in_flight)),
    ]);
    print(&lines)?;
    Ok(Status::Done)
}

struct Answer {
    reply: Reply,
    manifest: Manifest,
    latency: Duration,
}

/// Asks about one row; about the next one where it is the row that the teacher cannot answer.
async fn ask(
    plan: &Plan,
    teacher: &dyn Teacher,
    cache: &CacheConfig,
    survey: &Survey,
) -> Result<Answer, TeacherError> {
    let mut rows = survey.first_missing.iter().take(MAX_ROWS);
    let mut row = rows
        .next()
        .or(survey.first.as_ref())
        .expect("a survey has a row");
    loop {
        let asked = Instant::now();
        let answer = teacher.query(row).await.and_then(|reply| {
            Ok(Answer {
                latency: asked.elapsed(),
                manifest: new_manifest(plan, teacher.describe(), &reply, cache)?,
                reply,
            })
        });
        match (answer, rows.next()) {
            (Err(error), Some(next)) if error.class == ErrorClass::Deterministic => {
                tracing::warn!("row {} failed, asking about the next: {error}", row.id);
                row = next;
            }
            (answer, _) => return answer,
        }
    }
}

fn describe_time(time: Duration, latency: Duration, in_flight: usize) -> String {
    format!(
        "{} ({:.1} ms a reply, {in_flight} in flight)",
        human_time(time),
        latency.as_secs_f64() * 1e3
    )
}

/// Compares the data set with what the cache has, the journal included; takes no lock.
fn look_at_cache(
    folder: &Path,
    plan: &Plan,
    teacher: &Arc<dyn Teacher>,
    config: &Config,
) -> Result<Survey, Error> {
    if !folder.is_dir() {
        return plan.survey(&std::collections::HashSet::new());
    }
    match Manifest::open(folder) {
        Ok(manifest) => {
            let expected = expected_manifest(&manifest, plan, teacher.describe(), &config.cache)?;
            check_same_source(folder, &manifest, &expected)?;
        }
        Err(schemas::Error::NotACache { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut known = keys_of(&list_shards(folder)?)?;
    for segment in list_segments(folder)? {
        known.extend(
            Replay::read(&segment)?
                .records
                .iter()
                .map(|record| (record.id, record.draw)),
        );
    }
    plan.survey(&known)
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
