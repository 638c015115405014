//! The calls of the Batch API: files, batches and their states.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use reqwest::multipart::{Form, Part};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::results;
use super::state::{self, Problem, Store};
use crate::teacher::hints::count;
use crate::teacher::http::{Endpoint, shorten};
use crate::teacher::{ErrorClass, TeacherError};

/// Key of a batch's metadata that holds our name for it.
const NAME_KEY: &str = "armada_batch";
/// Batches in one page of the list.
const PAGE: usize = 100;
/// Most pages of the list that are looked at: a batch is sought soon after it was made, and the newest come first.
const MAX_PAGES: usize = 20;

/// A server with a Batch API.
#[derive(Debug)]
pub(super) struct Api {
    /// For short calls.
    pub(super) endpoint: Endpoint,
    /// For files: a longer time limit.
    pub(super) transfer: Endpoint,
    pub(super) max_result_bytes: u64,
}

/// A batch as the server describes it. It is paid for, so no more of it is insisted on than what it cannot be fetched
/// without: whatever else is of another shape than the protocol's counts as left out.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Remote {
    pub(super) id: String,
    /// In lower case: some servers shout.
    #[serde(deserialize_with = "state")]
    pub(super) status: String,
    #[serde(default)]
    output_file_id: Value,
    #[serde(default)]
    error_file_id: Value,
    #[serde(default)]
    errors: Value,
    #[serde(default)]
    request_counts: Value,
    #[serde(default)]
    created_at: Value,
    #[serde(default)]
    completed_at: Value,
    #[serde(default)]
    expired_at: Value,
}

fn state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let state = String::deserialize(deserializer)?.to_ascii_lowercase();
    Ok(match state.as_str() {
        "canceled" => "cancelled".to_owned(),
        _ => state,
    })
}

/// Rows of a batch by what became of them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Counts {
    pub(super) total: u64,
    pub(super) completed: u64,
    pub(super) failed: u64,
}

/// A page of the list, whose batches are anybody's and are read one by one.
#[derive(Deserialize)]
struct Page {
    data: Vec<Value>,
    has_more: Option<bool>,
}

/// A file or a batch that the server has just made.
#[derive(Deserialize)]
struct Made {
    id: String,
}

#[derive(Serialize)]
struct Create<'a> {
    input_file_id: &'a str,
    endpoint: &'a str,
    completion_window: &'a str,
    metadata: BTreeMap<&'static str, &'a str>,
}

impl Remote {
    /// Whether nothing more will come.
    pub(super) fn has_ended(&self) -> bool {
        matches!(
            self.status.as_str(),
            "completed" | "expired" | "failed" | "cancelled"
        )
    }

    /// Whether the state is one of the protocol's from which a batch goes on.
    pub(super) fn goes_on(&self) -> bool {
        matches!(
            self.status.as_str(),
            "validating" | "in_progress" | "finalizing" | "cancelling"
        )
    }

    /// The ids of the files of answers and of errors, as far as there are any.
    ///
    /// # Errors
    /// Where an id has another shape: a file that nobody fetches would be paid for again.
    pub(super) fn files(&self) -> Result<[Option<&str>; 2], TeacherError> {
        Ok([
            self.file(&self.output_file_id)?,
            self.file(&self.error_file_id)?,
        ])
    }

    fn file<'a>(&self, id: &'a Value) -> Result<Option<&'a str>, TeacherError> {
        match id {
            Value::Null => Ok(None),
            Value::String(id) => Ok(Some(id.as_str()).filter(|id| !id.is_empty())),
            other => Err(results::broken(&format!(
                "batch {} names a file of results as {}, which is no text",
                self.id,
                shorten(&other.to_string())
            ))),
        }
    }

    /// When it was created, in milliseconds since 1970.
    pub(super) fn created_at(&self) -> Option<i64> {
        milliseconds(&self.created_at)
    }

    /// When it ended, in milliseconds since 1970.
    pub(super) fn ended_at(&self) -> Option<i64> {
        milliseconds(&self.completed_at).or_else(|| milliseconds(&self.expired_at))
    }

    /// Zeros where the server counts none.
    pub(super) fn counts(&self) -> Counts {
        let counted = |name: &str| {
            let number = match &self.request_counts[name] {
                Value::String(text) => count(text),
                number => count(&number.to_string()),
            };
            number.unwrap_or(0)
        };
        Counts {
            total: counted("total"),
            completed: counted("completed"),
            failed: counted("failed"),
        }
    }

    /// The lines that the file of answers must have at least, and both files together; zeros where the server counts
    /// none.
    pub(super) fn num_lines(&self) -> [u64; 2] {
        let counts = self.counts();
        [
            counts.completed,
            counts.completed.saturating_add(counts.failed),
        ]
    }

    /// Why the file was refused.
    pub(super) fn problems(&self) -> Vec<Problem> {
        if let Value::String(message) = &self.errors {
            return vec![Problem {
                message: Some(message.clone()),
                ..Problem::default()
            }];
        }
        let problems = self.errors["data"].as_array().into_iter().flatten();
        problems.map(Problem::read).collect()
    }
}

/// A time in seconds since 1970 as milliseconds.
fn milliseconds(seconds: &Value) -> Option<i64> {
    seconds.as_f64().map(|seconds| (seconds * 1e3) as i64)
}

