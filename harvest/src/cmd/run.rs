//! `harvest run`: ask about every row that the cache lacks.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use super::{runtime, warn_of_skipped};
use crate::cache::Cache;
use crate::cli::{ConfigArgs, complain, print};
use crate::config::Config;
use crate::error::{Error, Status};
use crate::failures::{FAILURES_FILE, Failure};
use crate::pipeline::{self, Ending, Summary, teacher_section};
use crate::plan::Plan;
use crate::stop::Stop;
use crate::teacher;

/// Fills the cache; prints what was done.
///
/// # Errors
/// [`Error`].
pub fn run(args: &ConfigArgs) -> Result<Status, Error> {
    let config = Config::read(&args.config)?;
    let (teacher_config, run_config) = teacher_section(&config, &args.config, "run")?;
    let plan = Arc::new(Plan::open(&config, args.skip_bad_rows)?);
    let summary = runtime()?.block_on(async {
        let stop = Stop::on_signals();
        let teacher = teacher::open(teacher_config, run_config, &stop)?;
        let cache = Cache::lock_or_create(&config.cache_folder())?;
        pipeline::run(plan, teacher, &config.cache, run_config, cache, stop).await
    })?;
    warn_of_skipped(&summary.survey);
    // A data set that changes during the run can have more rows than the survey found.
    let settled = summary.num_committed + summary.num_failed;
    let left = summary.survey.num_missing.saturating_sub(settled);
    let printed = print(&[
        ("rows", summary.survey.num_wanted.to_string()),
        ("recovered", summary.num_recovered.to_string()),
        ("committed", summary.num_committed.to_string()),
        ("failed", summary.num_failed.to_string()),
        ("left", left.to_string()),
    ]);
    list_failures(&config.cache_folder(), &summary);
    printed?;
    end(summary)
}

fn list_failures(folder: &Path, summary: &Summary) {
    if summary.num_failed == 0 {
        return;
    }
    let mut text = format!(
        "{} rows failed; all are in `{}`",
        summary.num_failed,
        folder.join(FAILURES_FILE).display()
    );
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
        Some("mend the rows or the server and run again: only what is missing is asked for"),
    );
}

/// Failed rows are for the user to mend (1); an end before the last row that kept something is an early stop (3).
fn end(summary: Summary) -> Result<Status, Error> {
    let kept = summary.num_committed + summary.num_recovered > 0;
    match summary.ending {
        Ending::Complete if summary.num_failed == 0 => Ok(Status::Done),
        Ending::Complete => Ok(Status::UserError),
        Ending::Stopped => Ok(Status::StoppedEarly),
        Ending::Refused(error) if kept => {
            complain(&format!("teacher: {error}"), error.hint().as_deref());
            Ok(Status::StoppedEarly)
        }
        Ending::Refused(error) => Err(Error::Teacher(error)),
        Ending::AllFailed(last) => Err(Error::AllFailed {
            num_failed: summary.num_failed,
            last,
        }),
    }
}
