//! `/api/chat`: text and log-probabilities for a text and a picture.

use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::Provenance;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::exchange::{Direct, Exchange, ExchangeKind};
use super::super::generated::{self, check_signals, check_top_logprobs, picture};
use super::super::generation::{GenerationConfig, Signal};
use super::super::http::KeyHeader;
use super::super::json;
use super::super::media::Media;
use super::super::tokens::{WrittenPosition, lacks};
use super::super::{
    Answers, Description, ErrorClass, OpenContext, Reply, Request, TeacherError, TeacherKind, Usage,
};
use super::KeepAlive;
use crate::config::{ConfigError, Section, ServerConfig};

/// `[teacher]` with `kind = "ollama"` and `use = "chat"`, besides what is shared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatConfig {
    /// The message of the role `system`.
    system: Option<String>,
    /// Whether a model that can think does: `true`, `false`, or a level in words.
    think: Option<Value>,
    /// `"json"`, or a JSON schema that the reply has to follow.
    format: Option<Value>,
    /// How long the server keeps the model in memory.
    keep_alive: Option<KeepAlive>,
}

#[derive(Clone, Debug)]
struct Configured {
    server: ServerConfig,
    generation: GenerationConfig,
    own: ChatConfig,
}

pub(super) fn read(
    server: ServerConfig,
    mut section: Section<'_>,
) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let whole = section.clone();
    let generation = GenerationConfig::read(&mut section)?;
    let own = section.rest()?;
    let problem = "Ollama gives `text` and `logprobs`";
    check_signals(
        &generation,
        &[Signal::Text, Signal::Logprobs],
        &whole,
        problem,
    )?;
    check_top_logprobs(&generation, &whole)?;
    let mut options = Map::new();
    generation.fill(&mut options, 0);
    if options.contains_key("num_predict") {
        let problem = "`num_predict` has a key of its own: `max_tokens` of the teacher";
        return Err(whole.refuse_key("options", problem));
    }
    let kind = Configured {
        server,
        generation,
        own,
    };
    Ok(Direct::of(kind, KeyHeader::Bearer))
}

impl ExchangeKind for Configured {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        Ok(Arc::new(Chat {
            description: self.describe(),
            generation: self.generation.clone(),
            own: self.own.clone(),
            media: Media::new(context)?,
        }))
    }
}

impl Configured {
    fn describe(&self) -> Description {
        let mut settings = self.generation.settings();
        settings.insert("use".into(), "chat".into());
        settings.insert("system".into(), json!(self.own.system));
        settings.insert("think".into(), json!(self.own.think));
        settings.insert("format".into(), json!(self.own.format));
        generated::describe("ollama", &self.server, settings, &self.generation)
    }
}

#[derive(Debug)]
struct Chat {
    description: Description,
    generation: GenerationConfig,
    own: ChatConfig,
    media: Media,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    stream: bool,
    options: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    think: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_alive: Option<&'a KeepAlive>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    /// Bare base64, no data URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<[String; 1]>,
}

#[derive(Deserialize)]
struct ReplyBody {
    message: ReplyMessage,
    done: Option<bool>,
    model: Option<String>,
    done_reason: Option<String>,
    prompt_eval_count: Option<u32>,
    eval_count: Option<u32>,
    logprobs: Option<Vec<WrittenPosition>>,
}

#[derive(Deserialize)]
struct ReplyMessage {
    content: Option<String>,
}

