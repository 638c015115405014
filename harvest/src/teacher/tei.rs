//! The native protocol of text-embeddings-inference: `POST /embed`.

use std::num::NonZeroUsize;
use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::Provenance;
use serde::{Deserialize, Serialize};

use super::embeddings::{describe, feature};
use super::exchange::{Direct, Exchange, ExchangeKind};
use super::http::KeyHeader;
use super::json;
use super::options::{Settings, default_batch, default_batch_tokens};
use super::vector::{Embedding, Pool, in_order};
use super::{Answers, Description, OpenContext, Request, TeacherError, TeacherKind};
use crate::config::{ConfigError, Section, ServerConfig};

/// `[teacher]` with `kind = "tei"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TeiConfig {
    /// Whether vectors are scaled to length 1.
    #[serde(default = "default_normalize")]
    normalize: bool,
    /// Whether a text that is longer than the model's context is cut; otherwise its row fails.
    #[serde(default)]
    truncate: bool,
    /// Name of a prompt in the model's configuration that the server puts in front.
    prompt_name: Option<String>,
    /// How one vector is made where the server gives one for each token (`/embed_all`); left out, `/embed` is asked.
    pool: Option<Pool>,
    /// The most texts in one request; the server's `--max-client-batch-size`.
    #[serde(default = "default_batch")]
    batch: NonZeroUsize,
    /// The most tokens of text in one request, of which a byte is counted as one.
    #[serde(default = "default_batch_tokens")]
    batch_tokens: NonZeroUsize,
}

fn default_normalize() -> bool {
    true
}

#[derive(Debug)]
struct Configured {
    server: ServerConfig,
    own: TeiConfig,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let server = section.part(&ServerConfig::KEYS)?;
    let own = section.rest()?;
    Ok(Direct::of(Configured { server, own }, KeyHeader::Bearer))
}

impl ExchangeKind for Configured {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        super::generated::refuse_pictures(context, "text-embeddings-inference")?;
        Ok(Arc::new(Tei::new(&self.server, &self.own)))
    }
}

#[derive(Debug)]
struct Tei {
    description: Description,
    own: TeiConfig,
}

#[derive(Serialize)]
struct Body<'a> {
    inputs: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    normalize: Option<bool>,
    truncate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_name: Option<&'a str>,
}

impl Tei {
    fn new(server: &ServerConfig, own: &TeiConfig) -> Self {
        let mut settings = Settings::new("truncate", own.truncate);
        settings.add(
            "normalize",
            Some(own.normalize).filter(|_| own.pool.is_none()),
        );
        settings.add("prompt_name", own.prompt_name.as_ref());
        settings.add("pool", own.pool);
        let meaning = "the embedding of the prompt";
        Self {
            description: describe(
                "tei",
                server,
                settings,
                meaning,
                own.batch.get(),
                own.batch_tokens,
            ),
            own: own.clone(),
        }
    }
}

impl Exchange for Tei {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn path(&self) -> Vec<String> {
        let name = if self.own.pool.is_some() {
            "embed_all"
        } else {
            "embed"
        };
        vec![name.into()]
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        let body = Body {
            inputs: requests
                .iter()
                .map(|request| request.prompt.as_str())
                .collect(),
            normalize: Some(self.own.normalize).filter(|_| self.own.pool.is_none()),
            truncate: self.own.truncate,
            prompt_name: self.own.prompt_name.as_deref(),
        };
        let body = serde_json::to_vec(&body).expect("texts have a JSON form");
        Box::pin(std::future::ready(Ok(body)))
    }

