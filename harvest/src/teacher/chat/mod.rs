//! Any OpenAI-compatible `/chat/completions`: text and pictures in, text and log-probabilities out.

mod reply;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::{Provenance, SignalValue, TeacherIdentity};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::reply::ChatReply;
use super::exchange::{Exchange, ExchangeKind};
use super::generated;
use super::generation::{GenerationConfig, Signal};
use super::labels::{Labels, LabelsConfig, MissingClass, Scoring};
use super::media::Media;
use super::{Answers, BatchLimits, Description, OpenContext, Reply, Request, TeacherError, Usage};
use crate::config::{ConfigError, Section, ServerConfig};

/// `[teacher]` with `kind = "chat"`, besides what is shared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatConfig {
    /// Text of the system's message.
    system: Option<String>,
    /// How the server calls the most tokens of a reply.
    #[serde(default)]
    max_tokens_field: MaxTokensField,
    /// Class -> words, for class logits.
    #[serde(default)]
    labels: LabelsConfig,
    /// What happens to a class outside the most probable tokens.
    #[serde(default)]
    missing_class: MissingClass,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MaxTokensField {
    /// What every compatible server knows.
    #[default]
    MaxTokens,
    /// What OpenAI's reasoning models insist on.
    MaxCompletionTokens,
}

#[derive(Debug)]
struct Configured {
    server: ServerConfig,
    generation: GenerationConfig,
    own: ChatConfig,
}

pub(super) fn read(
    server: ServerConfig,
    mut section: Section<'_>,
) -> Result<Arc<dyn ExchangeKind>, ConfigError> {
    let whole = section.clone();
    let generation = GenerationConfig::read(&mut section)?;
    let own: ChatConfig = section.rest()?;
    if generation.wants(Signal::PromptLogprobs) {
        let problem = "chat endpoints do not score prompts; the kind `completions` does";
        return Err(whole.refuse_key("signals", problem));
    }
    if let Some(problem) = own.labels.problem(Scoring::FirstToken) {
        return Err(whole.refuse_key("labels", &problem));
    }
    Ok(Arc::new(Configured {
        server,
        generation,
        own,
    }))
}

impl ExchangeKind for Configured {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        Ok(Arc::new(Chat::new(self, context)?))
    }
}

/// Asks a chat endpoint.
#[derive(Debug)]
struct Chat {
    description: Description,
    generation: GenerationConfig,
    system: Option<String>,
    max_tokens_field: MaxTokensField,
    labels: Option<Labels>,
    media: Media,
}

impl Chat {
    fn new(config: &Configured, context: &OpenContext<'_>) -> Result<Self, TeacherError> {
        let Configured {
            server,
            generation,
            own,
        } = config;
        let labels = if generation.wants(Signal::ClassLogits) {
            Some(Labels::new(
                &own.labels,
                own.missing_class,
                context.task,
                Scoring::FirstToken,
            )?)
        } else {
            None
        };
        let mut settings = generation.settings();
        settings.insert("system".into(), json!(own.system));
        if let Some(labels) = &labels {
            settings.insert("labels".into(), labels.settings());
            settings.insert("missing_class".into(), json!(own.missing_class));
        }
        let identity = TeacherIdentity {
            kind: "chat".into(),
            model: server.model.clone(),
            settings: settings.into(),
        };
        let num_classes = labels.as_ref().map_or(0, Labels::num_classes);
        let k = generation.top_logprobs.get();
        let offers = generation.signals.iter().map(|signal| {
            let meaning = match signal {
                Signal::ClassLogits => {
                    "log of the probability that the reply's first token begins a word of the class and of no other"
                }
                Signal::Logprobs => "tokens and log-probabilities at each position of the reply",
                Signal::Text | Signal::PromptLogprobs => "the reply",
            };
            signal.offer(k, num_classes, meaning)
        });
        Ok(Self {
            description: Description {
                identity,
                offers: offers.collect(),
                batch: BatchLimits::SINGLE,
                max_in_flight: None,
            },
            generation: generation.clone(),
            system: own.system.clone(),
            max_tokens_field: own.max_tokens_field,
            labels,
            media: Media::new(context)?,
        })
    }

    /// Whether log-probabilities are asked for.
    fn scores(&self) -> bool {
        self.generation.wants(Signal::Logprobs) || self.labels.is_some()
    }

    async fn write(&self, request: &Request) -> Result<Vec<u8>, TeacherError> {
        let content = match generated::picture(&self.media, request).await? {
            // Some servers take nothing but a string.
            None => json!(request.prompt),
            Some(picture) => json!([
                {"type": "text", "text": request.prompt},
                {"type": "image_url", "image_url": {"url": picture.data_uri()}},
            ]),
        };
        let system = self
            .system
            .iter()
            .map(|text| json!({"role": "system", "content": text}));
        let user = json!({"role": "user", "content": content});
        let messages: Vec<Value> = system.chain([user]).collect();
        let mut body = Map::new();
        body.insert("model".into(), json!(self.description.identity.model));
        body.insert("messages".into(), messages.into());
        let max_tokens = match self.max_tokens_field {
            MaxTokensField::MaxTokens => "max_tokens",
            MaxTokensField::MaxCompletionTokens => "max_completion_tokens",
        };
        body.insert(max_tokens.into(), self.generation.max_tokens().into());
        if self.scores() {
            body.insert("logprobs".into(), true.into());
            body.insert(
                "top_logprobs".into(),
                self.generation.top_logprobs.get().into(),
            );
        }
        self.generation.fill(&mut body, request.draw);
        Ok(serde_json::to_vec(&body).expect("text keys have a JSON form"))
    }

    fn reply(&self, body: &[u8]) -> Result<Reply, TeacherError> {
        let mut reply = ChatReply::parse(body)?;
        let mut signals = BTreeMap::new();
        let mut put = |signal: Signal, value| signals.insert(signal.name().to_owned(), value);
        if self.scores() {
            let k = self.generation.top_logprobs.get();
            let asked = if self.labels.is_some() {
                Signal::ClassLogits
            } else {
                Signal::Logprobs
            };
            let top_k = reply.top_k(k, asked.name())?;
            if !self.generation.has_stop_words() {
                reply.check_whole(&top_k, asked.name())?;
            }
            if let Some(labels) = &self.labels {
                let first = reply::first_position(&top_k)?;
                put(
                    Signal::ClassLogits,
                    SignalValue::Vector(labels.logits(first)?),
                );
            }
            if self.generation.wants(Signal::Logprobs) {
                put(Signal::Logprobs, SignalValue::TokenTopK(top_k));
            }
        }
        if self.generation.wants(Signal::Text) {
            put(Signal::Text, SignalValue::Text(reply.text()?));
        }
        Ok(Reply {
            signals,
            provenance: Provenance {
                served_model: reply.model,
                fingerprint: reply.fingerprint,
                finish_reason: reply.finish_reason,
                tokens_in: reply.usage.prompt_tokens,
                tokens_out: reply.usage.completion_tokens,
                ..Provenance::default()
            },
        })
    }
}

impl Exchange for Chat {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn path(&self) -> Vec<String> {
        vec!["chat".into(), "completions".into()]
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        let [request] = requests else {
            unreachable!("one request at a time was announced");
        };
        Box::pin(self.write(request))
    }

    fn parse(&self, _requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        Ok(vec![self.reply(reply)].into())
    }

    fn most(&self, requests: &[Request]) -> Usage {
        let num_fixed_bytes = self.generation.num_fixed_bytes(self.system.as_deref());
        generated::most(requests, self.generation.max_tokens(), num_fixed_bytes)
    }
}

#[cfg(test)]
mod tests;
