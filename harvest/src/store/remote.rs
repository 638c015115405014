//! A prefix of an object store.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as ObjectPath;
use object_store::{
    ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutResult, UpdateVersion, WriteMultipart,
};
use schemas::{Error, ReadAt as _};

use super::StoreEntry;
use super::connection::{Background, connect, redacted, store_time};
use super::error::StoreError;
use super::location::Address;
use super::object::Object;

/// Larger files are uploaded in parts of this size. S3 takes parts from 5 MiB on, and 10,000 of them: 78 GiB.
const PART_BYTES: usize = 8 << 20;

/// Parts on their way at a time.
const NUM_PARTS: usize = 4;

/// A prefix of an object store; clones share one connection.
#[derive(Clone)]
pub(crate) struct Remote {
    path: PathBuf,
    prefix: ObjectPath,
    objects: Arc<dyn ObjectStore>,
    background: Arc<Background>,
    limit: Option<Duration>,
}

/// The location alone: what lies below it holds credentials.
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.path.display())
    }
}

/// What an object was when it was written or read; a conditional write names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Version(UpdateVersion);

/// An object, and its age.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) bytes: Vec<u8>,
    pub(crate) version: Version,
    /// Time since it was written, both ends by the store's clock and to the second; `None` where the store did not
    /// say what time it is.
    pub(crate) age: Option<Duration>,
}

type Outcome<T> = object_store::Result<T>;

impl Remote {
    /// The store at `address`, as the environment describes it. Nothing is sent yet.
    pub(super) fn open(address: &Address) -> Result<Self, StoreError> {
        Self::over(address, connect(address)?)
    }

