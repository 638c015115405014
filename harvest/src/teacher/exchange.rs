//! One request and its reply over HTTP: what most teachers are.
//!
//! An [`Exchange`] says what is sent and how the reply is read, and nothing about sending: that is [`Served`]'s, or, for
//! the same exchange in files, the batch teacher's.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures::future::BoxFuture;

use super::http::{Endpoint, KeyHeader};
use super::{
    Answers, Description, OpenContext, Paid, Request, Sent, Teacher, TeacherError, TeacherKind,
    Usage,
};
use crate::config::ServerConfig;

/// What is sent and how the reply is read.
pub(crate) trait Exchange: fmt::Debug + Send + Sync {
    /// Identity, signals and limits.
    fn describe(&self) -> &Description;

    /// Path below the base address.
    fn path(&self) -> Vec<String>;

    /// The JSON body for these requests, at most `describe().batch.max_requests` of them. Pictures are read here.
    ///
    /// # Errors
    /// A [`TeacherError`] where a picture cannot be used.
    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>>;

    /// Reads the body of a reply with a status of success: one outcome for each request, in their order. Latency, time
    /// and tries are filled in by who sent it.
    ///
    /// # Errors
    /// A [`TeacherError`] where the reply as a whole cannot be used.
    fn parse(&self, requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError>;

    /// The error of a refused request, with what this protocol knows of it: another class, or advice.
    fn explain(&self, error: TeacherError) -> TeacherError {
        error
    }

    /// The most that these requests can take: bytes of a prompt are an upper bound of its tokens.
    fn most(&self, requests: &[Request]) -> Usage {
        Usage::of_prompts(requests)
    }
}

/// What asks over HTTP as configured, whichever way the request travels.
pub(crate) trait ExchangeKind: fmt::Debug + Send + Sync {
    /// Who is asked.
    fn server(&self) -> &ServerConfig;

    /// The exchange; nothing is sent yet.
    ///
    /// # Errors
    /// A [`TeacherError`] where it cannot be set up.
    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError>;
}

/// A kind whose requests are sent as they come.
#[derive(Debug)]
pub(super) struct Direct<K> {
    kind: K,
    key_header: KeyHeader,
}

impl<K: ExchangeKind + 'static> Direct<K> {
    /// The kind as a teacher; its server takes the key in this header.
    pub(super) fn of(kind: K, key_header: KeyHeader) -> Arc<dyn TeacherKind> {
        Arc::new(Self { kind, key_header })
    }
}

impl<K: ExchangeKind> TeacherKind for Direct<K> {
    fn open(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Teacher>, TeacherError> {
        let endpoint = Endpoint::open(self.kind.server(), self.key_header)?;
        Ok(context.guard(Served::new(self.kind.exchange(context)?, endpoint)))
    }
}

impl ExchangeKind for Arc<dyn ExchangeKind> {
    fn server(&self) -> &ServerConfig {
        self.as_ref().server()
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        self.as_ref().exchange(context)
    }
}

impl Exchange for Arc<dyn Exchange> {
    fn describe(&self) -> &Description {
        self.as_ref().describe()
    }

    fn path(&self) -> Vec<String> {
        self.as_ref().path()
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        self.as_ref().body(requests)
    }

    fn parse(&self, requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        self.as_ref().parse(requests, reply)
    }

    fn explain(&self, error: TeacherError) -> TeacherError {
        self.as_ref().explain(error)
    }

    fn most(&self, requests: &[Request]) -> Usage {
        self.as_ref().most(requests)
    }
}

/// An exchange with a server.
#[derive(Debug)]
pub(crate) struct Served<E> {
    exchange: E,
    endpoint: Endpoint,
}

impl<E: Exchange> Served<E> {
    pub(crate) fn new(exchange: E, endpoint: Endpoint) -> Self {
        Self { exchange, endpoint }
    }

