//! Servers that continue a text: log-probabilities of the prompt's own tokens, and of what follows it.

mod llamacpp;
mod reply;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::record::TokenTopK;
use schemas::{Provenance, SignalValue, TeacherIdentity};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::llamacpp::LlamaCppReply;
use self::reply::CompletionsReply;
use super::exchange::{Exchange, ExchangeKind};
use super::generated;
use super::generation::{GenerationConfig, Signal};
use super::labels::{Labels, LabelsConfig, MissingClass, Scoring};
use super::tokens::lacks;
use super::{
    Answers, BatchLimits, Description, ErrorClass, OpenContext, Reply, Request, TeacherError, Usage,
};
use crate::config::{ConfigError, Section, ServerConfig};

/// `[teacher]` with `kind = "completions"`, besides what is shared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompletionsConfig {
    /// What the server understands.
    dialect: Dialect,
    /// Class -> words, for class logits.
    #[serde(default)]
    labels: LabelsConfig,
    /// What happens to a class outside the most probable tokens, where classes are read from these.
    missing_class: Option<MissingClass>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Dialect {
    /// `/completions` with `prompt_logprobs`.
    Vllm,
    /// `/completion` with `n_probs`, which scores no prompts.
    LlamaCpp,
    /// `/completions` with `echo` and `logprobs`.
    OpenAi,
}

impl Dialect {
    fn scoring(self) -> Scoring {
        match self {
            Self::LlamaCpp => Scoring::FirstToken,
            Self::Vllm | Self::OpenAi => Scoring::Whole,
        }
    }