    /// The store at `address`, reached through `objects`.
    pub(super) fn over(
        address: &Address,
        objects: Arc<dyn ObjectStore>,
    ) -> Result<Self, StoreError> {
        let background = Background::start().map_err(|error| StoreError {
            location: address.text(),
            problem: format!("no thread for it could be started: {error}"),
            hint: "raise the limit on threads (ulimit -u)".into(),
        })?;
        Ok(Self {
            path: address.text().into(),
            prefix: address.prefix.clone(),
            objects,
            background: Arc::new(background),
            limit: None,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The same prefix, where a request with all its repetitions takes `limit` at most.
    pub(crate) fn within(&self, limit: Duration) -> Self {
        Self {
            limit: Some(limit),
            ..self.clone()
        }
    }

    fn object_path(&self, name: &str) -> ObjectPath {
        self.prefix.clone().join(name)
    }

    /// Runs what `work` makes of the store, and waits for it.
    pub(super) fn wait<T, F>(&self, work: impl FnOnce(Arc<dyn ObjectStore>) -> F) -> Outcome<T>
    where
        T: Send + 'static,
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        let work = work(Arc::clone(&self.objects));
        match self.limit {
            None => self.background.wait(work),
            Some(limit) => self.background.wait(async move {
                let finished = tokio::time::timeout(limit, work).await;
                finished.unwrap_or_else(|_| {
                    Err(object_store::Error::Generic {
                        store: "store",
                        source: format!("no answer within {limit:?}").into(),
                    })
                })
            }),
        }
    }

    fn failed(&self, name: &str, action: &'static str, error: &object_store::Error) -> Error {
        Error::io(&self.path.join(name), action, io_error(error))
    }

    pub(super) fn list(&self) -> Result<Vec<StoreEntry>, Error> {
        let prefix = self.prefix.clone();
        let listed =
            self.wait(|objects| async move { objects.list_with_delimiter(Some(&prefix)).await });
        let listed = listed.map_err(|error| Error::io(&self.path, "list", io_error(&error)))?;
        let entries = listed.objects.into_iter().filter_map(|meta| {
            Some(StoreEntry {
                name: meta.location.filename()?.to_owned(),
                num_bytes: meta.size,
            })
        });
        Ok(entries.collect())
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.object_path(name);
        match self.wait(|objects| async move { objects.get(&path).await?.bytes().await }) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.failed(name, "read", &error)),
        }
    }

    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.write(name, bytes, PutMode::Overwrite)
            .map(|_| ())
            .map_err(|error| self.failed(name, "write", &error))
    }

    fn write(&self, name: &str, bytes: &[u8], mode: PutMode) -> Outcome<PutResult> {
        let path = self.object_path(name);
        let payload = bytes.to_vec().into();
        self.wait(|objects| async move {
            objects
                .put_opts(&path, payload, PutOptions::from(mode))
                .await
        })
    }

    /// Writes an object unless there is one of this name; `None` where there is.
    pub(crate) fn create(&self, name: &str, bytes: &[u8]) -> Result<Option<Version>, Error> {
        self.write_where(name, bytes, PutMode::Create)
    }

    /// Puts an empty object where there is none of this name, so that it cannot be created any more; whether there was
    /// none.
    pub(crate) fn bar(&self, name: &str) -> Result<bool, Error> {
        Ok(self.create(name, b"")?.is_some())
    }

    /// The size of an object; `None` where there is none.
    fn size(&self, name: &str) -> Result<Option<u64>, Error> {
        let path = self.object_path(name);
        match self.wait(|objects| async move { objects.head(&path).await }) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.failed(name, "read", &error)),
        }
    }

    /// Replaces the object that has `version`; `None` where it has another by now, or is gone.
    pub(crate) fn update(
        &self,
        name: &str,
        bytes: &[u8],
        version: &Version,
    ) -> Result<Option<Version>, Error> {
        self.write_where(name, bytes, PutMode::Update(version.0.clone()))
    }

    fn write_where(
        &self,
        name: &str,
        bytes: &[u8],
        mode: PutMode,
    ) -> Result<Option<Version>, Error> {
        use object_store::Error as Refusal;
        match self.write(name, bytes, mode) {
            Ok(written) => Ok(Some(Version(written.into()))),
            Err(
                Refusal::AlreadyExists { .. }
                | Refusal::Precondition { .. }
                | Refusal::NotModified { .. },
            ) => Ok(None),
            Err(error) => Err(self.failed(name, "write", &error)),
        }
    }

    /// Reads an object together with its version and age.
    pub(crate) fn look(&self, name: &str) -> Result<Option<Seen>, Error> {
        let path = self.object_path(name);
        let seen = self.wait(|objects| async move {
            let answer = objects.get(&path).await?;
            let meta = answer.meta.clone();
            let now = store_time(&answer.extensions);
            let written = SystemTime::from(meta.last_modified);
            Ok(Seen {
                bytes: answer.bytes().await?.into(),
                version: Version(UpdateVersion {
                    e_tag: meta.e_tag,
                    version: meta.version,
                }),
                // Both are cut to the second, and an object may be written within the second it is read in.
                age: now.map(|now| now.duration_since(written).unwrap_or_default()),
            })
        });
        match seen {
            Ok(seen) => Ok(Some(seen)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.failed(name, "read", &error)),
        }
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.object_path(name);
        match self.wait(|objects| async move { objects.delete(&path).await }) {
            Ok(()) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(self.failed(name, "remove", &error)),
        }
    }

    /// An object to be read at offsets.
    pub(super) fn object(&self, name: &str) -> Result<Object, Error> {
        let path = self.object_path(name);
        let wanted = path.clone();
        let meta = self.wait(|objects| async move { objects.head(&wanted).await });
        let meta = meta.map_err(|error| self.failed(name, "read", &error))?;
        Ok(Object::new(self.clone(), path, meta.size))
    }

    /// An object in a temporary file that has no name.
    pub(super) fn fetch(&self, name: &str) -> Result<File, Error> {
        let mut file = tempfile::tempfile()
            .map_err(|source| Error::io(&std::env::temp_dir(), "create a file in", source))?;
        self.copy_to(name, &mut file)?;
        Ok(file)
    }

    pub(super) fn copy_to(&self, name: &str, target: &mut File) -> Result<(), Error> {
        let path = self.object_path(name);
        let num_bytes = self.object(name)?.num_bytes();
        let round = (PART_BYTES * NUM_PARTS) as u64;
        for start in (0..num_bytes).step_by(PART_BYTES * NUM_PARTS) {
            let path = path.clone();
            let end = num_bytes.min(start + round);
            let parts = self.wait(|objects| async move {
                let ranges = (start..end)
                    .step_by(PART_BYTES)
                    .map(|start| start..end.min(start + PART_BYTES as u64));
                futures::stream::iter(ranges)
                    .map(|range| objects.get_range(&path, range))
                    .buffered(NUM_PARTS)
                    .try_collect::<Vec<_>>()
                    .await
            });
            for part in parts.map_err(|error| self.failed(name, "read", &error))? {
                target
                    .write_all(&part)
                    .map_err(|source| Error::io(&std::env::temp_dir(), "write in", source))?;
            }
        }
        Ok(())
    }

    pub(super) fn put_file(&self, name: &str, file: &Path) -> Result<(), Error> {
        self.send_file(name, file, true).map(|_| ())
    }

    /// Sends a file whose name is barred or has this content or none; `false` where it is barred. A large one is sent in
    /// parts, and replaces what bars it if that is put there while the last one is sent.
    pub(super) fn put_new_file(&self, name: &str, file: &Path) -> Result<bool, Error> {
        self.send_file(name, file, false)
    }

    /// Sends a file; `false`, and the file stays, where its name is barred and it `replaces` nothing.
    fn send_file(&self, name: &str, file: &Path, replaces: bool) -> Result<bool, Error> {
        let unreadable = |source| Error::io(file, "read", source);
        let mut opened = File::open(file).map_err(unreadable)?;
        let first = read_part(&mut opened).map_err(unreadable)?;
        let came = if first.len() >= PART_BYTES {
            self.upload(name, file, &mut opened, first, replaces)?
        } else if replaces {
            self.put(name, &first)?;
            true
        } else {
            // What is there already came in a try whose answer was lost.
            self.create(name, &first)?.is_some() || self.size(name)?.is_some_and(|size| size > 0)
        };
        if came {
            std::fs::remove_file(file).map_err(|source| Error::io(file, "remove", source))?;
        }
        Ok(came)
    }

    /// Sends `part` and the rest of `opened` in parts; they become an object together or not at all.
    fn upload(
        &self,
        name: &str,
        file: &Path,
        opened: &mut File,
        part: Vec<u8>,
        replaces: bool,
    ) -> Result<bool, Error> {
        let failed = |error| self.failed(name, "write", &error);
        let path = self.object_path(name);
        let upload = self.wait(|objects| async move { objects.put_multipart(&path).await });
        let writer = WriteMultipart::new_with_chunk_size(upload.map_err(failed)?, PART_BYTES);
        let (writer, sent) = self.send_parts(name, file, writer, opened, part);
        let may_come = sent.and_then(|()| Ok(replaces || self.size(name)? != Some(0)));
        if !matches!(may_come, Ok(true)) {
            // Best effort: what is left of it is invisible, and a rule of the bucket can remove it.
            let _ = self.background.wait(writer.abort());
            return may_come;
        }
        self.background.wait(writer.finish()).map_err(failed)?;
        Ok(true)
    }

    fn send_parts(
        &self,
        name: &str,
        file: &Path,
        mut writer: WriteMultipart,
        opened: &mut File,
        mut part: Vec<u8>,
    ) -> (WriteMultipart, Result<(), Error>) {
        while !part.is_empty() {
            let next = match read_part(opened) {
                Ok(next) => next,
                Err(source) => return (writer, Err(Error::io(file, "read", source))),
            };
            // At the end all have come but the last one, if it is smaller: the writer keeps that.
            let limit = if next.is_empty() { 1 } else { NUM_PARTS };
            let (returned, outcome) = self.background.wait(async move {
                writer.put(part.into());
                let outcome = writer.wait_for_capacity(limit).await;
                (writer, outcome)
            });
            writer = returned;
            if let Err(error) = outcome {
                return (writer, Err(self.failed(name, "write", &error)));
            }
            part = next;
        }
        (writer, Ok(()))
    }
}