    async fn ask(&self, requests: &[Request]) -> Result<Answers, TeacherError> {
        let body = self.exchange.body(requests).await;
        let body = body.map_err(|error| error.having(Sent::Nothing))?;
        let sent = Instant::now();
        let reply = self.endpoint.post(&self.exchange.path(), body).await;
        let reply = reply.map_err(|error| self.exchange.explain(error))?;
        let latency_ms = sent.elapsed().as_secs_f32() * 1e3;
        let answers = self.parse(requests, &reply.body);
        let mut answers = answers.map_err(|mut error| {
            error.hints = reply.hints;
            error.having(Sent::Unusable)
        })?;
        answers.hints = reply.hints;
        let answered_at = SystemTime::now();
        for reply in answers.replies.iter_mut().flatten() {
            reply.provenance.latency_ms = Some(latency_ms);
            reply.provenance.answered_at = unix_milliseconds(answered_at);
            reply.provenance.tries = 1;
        }
        Ok(answers)
    }

    fn parse(&self, requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        let redacted = |error| self.endpoint.redacted(error);
        let mut answers = self.exchange.parse(requests, reply).map_err(redacted)?;
        let replies = answers.replies.into_iter();
        answers.replies = replies.map(|reply| reply.map_err(redacted)).collect();
        Ok(answers)
    }
}

/// Milliseconds since 1970, UTC.
pub(crate) fn unix_milliseconds(time: SystemTime) -> Option<i64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

impl<E: Exchange> Teacher for Served<E> {
    fn describe(&self) -> &Description {
        self.exchange.describe()
    }

    fn most(&self, requests: &[Request]) -> Usage {
        self.exchange.most(requests)
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        _paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        Box::pin(self.ask(requests))
    }

    #[cfg(any(test, feature = "fuzzing"))]
    fn parse_reply(
        &self,
        requests: &[Request],
        reply: &[u8],
    ) -> Option<Result<Answers, TeacherError>> {
        Some(self.parse(requests, reply))
    }
}

/// Shares `total` out in proportion to the bytes of the prompts, so that the parts add up to it: a server counts the
/// tokens of a whole request, and rows are what is paid for.
pub(crate) fn apportion(total: u32, requests: &[Request]) -> Vec<u32> {
    let weights: Vec<u64> = requests
        .iter()
        .map(|request| request.prompt.len() as u64 + 1)
        .collect();
    let sum: u64 = weights.iter().sum();
    let mut before = 0_u64;
    let mut given = 0_u64;
    weights
        .iter()
        .map(|weight| {
            before += weight;
            let up_to_here = u64::from(total) * before / sum.max(1);
            let part = up_to_here - given;
            given = up_to_here;
            part as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::test_server::{TestServer, ask_one, open};
    use super::*;
    use schemas::ExampleId;
    use serde_json::json;

    #[tokio::test]
    async fn a_key_that_a_reply_of_success_repeats_is_redacted() {
        // A variable that is set in every test, in place of a key.
        let key = std::env::var("CARGO_PKG_NAME").unwrap();
        let refusal = json!({"choices": [{"message": {"refusal": format!("not for {key}")}}]});
        for body in [
            json!({"error": {"code": 400, "message": format!("no such key: {key}")}}).to_string(),
            format!("not JSON, {key}"),
            format!("{} {key}", "x".repeat(295)),
            refusal.to_string(),
        ] {
            let server = TestServer::saying(200, &body).await;
            let keys = format!(
                "kind = \"chat\"\nurl = \"{}\"\nmodel = \"m\"\napi_key_env = \"CARGO_PKG_NAME\"",
                server.url
            );
            let error = ask_one(open(&keys).as_ref(), "a").await.unwrap_err();
            assert!(error.message.contains("REDACTED"), "{error}");
            assert!(!error.message.contains(&key[..4]), "{error}");
        }
    }

    #[test]
    fn shares_add_up_to_the_whole() {
        let requests: Vec<Request> = ["a", "", "a longer prompt"]
            .iter()
            .map(|prompt| Request::text(ExampleId::from([0; 16]), 0, *prompt))
            .collect();
        for total in [0, 1, 2, 7, 1000, u32::MAX] {
            let parts = apportion(total, &requests);
            assert_eq!(
                parts.iter().map(|part| u64::from(*part)).sum::<u64>(),
                u64::from(total)
            );
        }
        assert_eq!(apportion(19, &requests), [2, 1, 16]);
    }
}
