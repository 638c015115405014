//! Where a cache lies: a folder, or a prefix in an object store.
//!
//! All methods block. Those of a remote store run on a small runtime that the store owns, so they may be called from
//! any thread; a call from an asynchronous worker holds that worker up.
//!
//! | location | what it is | credentials |
//! |---|---|---|
//! | a path | a folder, made with the first write | |
//! | `s3://bucket/prefix` | S3 or a server that speaks its protocol | `AWS_*` |
//! | `gs://bucket/prefix` | Google Cloud Storage | `GOOGLE_*` |
//! | `az://container/prefix` | Azure Blob Storage | `AZURE_*` |

mod connection;
mod error;
mod local;
mod location;
mod object;
mod remote;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::shard::digest_in_name;
use schemas::{Error, Manifest, Sha256Digest, ShardEntry, ShardReader, ShardSource};

pub use error::StoreError;
pub(crate) use remote::{Remote, Seen, Version};

use local::Local;
use location::Location;

/// One file of a store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StoreEntry {
    /// Its name, without the location.
    pub name: String,
    /// Its size.
    pub num_bytes: u64,
}

/// A folder or a prefix of an object store: files by name, nothing nested. Clones share one connection.
///
/// Names are made of ASCII letters, digits, `.`, `-` and `_`, and do not start with a dot. Files of other names are
/// neither listed nor read.
#[derive(Clone)]
pub struct Store(Arc<Kind>);

enum Kind {
    Local(Local),
    Remote(Remote),
}

/// The location alone: what lies below it holds credentials.
impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({self})")
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}

impl Store {
    /// The store at `location`: a path, relative to `base`, or an address. Nothing is read and nothing is made yet.
    ///
    /// # Errors
    /// [`StoreError`] where the address or what the environment says of it is not understood.
    pub fn open(location: &str, base: &Path) -> Result<Self, StoreError> {
        Ok(match Location::parse(location)? {
            Location::Folder(folder) => Self::folder(&base.join(folder)),
            Location::Remote(address) => Self(Arc::new(Kind::Remote(Remote::open(&address)?))),
        })
    }

    /// The store that is this folder.
    pub fn folder(folder: &Path) -> Self {
        Self(Arc::new(Kind::Local(Local::new(folder))))
    }

    /// Where it lies, as errors and logs name it: a folder or an address.
    pub fn location(&self) -> String {
        self.to_string()
    }

    /// The folder of a local store.
    pub fn local(&self) -> Option<&Path> {
        match &*self.0 {
            Kind::Local(local) => Some(local.folder()),
            Kind::Remote(_) => None,
        }
    }

    pub(crate) fn remote(&self) -> Option<&Remote> {
        match &*self.0 {
            Kind::Local(_) => None,
            Kind::Remote(remote) => Some(remote),
        }
    }

    /// The location in the form that errors carry.
    fn path(&self) -> &Path {
        match &*self.0 {
            Kind::Local(local) => local.folder(),
            Kind::Remote(remote) => remote.path(),
        }
    }