/// Whether the bucket is there and the object is not. Servers answer 404 to both, and say which in words.
fn is_missing(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. }) && !lacks_bucket(&error.to_string())
}

fn lacks_bucket(text: &str) -> bool {
    let words = ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"];
    words.iter().any(|words| text.contains(words))
}

/// The next bytes of a file, as many as a part has unless it ends.
fn read_part(file: &mut File) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    file.take(PART_BYTES as u64).read_to_end(&mut part)?;
    Ok(part)
}

/// What went wrong, free of credentials, in the form that errors of folders have.
pub(super) fn io_error(error: &object_store::Error) -> io::Error {
    use object_store::Error as Cause;
    let text = error.to_string();
    let says = |words: [&str; 2]| words.iter().any(|words| text.contains(words));
    let kind = match error {
        Cause::NotFound { .. } => ErrorKind::NotFound,
        Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. } => {
            ErrorKind::PermissionDenied
        }
        Cause::NotImplemented { .. } | Cause::NotSupported { .. } => ErrorKind::Unsupported,
        // Of a list that is refused, only the text says why.
        _ if lacks_bucket(&text) => ErrorKind::NotFound,
        _ if says(["403 Forbidden", "401 Unauthorized"]) => ErrorKind::PermissionDenied,
        _ => ErrorKind::Other,
    };
    io::Error::new(kind, redacted(&text))
}
