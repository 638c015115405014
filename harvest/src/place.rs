//! Where a worker reads and writes: the cache's store, and a folder of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::Sha256Digest;

use crate::config::Config;
use crate::error::Error;
use crate::journal;
use crate::lease::Lease;
use crate::slice::Slice;
use crate::store::Store;

/// Folder, beside the configuration, of the work folders of caches that are not local.
const WORK_FOLDER: &str = ".harvest";

/// Folder of shards that have not reached the store.
const OUTGOING_FOLDER: &str = ".outgoing";

/// A cache as one worker sees it.
#[derive(Clone, Debug)]
pub struct Place {
    /// Shards, manifest and list of failures, which all workers share.
    pub store: Store,
    /// Journal, lock and ledger of this worker, on a local disk.
    pub work: PathBuf,
    /// The worker's part of the data set.
    pub slice: Option<Slice>,
    /// The hold on a remote cache, while it is locked.
    pub(crate) lease: Option<Arc<Lease>>,
}

impl Place {
    /// The cache of a configuration. Nothing is made yet.
    ///
    /// # Errors
    /// [`Error`] where the location is none.
    pub fn of(config: &Config, slice: Option<Slice>) -> Result<Self, Error> {
        let store = Store::open(&config.cache.path, &config.base)?;
        let work = match (&config.cache.work, store.local()) {
            (Some(work), _) => config.base.join(work),
            (None, Some(folder)) => folder.to_owned(),
            (None, None) => {
                let name = Sha256Digest::of(store.location().as_bytes());
                config.base.join(WORK_FOLDER).join(name.short())
            }
        };
        Ok(Self::new(store, work, slice))
    }

    /// The cache in a local folder.
    pub fn local(folder: &Path) -> Self {
        Self::new(Store::folder(folder), folder.to_owned(), None)
    }

    /// The cache at an address, to be looked at.
    ///
    /// # Errors
    /// [`Error::Store`] where the address is none.
    pub fn remote(location: &str) -> Result<Self, Error> {
        let store = Store::open(location, Path::new(""))?;
        Ok(Self::new(store, Path::new(WORK_FOLDER).to_owned(), None))
    }

    fn new(store: Store, work: PathBuf, slice: Option<Slice>) -> Self {
        let work = match slice {
            None => work,
            Some(slice) => work.join(format!(".{}", slice.label())),
        };
        Self {
            store,
            work,
            slice,
            lease: None,
        }
    }

    /// The local folder that the workers of a cache on this machine share.
    pub fn shared_work(&self) -> &Path {
        match self.slice {
            None => &self.work,
            Some(_) => self.work.parent().unwrap_or(&self.work),
        }
    }

    /// Whether the worker writes its shards where they stay, however the two folders are spelt.
    pub(crate) fn is_own_store(&self) -> bool {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        self.store
            .local()
            .is_some_and(|folder| real(folder) == real(&self.work))
    }

    /// The folder that shards are written in before they go to the store; nothing else is in it where it is not the
    /// cache's own.
    ///
    /// # Errors
    /// [`Error::Schemas`] where it cannot be made.
    pub(crate) fn outgoing(&self) -> Result<PathBuf, Error> {
        if self.is_own_store() {
            return Ok(self.work.clone());
        }
        let folder = self.work.join(OUTGOING_FOLDER);
        std::fs::create_dir_all(&folder)
            .map_err(|source| schemas::Error::io(&folder, "create", source))?;
        Ok(folder)
    }

    /// Fails where another worker has taken this one's lease.
    ///
    /// # Errors
    /// [`Error::Lease`].
    pub(crate) fn check_lease(&self) -> Result<(), Error> {
        match &self.lease {
            Some(lease) => Ok(lease.check()?),
            None => Ok(()),
        }
    }

    /// As [`check_lease`](Self::check_lease), and asks the store.
    ///
    /// # Errors
    /// As [`check_lease`](Self::check_lease).
    pub(crate) fn confirm_lease(&self) -> Result<(), Error> {
        match &self.lease {
            Some(lease) => Ok(lease.confirm()?),
            None => Ok(()),
        }
    }

    /// Moves a finished shard into the store, unless another worker has taken this one's lease.
    ///
    /// # Errors
    /// [`Error::Lease`]; [`Error::Schemas`] of the store.
    pub(crate) fn put_shard(&self, name: &str, file: &Path) -> Result<(), Error> {
        let Some(lease) = &self.lease else {
            return Ok(self.store.put_file(name, file)?);
        };
        lease.announce(name)?;
        if !self.store.put_new_file(name, file)? {
            return Err(lease.lost().into());
        }
        // A large one came whatever barred it, and a successor may have asked for its rows: the journal keeps them.
        Ok(lease.confirm()?)
    }

    /// What the names of this worker's shards start with.
    pub fn prefix(&self) -> String {
        match self.slice {
            None => journal::PREFIX.to_owned(),
            Some(slice) => slice.prefix(),
        }
    }

    /// Name of this worker's list of failures in the store.
    pub fn failures_file(&self) -> String {
        match self.slice {
            None => "failures.parquet".to_owned(),
            Some(slice) => format!("failures-{}.parquet", slice.label()),
        }
    }

    /// Work folders of slices, as far as they are on this machine.
    ///
    /// # Errors
    /// [`Error::Schemas`] where the folder cannot be listed.
    pub fn slice_folders(&self) -> Result<Vec<PathBuf>, Error> {
        if !self.work.is_dir() {
            return Ok(Vec::new());
        }
        let list = || -> std::io::Result<Vec<PathBuf>> {
            let mut folders = Vec::new();
            for entry in std::fs::read_dir(&self.work)? {
                let entry = entry?;
                let is_slice = entry.file_name().to_string_lossy().starts_with(".slice-");
                if is_slice && entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                }
            }
            folders.sort();
            Ok(folders)
        };
        list().map_err(|source| schemas::Error::io(&self.work, "list", source).into())
    }
}

/// A folder for teachers whose replies are thrown away.
pub(crate) fn throwaway_folder() -> Result<tempfile::TempDir, schemas::Error> {
    tempfile::tempdir()
        .map_err(|source| schemas::Error::io(&std::env::temp_dir(), "create a folder in", source))
}
