//! Pictures in the folder of a data set.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Component, Path, PathBuf};

use super::super::{ErrorClass, TeacherError};
use super::{MAX_BYTES, refusal, too_large};

/// The one folder that pictures are read from.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

const RELATIVE: &str =
    "name pictures by paths relative to the data set's folder, and keep the files in it";

impl Folder {
    pub(super) fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    pub(super) async fn read(&self, name: &str) -> Result<Vec<u8>, TeacherError> {
        let folder = self.clone();
        let owned = name.to_owned();
        tokio::task::spawn_blocking(move || folder.read_now(&owned))
            .await
            .expect("reading a file does not panic")
    }

    fn read_now(&self, name: &str) -> Result<Vec<u8>, TeacherError> {
        let path = self.confined(name)?;
        let unreadable = |error: io::Error| unreadable(name, &error);
        let kind = path.metadata().map_err(unreadable)?;
        // Opening a pipe would wait for a writer for ever.
        if !kind.is_file() {
            return Err(refusal(name, "it is no file").advise("name a picture file"));
        }
        if kind.len() > MAX_BYTES as u64 {
            return Err(too_large(name));
        }
        let mut bytes = Vec::with_capacity(kind.len() as usize);
        let limited = File::open(&path)
            .map_err(unreadable)?
            .take(MAX_BYTES as u64 + 1);
        { limited }.read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() > MAX_BYTES {
            return Err(too_large(name));
        }
        Ok(bytes)
    }

    /// The file's real path, which lies in the real folder whatever symbolic links there are.
    fn confined(&self, name: &str) -> Result<PathBuf, TeacherError> {
        if name.contains("://") || name.starts_with("data:") {
            let problem = "it is an address of a scheme that is not read";
            return Err(refusal(name, problem).advise(
                "name pictures by paths in the data set's folder, or by http:// or https:// addresses",
            ));
        }
        let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        let relative = Path::new(name);
        if name.is_empty() || !relative.components().all(inside) {
            return Err(
                refusal(name, "the path does not stay in the data set's folder").advise(RELATIVE),
            );
        }
        let unreadable = |error: io::Error| unreadable(name, &error);
        let folder = self.0.canonicalize().map_err(unreadable)?;
        let path = folder.join(relative).canonicalize().map_err(unreadable)?;
        if !path.starts_with(&folder) {
            return Err(
                refusal(name, "a symbolic link leads out of the data set's folder")
                    .advise(RELATIVE),
            );
        }
        Ok(path)
    }
}

fn unreadable(name: &str, error: &io::Error) -> TeacherError {
    let refused = refusal(name, &format!("it cannot be read: {error}"));
    // Anything else, such as too many open files, may pass.
    let lasting = matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
    ) || error.raw_os_error() == Some(LOOP_OF_LINKS);
    let class = if lasting {
        ErrorClass::Deterministic
    } else {
        ErrorClass::Transient
    };
    TeacherError { class, ..refused }
        .advise("check the path in the data and the file: paths start at the data set's folder")
}

/// `ELOOP` of Linux.
const LOOP_OF_LINKS: i32 = 40;
