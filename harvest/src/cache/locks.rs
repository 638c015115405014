//! Who may write a cache beside whom, on one machine or file system.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::entries;
use crate::error::Error;
use crate::journal::list_segments;
use crate::parts::Parts;
use crate::place::Place;
use crate::slice::Slice;
use crate::teacher::batch;

const LOCK_FILE: &str = ".lock";
/// What the lock files of slices start with; their total follows.
const TOTAL_LOCK: &str = ".lock-of-";

/// A worker has its folder for itself. A local cache is besides for one worker alone, or for slices of one total.
pub(super) fn take_locks(place: &Place) -> Result<Vec<File>, Error> {
    let mut locks = Vec::new();
    if let Some(folder) = place.store.local() {
        locks.push(match place.slice {
            None => take_lock(folder, LOCK_FILE, File::try_lock)?,
            Some(_) => take_lock(folder, LOCK_FILE, File::try_lock_shared)?,
        });
        if let Some(slice) = place.slice {
            let name = format!("{TOTAL_LOCK}{}", slice.total());
            locks.push(take_lock(folder, &name, File::try_lock_shared)?);
            for entry in entries(folder)? {
                let other = entry.file_name().to_string_lossy().into_owned();
                if other.starts_with(TOTAL_LOCK) && other != name {
                    take_lock(folder, &other, File::try_lock)?;
                }
            }
        }
    }
    if !place.is_own_store() {
        locks.push(take_lock(&place.work, LOCK_FILE, File::try_lock)?);
    }
    refuse_other_totals(place)?;
    Ok(locks)
}

/// A slice does not see what a worker of another division left in its journal, and would pay for it again.
fn refuse_other_totals(place: &Place) -> Result<(), Error> {
    let Some(slice) = place.slice else {
        return Ok(());
    };
    let whole = Place {
        work: place.shared_work().to_owned(),
        slice: None,
        ..place.clone()
    };
    let mut others = whole.slice_folders()?;
    others.retain(|folder| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let other = name.strip_prefix('.').and_then(Slice::from_label);
        other.is_some_and(|other| other.total() != slice.total())
    });
    others.push(whole.work);
    for folder in others.into_iter().filter(|folder| folder.is_dir()) {
        let has_batches = batch::has_batches(&folder)
            .map_err(|source| schemas::Error::io(&folder, "list the batches in", source))?;
        if has_batches || Parts::is_in(&folder) || !list_segments(&folder)?.is_empty() {
            return Err(Error::JournalLeft { folder });
        }
    }
    Ok(())
}

fn take_lock(
    folder: &Path,
    name: &str,
    lock: fn(&File) -> Result<(), TryLockError>,
) -> Result<File, Error> {
    let path = folder.join(name);
    if !folder.is_dir() {
        return Err(schemas::Error::NotACache {
            path: folder.to_owned(),
        }
        .into());
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|source| schemas::Error::io(&path, "write", source))?;
    match lock(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked {
            path: folder.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(schemas::Error::io(&path, "lock", source).into()),
    }
}
