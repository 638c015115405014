//! The calls of the Batch API: files, batches and their states.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use reqwest::multipart::{Form, Part};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::state::{self, Problem, Store};
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

/// A batch as the server describes it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Remote {
    pub(super) id: String,
    pub(super) status: String,
    #[serde(default)]
    input_file_id: Option<String>,
    #[serde(default)]
    output_file_id: Option<String>,
    #[serde(default)]
    error_file_id: Option<String>,
    #[serde(default)]
    metadata: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default)]
    errors: Option<Problems>,
    #[serde(default)]
    pub(super) request_counts: Option<Counts>,
    #[serde(default)]
    completed_at: Option<i64>,
    #[serde(default)]
    expired_at: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Problems {
    #[serde(default)]
    data: Vec<Problem>,
}

/// Rows of a batch by what became of them.
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
pub(super) struct Counts {
    #[serde(default)]
    pub(super) total: u64,
    #[serde(default)]
    pub(super) completed: u64,
    #[serde(default)]
    pub(super) failed: u64,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Remote>,
    #[serde(default)]
    has_more: bool,
}

#[derive(Deserialize)]
struct Uploaded {
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

    /// The ids of the files of answers and of errors, as far as there are any.
    pub(super) fn files(&self) -> [Option<&str>; 2] {
        let ids = [&self.output_file_id, &self.error_file_id];
        ids.map(|id| id.as_deref().filter(|id| !id.is_empty()))
    }

    /// When it ended, in milliseconds since 1970.
    pub(super) fn ended_at(&self) -> Option<i64> {
        self.completed_at
            .or(self.expired_at)
            .and_then(|seconds| seconds.checked_mul(1000))
    }

    /// The lines that the file of answers must have at least, and both files together; zeros where the server counts
    /// none.
    pub(super) fn num_lines(&self) -> [u64; 2] {
        let counts = self.request_counts.unwrap_or_default();
        [
            counts.completed,
            counts.completed.saturating_add(counts.failed),
        ]
    }

    /// Why the file was refused.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.errors
            .as_ref()
            .map(|errors| errors.data.clone())
            .unwrap_or_default()
    }

    fn is(&self, file: &str, name: &str) -> bool {
        let named = self.metadata.as_ref().and_then(|all| all.get(NAME_KEY));
        self.input_file_id.as_deref() == Some(file)
            || named.and_then(|named| named.as_str()) == Some(name)
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
        let uploaded: Uploaded = self.read("the reply to an uploaded file", &reply.body)?;
        Ok(uploaded.id)
    }

    /// Creates the batch of an uploaded file.
    pub(super) async fn create(
        &self,
        name: &str,
        file: &str,
        asked: &str,
        window: &str,
    ) -> Result<Remote, TeacherError> {
        let create = Create {
            input_file_id: file,
            endpoint: asked,
            completion_window: window,
            metadata: BTreeMap::from([(NAME_KEY, name)]),
        };
        let body = serde_json::to_vec(&create).expect("texts have a JSON form");
        let reply = self.endpoint.post(&["batches".into()], body).await?;
        self.read("the reply to a new batch", &reply.body)
    }

    /// The batch of this name or of this request file, where the server has it.
    pub(super) async fn find(
        &self,
        name: &str,
        file: &str,
    ) -> Result<Option<Remote>, TeacherError> {
        let limit = PAGE.to_string();
        let mut after: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut query = vec![("limit", limit.as_str())];
            query.extend(after.iter().map(|after| ("after", after.as_str())));
            let reply = self.endpoint.get_with(&["batches".into()], &query).await?;
            let page: Page = self.read("the list of batches", &reply.body)?;
            after = page.data.last().map(|last| last.id.clone());
            if let Some(found) = page.data.into_iter().find(|batch| batch.is(file, name)) {
                return Ok(Some(found));
            }
            if !page.has_more || after.is_none() {
                break;
            }
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
