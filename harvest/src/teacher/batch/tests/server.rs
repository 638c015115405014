//! A server with files, batches and embeddings, on a real socket, with faults on demand.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// How the batches of a server behave.
#[derive(Clone, Debug)]
pub(super) struct Faults {
    /// States that a batch shows before it ends.
    pub(super) states: Vec<&'static str>,
    /// How it ends.
    pub(super) end: &'static str,
    /// `errors.data` of a batch that fails.
    pub(super) problems: Value,
    /// Batches to create and answer 500 to.
    pub(super) hidden_creations: usize,
    /// What becomes of the next files of answers that are fetched.
    pub(super) spoiled_answers: Vec<fn(String) -> String>,
    /// The same of files of errors.
    pub(super) spoiled_errors: Vec<fn(String) -> String>,
    /// Whether the state of a batch says how many rows of it have an answer or an error.
    pub(super) counts: bool,
    /// What stands in the state of a batch in place of its own.
    pub(super) over: Value,
    /// What stands before each page of the list.
    pub(super) listed: Vec<Value>,
    /// Whether batches can be cancelled.
    pub(super) cancels: bool,
    /// Looks at a batch to answer 500 to.
    pub(super) failed_looks: usize,
    /// Files whose content is asked for to answer 500 to.
    pub(super) failed_contents: usize,
    /// Status of every answer to `POST /batches`, where it is refused.
    pub(super) refuse_creation: Option<u16>,
    /// Whether batches can be listed.
    pub(super) lists: bool,
    /// The event at which the server falls silent: each request is two, its arrival and its reply.
    pub(super) silent_at: Option<usize>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            states: vec!["validating", "in_progress", "finalizing"],
            end: "completed",
            problems: json!([]),
            hidden_creations: 0,
            spoiled_answers: Vec::new(),
            spoiled_errors: Vec::new(),
            counts: true,
            over: json!({}),
            listed: Vec::new(),
            cancels: true,
            failed_looks: 0,
            failed_contents: 0,
            refuse_creation: None,
            lists: true,
            silent_at: None,
        }
    }
}

#[derive(Debug)]
struct Remote {
    id: String,
    file: String,
    metadata: Value,
    num_looks: usize,
    is_cancelled: bool,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) faults: Faults,
    files: HashMap<String, String>,
    batches: Vec<Remote>,
    num_events: usize,
    pub(super) num_direct: usize,
    /// How often files of answers and files of errors were fetched.
    pub(super) num_fetched: [usize; 2],
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) url: String,
    inner: Arc<Mutex<Inner>>,
    /// Told when the server falls silent.
    pub(super) silence: Arc<Notify>,
}

type Shared = State<Server>;

