//! Any OpenAI-compatible `/v1/embeddings` endpoint: one pooled vector a text.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use schemas::{Provenance, SignalValue, TeacherIdentity};
use serde::Serialize;

use super::embeddings_reply::EmbeddingsReply;
use super::http::Endpoint;
use super::{Description, ErrorClass, Offer, OfferKind, Reply, Request, Teacher, TeacherError};
use crate::config::{EmbeddingsConfig, Encoding};

/// Asks an embeddings endpoint, one text a request.
#[derive(Debug)]
pub struct Embeddings {
    description: Description,
    endpoint: Endpoint,
    model: String,
    encoding: Encoding,
    dimensions: Option<NonZeroU32>,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: &'a str,
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<NonZeroU32>,
}

impl Embeddings {
    /// The teacher as configured; nothing is sent yet.
    ///
    /// # Errors
    /// A [`TeacherError`] where the key's variable is empty or the HTTP client cannot be set up.
    pub fn new(config: &EmbeddingsConfig) -> Result<Self, TeacherError> {
        let key = match &config.api_key_env {
            None => None,
            Some(name) => Some(name.read().ok_or_else(|| {
                TeacherError::new(
                    ErrorClass::Credentials,
                    format!("the environment variable {} is not set", name.as_str()),
                )
                .advise(format!(
                    "export {} with the key, or leave `teacher.api_key_env` out",
                    name.as_str()
                ))
            })?),
        };
        let timeout = Duration::from_secs(config.timeout_seconds.get());
        let identity = TeacherIdentity {
            kind: "embeddings".into(),
            model: config.model.clone(),
            settings: serde_json::json!({"dimensions": config.dimensions}),
        };
        let offers = vec![Offer {
            name: "feature",
            kind: OfferKind::Feature,
            meaning: "the embedding of the prompt".into(),
        }];
        Ok(Self {
            description: Description {
                identity,
                offers,
                max_in_flight: None,
            },
            endpoint: Endpoint::new(&config.url, &["embeddings"], key, timeout)?,
            model: config.model.clone(),
            encoding: config.encoding,
            dimensions: config.dimensions,
        })
    }

    async fn ask(&self, request: &Request) -> Result<Reply, TeacherError> {
        let body = Body {
            model: &self.model,
            input: &request.prompt,
            encoding_format: match self.encoding {
                Encoding::Float => "float",
                Encoding::Base64 => "base64",
            },
            dimensions: self.dimensions,
        };
        let sent = Instant::now();
        let reply = EmbeddingsReply::parse(&self.endpoint.post(&body).await?, 1)?;
        let latency_ms = sent.elapsed().as_secs_f32() * 1e3;
        let vector = reply
            .vectors
            .into_iter()
            .next()
            .expect("one input has one vector");
        if let Some(asked) = self.dimensions
            && vector.len() != asked.get() as usize
        {
            let problem = format!(
                "the vector has {} values, {asked} dimensions were asked for",
                vector.len()
            );
            return Err(TeacherError::new(ErrorClass::Deterministic, problem)
                .advise("leave `teacher.dimensions` out where the model offers one width"));
        }
        Ok(Reply {
            signals: BTreeMap::from([("feature".to_owned(), SignalValue::Vector(vector))]),
            provenance: Provenance {
                served_model: reply.model,
                fingerprint: reply.fingerprint,
                tokens_in: reply.tokens_in,
                tries: 1,
                latency_ms: Some(latency_ms),
                ..Provenance::default()
            },
        })
    }
}

impl Teacher for Embeddings {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn query<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Reply, TeacherError>> {
        Box::pin(self.ask(request))
    }
}
