//! `harvest import`: features that were made elsewhere.

use crate::cache::Cache;
use crate::cli::{ImportArgs, print};
use crate::config::{Config, ConfigError, Source};
use crate::error::{Error, Status};
use crate::import;
use crate::place::Place;
use crate::plan::Plan;
use crate::stop::Stop;

/// Makes or extends the cache; prints what was done.
///
/// # Errors
/// [`Error`].
pub fn run(args: &ImportArgs) -> Result<Status, Error> {
    let config = Config::read(&args.config)?;
    let Source::Import(source) = &config.source else {
        return Err(ConfigError::OtherSort {
            path: args.config.clone(),
            found: "a teacher",
            wanted: "an import",
            verb: "import",
        }
        .into());
    };
    // Files are named by row number, so no row may be skipped.
    let plan = Plan::open(&config, 0, None)?;
    let cache = Cache::lock_or_create(Place::of(&config, None)?, &Stop::default())?;
    let summary = import::run(&config, source, &plan, cache)?;
    print(&[
        ("examples", summary.num_examples.to_string()),
        ("there", summary.num_known.to_string()),
        ("imported", summary.num_imported.to_string()),
        ("extra", summary.num_extra.to_string()),
    ])?;
    Ok(Status::Done)
}
