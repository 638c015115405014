//! A scripted server and small data sets.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::response::Response;
use harvest::budget::Budget;
use harvest::events::Events;
use harvest::pipeline::{self, Job, Summary};
use harvest::reporter::Watch;
use harvest::slice::Slice;
use harvest::{Cache, Config, Error, Place, Plan, Stop};
use schemas::shard::{ShardReader, list_shards};
use schemas::{ExampleId, TeacherRecord};
use serde_json::{Value, json};
use tokio::runtime::Handle;

/// One request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) text: String,
    /// How often this text was asked about before.
    pub(crate) num_before: usize,
    pub(crate) body: Value,
    pub(crate) headers: HeaderMap,
}

/// A server on a loopback socket that answers as its script says; it lives as long as the test's runtime.
pub(crate) struct Server {
    pub(crate) url: String,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&Call) -> Response + Send + Sync + 'static) -> Self {
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let (log, script) = (Arc::clone(&calls), Arc::new(script));
        let handler = move |headers: HeaderMap, body: Bytes| {
            let (log, script) = (Arc::clone(&log), Arc::clone(&script));
            async move {
                let body: Value = serde_json::from_slice(&body).unwrap();
                let text = body["input"].as_str().unwrap().to_owned();
                let call = {
                    let mut log = log.lock().unwrap();
                    let num_before = log.iter().filter(|call| call.text == text).count();
                    log.push(Call {
                        text,
                        num_before,
                        body,
                        headers,
                    });
                    log.last().unwrap().clone()
                };
                script(&call)
            }
        };
        let router = Router::new().fallback(handler);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, calls }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// How often each text was asked about.
    pub(crate) fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for call in self.calls() {
            *counts.entry(call.text).or_default() += 1;
        }
        counts
    }
}

pub(crate) fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let builder = Response::builder().status(status);
    let builder = headers.iter().fold(builder, |builder, (name, value)| {
        builder.header(*name, *value)
    });
    builder.body(body.into()).unwrap()
}

/// The vector that tests expect for a text: its length and its first byte.
pub(crate) fn vector_of(text: &str) -> Vec<f32> {
    vec![text.len() as f32, f32::from(text.as_bytes()[0]), 0.5]
}

pub(crate) fn good(call: &Call) -> Response {
    embedding(&json!(vector_of(&call.text)))
}

pub(crate) fn embedding(value: &Value) -> Response {
    let body = json!({
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": value}],
        "model": "served-1",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    });
    reply(
        200,
        &[("content-type", "application/json")],
        body.to_string(),
    )
}

pub(crate) fn refusal(status: u16, code: &str, message: &str) -> Response {
    reply(
        status,
        &[],
        json!({"error": {"message": message, "code": code, "type": "test"}}).to_string(),
    )
}

/// A folder with a data set of texts and a configuration.
pub(crate) struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    pub(crate) fn new(texts: &[&str], config: &str) -> Self {
        let project = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let task = "name = \"texts\"\nfields = [\"text\"]\nlabel = \"label\"\nclasses = [\"no\", \"yes\"]\n\
                    metric = \"accuracy\"\n[template]\nfirst = \"{text}\"\n";
        std::fs::write(project.path("task.toml"), task).unwrap();
        project.write_texts(texts);
        project.configure(config);
        project
    }

    pub(crate) fn with_server(texts: &[&str], server: &Server, more: &str) -> Self {
        Self::new(
            texts,
            &format!(
                "[teacher]\nkind = \"embeddings\"\nurl = \"{}\"\nmodel = \"m\"\nbatch = 1\n{more}",
                server.url
            ),
        )
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    pub(crate) fn write_texts(&self, texts: &[&str]) {
        let mut rows = String::new();
        for text in texts {
            writeln!(rows, "{}", json!({"text": text, "label": "yes"})).unwrap();
        }
        std::fs::write(self.path("train.jsonl"), rows).unwrap();
    }

    /// Writes the configuration: `[dataset]`, `[cache]` with three rows a shard, and what is given.
    pub(crate) fn configure(&self, more: &str) {
        let cache = if more.contains("[cache]") {
            ""
        } else {
            "[cache]\npath = \"cache\"\ndtype = \"f32\"\nrows_per_shard = 3\n"
        };
        std::fs::write(
            self.path("harvest.toml"),
            format!("[dataset]\npath = \".\"\n{cache}{more}"),
        )
        .unwrap();
    }

    pub(crate) fn config(&self) -> Config {
        Config::read(&self.path("harvest.toml")).unwrap()
    }

    pub(crate) async fn run(&self) -> Result<Summary, Error> {
        self.run_until(Stop::default()).await
    }

    pub(crate) async fn run_until(&self, stop: Stop) -> Result<Summary, Error> {
        self.run_with(stop, false, None).await
    }

    pub(crate) async fn run_with(
        &self,
        stop: Stop,
        retry_failures: bool,
        slice: Option<Slice>,
    ) -> Result<Summary, Error> {
        self.run_watched(stop, retry_failures, slice, Events::default())
            .await
    }

    pub(crate) async fn run_watched(
        &self,
        stop: Stop,
        retry_failures: bool,
        slice: Option<Slice>,
        events: Events,
    ) -> Result<Summary, Error> {
        let config = self.config();
        let runtime = Handle::current();
        let run = move || {
            let (teachers, run) =
                pipeline::teacher_section(&config, Path::new("harvest.toml"), "run").unwrap();
            let plan = Arc::new(Plan::open(&config, 0, slice)?);
            let place = Place::of(&config, slice)?;
            let cache = Cache::lock_or_create(place.clone(), &stop)?;
            let budget = Budget::open(&config.budget, place.shared_work(), slice)?;
            let watch = Watch {
                budget: Arc::new(budget),
                events,
                ..Watch::default()
            };
            let teacher =
                harvest::cmd::open_teacher(&plan, &place.work, teachers, run, &watch, &stop)?;
            let job = Job {
                plan,
                teacher,
                teachers: teachers.to_vec(),
                cache: config.cache.clone(),
                run: run.clone(),
                retry_failures,
                watch,
                config_digest: String::new(),
                metrics_file: None,
            };
            pipeline::run(&runtime, &job, cache, &stop).map_err(|broken| broken.error)
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// All records of the cache, shard by shard in the order of their names.
    pub(crate) fn records(&self) -> Vec<TeacherRecord> {
        let shards = list_shards(&self.cache()).unwrap();
        let records = shards.iter().flat_map(|shard| {
            let reader = ShardReader::open(shard).unwrap();
            reader
                .records()
                .unwrap()
                .collect::<Result<Vec<_>, _>>()
                .unwrap()
        });
        records.collect()
    }

    /// File names in the cache folder without the lock.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.cache()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }
}

pub(crate) fn id(text: &str) -> ExampleId {
    ExampleId::of(&[("text".to_owned(), text.to_owned())].into())
}
