//! `harvest verify`: every byte of a cache.

use std::path::Path;
use std::sync::Arc;

use super::replay::{self, Replay};
use super::{Target, describe_missing, open_teacher, runtime, warn_of_skipped};
use crate::audit::Audit;
use crate::budget::Budget;
use crate::cache::Cache;
use crate::cli::{VerifyArgs, complain, print};
use crate::config::Config;
use crate::error::{Error, Status};
use crate::pipeline::teacher_section;
use crate::place::{Place, throwaway_folder};
use crate::plan::Plan;
use crate::replay::{Report, Verdict};
use crate::reporter::Watch;
use crate::stop::Stop;

/// Reads the cache, prints what it has and what is wrong with it.
///
/// # Errors
/// [`Error`].
pub fn run(args: &VerifyArgs) -> Result<Status, Error> {
    let Target {
        place,
        plan,
        config,
    } = Target::find(&args.target)?;
    let audit = Audit::of(&place, plan.as_ref())?;
    let mut lines = vec![
        ("rows", audit.num_rows.to_string()),
        ("failed", audit.num_failed.to_string()),
        ("journalled", audit.num_journalled.to_string()),
        ("shards", audit.shards.len().to_string()),
    ];
    let hint = audit.hint();
    let mut problems = audit.problems;
    if let Some(survey) = &audit.coverage {
        warn_of_skipped(survey);
        lines.push(("missing", survey.num_missing.to_string()));
        lines.push(("extra", survey.num_extra.to_string()));
        if survey.num_missing > 0 {
            problems.push(describe_missing(survey));
        }
    }
    lines.push(("problems", problems.len().to_string()));
    lines.extend(
        audit
            .manifest
            .digest()
            .map(|digest| ("digest", digest.to_string())),
    );
    let lines = lines
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    let mut lines: Vec<(String, String)> = lines.collect();
    if let Some(num_rows) = args.replay {
        let (Some(config), Some(plan)) = (&config, &plan) else {
            return Err(Error::NeedsConfig {
                what: "verify --replay",
            });
        };
        let path = Path::new(&args.target.target);
        match ask_again(args, path, num_rows.get(), config, plan, &place) {
            Ok(report) => {
                problems.extend(problem_of(&report));
                lines.extend(report.lines());
            }
            // What was found of the cache itself is worth telling all the same.
            Err(error) => {
                tell(&lines, &problems, hint.as_deref())?;
                return Err(error);
            }
        }
    }
    tell(&lines, &problems, hint.as_deref())?;
    Ok(if problems.is_empty() {
        Status::Done
    } else {
        Status::UserError
    })
}

fn tell(lines: &[(String, String)], problems: &[String], hint: Option<&str>) -> Result<(), Error> {
    let printed = print(lines);
    if let Some((last, others)) = problems.split_last() {
        for problem in others {
            complain(problem, None);
        }
        complain(last, hint);
    }
    printed
}

fn problem_of(report: &Report) -> Option<String> {
    if report.num_unfit > 0 {
        Some(format!(
            "{} rows are answered in a form that does not fit the cache: the teacher is another one",
            report.num_unfit
        ))
    } else if report.verdict == Verdict::Outside {
        Some("the teacher no longer says what the cache holds".into())
    } else if report.num_compared == 0 {
        Some("no row could be compared".into())
    } else {
        None
    }
}

/// Asks the teacher about some rows again, within the budget and with the cache locked: the ledger has one writer.
fn ask_again(
    args: &VerifyArgs,
    path: &Path,
    num_rows: usize,
    config: &Config,
    plan: &Plan,
    place: &Place,
) -> Result<Report, Error> {
    let (teachers, run) = teacher_section(config, path, "verify --replay")?;
    let runtime = runtime()?;
    let stop = runtime.block_on(async { Stop::on_signals() });
    let cache = Cache::lock(place.clone(), &stop)?;
    let budget = Budget::open(&config.budget, place.shared_work(), None)?;
    let watch = Watch {
        budget: Arc::new(budget),
        ..Watch::default()
    };
    // Not the cache's own folder: a teacher may keep earlier answers there.
    let state = throwaway_folder()?;
    let teacher = open_teacher(plan, state.path(), teachers, run, &watch, &stop)?;
    cache.check_source(plan, teacher.describe(), &config.cache)?;
    let replay = Replay {
        num_rows,
        seed: args.seed,
        concurrency: run.concurrency.get(),
    };
    let manifest = place.store.manifest()?;
    let requests_of = |keys: &_| plan.requests_of(keys);
    let budget = &watch.budget;
    let asked = replay::run(
        teacher,
        &place.store,
        &manifest,
        replay,
        budget,
        requests_of,
    );
    runtime.block_on(asked)
}
