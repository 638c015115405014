//! Answers that are a pure function of what is asked, so that what is stored can be checked, and texts that a server
//! never answers well.

use serde::Deserialize;
use serde_json::{Value, json};

use super::pictures;
use super::schedule::{Fault, LASTING};
use super::wire::Outgoing;
use crate::server::embedding;

/// Tokens that a server counts for a text.
pub fn tokens(text: &str) -> u64 {
    text.len() as u64 / 4 + 1
}

/// Tokens that a chat server counts for its reply.
pub const REPLY_TOKENS: u64 = 2;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Endpoint {
    /// Vectors of texts, or of pictures that this server made.
    Embeddings,
    /// A reply to a chat.
    Chat,
    /// A picture of a text.
    Pictures,
}

/// The model whose vectors are the plain ones.
const PLAIN_MODEL: &str = "numbers";

/// The vector that a model makes of a text, or of the picture of it.
pub fn vector(model: &str, text: &str) -> Vec<f32> {
    if model == PLAIN_MODEL {
        embedding(text)
    } else {
        embedding(&format!("{model} {text}"))
    }
}

/// The reply of the chat endpoint.
pub fn reply_text(prompt: &str, seed: Option<u64>) -> String {
    format!("{} of seed {seed:?}", reply_tokens(prompt)[0].0)
}

/// The tokens of the reply, each the most probable one, with exact log-probabilities.
pub fn reply_tokens(prompt: &str) -> [(String, f32); 2] {
    let value = |at: usize| embedding(prompt)[at].abs();
    [0, 1].map(|at| {
        (
            format!("token{}", (value(at) * 256.0) as i32),
            -value(at + 2) - 0.125,
        )
    })
}

/// Why a text is never answered well. The text says it: its marker is part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poison {
    /// 500 for ever.
    ServerError,
    /// 400 `context_length_exceeded`, as OpenAI names it.
    ContextLength,
    /// 400 `exceed_context_size_error`, as llama.cpp names it.
    ContextSize,
    /// 413.
    PayloadTooLarge,
    /// 422 with `{"detail": ...}`.
    Detail,
    /// 501.
    NotImplemented,
    /// Chat: a reply that the content filter stopped. Embeddings: 400 `content_filter`.
    ContentFilter,
    /// An embedding of another width.
    Width,
    /// An embedding that holds `null`.
    Null,
    /// An embedding that holds `NaN`, which is no JSON. Chat: a log-probability of `NaN`.
    NotANumber,
    /// Chat: a reply without log-probabilities.
    NoLogprobs,
    /// A fault of a schedule, for ever: its place in [`LASTING`].
    Lasting(usize),
}

impl Poison {
    /// Those that every endpoint has, without the faults of a schedule.
    pub const COMMON: [Self; 9] = [
        Self::ServerError,
        Self::ContextLength,
        Self::ContextSize,
        Self::PayloadTooLarge,
        Self::Detail,
        Self::NotImplemented,
        Self::ContentFilter,
        Self::Null,
        Self::NotANumber,
    ];

    /// What a poisoned text contains.
    pub fn marker(self) -> String {
        match self {
            Self::Lasting(place) => format!("<lasting {place}>"),
            other => format!("<{other:?}>"),
        }
    }

    /// The poison of a text.
    pub fn of(text: &str) -> Option<Self> {
        let lasting = (0..LASTING.len()).map(Self::Lasting);
        let further = [Self::Width, Self::NoLogprobs].into_iter().chain(lasting);
        Self::COMMON
            .into_iter()
            .chain(further)
            .find(|poison| text.contains(&poison.marker()))
    }

    /// Whether asking again cannot help, and a client can tell.
    pub fn is_deterministic(self) -> bool {
        match self {
            Self::ServerError => false,
            Self::Lasting(place) => matches!(
                LASTING[place],
                Fault::DuplicateIndex | Fault::TooLarge | Fault::TooLargeInChunks
            ),
            _ => true,
        }
    }

    /// The answer to a request that holds a text of this poison; `None` where the rest of the request is answered.
    fn refusal(self, endpoint: Endpoint) -> Option<Outgoing> {
        let error = |status, code: &str, message: &str| {
            Outgoing::json(
                status,
                &json!({"error": {"message": message, "type": code, "code": code}}),
            )
        };
        Some(match self {
            Self::ServerError => error(500, "server_error", "it failed inside"),
            Self::ContextLength => error(400, "context_length_exceeded", "the text is too long"),
            Self::ContextSize => Outgoing::json(
                400,
                &json!({"error": {"code": 400, "type": "exceed_context_size_error", "message": "too long"}}),
            ),
            Self::PayloadTooLarge => error(413, "too_large", "the request is too large"),
            Self::Detail => Outgoing::json(
                422,
                &json!({"detail": [{"loc": ["body", "input"], "msg": "not so"}]}),
            ),
            Self::NotImplemented => {
                error(501, "not_supported_error", "this server does not do that")
            }
            Self::ContentFilter if endpoint != Endpoint::Chat => {
                error(400, "content_filter", "the filter says no")
            }
            _ => return None,
        })
    }
}

/// What is asked, as far as it matters here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    pub(super) endpoint: Endpoint,
    pub(super) model: String,
    pub(super) texts: Vec<String>,
    pub(super) seed: Option<u64>,
}