    /// Where the file of this name lies, as errors name it.
    ///
    /// # Errors
    /// [`Error::Io`] where it is not a name, so that what a manifest says never leads out of its cache.
    fn path_of(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path().join(name);
        if is_name(name) {
            return Ok(path);
        }
        let problem = format!("`{name}` is not the name of a file in a cache");
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, problem);
        Err(Error::io(&path, "use", source))
    }

    /// The files, ordered by name; none where the folder or the prefix does not exist.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<StoreEntry>, Error> {
        let mut entries = match &*self.0 {
            Kind::Local(local) => local.list(),
            Kind::Remote(remote) => remote.list(),
        }?;
        entries.retain(|entry| is_name(&entry.name));
        entries.sort();
        Ok(entries)
    }

    /// The content of a file; `None` where there is none of this name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path_of(name)?;
        match &*self.0 {
            Kind::Local(_) => local::read(&path),
            Kind::Remote(remote) => remote.read(name),
        }
    }

    /// Writes a file, or replaces it: a reader sees the old content or the new, never a part, and what is written
    /// outlives a power cut.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path_of(name)?;
        match &*self.0 {
            Kind::Local(local) => local.put(&path, bytes),
            Kind::Remote(remote) => remote.put(name, bytes),
        }
    }

    /// Moves a finished local file into the store under `name`, as [`put`](Self::put) would. The local file is removed
    /// once it has arrived, and stays where anything fails.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put_file(&self, name: &str, file: &Path) -> Result<(), Error> {
        let path = self.path_of(name)?;
        match &*self.0 {
            Kind::Local(local) => local.put_file(&path, file),
            Kind::Remote(remote) => remote.put_file(name, file),
        }
    }

    /// As [`put_file`](Self::put_file), for a name that no other content can have; `false`, and nothing is moved, where
    /// the name is barred. A large file may replace what bars it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn put_new_file(&self, name: &str, file: &Path) -> Result<bool, Error> {
        let path = self.path_of(name)?;
        match &*self.0 {
            Kind::Local(local) => local.put_file(&path, file).map(|()| true),
            Kind::Remote(remote) => remote.put_new_file(name, file),
        }
    }

    /// Writes a file unless there is one of this name; says whether it did. Of several writers at once, one does.
    ///
    /// # Errors
    /// [`Error::Io`]. Where a remote store's answer was lost on the way, the file may be there nevertheless.
    pub fn create(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        let path = self.path_of(name)?;
        match &*self.0 {
            Kind::Local(local) => local.create(&path, bytes),
            Kind::Remote(remote) => Ok(remote.create(name, bytes)?.is_some()),
        }
    }

    /// Removes a file, where there is one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path_of(name)?;
        match &*self.0 {
            Kind::Local(_) => local::remove(&path),
            Kind::Remote(remote) => remote.remove(name),
        }
    }

    /// The names of the committed shards, in order. An empty object in a remote store bars the shard of its name; an
    /// empty file in a folder is a shard that was damaged.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn shards(&self) -> Result<Vec<String>, Error> {
        let is_barred = |entry: &StoreEntry| entry.num_bytes == 0 && self.remote().is_some();
        let entries = self.list()?.into_iter();
        Ok(entries
            .filter(|entry| digest_in_name(&entry.name).is_some() && !is_barred(entry))
            .map(|entry| entry.name)
            .collect())
    }

    /// Opens a shard without reading more than its footer; what is read later is fetched piece by piece.
    ///
    /// # Errors
    /// As [`ShardReader::open_unverified`].
    pub fn open_shard(&self, name: &str) -> Result<ShardReader, Error> {
        ShardReader::open_source_unverified(self.source(name)?)
    }

    /// Opens a shard whose bytes match the digest in its name. A remote one is fetched into a temporary file first, so
    /// that what is read is what was checked.
    ///
    /// # Errors
    /// As [`ShardReader::open`].
    pub fn open_shard_verified(&self, name: &str) -> Result<ShardReader, Error> {
        ShardReader::open_source(self.whole_source(name)?)
    }

    /// Opens a shard whose bytes match the digest in the manifest, as
    /// [`open_shard_verified`](Self::open_shard_verified) does.
    ///
    /// # Errors
    /// As [`ShardReader::open_entry`].
    pub fn open_entry(&self, entry: &ShardEntry) -> Result<ShardReader, Error> {
        ShardReader::open_source_entry(self.whole_source(&entry.file)?, entry)
    }

    /// The digest of a file; reads all of it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sha256(&self, name: &str) -> Result<Sha256Digest, Error> {
        self.source(name)?.sha256()
    }

    fn source(&self, name: &str) -> Result<ShardSource, Error> {
        let path = self.path_of(name)?;
        match &*self.0 {
            Kind::Local(_) => ShardSource::file(&path),
            Kind::Remote(remote) => Ok(ShardSource::new(&path, Arc::new(remote.object(name)?))),
        }
    }

    fn whole_source(&self, name: &str) -> Result<ShardSource, Error> {
        let path = self.path_of(name)?;
        match &*self.0 {
            Kind::Local(_) => ShardSource::file(&path),
            Kind::Remote(remote) => ShardSource::opened(&path, remote.fetch(name)?),
        }
    }

    /// Copies a file of the store into `target`, from its current position on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn copy_to(&self, name: &str, target: &mut File) -> Result<(), Error> {
        let path = self.path_of(name)?;
        match &*self.0 {
            Kind::Local(_) => local::copy(&path, target),
            Kind::Remote(remote) => remote.copy_to(name, target),
        }
    }

    /// The newest manifest.
    ///
    /// # Errors
    /// As [`Manifest::open`].
    pub fn manifest(&self) -> Result<Manifest, Error> {
        Manifest::open_with(self.path(), |name| self.read(name))
    }

    /// The manifest of the frozen state with this digest.
    ///
    /// # Errors
    /// As [`Manifest::open_frozen`].
    pub fn frozen_manifest(&self, digest: &Sha256Digest) -> Result<Manifest, Error> {
        Manifest::open_frozen_with(self.path(), digest, |name| self.read(name))
    }

    /// Writes a manifest; a frozen one also under its own name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_manifest(&self, manifest: &Manifest) -> Result<(), Error> {
        manifest.write_with(|name, json| self.put(name, json))
    }
}

/// Whether a text names a file of a store.
fn is_name(text: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !text.is_empty() && !text.starts_with('.') && text.chars().all(valid)
}

#[cfg(test)]
pub(crate) mod tests;
