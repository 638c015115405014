//! Any OpenAI-compatible `/v1/embeddings` endpoint: one vector a text or, where the server takes them, a picture.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Once};

use futures::future::BoxFuture;
use schemas::{Provenance, SignalValue, TeacherIdentity};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::embeddings_reply::EmbeddingsReply;
use super::exchange::{Exchange, ExchangeKind, apportion};
use super::generated::most;
use super::media::Media;
use super::options::{Options, Settings, default_batch_tokens};
use super::vector::{Embedding, Pool};
use super::{
    Answers, BatchLimits, Description, ErrorClass, Offer, OfferKind, OpenContext, Reply, Request,
    TeacherError, Usage,
};
use crate::config::{ConfigError, Section, ServerConfig};
use crate::observed::Observed;

/// The most inputs that the protocol takes in one request.
const MAX_BATCH: usize = 2048;
const DEFAULT_BATCH: usize = 32;

/// `[teacher]` with `kind = "embeddings"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbeddingsConfig {
    /// What is sent of an example.
    #[serde(default)]
    input: InputForm,
    /// How the server is asked to write vectors.
    #[serde(default)]
    encoding: Encoding,
    /// Width to ask for, of models that offer several.
    dimensions: Option<NonZeroU32>,
    /// How one vector is made where the server gives one for each token; left out, such a reply is refused.
    pool: Option<Pool>,
    /// The most inputs in one request; left out, 32 texts or one picture.
    batch: Option<NonZeroUsize>,
    /// The most tokens of text in one request, of which a byte is counted as one; a longer text goes alone.
    #[serde(default = "default_batch_tokens")]
    batch_tokens: NonZeroUsize,
    /// Further keys of the request.
    #[serde(default)]
    options: Options,
}

/// What is sent of an example.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum InputForm {
    /// The text as `input`.
    #[default]
    Text,
    /// Picture and text as the content of a chat message, which vLLM's vision models take.
    Chat,
    /// The picture's data URI as `input`; the text where the example has no picture.
    DataUri,
}

/// How a server writes vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    /// JSON numbers.
    #[default]
    Float,
    /// Little-endian f32 in base64: a quarter of the bytes.
    Base64,
}

impl Encoding {
    /// As the protocol calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Base64 => "base64",
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug)]
struct Configured {
    server: ServerConfig,
    own: EmbeddingsConfig,
}

pub(super) fn read(
    server: ServerConfig,
    section: Section<'_>,
) -> Result<Arc<dyn ExchangeKind>, ConfigError> {
    let whole = section.clone();
    let own: EmbeddingsConfig = section.rest()?;
    own.options.check(
        &whole,
        &[
            "model",
            "input",
            "messages",
            "encoding_format",
            "dimensions",
        ],
    )?;
    match own.batch.map(NonZeroUsize::get) {
        Some(batch) if batch > MAX_BATCH => Err(whole.refuse_key(
            "batch",
            &format!("the protocol takes at most {MAX_BATCH} inputs in one request"),
        )),
        Some(2..) if own.input == InputForm::Chat => {
            Err(whole.refuse_key("batch", "a chat message is one input: leave it out"))
        }
        _ => Ok(Arc::new(Configured { server, own })),
    }
}

/// What `[teacher.of]` with nothing but its kind asks.
#[cfg(test)]
pub(super) fn exchange_of(server: ServerConfig) -> Arc<dyn ExchangeKind> {
    let own = toml::from_str("").expect("every key has a default");
    Arc::new(Configured { server, own })
}

impl ExchangeKind for Configured {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        if self.own.input == InputForm::Text && context.common.image_field.is_some() {
            let problem = "`image_field` names a picture, and `input = \"text\"` sends none";
            return Err(TeacherError::new(ErrorClass::Deterministic, problem).advise(
                "set `input` of the teacher to \"chat\" (vLLM) or \"data-uri\", as its server takes pictures",
            ));
        }
        Ok(Arc::new(Embeddings::new(
            &self.server,
            &self.own,
            Media::new(context)?,
            Arc::clone(&context.watch.observed),
        )))
    }
}

/// Asks an embeddings endpoint.
#[derive(Debug)]
struct Embeddings {
    description: Description,
    own: EmbeddingsConfig,
    media: Media,
    observed: Arc<Observed>,
    /// Whether it was told that vectors came as numbers, and as base64.
    told: [Once; 2],
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Input<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Value>,
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<NonZeroU32>,
    #[serde(flatten)]
    options: &'a Options,
}