impl Problem {
    fn read(problem: &Value) -> Self {
        let text = |key: &str| problem[key].as_str().map(str::to_owned);
        Self {
            code: text("code"),
            message: text("message"),
            line: problem["line"].as_u64().map(|line| line as usize),
        }
    }
}

impl Api {
    /// Sends a request file; returns the server's id for it.
    pub(super) async fn upload(&self, name: &str, path: &Path) -> Result<String, TeacherError> {
        let bytes = std::fs::read(path).map_err(|error| state::on_disk("read", path, &error))?;
        let file = Part::bytes(bytes)
            .file_name(format!("{name}.jsonl"))
            .mime_str("application/jsonl")
            .expect("the media type is well formed");
        let form = Form::new().text("purpose", "batch").part("file", file);
        let reply = self.transfer.post_form(&["files".into()], form).await?;
        let made: Made = self.read("the reply to an uploaded file", &reply.body)?;
        Ok(made.id)
    }

    /// Creates the batch of an uploaded file; returns the server's id for it.
    pub(super) async fn create(
        &self,
        name: &str,
        file: &str,
        asked: &str,
        window: &str,
    ) -> Result<String, TeacherError> {
        let create = Create {
            input_file_id: file,
            endpoint: asked,
            completion_window: window,
            metadata: BTreeMap::from([(NAME_KEY, name)]),
        };
        let body = serde_json::to_vec(&create).expect("texts have a JSON form");
        let reply = self.endpoint.post(&["batches".into()], body).await?;
        let made: Made = self.read("the reply to a new batch", &reply.body)?;
        Ok(made.id)
    }

    /// The id of the batch of this name or of this request file, where the server has it.
    ///
    /// # Errors
    /// Where it may be there all the same: a batch that is not found is paid for again.
    pub(super) async fn find(
        &self,
        name: &str,
        file: &str,
    ) -> Result<Option<String>, TeacherError> {
        let limit = PAGE.to_string();
        let mut after: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut query = vec![("limit", limit.as_str())];
            query.extend(after.iter().map(|after| ("after", after.as_str())));
            let reply = self.endpoint.get_with(&["batches".into()], &query).await?;
            let page: Page = self.read("the list of batches", &reply.body)?;
            let id = |batch: &Value| match &batch["id"] {
                Value::String(id) => Ok(id.clone()),
                _ => Err(results::broken(
                    "the list of batches names one without an `id`",
                )),
            };
            let is_ours = |batch: &&Value| {
                batch["input_file_id"] == file || batch["metadata"][NAME_KEY] == name
            };
            if let Some(ours) = page.data.iter().find(is_ours) {
                return id(ours).map(Some);
            }
            let last = page.data.last().filter(|_| page.has_more == Some(true));
            let Some(last) = last else { break };
            after = Some(id(last)?);
        }
        Ok(None)
    }

    /// The state of a batch.
    pub(super) async fn get(&self, id: &str) -> Result<Remote, TeacherError> {
        let reply = self.endpoint.get(&["batches".into(), id.into()]).await?;
        self.read("the state of a batch", &reply.body)
    }

    /// Tells the server that nobody wants the batch any more; whether that was understood. What it has done already is
    /// paid for.
    pub(super) async fn cancel(&self, id: &str) -> Result<bool, TeacherError> {
        let path = ["batches".into(), id.into(), "cancel".into()];
        match self.endpoint.post(&path, Vec::new()).await {
            Ok(_) => Ok(true),
            // The server cancels none.
            Err(error) if error.class == ErrorClass::Deterministic => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a file of the server to `path` where `judge` finds that it came whole, or else not at all.
    pub(super) async fn download(
        &self,
        id: &str,
        path: &Path,
        judge: impl FnOnce(&Path) -> Result<(), TeacherError>,
    ) -> Result<(), TeacherError> {
        let unfinished = Store::unfinished(path);
        let failed = |error: &std::io::Error| state::on_disk("write", &unfinished, error);
        let file = File::create(&unfinished).map_err(|error| failed(&error))?;
        let mut writer = BufWriter::new(file);
        let from = ["files".into(), id.into(), "content".into()];
        self.transfer
            .get_pieces(&from, self.max_result_bytes, |piece| {
                writer.write_all(piece).map_err(|error| failed(&error))
            })
            .await
            .map_err(|error| match error.class {
                ErrorClass::Deterministic => {
                    error.advise("raise `max_result_mib` of the teacher if the file is too large")
                }
                _ => error,
            })?;
        let file = writer.into_inner().map_err(|error| failed(error.error()))?;
        judge(&unfinished)?;
        state::finish(&file, &unfinished, path)
    }

    fn read<T: DeserializeOwned>(&self, what: &str, body: &[u8]) -> Result<T, TeacherError> {
        serde_json::from_slice(body).map_err(|error| {
            let text = String::from_utf8_lossy(&body[..body.len().min(2048)]);
            let (error, text) = (shorten(&error.to_string()), shorten(&text));
            let problem = format!("{what} cannot be read ({error}): {text}");
            self.endpoint
                .redacted(TeacherError::new(ErrorClass::Transient, problem))
        })
    }
}
