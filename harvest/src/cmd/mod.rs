//! One verb per file.

pub mod check;
pub mod freeze;
pub mod import;
pub mod run;
pub mod status;
pub mod verify;

use std::path::PathBuf;

use schemas::{SignalKind, SignalSpec};

use crate::cli::TargetArgs;
use crate::config::Config;
use crate::error::Error;
use crate::plan::{Plan, Survey};

/// A cache that a verb looks at, with the plan where a configuration was named.
struct Target {
    folder: PathBuf,
    plan: Option<Plan>,
}

impl Target {
    fn find(args: &TargetArgs) -> Result<Self, Error> {
        if args.target.is_dir() {
            return Ok(Self {
                folder: args.target.clone(),
                plan: None,
            });
        }
        let config = Config::read(&args.target)?;
        let plan = Plan::open(&config, args.skip_bad_rows)?;
        Ok(Self {
            folder: config.cache_folder(),
            plan: Some(plan),
        })
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Runtime::new().map_err(|source| {
        schemas::Error::io("tokio".as_ref(), "start the threads of", source).into()
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
        .map(|request| {
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
