//! `harvest merge`: caches of one source become one, here or in an object store.

use std::path::Path;

use crate::cache::{Cache, LEASE_LIFETIME};
use crate::cli::{MergeArgs, print};
use crate::error::{Error, Status};
use crate::lease::Lease;
use crate::merge::merge;
use crate::place::Place;
use crate::stop::Stop;
use crate::store::Store;

/// Adds the rows; prints what was done.
///
/// # Errors
/// [`Error`].
pub fn run(args: &MergeArgs) -> Result<Status, Error> {
    let open = |location: &String| Store::open(location, Path::new(""));
    let into = open(&args.into)?;
    let from = args.from.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    // A folder is locked against other writers, an object store by a lease.
    let stop = Stop::default();
    let _lock = into
        .local()
        .map(|folder| Cache::lock_or_create(Place::local(folder), &stop))
        .transpose()?;
    let lease = Lease::take(&into, None, LEASE_LIFETIME, &stop)?;
    let summary = merge(&into, &from, args.prefer)?;
    lease.map_or(Ok(()), Lease::release)?;
    print(&[
        ("cache", into.location()),
        ("rows_in_sources", summary.num_source_rows.to_string()),
        ("added", summary.num_added.to_string()),
        ("equal", summary.num_equal.to_string()),
        ("outvoted", summary.num_outvoted.to_string()),
        ("shards_copied", summary.num_copied.to_string()),
        ("shards_rewritten", summary.num_rewritten.to_string()),
    ])?;
    Ok(Status::Done)
}
