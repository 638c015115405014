//! `/api/embed`: one vector a text.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::Provenance;
use serde::{Deserialize, Serialize};

use super::super::embeddings::{describe, feature};
use super::super::exchange::{Direct, Exchange, ExchangeKind, apportion};
use super::super::generated::refuse_pictures;
use super::super::http::KeyHeader;
use super::super::json;
use super::super::options::{Options, Settings, default_batch, default_batch_tokens};
use super::super::vector::{Embedding, in_order};
use super::super::{
    Answers, Description, ErrorClass, OpenContext, Request, TeacherError, TeacherKind,
};
use super::KeepAlive;
use crate::config::{ConfigError, Section, ServerConfig};

/// `[teacher]` with `kind = "ollama"` and `use = "embed"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbedConfig {
    /// Width to ask for, of models that offer several.
    dimensions: Option<NonZeroU32>,
    /// Whether a text that is longer than the model's context is cut; otherwise its row fails.
    #[serde(default)]
    truncate: bool,
    /// How long the server keeps the model in memory.
    keep_alive: Option<KeepAlive>,
    /// Options of the model.
    #[serde(default)]
    options: Options,
    /// The most texts in one request.
    #[serde(default = "default_batch")]
    batch: NonZeroUsize,
    /// The most tokens of text in one request, of which a byte is counted as one.
    #[serde(default = "default_batch_tokens")]
    batch_tokens: NonZeroUsize,
}

#[derive(Debug)]
struct Configured {
    server: ServerConfig,
    own: EmbedConfig,
}

pub(super) fn read(
    server: ServerConfig,
    section: Section<'_>,
) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let own = section.rest()?;
    Ok(Direct::of(Configured { server, own }, KeyHeader::Bearer))
}

impl ExchangeKind for Configured {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        refuse_pictures(context, "`/api/embed` of Ollama")?;
        Ok(Arc::new(Embed::new(&self.server, &self.own)))
    }
}

#[derive(Debug)]
struct Embed {
    description: Description,
    own: EmbedConfig,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: Vec<&'a str>,
    truncate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_alive: Option<&'a KeepAlive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<&'a Options>,
}

#[derive(Deserialize)]
struct ReplyBody {
    embeddings: Vec<Embedding>,
    model: Option<String>,
    prompt_eval_count: Option<u32>,
}

impl Embed {
    fn new(server: &ServerConfig, own: &EmbedConfig) -> Self {
        let mut settings = Settings::new("use", "embed");
        settings.add("dimensions", own.dimensions);
        settings.add("truncate", Some(own.truncate));
        settings.add("options", own.options.if_any());
        let meaning = "the embedding of the prompt";
        Self {
            description: describe(
                "ollama",
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

impl Exchange for Embed {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn path(&self) -> Vec<String> {
        vec!["api".into(), "embed".into()]
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        let body = Body {
            model: &self.description.identity.model,
            input: requests
                .iter()
                .map(|request| request.prompt.as_str())
                .collect(),
            truncate: self.own.truncate,
            dimensions: self.own.dimensions,
            keep_alive: self.own.keep_alive.as_ref(),
            options: self.own.options.if_any(),
        };
        let body = serde_json::to_vec(&body).expect("texts and numbers have a JSON form");
        Box::pin(std::future::ready(Ok(body)))
    }

    fn parse(&self, requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        let reply: ReplyBody = json::read(reply, "list of embeddings")?;
        let tokens = reply
            .prompt_eval_count
            .map(|total| apportion(total, requests));
        let embeddings = in_order(reply.embeddings, requests.len())?;
        let rows = embeddings.into_iter().enumerate().map(|(row, embedding)| {
            let vector = embedding.into_vector(None, self.own.dimensions)?;
            let provenance = Provenance {
                served_model: reply.model.clone(),
                tokens_in: tokens.as_ref().map(|tokens| tokens[row]),
                ..Provenance::default()
            };
            Ok(feature(vector, provenance))
        });
        Ok(rows.collect::<Vec<_>>().into())
    }

    /// A vector that holds NaN makes the server answer 500 to the whole request, every time.
    fn explain(&self, mut error: TeacherError) -> TeacherError {
        if error.message.contains("unsupported value: ") {
            error.class = ErrorClass::Deterministic;
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture::question;
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_reply_makes_the_parser_panic(body in ".{0,200}") {
            let server = toml::from_str("url = \"http://h\"\nmodel = \"m\"").unwrap();
            let embed = Embed::new(&server, &toml::from_str("").unwrap());
            for body in [format!(r#"{{"embeddings":[{body}]}}"#), body] {
                let _ = embed.parse(&[question("a")], body.as_bytes());
            }
        }
    }
}
