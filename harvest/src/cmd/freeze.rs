//! `harvest freeze`: one digest over a whole cache.

use super::{Target, describe_missing, warn_of_skipped};
use crate::audit::Audit;
use crate::cache::Cache;
use crate::cli::{FreezeArgs, print};
use crate::error::{Error, Status};
use crate::stop::Stop;

/// Verifies the cache, writes the frozen manifest and prints its digest. A frozen cache stays as it is.
///
/// # Errors
/// [`Error::NotFit`] where something is wrong, left in the journal or missing; [`Error`].
pub fn run(args: &FreezeArgs) -> Result<Status, Error> {
    let Target { place, plan, .. } = Target::find(&args.target)?;
    place.store.manifest()?;
    std::fs::create_dir_all(&place.work)
        .map_err(|source| schemas::Error::io(&place.work, "create", source))?;
    let mut cache = Cache::lock(place.clone(), &Stop::default())?;
    if args.allow_missing {
        let replays = cache.replay()?;
        cache.recover(replays)?;
    }
    let audit = Audit::of(&place, plan.as_ref())?;
    let of_shards = audit.hint();
    let mut problems = audit.problems;
    let mut hint = None;
    if audit.num_rows == 0 {
        problems.push("it has no rows".into());
    }
    if audit.num_journalled > 0 {
        problems.push(format!(
            "{} replies are only in the journal",
            audit.num_journalled
        ));
        hint = Some("`harvest run` commits what is in the journal".to_owned());
    }
    match &audit.coverage {
        None => tracing::info!(
            "rows were not compared with the data set: name the configuration for that"
        ),
        Some(survey) => {
            warn_of_skipped(survey);
            if survey.num_extra > 0 {
                tracing::warn!(
                    "{} rows are frozen that the data set does not have",
                    survey.num_extra
                );
            }
            if survey.num_failed > 0 && !args.allow_missing {
                problems.push(format!("{} rows failed", survey.num_failed));
                hint = Some(
                    "`harvest run --retry-failures` asks for them again; --allow-missing freezes without them"
                        .to_owned(),
                );
            }
            if survey.num_missing > 0 && !args.allow_missing {
                problems.push(describe_missing(survey));
                hint = Some(
                    "`harvest run` asks for them; --allow-missing freezes without them".to_owned(),
                );
            }
        }
    }
    if !problems.is_empty() {
        return Err(Error::NotFit {
            location: place.store.location(),
            problems,
            // Nothing is asked for as long as a shard that cannot be read stands for its rows.
            hint: of_shards.or(hint),
        });
    }
    let mut manifest = audit.manifest;
    if manifest.digest().is_none() {
        manifest = manifest.frozen(audit.shards.clone());
        place.store.write_manifest(&manifest)?;
    }
    let digest = manifest.digest().expect("it is frozen");
    print(&[
        ("rows", audit.num_rows.to_string()),
        ("shards", audit.shards.len().to_string()),
        ("digest", digest.to_string()),
    ])?;
    Ok(Status::Done)
}
