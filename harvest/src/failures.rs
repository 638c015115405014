//! Rows that failed in the latest run: `failures.jsonl` in the cache folder, one JSON object a line.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::teacher::{ErrorClass, Request, TeacherError};

/// Name of the list in a cache folder.
pub const FAILURES_FILE: &str = "failures.jsonl";

/// Characters of an example's text that are shown with its failure.
const MAX_TEXT_CHARS: usize = 120;

/// One row that failed.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Failure {
    /// The example's id.
    pub id: String,
    /// The draw.
    pub draw: u32,
    /// The class of the last error.
    pub class: ErrorClass,
    /// The last error.
    pub message: String,
    /// Requests sent.
    pub tries: u32,
    /// The prompt, shortened.
    pub text: String,
}

impl Failure {
    /// The failure of a request.
    pub fn new(request: &Request, error: &TeacherError) -> Self {
        Self {
            id: request.id.to_string(),
            draw: request.draw,
            class: error.class,
            message: error.message.clone(),
            tries: error.tries,
            text: shorten(&request.prompt, MAX_TEXT_CHARS),
        }
    }
}

/// Writes the list as failures happen, and counts them.
#[derive(Debug)]
pub struct Failures {
    path: PathBuf,
    file: Option<File>,
    num_failed: u64,
    first: Vec<Failure>,
}

/// Failures that are kept for the end of a run; the file has all.
const NUM_SHOWN: usize = 20;

impl Failures {
    /// An empty list in `folder`; the list of an earlier run is removed, since its rows are asked about again.
    ///
    /// # Errors
    /// [`schemas::Error::Io`].
    pub fn start(folder: &Path) -> Result<Self, schemas::Error> {
        let path = folder.join(FAILURES_FILE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(schemas::Error::io(&path, "remove", source));
            }
            _ => {}
        }
        Ok(Self {
            path,
            file: None,
            num_failed: 0,
            first: Vec::new(),
        })
    }

    /// Adds one.
    ///
    /// # Errors
    /// [`schemas::Error::Io`].
    pub fn add(&mut self, failure: Failure) -> Result<(), schemas::Error> {
        let mut line = serde_json::to_string(&failure).expect("a failure has string keys only");
        line.push('\n');
        let mut write = || -> std::io::Result<()> {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(File::create(&self.path)?),
            };
            file.write_all(line.as_bytes())
        };
        write().map_err(|source| schemas::Error::io(&self.path, "write", source))?;
        self.num_failed += 1;
        if self.first.len() < NUM_SHOWN {
            self.first.push(failure);
        }
        Ok(())
    }

    /// How many there are.
    pub fn num_failed(&self) -> u64 {
        self.num_failed
    }

    /// The first twenty.
    pub fn into_first(self) -> Vec<Failure> {
        self.first
    }
}

/// `text` on one line, cut after `max_chars` characters.
pub fn shorten(text: &str, max_chars: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(max_chars) {
        None => line,
        Some((end, _)) => format!("{}...", &line[..end]),
    }
}