    fn parse(&self, requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        let embeddings: Vec<Embedding> = json::read(reply, "list of embeddings")?;
        let rows = in_order(embeddings, requests.len())?
            .into_iter()
            .map(|embedding| {
                let vector = embedding.into_vector(self.own.pool, None)?;
                Ok(feature(vector, Provenance::default()))
            });
        Ok(rows.collect::<Vec<_>>().into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::ErrorClass;
    use super::super::test_server::{TestServer, answer, ask, ask_one, open, open_in, open_once};
    use super::{Exchange as _, Tei};
    use schemas::SignalValue;

    fn keys(server: &TestServer, further: &str) -> String {
        format!(
            "kind = \"tei\"\nurl = \"{}\"\nmodel = \"m\"\n{further}",
            server.url
        )
    }

    #[tokio::test]
    async fn texts_go_together_and_vectors_come_in_their_order() {
        let server = TestServer::saying(200, json!([[1, 2], [3, null]])).await;
        let further = "normalize = false\ntruncate = true\nprompt_name = \"query\"";
        let teacher = open(&keys(&server, further));
        let replies = ask(teacher.as_ref(), &["a", "b"]).await.unwrap();
        let first = replies[0].as_ref().unwrap();
        assert_eq!(
            first.signals["feature"],
            SignalValue::Vector(vec![1.0, 2.0])
        );
        assert_eq!(
            (first.provenance.tokens_in, first.provenance.tries),
            (None, 1)
        );
        assert!(replies[1].as_ref().unwrap_err().message.contains("NaN"));
        let call = server.call();
        assert_eq!(call.path, "/embed");
        assert_eq!(
            call.body,
            json!({"inputs": ["a", "b"], "normalize": false, "truncate": true, "prompt_name": "query"})
        );
        assert_eq!(
            teacher.describe().identity.settings,
            json!({"normalize": false, "truncate": true, "prompt_name": "query"})
        );
    }

    #[tokio::test]
    async fn vectors_of_tokens_come_from_another_path() {
        let server = TestServer::saying(200, json!([[[1, 2], [3, 6]]])).await;
        let teacher = open(&keys(&server, "pool = \"mean\""));
        let reply = ask_one(teacher.as_ref(), "a").await.unwrap();
        assert_eq!(
            reply.signals["feature"],
            SignalValue::Vector(vec![2.0, 4.0])
        );
        assert_eq!(server.call().path, "/embed_all");
    }

    #[tokio::test]
    async fn errors_have_the_classes_of_the_protocol() {
        for (status, error_type, class, tries) in [
            (429, "overloaded", ErrorClass::Overload, 2),
            (413, "validation", ErrorClass::Deterministic, 1),
            (422, "tokenizer", ErrorClass::Deterministic, 1),
            (424, "backend", ErrorClass::Transient, 2),
        ] {
            let body = json!({"error": "what happened", "error_type": error_type});
            let server = TestServer::saying(status, body).await;
            let error = ask_one(open_once(&keys(&server, "")).as_ref(), "a")
                .await
                .unwrap_err();
            assert_eq!(
                (error.class, error.is_retryable(), server.calls().len()),
                (class, tries > 1, 1),
                "{error}"
            );
            assert!(error.message.contains("what happened"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_batch_that_is_too_large_is_halved() {
        let server =
            TestServer::start(|call| match call.body["inputs"].as_array().unwrap().len() {
                1 => answer(200, json!([[1]])),
                _ => answer(
                    413,
                    json!({"error": "batch size 2 > 1", "error_type": "Validation"}),
                ),
            })
            .await;
        let replies = ask(open(&keys(&server, "")).as_ref(), &["a", "b"])
            .await
            .unwrap();
        assert!(replies.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn fewer_vectors_than_texts_are_refused() {
        let server = TestServer::saying(200, json!([[1], [2]])).await;
        let error = ask_one(open(&keys(&server, "")).as_ref(), "a")
            .await
            .unwrap_err();
        assert_eq!(error.message, "the reply has 2 vectors for 1 inputs");
    }

    #[tokio::test]
    async fn pictures_are_refused_at_once() {
        let server = TestServer::saying(200, json!([[1]])).await;
        let refusal = open_in(".".as_ref(), &keys(&server, "image_field = \"picture\""));
        assert!(refusal.unwrap_err().message.contains("takes no pictures"));
    }
    proptest::proptest! {
        #[test]
        fn no_reply_makes_the_parser_panic(body in ".{0,200}") {
            let server = toml::from_str("url = \"http://h\"\nmodel = \"m\"").unwrap();
            let tei = Tei::new(&server, &toml::from_str("pool = \"mean\"").unwrap());
            for body in [format!("[{body}]"), format!("[[[{body}]]]"), body] {
                let _ = tei.parse(&[super::super::fixture::question("a")], body.as_bytes());
            }
        }
    }
}
