//! `harvest card`: the data card and the Croissant metadata of a cache.

use std::path::Path;

use super::stats::store_of;
use crate::card::{CROISSANT_FILE, Card, README_FILE};
use crate::cli::{CardArgs, print};
use crate::error::{Error, Status};
use crate::store::Store;

/// Reads the whole cache and writes both files; prints their names.
///
/// # Errors
/// [`Error`].
pub fn run(args: &CardArgs) -> Result<Status, Error> {
    let store = store_of(&args.target)?;
    let card = Card::of(&store)?;
    let target = match &args.into {
        Some(location) => Store::open(location, Path::new(""))?,
        None => store,
    };
    card.write(&target)?;
    print(&[
        ("into", target.location()),
        ("written", README_FILE.to_owned()),
        ("written", CROISSANT_FILE.to_owned()),
    ])?;
    Ok(Status::Done)
}
