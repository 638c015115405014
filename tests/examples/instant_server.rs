//! An OpenAI-compatible server that answers at once, for benchmarks of clients: chat completions and embeddings, one
//! fixed reply, no waiting, one thread.
//!
//! usage: `instant_server [PORT]`; without a port a free one is taken. The base address is printed once it listens.
//! `GET /requests` answers how many requests there were since it was last asked, and over how many seconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

/// Every embedding.
const EMBEDDING: [f32; 8] = [0.25; 8];

/// A body and its type.
type JsonReply = ([(HeaderName, &'static str); 1], Bytes);

struct Shared {
    chat: Bytes,
    /// Replies by the number of embeddings in them.
    embeddings: Mutex<BTreeMap<usize, Bytes>>,
    count: Mutex<Count>,
}

#[derive(Default)]
struct Count {
    requests: u64,
    first_and_last: Option<(Instant, Instant)>,
}

#[derive(Deserialize)]
struct Embeddings {
    input: Input,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Many(Vec<IgnoredAny>),
    One(IgnoredAny),
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "the address is this program's output")]
async fn main() -> std::io::Result<()> {
    let port = match std::env::args().nth(1) {
        Some(port) => port.parse().map_err(std::io::Error::other)?,
        None => 0,
    };
    let state = Arc::new(Shared {
        chat: chat_reply(),
        embeddings: Mutex::default(),
        count: Mutex::default(),
    });
    let chat = |State(shared): State<Arc<Shared>>, _body: Bytes| async move { shared.chat() };
    let embeddings =
        |State(shared): State<Arc<Shared>>, body: Bytes| async move { shared.embeddings(&body) };
    let requests = |State(shared): State<Arc<Shared>>| async move { shared.requests() };
    let router = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/embeddings", post(embeddings))
        .route("/requests", get(requests))
        .with_state(state);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}/v1", listener.local_addr()?);
    axum::serve(listener, router).await
}

impl Shared {
    fn chat(&self) -> JsonReply {
        self.note();
        reply(self.chat.clone())
    }

    fn embeddings(&self, body: &[u8]) -> JsonReply {
        self.note();
        let count = match serde_json::from_slice::<Embeddings>(body).map(|request| request.input) {
            Ok(Input::Many(inputs)) => inputs.len(),
            Ok(Input::One(_)) => 1,
            Err(_) => 0,
        };
        let mut replies = lock(&self.embeddings);
        let body = replies
            .entry(count)
            .or_insert_with(|| embeddings_reply(count));
        reply(body.clone())
    }

    fn requests(&self) -> JsonReply {
        let count = std::mem::take(&mut *lock(&self.count));
        let seconds = count
            .first_and_last
            .map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        let answer = json!({"requests": count.requests, "seconds": seconds});
        reply(answer.to_string().into())
    }

    fn note(&self) {
        let now = Instant::now();
        let mut count = lock(&self.count);
        count.requests += 1;
        count.first_and_last.get_or_insert((now, now)).1 = now;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reply(body: Bytes) -> JsonReply {
    ([(CONTENT_TYPE, "application/json")], body)
}

fn chat_reply() -> Bytes {
    let message =
        json!({"role": "assistant", "content": "The red circle is left of the blue square."});
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "instant",
        "system_fingerprint": "fp_instant",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 24, "completion_tokens": 10, "total_tokens": 34},
    })
    .to_string()
    .into()
}

fn embeddings_reply(count: usize) -> Bytes {
    let data: Vec<_> = (0..count)
        .map(|index| json!({"object": "embedding", "index": index, "embedding": EMBEDDING}))
        .collect();
    json!({
        "object": "list", "model": "instant", "data": data,
        "usage": {"prompt_tokens": 3 * count, "total_tokens": 3 * count},
    })
    .to_string()
    .into()
}