impl Server {
    pub(super) async fn start(faults: Faults) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("http://{}/v1", listener.local_addr().unwrap()),
            inner: Arc::default(),
            silence: Arc::default(),
        };
        server.with(|inner| inner.faults = faults);
        let app = Router::new()
            .route("/v1/files", post(upload))
            .route("/v1/files/{id}/content", get(content))
            .route("/v1/batches", post(create).get(list))
            .route("/v1/batches/{id}", get(look))
            .route("/v1/batches/{id}/cancel", post(cancel))
            .route("/v1/embeddings", post(embeddings))
            .layer(middleware::from_fn_with_state(server.clone(), silenced))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        server
    }

    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap())
    }

    /// How often each row is in a batch.
    pub(super) fn submissions(&self) -> BTreeMap<String, usize> {
        self.with(|inner| {
            let mut rows = BTreeMap::new();
            for batch in &inner.batches {
                for line in inner.files[&batch.file].lines() {
                    let line: Value = serde_json::from_str(line).unwrap();
                    *rows
                        .entry(line["custom_id"].as_str().unwrap().to_owned())
                        .or_default() += 1;
                }
            }
            rows
        })
    }

    pub(super) fn num_batches(&self) -> usize {
        self.with(|inner| inner.batches.len())
    }

    /// The request files of the batches.
    pub(super) fn request_files(&self) -> Vec<String> {
        self.with(|inner| {
            let files = inner
                .batches
                .iter()
                .map(|batch| inner.files[&batch.file].clone());
            files.collect()
        })
    }

    /// Counts an event; never returns at the one at which the server falls silent.
    async fn event(&self) {
        let is_silent = self.with(|inner| {
            inner.num_events += 1;
            inner.faults.silent_at == Some(inner.num_events - 1)
        });
        if is_silent {
            self.silence.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

async fn silenced(State(server): Shared, request: Request, next: Next) -> Response {
    server.event().await;
    let response = next.run(request).await;
    server.event().await;
    response
}

async fn upload(State(server): Shared, body: Bytes) -> String {
    let body = String::from_utf8(body.to_vec()).unwrap();
    let boundary = body.lines().next().unwrap().to_owned();
    let mut parts = body
        .split(&boundary)
        .filter_map(|part| part.split_once("\r\n\r\n"));
    let (_, purpose) = parts
        .find(|(head, _)| head.contains("name=\"purpose\""))
        .unwrap();
    assert_eq!(purpose.trim(), "batch");
    let (head, file) = parts
        .find(|(head, _)| head.contains("name=\"file\""))
        .unwrap();
    assert!(head.contains(".jsonl\""), "{head}");
    server.with(|inner| {
        let id = format!("file-{}", inner.files.len());
        inner
            .files
            .insert(id.clone(), file.trim_end_matches("\r\n").to_owned());
        json!({"id": id, "object": "file", "purpose": "batch"}).to_string()
    })
}

async fn create(State(server): Shared, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&body["endpoint"], &body["completion_window"]),
        (&json!("/v1/embeddings"), &json!("24h"))
    );
    server.with(|inner| {
        if let Some(status) = inner.faults.refuse_creation {
            let reply = json!({"error": {"message": "no such thing", "code": "nope"}}).to_string();
            return (StatusCode::from_u16(status).unwrap(), reply).into_response();
        }
        let file = body["input_file_id"].as_str().unwrap().to_owned();
        assert!(inner.files.contains_key(&file));
        let id = format!("batch-{}", inner.batches.len());
        let metadata = body["metadata"].clone();
        inner.batches.push(Remote {
            id,
            file,
            metadata,
            num_looks: 0,
            is_cancelled: false,
        });
        if inner.faults.hidden_creations > 0 {
            inner.faults.hidden_creations -= 1;
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        inner
            .describe(inner.batches.len() - 1)
            .to_string()
            .into_response()
    })
}

impl Inner {
    pub(super) fn num_looks(&self) -> usize {
        self.batches.iter().map(|batch| batch.num_looks).sum()
    }

    pub(super) fn num_cancelled(&self) -> usize {
        let batches = self.batches.iter();
        batches.filter(|batch| batch.is_cancelled).count()
    }

    /// The lines of a file in reverse order; what a row gets is in its text.
    pub(super) fn file(&self, number: usize, is_output: bool) -> String {
        let requests = &self.files[&self.batches[number].file];
        let lines = requests.lines().rev().flat_map(|line| {
            let request: Value = serde_json::from_str(line).unwrap();
            assert_eq!(
                (&request["method"], &request["url"]),
                (&json!("POST"), &json!("/v1/embeddings"))
            );
            answers(&request, is_output)
        });
        lines.map(|line| line + "\n").collect()
    }

    /// Rows that have a line in a file.
    fn num_rows(&self, number: usize, is_output: bool) -> usize {
        let file = self.file(number, is_output);
        let lines = file
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ids: std::collections::HashSet<String> =
            lines.map(|line| line["custom_id"].to_string()).collect();
        ids.len()
    }

    fn describe(&self, number: usize) -> Value {
        let batch = &self.batches[number];
        let state = self.faults.states.get(batch.num_looks);
        let status = state.copied().unwrap_or(self.faults.end);
        let counts = state.is_none() && status != "failed" && self.faults.counts;
        let count = |is_output| counts.then(|| self.num_rows(number, is_output));
        let mut described = json!({
            "id": batch.id, "status": status, "input_file_id": batch.file, "metadata": batch.metadata,
            "output_file_id": null, "error_file_id": null, "errors": null,
            "request_counts": {
                "total": 3, "completed": count(true).unwrap_or(0), "failed": count(false).unwrap_or(0),
            },
        });
        if state.is_none() && status == "failed" {
            described["errors"] = json!({"data": self.faults.problems});
        } else if state.is_none() {
            described["output_file_id"] = json!(format!("out-{number}"));
            described["error_file_id"] = json!(format!("err-{number}"));
            described["completed_at"] = json!(1_700_000_000);
        }
        let over = self.faults.over.as_object().unwrap().clone();
        described.as_object_mut().unwrap().extend(over);
        described
    }
}

/// One batch a page, the newest first.
async fn list(State(server): Shared, uri: Uri) -> Response {
    server.with(|inner| {
        if !inner.faults.lists {
            return StatusCode::NOT_FOUND.into_response();
        }
        let query = uri.query().unwrap_or_default();
        let after = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("after="));
        let end = after.map_or(inner.batches.len(), |after| {
            let found = inner.batches.iter().position(|batch| batch.id == after);
            found.unwrap()
        });
        let described = end.checked_sub(1).map(|last| inner.describe(last));
        let listed = inner.faults.listed.iter().cloned();
        let data: Vec<Value> = listed.chain(described).collect();
        json!({"data": data, "has_more": end > 1})
            .to_string()
            .into_response()
    })
}

