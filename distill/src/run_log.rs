//! The log of a run: one JSON object a line, one line a step or evaluation.
//!
//! A resumed run cuts the log back to its checkpoint, so that no step is there twice and the log of a resumed run equals
//! that of an uninterrupted one but for its timings.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;

/// The file of steps.
pub const STEPS_FILE: &str = "steps.jsonl";
/// The file of evaluations.
pub const EVALUATIONS_FILE: &str = "evaluations.jsonl";

/// What one optimiser did in a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// The weighted sum that was minimised.
    pub loss: f32,
    /// Every term by name, before weighting.
    pub terms: Map<String, Value>,
    /// The learning rate.
    pub learning_rate: f64,
    /// Global norm of the gradient, before clipping.
    pub gradient_norm: f64,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// Counted from 1 over the whole run.
    pub step: u64,
    /// Counted from 1, apart for passes of the aligner alone.
    pub epoch: usize,
    /// Who was trained: `aligner`, `student` or `both`.
    pub trained: String,
    /// Rows of the step.
    pub rows: usize,
    /// The aligner's update, if it was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aligner: Option<Update>,
    /// The student's update, if it was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student: Option<Update>,
    /// Speed of this step: the one field that differs from run to run.
    pub examples_per_second: f64,
}

/// An append-only file of JSON lines that carry a step.
#[derive(Debug)]
pub struct LineLog {
    path: PathBuf,
    file: BufWriter<File>,
}

impl LineLog {
    /// Opens the log and keeps the lines up to `step`. A torn last line, left by a crash, goes as well.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, step: u64) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Line {
            step: u64,
        }
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io(path, "read")(error)),
        };
        let is_kept = |line: &&str| {
            line.ends_with('\n')
                && serde_json::from_str(line).is_ok_and(|line: Line| line.step <= step)
        };
        let kept: usize = text
            .split_inclusive('\n')
            .take_while(is_kept)
            .map(str::len)
            .sum();
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .append(true)
            .open(path)
            .map_err(Error::io(path, "open"))?;
        file.set_len(kept as u64).map_err(Error::io(path, "cut"))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append<T: Serialize>(&mut self, line: &T) -> Result<(), Error> {
        let mut text = serde_json::to_string(line).expect("plain data");
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .map_err(Error::io(&self.path, "write"))
    }

    /// Makes every line so far durable: a checkpoint follows them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sync(&mut self) -> Result<(), Error> {
        let sync = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_data());
        sync.map_err(Error::io(&self.path, "write"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_after_the_checkpoint_and_torn_lines_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.jsonl");
        let mut log = LineLog::open(&path, 0).unwrap();
        for step in 1..=4 {
            log.append(&json!({"step": step})).unwrap();
        }
        log.sync().unwrap();
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\":5");
        std::fs::write(&path, &text).unwrap();

        let mut log = LineLog::open(&path, 2).unwrap();
        log.append(&json!({"step": 3, "again": true})).unwrap();
        log.sync().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":1}\n{\"step\":2}\n{\"again\":true,\"step\":3}\n"
        );
        LineLog::open(&path, 9).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