impl Chat {
    async fn write(&self, requests: &[Request]) -> Result<Vec<u8>, TeacherError> {
        let request = requests.first().expect("a batch has a request");
        let picture = picture(&self.media, request).await?;
        let system = self.own.system.as_deref().map(|content| Message {
            role: "system",
            content,
            images: None,
        });
        let user = Message {
            role: "user",
            content: &request.prompt,
            images: picture.map(|picture| [picture.base64()]),
        };
        let mut options = Map::new();
        self.generation.fill(&mut options, request.draw);
        options.insert("num_predict".into(), json!(self.generation.max_tokens()));
        let wants_logprobs = self.generation.wants(Signal::Logprobs);
        let body = Body {
            model: &self.description.identity.model,
            messages: system.into_iter().chain([user]).collect(),
            stream: false,
            options,
            logprobs: wants_logprobs.then_some(true),
            top_logprobs: wants_logprobs.then_some(self.generation.top_logprobs.get()),
            think: self.own.think.as_ref(),
            format: self.own.format.as_ref(),
            keep_alive: self.own.keep_alive.as_ref(),
        };
        Ok(serde_json::to_vec(&body).expect("texts and numbers have a JSON form"))
    }

    fn reply(&self, body: ReplyBody) -> Result<Reply, TeacherError> {
        if body.done == Some(false) {
            let problem =
                "the server sent a part of its reply, though it was asked for all of it at once";
            return Err(TeacherError::new(ErrorClass::Deterministic, problem)
                .advise("ask Ollama itself, or a proxy that honours `\"stream\": false`"));
        }
        let wants_text = self.generation.wants(Signal::Text);
        let is_cut = body.done_reason.as_deref() == Some("length");
        let text = body.message.content;
        if wants_text && is_cut && text.as_ref().is_none_or(String::is_empty) {
            let problem = "the reply ended before it had any text";
            return Err(TeacherError::new(ErrorClass::Deterministic, problem)
                .advise("raise `max_tokens` of the teacher, or set `think = false`"));
        }
        if wants_text && text.is_none() {
            let problem = "the reply has no text";
            return Err(TeacherError::new(ErrorClass::Deterministic, problem));
        }
        let provenance = Provenance {
            served_model: body.model,
            finish_reason: body.done_reason,
            tokens_in: body.prompt_eval_count,
            tokens_out: body.eval_count,
            ..Provenance::default()
        };
        let k = self.generation.top_logprobs.get();
        let logprobs = || {
            let positions = body.logprobs.filter(|positions| !positions.is_empty());
            let positions = positions.ok_or_else(|| {
                let advice = "Ollama gives them from version 0.12.11 on; otherwise ask for `signals = [\"text\"]`";
                lacks("`logprobs`", Signal::Logprobs.name(), advice)
            })?;
            positions
                .into_iter()
                .map(|position| position.read(k))
                .collect()
        };
        generated::reply(
            &self.generation,
            text.unwrap_or_default(),
            logprobs,
            provenance,
        )
    }
}

impl Exchange for Chat {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn path(&self) -> Vec<String> {
        vec!["api".into(), "chat".into()]
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        Box::pin(self.write(requests))
    }

    fn parse(&self, _requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        Ok(vec![self.reply(json::read(reply, "chat reply")?)].into())
    }

    fn most(&self, requests: &[Request]) -> Usage {
        let num_fixed_bytes = self.generation.num_fixed_bytes(self.own.system.as_deref());
        let format = self.own.format.as_ref();
        let num_fixed_bytes = num_fixed_bytes + format.map_or(0, |it| it.to_string().len());
        generated::most(requests, self.generation.max_tokens(), num_fixed_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture::question;
    use super::super::super::media::tests::media;
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_reply_makes_the_parser_panic(body in ".{0,200}") {
            let configured = Configured {
                server: toml::from_str("url = \"http://h\"\nmodel = \"m\"").unwrap(),
                generation: toml::from_str("signals = [\"text\", \"logprobs\"]").unwrap(),
                own: toml::from_str("").unwrap(),
            };
            let chat = Chat {
                description: configured.describe(),
                generation: configured.generation.clone(),
                own: configured.own,
                media: media(".".as_ref(), &[]),
            };
            let inside = format!(
                r#"{{"message":{{"content":"a"}},"logprobs":[{{"token":"a","logprob":{body},"top_logprobs":[{body}]}}]}}"#
            );
            for body in [body, inside] {
                let _ = chat.parse(&[question("a")], body.as_bytes());
            }
        }
    }
}
