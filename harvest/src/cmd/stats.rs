//! `harvest stats`: the quality of a cache.

use std::path::Path;

use crate::cli::{StatsArgs, print, print_line};
use crate::config::Config;
use crate::error::{Error, Status};
use crate::place::Place;
use crate::stats::CacheStats;
use crate::store::Store;

/// Reads the whole cache and prints what it is like; warnings are among the lines and change no exit status.
///
/// # Errors
/// [`Error`].
pub fn run(args: &StatsArgs) -> Result<Status, Error> {
    let store = store_of(&args.target)?;
    let stats = CacheStats::of(&store, &store.manifest()?)?;
    if args.json {
        let json = serde_json::to_string(&stats).expect("statistics have string keys only");
        print_line(&json)?;
    } else {
        let mut lines = vec![("cache".to_owned(), store.location())];
        lines.extend(stats.lines());
        print(&lines)?;
    }
    Ok(Status::Done)
}

/// The cache that is meant: that of a configuration, where a file is named, or the location itself.
pub(super) fn store_of(target: &str) -> Result<Store, Error> {
    if Path::new(target).is_file() {
        let config = Config::read(Path::new(target))?;
        return Ok(Place::of(&config, None)?.store);
    }
    Ok(Store::open(target, Path::new(""))?)
}