async fn look(State(server): Shared, Path(id): Path<String>) -> Response {
    server.with(|inner| {
        if inner.faults.failed_looks > 0 {
            inner.faults.failed_looks -= 1;
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        let Some(number) = inner.batches.iter().position(|batch| batch.id == id) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let described = inner.describe(number);
        inner.batches[number].num_looks += 1;
        described.to_string().into_response()
    })
}

async fn cancel(State(server): Shared, Path(id): Path<String>) -> Response {
    server.with(|inner| {
        let found = inner.batches.iter().position(|batch| batch.id == id);
        match found.filter(|_| inner.faults.cancels) {
            None => StatusCode::NOT_FOUND.into_response(),
            Some(number) => {
                inner.batches[number].is_cancelled = true;
                inner.describe(number).to_string().into_response()
            }
        }
    })
}

async fn content(State(server): Shared, Path(id): Path<String>) -> Response {
    let (kind, number) = id.split_once('-').unwrap();
    let number: usize = number.parse().unwrap();
    server.with(|inner| {
        if inner.faults.failed_contents > 0 {
            inner.faults.failed_contents -= 1;
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        let is_output = kind == "out";
        inner.num_fetched[usize::from(!is_output)] += 1;
        let file = inner.file(number, is_output);
        let spoiled = if is_output {
            &mut inner.faults.spoiled_answers
        } else {
            &mut inner.faults.spoiled_errors
        };
        match spoiled.pop() {
            Some(spoil) => spoil(file).into_response(),
            None => file.into_response(),
        }
    })
}

/// The lines of a row in the file of answers, or in that of errors.
fn answers(request: &Value, is_output: bool) -> Vec<String> {
    let text = request["body"]["input"].as_str().unwrap();
    let answer = |status: u16, body: Value| {
        let response = json!({"status_code": status, "request_id": "r", "body": body});
        json!({"id": "l", "custom_id": request["custom_id"], "response": response, "error": null})
            .to_string()
    };
    let failed = |code: &str| {
        let error = json!({"code": code, "message": "it did not work"});
        json!({"custom_id": request["custom_id"], "response": null, "error": error}).to_string()
    };
    let good = || answer(200, embedding(text));
    let said = |code: &str| json!({"error": {"message": "said so", "code": code}});
    match (text, is_output) {
        ("expired", false) => vec![failed("batch_expired")],
        ("bad", false) => vec![answer(400, said("invalid"))],
        ("long", false) => vec![answer(500, said("context_length_exceeded"))],
        ("busy", false) => vec![answer(429, said("slow_down"))],
        ("broke", false) => vec![answer(429, said("insufficient_quota"))],
        ("missing" | "expired" | "bad" | "long" | "busy" | "broke", true) | (_, false) => vec![],
        ("twice", true) => vec![good(), answer(200, embedding("another"))],
        ("late", true) => vec![answer(500, said("server_error")), good()],
        ("stranger", true) => {
            let other = good().replace(request["custom_id"].as_str().unwrap(), "ffff-0");
            vec![other, "no JSON".into(), String::new(), good()]
        }
        ("wide", true) => vec![answer(200, json!({"data": [{"embedding": [null]}]}))],
        ("huge", true) => vec![answer(200, json!({"data": [], "model": "m".repeat(5000)}))],
        (_, true) => vec![good()],
    }
}

fn embedding(text: &str) -> Value {
    json!({
        "model": "served", "usage": {"prompt_tokens": 7},
        "data": [{"index": 0, "embedding": [text.len(), 1.5]}],
    })
}

async fn embeddings(State(server): Shared, body: Bytes) -> String {
    let body: Value = serde_json::from_slice(&body).unwrap();
    server.with(|inner| inner.num_direct += 1);
    embedding(body["input"].as_str().unwrap()).to_string()
}
