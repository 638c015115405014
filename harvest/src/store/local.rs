//! A folder as a store.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use schemas::Error;
use schemas::manifest::{make_readable, sync_folder, write_atomically};
use tempfile::NamedTempFile;

use super::StoreEntry;

#[derive(Debug)]
pub(super) struct Local {
    folder: PathBuf,
}

impl Local {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn list(&self) -> Result<Vec<StoreEntry>, Error> {
        let list = || -> io::Result<Vec<StoreEntry>> {
            let mut entries = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                // Through links; a file that was removed since is not there.
                let metadata = match fs::metadata(entry.path()) {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    metadata => metadata?,
                };
                if let Ok(name) = entry.file_name().into_string()
                    && metadata.is_file()
                {
                    entries.push(StoreEntry {
                        name,
                        num_bytes: metadata.len(),
                    });
                }
            }
            Ok(entries)
        };
        match list() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(|source| Error::io(&self.folder, "list", source)),
        }
    }

    fn make_folder(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.folder).map_err(|source| Error::io(&self.folder, "create", source))
    }

    pub(super) fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        self.make_folder()?;
        write_atomically(path, bytes)
    }

    pub(super) fn put_file(&self, path: &Path, file: &Path) -> Result<(), Error> {
        self.make_folder()?;
        let opened = File::open(file).map_err(|source| Error::io(file, "read", source))?;
        let rename = || -> io::Result<()> {
            make_readable(&opened)?;
            opened.sync_all()?;
            fs::rename(file, path)?;
            sync_folder(&self.folder)
        };
        match rename() {
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                self.copy_file(path, opened)
                    .map_err(|source| Error::io(path, "write", source))?;
                fs::remove_file(file).map_err(|source| Error::io(file, "remove", source))
            }
            renamed => renamed.map_err(|source| Error::io(path, "write", source)),
        }
    }

    fn copy_file(&self, path: &Path, mut file: File) -> io::Result<()> {
        let mut temporary = self.temporary()?;
        io::copy(&mut file, temporary.as_file_mut())?;
        make_readable(temporary.as_file())?;
        temporary.as_file().sync_all()?;
        temporary.persist(path)?;
        sync_folder(&self.folder)
    }

    /// A file under a name that whoever holds the folder's lock knows as a leftover, should this process die.
    fn temporary(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new()
            .prefix(".shard-")
            .suffix(".tmp")
            .tempfile_in(&self.folder)
    }

    pub(super) fn create(&self, path: &Path, bytes: &[u8]) -> Result<bool, Error> {
        self.make_folder()?;
        let create = || -> io::Result<bool> {
            let mut temporary = self.temporary()?;
            temporary.write_all(bytes)?;
            make_readable(temporary.as_file())?;
            temporary.as_file().sync_all()?;
            match temporary.persist_noclobber(path) {
                Ok(_) => sync_folder(&self.folder).map(|()| true),
                Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error.error),
            }
        };
        create().map_err(|source| Error::io(path, "create", source))
    }
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        content => content
            .map(Some)
            .map_err(|source| Error::io(path, "read", source)),
    }
}

pub(super) fn copy(path: &Path, target: &mut File) -> Result<(), Error> {
    let mut copy = || io::copy(&mut File::open(path)?, target);
    copy()
        .map(|_| ())
        .map_err(|source| Error::io(path, "copy", source))
}

pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let remove = || {
        fs::remove_file(path)?;
        path.parent().map_or(Ok(()), sync_folder)
    };
    match remove() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| Error::io(path, "remove", source)),
    }
}
