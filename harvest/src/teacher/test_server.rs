//! A server on a real socket that answers by a script, and teachers opened from the text of a configuration.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use schemas::{ExampleId, Task};
use serde_json::Value;

use super::{OpenContext, Paid, Reply, Request, Teacher, TeacherError, TeacherKind};
use crate::config::{CommonConfig, Config, RunConfig, Source, TeacherEntry};
use crate::reporter::Watch;
use crate::stop::Stop;

/// One request as the server saw it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// `null` where it is no JSON.
    pub(super) body: Value,
}

/// It lives as long as the test's runtime.
pub(super) struct TestServer {
    pub(super) url: String,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl TestServer {
    pub(super) async fn start(script: impl Fn(&Call) -> Response + Send + Sync + 'static) -> Self {
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let (log, script) = (Arc::clone(&calls), Arc::new(script));
        let handler = move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let (log, script) = (Arc::clone(&log), Arc::clone(&script));
            async move {
                let call = Call {
                    path: uri.to_string(),
                    headers,
                    body: serde_json::from_slice(&body).unwrap_or_default(),
                };
                log.lock().unwrap().push(call.clone());
                script(&call)
            }
        };
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .fallback(handler)
            .layer(axum::extract::DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, calls }
    }

    /// Always the same answer.
    pub(super) async fn saying(status: u16, body: impl ToString) -> Self {
        let body = body.to_string();
        Self::start(move |_| answer(status, &body)).await
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The one call.
    pub(super) fn call(&self) -> Call {
        let calls = self.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        calls[0].clone()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "literals and values alike")]
pub(super) fn answer(status: u16, body: impl ToString) -> Response {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

/// Reads `[teacher]` with these keys.
pub(super) fn configure(keys: &str) -> Result<(TeacherEntry, RunConfig), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    let text = format!(
        "[dataset]\npath = \".\"\n[cache]\npath = \"c\"\n[run]\nmax_tries = 2\n[teacher]\n{keys}"
    );
    std::fs::write(&path, text).unwrap();
    let config = Config::read(&path).map_err(|error| error.to_string())?;
    let Source::Teachers(mut teachers, run) = config.source else {
        panic!("it is a teacher")
    };
    Ok((teachers.remove(0), run))
}

/// The teacher that has these keys and sends each request once.
pub(super) fn open_once(keys: &str) -> Arc<dyn Teacher> {
    let folder = tempfile::tempdir().unwrap();
    let (entry, mut run) = configure(keys).unwrap();
    run.max_tries = NonZeroU32::MIN;
    let task = Task::builtin("sst2").unwrap();
    open_kind(
        entry.kind.as_ref(),
        &entry.common,
        &run,
        &task,
        folder.path(),
        &Watch::default(),
    )
    .unwrap()
}

/// The teacher that has these keys, and tells `watch` what it sees.
pub(super) fn open_watched(keys: &str, watch: &Watch) -> Arc<dyn Teacher> {
    let (entry, run) = configure(keys).unwrap();
    let task = Task::builtin("sst2").unwrap();
    let folder = Path::new(".");
    open_kind(
        entry.kind.as_ref(),
        &entry.common,
        &run,
        &task,
        folder,
        watch,
    )
    .unwrap()
}

/// The teacher that has these keys, over a data set in `folder`.
pub(super) fn open_in(folder: &Path, keys: &str) -> Result<Arc<dyn Teacher>, TeacherError> {
    let (entry, run) = configure(keys).unwrap();
    let task = Task::builtin("sst2").unwrap();
    let watch = Watch::default();
    open_kind(
        entry.kind.as_ref(),
        &entry.common,
        &run,
        &task,
        folder,
        &watch,
    )
}

/// The teacher that has these keys, which takes data URIs in place of names of pictures.
pub(super) fn open_inline(folder: &Path, keys: &str) -> Result<Arc<dyn Teacher>, TeacherError> {
    let (entry, run) = configure(keys).unwrap();
    let task = Task::builtin("sst2").unwrap();
    let common = CommonConfig {
        inline_images: true,
        ..entry.common
    };
    let watch = Watch::default();
    open_kind(entry.kind.as_ref(), &common, &run, &task, folder, &watch)
}

fn open_kind(
    kind: &dyn TeacherKind,
    common: &CommonConfig,
    run: &RunConfig,
    task: &Task,
    folder: &Path,
    watch: &Watch,
) -> Result<Arc<dyn Teacher>, TeacherError> {
    kind.open(&OpenContext {
        common,
        run,
        task,
        data_folder: folder.to_owned(),
        state_folder: folder.to_owned(),
        watch: watch.clone(),
        stop: Stop::default(),
    })
}

pub(super) fn open(keys: &str) -> Arc<dyn Teacher> {
    open_in(Path::new("."), keys).unwrap()
}

pub(super) fn request(row: u8, prompt: &str) -> Request {
    Request::text(ExampleId::from([row; 16]), 0, prompt)
}

/// Asks about several texts together.
pub(super) async fn ask(
    teacher: &dyn Teacher,
    prompts: &[&str],
) -> Result<Vec<Result<Reply, TeacherError>>, TeacherError> {
    let requests: Vec<Request> = (0..)
        .zip(prompts)
        .map(|(row, text)| request(row, text))
        .collect();
    Ok(teacher.query(&requests, &super::NotKept).await?.replies)
}

/// Asks about one text; whatever goes wrong is its error.
pub(super) async fn ask_one(teacher: &dyn Teacher, prompt: &str) -> Result<Reply, TeacherError> {
    super::ask_alone(teacher, &request(0, prompt)).await
}

/// Keeps parts in memory, the latest of a name last.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Vec<(String, Request, Reply)>>);

impl Paid for Kept {
    fn find(&self, part: &str, request: &Request) -> Option<Reply> {
        let kept = self.0.lock().unwrap();
        let found = kept
            .iter()
            .rfind(|(name, of, _)| name == part && of.id == request.id && of.draw == request.draw);
        let reply = found.map(|(_, _, reply)| reply.clone());
        reply.filter(|reply| !reply.signals.is_empty())
    }

    fn keep(&self, part: &str, request: &Request, reply: &Reply) -> Result<(), TeacherError> {
        let entry = (part.to_owned(), request.clone(), reply.clone());
        self.0.lock().unwrap().push(entry);
        Ok(())
    }
}
