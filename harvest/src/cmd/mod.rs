//! One verb per file.

pub mod card;
pub mod check;
mod draws;
pub mod freeze;
pub mod import;
pub mod merge;
mod projection;
pub mod replay;
pub mod run;
pub mod stats;
pub mod status;
pub mod verify;

use std::path::Path;
use std::sync::Arc;

use schemas::{SignalKind, SignalSpec};

use crate::cli::TargetArgs;
use crate::config::{Config, RunConfig, TeacherEntry};
use crate::error::Error;
use crate::place::Place;
use crate::plan::Plan;
use crate::reporter::Watch;
use crate::stop::Stop;
use crate::survey::Survey;
use crate::teacher::{self, OpenContext, Teacher, TeacherError};

/// A cache that a verb looks at, with configuration and plan where a configuration was named.
struct Target {
    place: Place,
    plan: Option<Plan>,
    config: Option<Config>,
}

impl Target {
    fn find(args: &TargetArgs) -> Result<Self, Error> {
        let path = Path::new(&args.target);
        if path.is_dir() || args.target.contains("://") {
            let place = if path.is_dir() {
                Place::local(path)
            } else {
                Place::remote(&args.target)?
            };
            return Ok(Self {
                place,
                plan: None,
                config: None,
            });
        }
        let config = Config::read(path)?;
        let plan = Plan::open(&config, args.skip_bad_rows, None)?;
        Ok(Self {
            place: Place::of(&config, None)?,
            plan: Some(plan),
            config: Some(config),
        })
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Runtime::new().map_err(|source| {
        schemas::Error::io("tokio".as_ref(), "start the threads of", source).into()
    })
}

/// The configured teacher; nothing is sent yet.
pub fn open_teacher(
    plan: &Plan,
    state_folder: &Path,
    teachers: &[TeacherEntry],
    run: &RunConfig,
    watch: &Watch,
    stop: &Stop,
) -> Result<Arc<dyn Teacher>, TeacherError> {
    teacher::open(teachers, |entry| OpenContext {
        common: &entry.common,
        run,
        task: plan.task(),
        data_folder: plan.data_folder(),
        state_folder: state_folder.to_owned(),
        watch: watch.clone(),
        stop: stop.clone(),
    })
}

fn describe_signal(signal: &SignalSpec) -> String {
    let kind = match signal.kind() {
        SignalKind::Feature { .. } => "feature",
        SignalKind::ClassLogits { .. } => "class logits",
        SignalKind::TokenTopK { .. } => "token top-k",
        SignalKind::Text => "text",
        SignalKind::Image => "image",
    };
    match signal.vector() {
        Some((width, dtype)) => format!(
            "{}: {kind}, {width} x {}",
            signal.name(),
            format!("{dtype:?}").to_lowercase()
        ),
        None => format!("{}: {kind}", signal.name()),
    }
}

fn warn_of_skipped(survey: &Survey) {
    if survey.num_skipped > 0 {
        let is_cut = survey.num_skipped > survey.skipped.len() as u64;
        tracing::warn!(
            "skipped {} bad rows: {}{}",
            survey.num_skipped,
            survey.skipped.join("; "),
            if is_cut { "; ..." } else { "" }
        );
    }
}

fn describe_missing(survey: &Survey) -> String {
    let first: Vec<String> = survey
        .first_missing
        .iter()
        .take(3)
        .map(|pending| {
            let request = &pending.request;
            format!(
                "{} draw {} ({})",
                request.id,
                request.draw,
                crate::failures::shorten(&request.prompt, 60)
            )
        })
        .collect();
    format!(
        "{} of {} rows are missing: {}",
        survey.num_missing,
        survey.num_wanted,
        first.join(", ")
    )
}