impl Question {
    /// Reads the body of a request; `None` where it is none that this server knows.
    pub(super) fn read(path: &str, body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Body {
            #[serde(default)]
            model: String,
            input: Option<Value>,
            messages: Option<Vec<Value>>,
            prompt: Option<String>,
            seed: Option<u64>,
        }
        let body: Body = serde_json::from_slice(body).ok()?;
        let (endpoint, texts) = if path.ends_with("/chat/completions") {
            let content = body.messages?.pop()?.get("content")?.as_str()?.to_owned();
            (Endpoint::Chat, vec![content])
        } else if path.ends_with("/images/generations") {
            (Endpoint::Pictures, vec![body.prompt?])
        } else if path.ends_with("/embeddings") {
            let texts: Vec<String> = match body.input? {
                Value::String(text) => vec![text],
                texts => serde_json::from_value(texts).ok()?,
            };
            let subjects = texts.into_iter().map(pictures::subject);
            (Endpoint::Embeddings, subjects.collect())
        } else {
            return None;
        };
        Some(Self {
            endpoint,
            model: body.model,
            texts,
            seed: body.seed,
        })
    }

    pub(super) fn poison(&self) -> Option<Poison> {
        let poisons = || self.texts.iter().filter_map(|text| Poison::of(text));
        // What refuses the whole request comes first.
        poisons()
            .find(|poison| {
                matches!(poison, Poison::Lasting(_)) || poison.refusal(self.endpoint).is_some()
            })
            .or_else(|| poisons().next())
    }

    /// Tokens that an answer is billed for: those of the question, and those of the answer.
    pub(super) fn tokens(&self) -> (u64, u64) {
        let of_texts: u64 = self.texts.iter().map(|text| tokens(text)).sum();
        match self.endpoint {
            Endpoint::Chat => (of_texts, REPLY_TOKENS),
            Endpoint::Embeddings | Endpoint::Pictures => (of_texts, 0),
        }
    }

    /// The answer when nothing but the texts is wrong, and for each text whether it is a good one. Pictures that are
    /// not in the answer are to be had below `url`.
    pub(super) fn answer(&self, url: &str) -> (Outgoing, Vec<bool>) {
        let none = vec![false; self.texts.len()];
        if let Some(refusal) = self
            .poison()
            .and_then(|poison| poison.refusal(self.endpoint))
        {
            return (refusal, none);
        }
        if self.endpoint == Endpoint::Pictures {
            let answer = pictures::answer(&self.texts[0], url, self.tokens().0);
            return (Outgoing::json(200, &answer), vec![true]);
        }
        let poisons: Vec<_> = self.texts.iter().map(|text| Poison::of(text)).collect();
        let spoils_all = poisons.contains(&Some(Poison::NotANumber));
        let good = if spoils_all {
            none
        } else {
            poisons.iter().map(Option::is_none).collect()
        };
        let mut answer = Outgoing::json(
            200,
            &if self.endpoint == Endpoint::Chat {
                self.chat()
            } else {
                self.embeddings()
            },
        );
        if spoils_all {
            answer.body = answer.body.replace("12345.5", "NaN");
        }
        (answer, good)
    }

    fn embeddings(&self) -> Value {
        let items = self.texts.iter().enumerate().map(|(index, text)| {
            let values = vector(&self.model, text).into_iter();
            let mut values: Vec<Value> = values.map(Value::from).collect();
            match Poison::of(text) {
                Some(Poison::Width) => values.push(0.5.into()),
                Some(Poison::Null) => values[0] = Value::Null,
                Some(Poison::NotANumber) => values[0] = 12345.5.into(),
                _ => {}
            }
            json!({"object": "embedding", "index": index, "embedding": values})
        });
        let items: Vec<Value> = items.collect();
        let (tokens, _) = self.tokens();
        json!({
            "object": "list", "model": self.model, "data": items, "system_fingerprint": "fault",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        })
    }

    fn chat(&self) -> Value {
        let text = &self.texts[0];
        let poison = Poison::of(text);
        let positions = reply_tokens(text).map(|(token, logprob)| {
            let logprob: Value = match poison {
                Some(Poison::NotANumber) => 12345.5.into(),
                Some(Poison::Null) => Value::Null,
                _ => logprob.into(),
            };
            let bytes = token.as_bytes();
            let other = json!({"token": "other", "bytes": b"other", "logprob": -16.0});
            json!({"token": token, "bytes": bytes, "logprob": logprob,
                "top_logprobs": [{"token": token, "bytes": bytes, "logprob": logprob}, other]})
        });
        let logprobs = match poison {
            Some(Poison::NoLogprobs) => Value::Null,
            _ => json!({"content": positions}),
        };
        let is_filtered = poison == Some(Poison::ContentFilter);
        let finish_reason = if is_filtered {
            "content_filter"
        } else {
            "stop"
        };
        let content = if is_filtered {
            String::new()
        } else {
            reply_text(text, self.seed)
        };
        json!({
            "id": "chat", "object": "chat.completion", "model": "numbers", "system_fingerprint": "fault",
            "choices": [{"index": 0, "finish_reason": finish_reason, "logprobs": logprobs,
                "message": {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": tokens(text), "completion_tokens": REPLY_TOKENS},
        })
    }
}
