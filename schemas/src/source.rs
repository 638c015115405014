//! Where the bytes of a shard come from: a file, or anything else that can be read at an offset.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::digest::Sha256Digest;
use crate::error::Error;

/// Bytes that do not change and can be read at any offset, by several threads at a time.
pub trait ReadAt: Send + Sync + fmt::Debug {
    /// How many bytes there are.
    fn num_bytes(&self) -> u64;

    /// Reads bytes from `offset` on into the start of `buffer`; returns how many, and 0 only where there are no more.
    ///
    /// # Errors
    /// Those of the medium.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

/// A file and its size when it was opened.
#[derive(Debug)]
struct OpenFile {
    file: File,
    num_bytes: u64,
}

impl ReadAt for OpenFile {
    fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, buffer, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.file, buffer, offset)
    }
}

/// The bytes of one shard and the name that errors give it.
#[derive(Clone, Debug)]
pub struct ShardSource {
    name: Arc<Path>,
    bytes: Arc<dyn ReadAt>,
    /// Why a read failed. Parquet turns the errors of its source into texts, and a medium that fails is not a shard
    /// that is damaged.
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl ShardSource {
    /// A shard that is a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn file(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::io(path, "read", source))?;
        Self::opened(path, file)
    }

    /// A shard that is an open file; errors call it `name`, whose last part is the shard's name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn opened(name: &Path, file: File) -> Result<Self, Error> {
        let metadata = file
            .metadata()
            .map_err(|source| Error::io(name, "read", source))?;
        let num_bytes = metadata.len();
        Ok(Self::new(name, Arc::new(OpenFile { file, num_bytes })))
    }

    /// A shard that lies elsewhere; errors call it `name`, whose last part is the shard's name.
    pub fn new(name: &Path, bytes: Arc<dyn ReadAt>) -> Self {
        Self {
            name: name.into(),
            bytes,
            failure: Arc::default(),
        }
    }

    /// Where it lies, for messages.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Its size.
    pub fn num_bytes(&self) -> u64 {
        self.bytes.num_bytes()
    }

    /// Its digest; reads all of it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sha256(&self) -> Result<Sha256Digest, Error> {
        Sha256Digest::of_reader(self.reader(0))
            .map_err(|source| Error::io(&self.name, "read", source))
    }

    /// What is wrong with the shard, or why it could not be read.
    pub(crate) fn invalid(&self, problem: impl fmt::Display) -> Error {
        let failure = self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match failure {
            Some(source) => Error::io(&self.name, "read", source),
            None => Error::InvalidShard {
                path: self.name.to_path_buf(),
                problem: problem.to_string(),
            },
        }
    }

    fn reader(&self, offset: u64) -> ShardBytes {
        ShardBytes {
            source: self.clone(),
            offset,
        }
    }
}

impl Length for ShardSource {
    fn len(&self) -> u64 {
        self.num_bytes()
    }
}

impl ChunkReader for ShardSource {
    type T = BufReader<ShardBytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(self.reader(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let mut bytes = Vec::with_capacity(length);
        let num_read = self
            .reader(start)
            .take(length as u64)
            .read_to_end(&mut bytes)?;
        if num_read < length {
            return Err(ParquetError::EOF(format!(
                "it ends {} bytes early",
                length - num_read
            )));
        }
        Ok(bytes.into())
    }
}

/// The bytes of a shard from an offset on.
#[derive(Debug)]
pub struct ShardBytes {
    source: ShardSource,
    offset: u64,
}

impl Read for ShardBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.source.bytes.read_at(self.offset, buffer) {
            Ok(num_read) => {
                self.offset += num_read as u64;
                Ok(num_read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = io::Error::new(error.kind(), error.to_string());
                let mut failure = self
                    .source
                    .failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *failure = Some(error);
                Err(told)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A medium that fails from some offset on.
    #[derive(Debug)]
    struct Failing;

    impl ReadAt for Failing {
        fn num_bytes(&self) -> u64 {
            100
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
        }
    }

    #[test]
    fn a_medium_that_fails_is_not_a_damaged_shard() {
        let source = ShardSource::new(Path::new("s3://bucket/shard"), Arc::new(Failing));
        let error = crate::ShardReader::open_source_unverified(source).unwrap_err();
        let is_timeout =
            matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut);
        assert!(is_timeout, "{error:?}");
        assert!(error.to_string().contains("s3://bucket/shard"));
    }

    #[test]
    fn a_file_is_read_at_offsets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let source = ShardSource::file(&path).unwrap();
        assert_eq!(source.num_bytes(), 10);
        assert_eq!(source.get_bytes(3, 4).unwrap().as_ref(), b"3456");
        assert!(source.get_bytes(8, 4).is_err());
        let mut rest = String::new();
        source
            .get_read(7)
            .unwrap()
            .read_to_string(&mut rest)
            .unwrap();
        assert_eq!(rest, "789");
        assert_eq!(source.sha256().unwrap(), Sha256Digest::of(b"0123456789"));
    }
}