    /// Why these signals cannot come from one request.
    fn problem(self, generation: &GenerationConfig) -> Option<&'static str> {
        let alone = generation.signals.len() == 1;
        let wants = |signal| generation.wants(signal);
        match self {
            Self::LlamaCpp if wants(Signal::PromptLogprobs) => Some(
                "llama.cpp gives log-probabilities of generated tokens only: ask for \"logprobs\", or a server of \
                 another dialect",
            ),
            Self::Vllm | Self::OpenAi if wants(Signal::ClassLogits) && !alone => Some(
                "\"class_logits\" scores other prompts than the other signals: name a second teacher under \
                 [teachers.<name>]",
            ),
            Self::OpenAi if wants(Signal::PromptLogprobs) && !alone => Some(
                "\"prompt_logprobs\" by `echo` goes without other signals: name a second teacher under \
                 [teachers.<name>]",
            ),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Configured {
    server: ServerConfig,
    generation: GenerationConfig,
    own: CompletionsConfig,
}

impl ExchangeKind for Configured {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        generated::refuse_pictures(context, "the kind `completions`")?;
        Ok(Arc::new(Completions::new(self, context)?))
    }
}

pub(super) fn read(
    server: ServerConfig,
    mut section: Section<'_>,
) -> Result<Arc<dyn ExchangeKind>, ConfigError> {
    let whole = section.clone();
    let generation = GenerationConfig::read(&mut section)?;
    let own: CompletionsConfig = section.rest()?;
    if let Some(problem) = own.dialect.problem(&generation) {
        return Err(whole.refuse_key("signals", problem));
    }
    if own.missing_class.is_some() && own.dialect.scoring() == Scoring::Whole {
        let problem = "this dialect scores every word of every class, so that none is missing";
        return Err(whole.refuse_key("missing_class", problem));
    }
    if let Some(problem) = own.labels.problem(own.dialect.scoring()) {
        return Err(whole.refuse_key("labels", &problem));
    }
    Ok(Arc::new(Configured {
        server,
        generation,
        own,
    }))
}

/// Asks a server that continues texts.
#[derive(Debug)]
struct Completions {
    description: Description,
    generation: GenerationConfig,
    dialect: Dialect,
    labels: Option<Labels>,
}

impl Completions {
    fn new(config: &Configured, context: &OpenContext<'_>) -> Result<Self, TeacherError> {
        let Configured {
            server,
            generation,
            own,
        } = config;
        let scoring = own.dialect.scoring();
        let missing_class = own.missing_class.unwrap_or_default();
        let labels = if generation.wants(Signal::ClassLogits) {
            Some(Labels::new(
                &own.labels,
                missing_class,
                context.task,
                scoring,
            )?)
        } else {
            None
        };
        let mut settings = generation.settings();
        settings.insert("dialect".into(), json!(own.dialect));
        if let Some(labels) = &labels {
            settings.insert("labels".into(), labels.settings());
            if scoring == Scoring::FirstToken {
                settings.insert("missing_class".into(), json!(missing_class));
            }
        }
        let identity = TeacherIdentity {
            kind: "completions".into(),
            model: server.model.clone(),
            settings: settings.into(),
        };
        let num_classes = labels.as_ref().map_or(0, Labels::num_classes);
        let k = generation.top_logprobs.get();
        let offers = generation.signals.iter().map(|signal| {
            let meaning = match (signal, scoring) {
                (Signal::Text, _) => "the continuation of the prompt",
                (Signal::Logprobs, _) => {
                    "tokens and log-probabilities at each position of the continuation"
                }
                (Signal::PromptLogprobs, _) => {
                    "tokens and log-probabilities at each position of the prompt"
                }
                (Signal::ClassLogits, Scoring::FirstToken) => {
                    "log of the probability that the first token after the prompt begins a word of the class and of no \
                     other"
                }
                (Signal::ClassLogits, Scoring::Whole) => {
                    "log of the probability of the class's words after the prompt, up to one term that all classes of a \
                     row share"
                }
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
            dialect: own.dialect,
            labels,
        })
    }

    /// The words that are scored after the prompt, where that is how classes are scored.
    fn words(&self) -> Option<&Labels> {
        let scores_words = self.dialect.scoring() == Scoring::Whole;
        self.labels.as_ref().filter(|_| scores_words)
    }

    fn wants(&self, signal: Signal) -> bool {
        self.generation.wants(signal)
    }

    fn write(&self, request: &Request) -> Vec<u8> {
        let k = self.generation.top_logprobs.get();
        let max_tokens = match self.words() {
            Some(_) => 1,
            None => self.generation.max_tokens(),
        };
        let prompt = match self.words() {
            None => json!(request.prompt),
            Some(labels) => prompts(request, labels).into(),
        };
        let mut body = Map::new();
        let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
        put("model", json!(self.description.identity.model));
        put("prompt", prompt);
        match self.dialect {
            Dialect::LlamaCpp => {
                put("n_predict", max_tokens.into());
                if self.wants(Signal::Logprobs) || self.labels.is_some() {
                    put("n_probs", k.into());
                }
            }
            Dialect::Vllm => {
                // Versions differ in whether they take 0.
                put("max_tokens", max_tokens.into());
                if self.wants(Signal::PromptLogprobs) || self.words().is_some() {
                    // Of a word no more than its own tokens are needed.
                    put("prompt_logprobs", self.words().map_or(k, |_| 0).into());
                    put("return_token_ids", true.into());
                }
                if self.wants(Signal::Logprobs) {
                    put("logprobs", k.into());
                    // Without it, tokens that print alike would be one.
                    put("return_tokens_as_token_ids", true.into());
                }
            }
            Dialect::OpenAi => {
                let echoes = self.wants(Signal::PromptLogprobs) || self.words().is_some();
                // Some servers take 0 for "without end"; the one token is dropped.
                put("max_tokens", if echoes { 1 } else { max_tokens }.into());
                if echoes {
                    put("echo", true.into());
                }
                if echoes || self.wants(Signal::Logprobs) {
                    put("logprobs", self.words().map_or(k, |_| 1).into());
                }
            }
        }
        self.generation.fill(&mut body, request.draw);
        serde_json::to_vec(&body).expect("text keys have a JSON form")
    }

    fn reply(&self, request: &Request, body: &[u8]) -> Result<Reply, TeacherError> {
        match (self.dialect, self.words()) {
            (Dialect::LlamaCpp, _) => self.llama_cpp_reply(body),
            (_, Some(labels)) => self.words_reply(request, labels, body),
            (_, None) => self.plain_reply(request, body),
        }
    }

    fn plain_reply(&self, request: &Request, body: &[u8]) -> Result<Reply, TeacherError> {
        let k = self.generation.top_logprobs.get();
        let reply = CompletionsReply::parse(body, 1)?;
        let provenance = reply.provenance();
        let mut signals = BTreeMap::new();
        let mut put = |signal: Signal, value| signals.insert(signal.name().to_owned(), value);
        let num_generated = reply.num_generated(std::slice::from_ref(&request.prompt))[0];
        let [choice] = <[_; 1]>::try_from(reply.choices).expect("as many choices as prompts");
        if choice.finish_reason.as_deref() == Some("content_filter") {
            let problem = "the server's content filter stopped the reply";
            return Err(TeacherError::new(ErrorClass::Deterministic, problem)
                .advise("leave the row out, or change what is asked"));
        }
        if self.wants(Signal::Text) {
            let text = choice.text.clone().unwrap_or_default();
            put(Signal::Text, SignalValue::Text(text));
        }
        if self.wants(Signal::PromptLogprobs) {
            let positions = match self.dialect {
                Dialect::Vllm => choice.scored_prompt(k, "prompt_logprobs")?,
                _ => choice.echoed(&request.prompt, num_generated, k, "prompt_logprobs")?,
            };
            let top_k = TokenTopK { positions };
            put(Signal::PromptLogprobs, SignalValue::TokenTopK(top_k));
        }
        if self.wants(Signal::Logprobs) {
            let positions = choice.generated(k, "logprobs")?;
            put(
                Signal::Logprobs,
                SignalValue::TokenTopK(TokenTopK { positions }),
            );
        }
        Ok(Reply {
            signals,
            provenance,
        })
    }

    fn words_reply(
        &self,
        request: &Request,
        labels: &Labels,
        body: &[u8],
    ) -> Result<Reply, TeacherError> {
        let prompts = prompts(request, labels);
        let reply = CompletionsReply::parse(body, prompts.len())?;
        let provenance = reply.provenance();
        let num_generated = reply.num_generated(&prompts);
        let texts = reply.choices.iter().zip(&prompts).zip(num_generated);
        let texts = texts.map(|((choice, prompt), num_generated)| match self.dialect {
            Dialect::Vllm => choice.scored_prompt(0, "class_logits"),
            _ => choice.echoed(prompt, num_generated, 1, "class_logits"),
        });
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let logprobs = reply::after_common_prefix(&texts)?;
        let logits = SignalValue::Vector(labels.logits_of_words(&logprobs));
        Ok(Reply {
            signals: BTreeMap::from([(Signal::ClassLogits.name().to_owned(), logits)]),
            provenance,
        })
    }

    fn llama_cpp_reply(&self, body: &[u8]) -> Result<Reply, TeacherError> {
        let mut reply = LlamaCppReply::parse(body)?;
        let mut signals = BTreeMap::new();
        let mut put = |signal: Signal, value| signals.insert(signal.name().to_owned(), value);
        if self.wants(Signal::Logprobs) || self.labels.is_some() {
            let asked = if self.labels.is_some() {
                Signal::ClassLogits
            } else {
                Signal::Logprobs
            };
            let positions = reply.top_k(self.generation.top_logprobs.get(), asked.name())?;
            if let Some(labels) = &self.labels {
                let first = positions.first().ok_or_else(|| {
                    let advice = "the model ended at once: change what is asked";
                    lacks("a first token", "class_logits", advice)
                })?;
                put(
                    Signal::ClassLogits,
                    SignalValue::Vector(labels.logits(first)?),
                );
            }
            if self.wants(Signal::Logprobs) {
                put(
                    Signal::Logprobs,
                    SignalValue::TokenTopK(TokenTopK { positions }),
                );
            }
        }
        if self.wants(Signal::Text) {
            put(Signal::Text, SignalValue::Text(reply.content));
        }
        let provenance = Provenance {
            served_model: reply.model,
            finish_reason: reply.stop_type,
            tokens_in: reply.tokens_evaluated,
            tokens_out: reply.tokens_predicted,
            ..Provenance::default()
        };
        Ok(Reply {
            signals,
            provenance,
        })
    }
}

/// The prompt with each word after it.
fn prompts(request: &Request, labels: &Labels) -> Vec<String> {
    let words = labels.words();
    words
        .map(|(_, word)| format!("{}{word}", request.prompt))
        .collect()
}

impl Exchange for Completions {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn path(&self) -> Vec<String> {
        match self.dialect {
            Dialect::LlamaCpp => vec!["completion".into()],
            Dialect::Vllm | Dialect::OpenAi => vec!["completions".into()],
        }
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        let [request] = requests else {
            unreachable!("one request at a time was announced");
        };
        Box::pin(std::future::ready(Ok(self.write(request))))
    }

    fn parse(&self, requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        let [request] = requests else {
            unreachable!("one request at a time was announced");
        };
        Ok(vec![self.reply(request, reply)].into())
    }

    fn most(&self, requests: &[Request]) -> Usage {
        let mut most = generated::most(requests, self.generation.max_tokens(), 0);
        let num_requests = requests.len() as u64;
        if let Some(labels) = self.words() {
            let num_words = labels.words().count() as u64;
            let num_bytes: usize = labels.words().map(|(_, word)| word.len()).sum();
            most.tokens_in = most.tokens_in * num_words + num_requests * num_bytes as u64;
            most.tokens_out = num_requests * num_words;
        }
        most
    }
}

#[cfg(test)]
mod tests;
