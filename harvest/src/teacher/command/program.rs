//! Finds the program of a command before anything is asked.

use std::path::{Path, PathBuf};

use crate::teacher::{ErrorClass, TeacherError};

/// The file that runs under this name: a path, or a name that `PATH` is searched for.
///
/// # Errors
/// A [`TeacherError`] where there is none or it may not be run.
pub(super) fn find(name: &str) -> Result<PathBuf, TeacherError> {
    let refuse = |problem: &str, advice: &str| {
        Err(TeacherError::new(
            ErrorClass::Deterministic,
            format!("`command`: `{name}` {problem}"),
        )
        .advise(advice))
    };
    let is_path = Path::new(name).components().count() > 1;
    let candidates: Vec<PathBuf> = if is_path {
        vec![name.into()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .collect()
    };
    if let Some(program) = candidates.iter().find(|path| is_executable(path)) {
        return Ok(program.clone());
    }
    if candidates.iter().any(|path| path.is_file()) {
        return refuse(
            "is not executable",
            "run `chmod +x` on it, or name the interpreter first, such as [\"python3\", \"teacher.py\"]",
        );
    }
    if is_path {
        let advice = "paths start in the folder that harvest is started in: start it there, or give the whole path";
        refuse("does not exist", advice)
    } else {
        let advice = "install it, or give its whole path; no shell reads the command";
        refuse("is not in PATH", advice)
    }
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.is_file() || path.with_extension("exe").is_file()
}
