//! `harvest verify`: every byte of a cache.

use super::{Target, describe_missing, warn_of_skipped};
use crate::audit::Audit;
use crate::cli::{TargetArgs, complain, print};
use crate::error::{Error, Status};

/// Reads the cache, prints what it has and what is wrong with it.
///
/// # Errors
/// [`Error`].
pub fn run(args: &TargetArgs) -> Result<Status, Error> {
    let Target { folder, plan } = Target::find(args)?;
    let audit = Audit::of(&folder, plan.as_ref())?;
    let mut lines = vec![
        ("rows", audit.num_rows.to_string()),
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
    let printed = print(&lines);
    if let Some((last, others)) = problems.split_last() {
        for problem in others {
            complain(problem, None);
        }
        complain(last, hint.as_deref());
    }
    printed?;
    Ok(if problems.is_empty() {
        Status::Done
    } else {
        Status::UserError
    })
}
