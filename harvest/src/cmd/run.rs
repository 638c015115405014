//! `harvest run`: ask about every row that the cache lacks.

use std::fmt::Write as _;
use std::sync::Arc;

use schemas::Sha256Digest;

use super::draws::warn_of_equal_draws;
use super::{open_teacher, runtime, warn_of_skipped};
use crate::budget::Budget;
use crate::cache::Cache;
use crate::cli::{RunArgs, complain, print};
use crate::config::Config;
use crate::error::{Error, Status};
use crate::events::{Event, Events};
use crate::failures::Failure;
use crate::metrics::MetricsListener;
use crate::pipeline::{self, Broken, Ending, Job, Summary, teacher_section};
use crate::place::Place;
use crate::plan::Plan;
use crate::reporter::Watch;
use crate::stop::Stop;

/// Fills the cache; prints what was done.
///
/// # Errors
/// [`Error`].
pub fn run(args: &RunArgs) -> Result<Status, Error> {
    let config = Config::read(&args.config)?;
    let (teachers, run_config) = teacher_section(&config, &args.config, "run")?;
    let plan = Arc::new(Plan::open(&config, args.skip_bad_rows, args.slice)?);
    let place = Place::of(&config, args.slice)?;
    let listener = args.metrics_listen.map(MetricsListener::bind).transpose()?;
    let runtime = runtime()?;
    let stop = runtime.block_on(async { Stop::on_signals() });
    let failures_file = format!("{}/{}", place.store.location(), place.failures_file());
    let cache = Cache::lock_or_create(place.clone(), &stop)?;
    let budget = Budget::open(&config.budget, place.shared_work(), args.slice)?;
    warn_of_lost_ledger(&budget, &place)?;
    let watch = Watch {
        budget: Arc::new(budget),
        events: if args.json {
            Events::to_stdout()
        } else {
            Events::default()
        },
        ..Watch::default()
    };
    // After the lock: the file of a run that is still going stays its own.
    if let Some(path) = &args.metrics_file {
        watch.metrics.write(path)?;
    }
    let serve =
        |listener: MetricsListener| listener.serve(runtime.handle(), Arc::clone(&watch.metrics));
    let _served_until_the_end = listener.map(serve).transpose()?;
    let teacher = open_teacher(&plan, &place.work, teachers, run_config, &watch, &stop)?;
    warn_of_equal_draws(&plan, teacher.describe());
    let job = Job {
        teacher,
        teachers: teachers.to_vec(),
        plan,
        cache: config.cache.clone(),
        run: run_config.clone(),
        retry_failures: args.retry_failures,
        watch: watch.clone(),
        config_digest: Sha256Digest::of_file(&args.config)?.to_string(),
        metrics_file: args.metrics_file.clone(),
    };
    let summary = match pipeline::run(runtime.handle(), &job, cache, &stop) {
        Ok(summary) => summary,
        Err(Broken { error, summary }) => {
            let event = finished(summary.as_deref(), &watch, error.status());
            watch.events.emit(&event);
            return Err(error);
        }
    };
    warn_of_skipped(&summary.survey);
    let printed = if args.json {
        Ok(())
    } else {
        print_summary(&summary, &watch)
    };
    list_failures(&failures_file, &summary);
    let mut event = finished(Some(&summary), &watch, Status::Done);
    let status = end(summary);
    if let Event::Finished { exit_status, .. } = &mut event {
        *exit_status = status.as_ref().map_or_else(Error::status, |status| *status) as u8;
    }
    watch.events.emit(&event);
    printed?;
    status
}

/// Rows of this worker that no ledger knows of were paid for before there was a budget, or the work folder was lost.
fn warn_of_lost_ledger(budget: &Budget, place: &Place) -> Result<(), Error> {
    let prefix = place.prefix();
    if budget.begins()
        && place
            .store
            .shards()?
            .iter()
            .any(|name| name.starts_with(&prefix))
    {
        tracing::warn!(
            "[budget] counts from zero: the cache has rows of earlier runs, and `{}` has no ledger of what they took; \
             keep that folder from run to run",
            place.shared_work().display()
        );
    }
    Ok(())
}

/// The last event; without a summary the run ended before it knew its rows.
fn finished(summary: Option<&Summary>, watch: &Watch, status: Status) -> Event<'static> {
    let count = |of: fn(&Summary) -> u64| summary.map_or(0, of);
    Event::Finished {
        rows_wanted: count(|summary| summary.survey.num_wanted),
        rows_recovered: count(|summary| summary.num_recovered),
        rows_committed: count(|summary| summary.num_committed),
        rows_failed: count(|summary| summary.num_failed),
        rows_left: count(Summary::num_left),
        requests: watch.metrics.num_requests(),
        spend: watch.budget.spent_by_this_run().cost(),
        exit_status: status as u8,
    }
}

fn print_summary(summary: &Summary, watch: &Watch) -> Result<(), Error> {
    let mut lines = vec![
        ("rows", summary.survey.num_wanted.to_string()),
        ("recovered", summary.num_recovered.to_string()),
        ("committed", summary.num_committed.to_string()),
        ("copied", summary.num_copied.to_string()),
        ("failed", summary.num_failed.to_string()),
        ("earlier", summary.survey.num_failed.to_string()),
        ("left", summary.num_left().to_string()),
        ("requests", watch.metrics.num_requests().to_string()),
    ];
    let cost = watch.budget.spent_by_this_run().cost();
    if cost > 0.0 {
        lines.push(("cost", format!("{cost:.4}")));
    }
    print(&lines)
}

fn list_failures(file: &str, summary: &Summary) {
    if summary.num_failed == 0 {
        return;
    }
    let mut text = format!("{} rows failed; all are in `{file}`", summary.num_failed);
    for failure in &summary.first_failures {
        let draw = if failure.draw == 0 {
            String::new()
        } else {
            format!(" draw {}", failure.draw)
        };
        let Failure {
            id,
            class,
            tries,
            message,
            text: shown,
            ..
        } = failure;
        write!(
            text,
            "\n  {id}{draw}  {class}, {tries} tries: {message}\n    text: {shown}"
        )
        .expect("a String takes all");
    }
    complain(
        &text,
        Some(
            "mend the rows or the server and run again with --retry-failures; without it they are left alone",
        ),
    );
}

/// Failed rows are for the user to mend (1), however many: the same command would leave them alone and pay on. An end
/// before the last row that kept something is an early stop (3), from where the same command goes on.
fn end(summary: Summary) -> Result<Status, Error> {
    let kept = summary.num_committed + summary.num_recovered > 0;
    match summary.ending {
        Ending::Complete if summary.num_failed + summary.survey.num_failed == 0 => Ok(Status::Done),
        Ending::Complete => Ok(Status::UserError),
        Ending::Stopped => Ok(Status::StoppedEarly),
        Ending::Refused(error) if kept => {
            complain(&format!("teacher: {error}"), error.hint().as_deref());
            Ok(Status::StoppedEarly)
        }
        Ending::Refused(error) => Err(error.into()),
        Ending::TooManyFailed(last) => {
            let error = Error::TooManyFailed {
                num_failed: summary.num_failed,
                last: Box::new(last),
            };
            Err(error)
        }
        Ending::AllFailed(last) => Err(Error::AllFailed {
            num_failed: summary.num_failed,
            last: Box::new(last),
        }),
    }
}
