//! `batchEmbedContents`: one vector a text.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::Provenance;
use serde::Deserialize;
use serde_json::json;

use super::super::embeddings::{describe, feature};
use super::super::exchange::{Direct, Exchange, ExchangeKind};
use super::super::generated::refuse_pictures;
use super::super::json;
use super::super::options::{Settings, default_batch, default_batch_tokens};
use super::super::vector::{Embedding, in_order};
use super::super::{Answers, Description, OpenContext, Request, TeacherError, TeacherKind};
use super::{KEY_HEADER, path, resource};
use crate::config::{ConfigError, Section, ServerConfig};

/// The most texts that the protocol takes in one request.
const MAX_BATCH: usize = 100;

/// `[teacher]` with `kind = "gemini"` and `use = "embed"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbedConfig {
    /// Width to ask for, of models that offer several.
    dimensions: Option<NonZeroU32>,
    /// What the vectors are for, such as `CLASSIFICATION`, of models that tell it apart.
    task_type: Option<String>,
    /// The most texts in one request, at most 100.
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
    section: &Section<'_>,
) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let own: EmbedConfig = section.clone().rest()?;
    if own.batch.get() > MAX_BATCH {
        let problem = format!("the protocol takes at most {MAX_BATCH} texts in one request");
        return Err(section.refuse_key("batch", &problem));
    }
    Ok(Direct::of(Configured { server, own }, KEY_HEADER))
}

impl ExchangeKind for Configured {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        refuse_pictures(context, "`batchEmbedContents` of Gemini")?;
        Ok(Arc::new(Embed::new(&self.server, &self.own)))
    }
}

#[derive(Debug)]
struct Embed {
    description: Description,
    own: EmbedConfig,
}

#[derive(Deserialize)]
struct ReplyBody {
    embeddings: Vec<Content>,
}

#[derive(Deserialize)]
struct Content {
    values: Embedding,
}

impl Embed {
    fn new(server: &ServerConfig, own: &EmbedConfig) -> Self {
        let mut settings = Settings::new("use", "embed");
        settings.add("dimensions", own.dimensions);
        settings.add("task_type", own.task_type.as_ref());
        let meaning = "the embedding of the prompt";
        Self {
            description: describe(
                "gemini",
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
        path(&self.description.identity.model, "batchEmbedContents")
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        let model = resource(&self.description.identity.model);
        let of = |request: &Request| {
            let mut of = json!({"model": model, "content": {"parts": [{"text": request.prompt}]}});
            if let Some(dimensions) = self.own.dimensions {
                of["outputDimensionality"] = json!(dimensions);
            }
            if let Some(task_type) = &self.own.task_type {
                of["taskType"] = json!(task_type);
            }
            of
        };
        let requests: Vec<_> = requests.iter().map(of).collect();
        let body = json!({"requests": requests}).to_string().into_bytes();
        Box::pin(std::future::ready(Ok(body)))
    }

    fn parse(&self, requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        let reply: ReplyBody = json::read(reply, "list of embeddings")?;
        let embeddings = reply.embeddings.into_iter().map(|content| content.values);
        let rows = in_order(embeddings.collect(), requests.len())?
            .into_iter()
            .map(|embedding| {
                let vector = embedding.into_vector(None, self.own.dimensions)?;
                Ok(feature(vector, Provenance::default()))
            });
        Ok(rows.collect::<Vec<_>>().into())
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
            for body in [format!(r#"{{"embeddings":[{{"values":{body}}}]}}"#), body] {
                let _ = embed.parse(&[question("a")], body.as_bytes());
            }
        }
    }
}
