//! An OpenAI-compatible embeddings server on a loopback socket that keeps a log of what it answered.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

/// Elements of every embedding it gives.
pub const WIDTH: usize = 8;

/// One request that was answered in full.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text that was asked about.
    pub text: String,
    /// When the answer was handed to the socket.
    pub at: Instant,
}

/// A running server; it stops when this is dropped.
#[derive(Debug)]
pub struct EmbeddingServer {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Answer>>>,
    // Dropped last: ends the server's tasks.
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Shared {
    latency: Duration,
    log: Arc<Mutex<Vec<Answer>>>,
}

#[derive(Deserialize)]
struct Request {
    input: Value,
    model: String,
}

impl EmbeddingServer {
    /// Starts a server that takes `latency` for each answer.
    ///
    /// # Errors
    /// The operating system's, where no socket can be had.
    pub fn start(latency: Duration) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let shared = Shared {
            latency,
            log: Arc::clone(&log),
        };
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/v1/embeddings", post(answer))
            .with_state(shared);
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            log,
            _runtime: runtime,
        })
    }

    /// Base address for a configuration.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Everything answered so far, in order.
    pub fn log(&self) -> Vec<Answer> {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The embedding that the server gives for `text`: small exact numbers that differ from text to text.
pub fn embedding(text: &str) -> Vec<f32> {
    let mut state = text.bytes().fold(17_u32, |state, byte| {
        state.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    (0..WIDTH)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from((state >> 24) as u8) / 256.0 - 0.5
        })
        .collect()
}

async fn answer(State(shared): State<Shared>, Json(request): Json<Request>) -> Json<Value> {
    let texts: Vec<String> = match request.input {
        Value::String(text) => vec![text],
        other => serde_json::from_value(other).unwrap_or_default(),
    };
    tokio::time::sleep(shared.latency).await;
    let data: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": embedding(text)}))
        .collect();
    let at = Instant::now();
    shared
        .log
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(texts.into_iter().map(|text| Answer { text, at }));
    Json(
        json!({"object": "list", "model": request.model, "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}}),
    )
}