/// A single input goes without a list: some servers take no list.
#[derive(Serialize)]
#[serde(untagged)]
enum Input<'a> {
    One(&'a str),
    Many(Vec<&'a str>),
}

impl<'a> Input<'a> {
    fn of(mut inputs: impl ExactSizeIterator<Item = &'a str>) -> Self {
        match (inputs.len(), inputs.next()) {
            (1, Some(only)) => Self::One(only),
            (_, first) => Self::Many(first.into_iter().chain(inputs).collect()),
        }
    }
}

impl Embeddings {
    fn new(
        server: &ServerConfig,
        own: &EmbeddingsConfig,
        media: Media,
        observed: Arc<Observed>,
    ) -> Self {
        let mut settings = Settings::new("dimensions", own.dimensions);
        settings.add("pool", own.pool);
        settings.add(
            "input",
            Some(own.input).filter(|input| *input != InputForm::Text),
        );
        settings.add("options", own.options.if_any());
        let default_batch = match own.input {
            InputForm::Text => DEFAULT_BATCH,
            InputForm::Chat | InputForm::DataUri => 1,
        };
        let meaning = match own.input {
            InputForm::Text => "the embedding of the prompt",
            InputForm::Chat => "the embedding of picture and prompt",
            InputForm::DataUri => "the embedding of the picture, or of the prompt without one",
        };
        Self {
            description: describe(
                "embeddings",
                server,
                settings,
                meaning,
                own.batch.map_or(default_batch, NonZeroUsize::get),
                own.batch_tokens,
            ),
            own: own.clone(),
            media,
            observed,
            told: [const { Once::new() }; 2],
        }
    }

    /// Tells how the vectors of a reply are written, the first time that they are written so.
    fn observe(&self, embeddings: &[Embedding]) {
        let mut written = embeddings.iter().filter_map(|embedding| match embedding {
            Embedding::Pooled(_) | Embedding::PerToken(_) => Some(Encoding::Float),
            Embedding::Encoded(_) => Some(Encoding::Base64),
            Embedding::Unusable(_) => None,
        });
        let Some(came) = written.next() else { return };
        self.told[came as usize].call_once(|| {
            let asked = self.own.encoding;
            let outcome = if asked == came {
                format!("{came}, as asked for")
            } else {
                format!("{came}, although {asked} was asked for")
            };
            let model = &self.description.identity.model;
            if asked != came {
                tracing::warn!("`{model}` writes vectors as {outcome}: they are understood");
            }
            self.observed
                .note("encoding", format!("{model}: {outcome}"));
        });
    }

    async fn write(&self, requests: &[Request]) -> Result<Vec<u8>, TeacherError> {
        let mut uris = Vec::new();
        if self.own.input != InputForm::Text {
            for request in requests {
                uris.push(match &request.image {
                    Some(image) => Some(self.media.read(image).await?.data_uri()),
                    None => None,
                });
            }
        }
        let (mut input, mut messages) = (None, None);
        match self.own.input {
            InputForm::Text => {
                input = Some(Input::of(
                    requests.iter().map(|request| request.prompt.as_str()),
                ));
            }
            InputForm::DataUri => {
                let pairs = requests.iter().zip(&uris);
                input =
                    Some(Input::of(pairs.map(|(request, uri)| {
                        uri.as_deref().unwrap_or(&request.prompt)
                    })));
            }
            InputForm::Chat => {
                let request = requests.first().expect("a batch has a request");
                messages = Some(message(&request.prompt, uris[0].as_deref()));
            }
        }
        let body = Body {
            model: &self.description.identity.model,
            input,
            messages,
            encoding_format: self.own.encoding.name(),
            dimensions: self.own.dimensions,
            options: &self.own.options,
        };
        Ok(serde_json::to_vec(&body).expect("texts and numbers have a JSON form"))
    }
}

fn message(prompt: &str, uri: Option<&str>) -> Value {
    let mut content = Vec::new();
    if let Some(uri) = uri {
        content.push(json!({"type": "image_url", "image_url": {"url": uri}}));
    }
    if !prompt.is_empty() {
        content.push(json!({"type": "text", "text": prompt}));
    }
    json!([{"role": "user", "content": content}])
}

impl Exchange for Embeddings {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn path(&self) -> Vec<String> {
        vec!["embeddings".into()]
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        Box::pin(self.write(requests))
    }

    fn parse(&self, requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        let reply = EmbeddingsReply::parse(reply, requests.len())?;
        self.observe(&reply.embeddings);
        let tokens = reply.tokens_in.map(|total| apportion(total, requests));
        let rows = reply
            .embeddings
            .into_iter()
            .enumerate()
            .map(|(row, embedding)| {
                let vector = embedding.into_vector(self.own.pool, self.own.dimensions)?;
                let provenance = Provenance {
                    served_model: reply.model.clone(),
                    fingerprint: reply.fingerprint.clone(),
                    tokens_in: tokens.as_ref().map(|tokens| tokens[row]),
                    ..Provenance::default()
                };
                Ok(feature(vector, provenance))
            });
        Ok(rows.collect::<Vec<_>>().into())
    }

    fn most(&self, requests: &[Request]) -> Usage {
        most(requests, 0, 0)
    }
}

/// What a teacher that embeds says of itself: one vector a text, batches by their number and tokens.
pub(super) fn describe(
    kind: &str,
    server: &ServerConfig,
    settings: Settings,
    meaning: &str,
    max_requests: usize,
    max_tokens: NonZeroUsize,
) -> Description {
    Description {
        identity: TeacherIdentity {
            kind: kind.into(),
            model: server.model.clone(),
            settings: settings.into(),
        },
        offers: vec![Offer::new("feature", OfferKind::Feature, meaning)],
        batch: BatchLimits {
            max_requests,
            // No tokeniser makes more tokens than there are bytes.
            max_bytes: max_tokens.get(),
        },
        max_in_flight: None,
    }
}

/// A reply whose one signal is the feature.
pub(super) fn feature(vector: Vec<f32>, provenance: Provenance) -> Reply {
    Reply {
        signals: BTreeMap::from([("feature".to_owned(), SignalValue::Vector(vector))]),
        provenance,
    }
}

#[cfg(test)]
mod tests;
