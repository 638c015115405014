//! `generateContent`: text and log-probabilities for a text and a picture.

use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::Provenance;
use schemas::record::{ScoredToken, Token, TopKPosition};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::exchange::{Direct, Exchange, ExchangeKind};
use super::super::generated::{self, check_signals, check_top_logprobs, picture};
use super::super::generation::{GenerationConfig, Signal};
use super::super::http::shorten;
use super::super::json;
use super::super::media::Media;
use super::super::tokens::{lacks, position};
use super::super::{
    Answers, Description, ErrorClass, OpenContext, Reply, Request, TeacherError, TeacherKind, Usage,
};
use super::{KEY_HEADER, path};
use crate::config::{ConfigError, Section, ServerConfig};

const WITHOUT_LOGPROBS: &str =
    "ask for `signals = [\"text\"]`, or name a model that gives log-probabilities";

/// `[teacher]` with `kind = "gemini"` and `use = "generate"`, besides what is shared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GenerateConfig {
    /// The instruction of the system.
    system: Option<String>,
    /// What the server's filters let pass, as the protocol's `safetySettings`.
    safety_settings: Option<Value>,
}

#[derive(Clone, Debug)]
struct Configured {
    server: ServerConfig,
    generation: GenerationConfig,
    own: GenerateConfig,
}

pub(super) fn read(
    server: ServerConfig,
    mut section: Section<'_>,
) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let whole = section.clone();
    let generation = GenerationConfig::read(&mut section)?;
    let own = section.rest()?;
    let problem = "Gemini gives `text` and `logprobs`";
    check_signals(
        &generation,
        &[Signal::Text, Signal::Logprobs],
        &whole,
        problem,
    )?;
    check_top_logprobs(&generation, &whole)?;
    let mut options = Map::new();
    generation.fill(&mut options, 0);
    for key in [
        "maxOutputTokens",
        "responseLogprobs",
        "topP",
        "candidateCount",
    ] {
        if options.contains_key(key) {
            let problem = format!("`{key}` is written by harvest itself: use the teacher's keys");
            return Err(whole.refuse_key("options", &problem));
        }
    }
    let kind = Configured {
        server,
        generation,
        own,
    };
    Ok(Direct::of(kind, KEY_HEADER))
}

impl ExchangeKind for Configured {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        Ok(Arc::new(Generate {
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
        settings.insert("use".into(), "generate".into());
        settings.insert("system".into(), json!(self.own.system));
        settings.insert("safety_settings".into(), json!(self.own.safety_settings));
        generated::describe("gemini", &self.server, settings, &self.generation)
    }
}

#[derive(Debug)]
struct Generate {
    description: Description,
    generation: GenerationConfig,
    own: GenerateConfig,
    media: Media,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReplyBody {
    #[serde(default)]
    candidates: Vec<Candidate>,
    prompt_feedback: Option<PromptFeedback>,
    usage_metadata: Option<UsageMetadata>,
    model_version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate {
    content: Option<Content>,
    finish_reason: Option<String>,
    finish_message: Option<String>,
    logprobs_result: Option<LogprobsResult>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
    /// Set where the text is the model's thinking, not its answer.
    #[serde(default)]
    thought: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PromptFeedback {
    block_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the protocol's names")]
struct UsageMetadata {
    prompt_token_count: Option<u32>,
    candidates_token_count: Option<u32>,
    thoughts_token_count: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogprobsResult {
    #[serde(default)]
    chosen_candidates: Vec<TokenCandidate>,
    #[serde(default)]
    top_candidates: Vec<TopCandidates>,
}

#[derive(Deserialize)]
struct TopCandidates {
    #[serde(default)]
    candidates: Vec<TokenCandidate>,
}

/// The protocol leaves out what is zero: the log-probability of a certain token.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenCandidate {
    #[serde(default)]
    token: String,
    token_id: Option<u32>,
    #[serde(default)]
    log_probability: f32,
}

impl From<TokenCandidate> for ScoredToken {
    fn from(of: TokenCandidate) -> Self {
        Self {
            token: Token {
                id: of.token_id,
                bytes: Some(of.token.into_bytes()),
            },
            logprob: of.log_probability,
        }
    }
}

impl LogprobsResult {
    /// # Errors
    /// Deterministic where the two lists do not fit together.
    fn read(self, k: u32) -> Result<Vec<TopKPosition>, TeacherError> {
        let (num_chosen, num_top) = (self.chosen_candidates.len(), self.top_candidates.len());
        if num_chosen == 0 {
            return Err(lacks(
                "`chosenCandidates`",
                Signal::Logprobs.name(),
                WITHOUT_LOGPROBS,
            ));
        }
        if num_chosen != num_top {
            let problem = format!(
                "the reply has {num_top} `topCandidates` for {num_chosen} `chosenCandidates`"
            );
            return Err(TeacherError::new(ErrorClass::Deterministic, problem));
        }
        let pairs = self.chosen_candidates.into_iter().zip(self.top_candidates);
        pairs
            .map(|(chosen, top)| {
                let entries = top.candidates.into_iter().map(ScoredToken::from);
                position(Some(chosen.into()), entries.collect(), k)
            })
            .collect()
    }
}

impl Generate {
    async fn write(&self, requests: &[Request]) -> Result<Vec<u8>, TeacherError> {
        let request = requests.first().expect("a batch has a request");
        let mut parts = Vec::new();
        if let Some(picture) = picture(&self.media, request).await? {
            let data = json!({"mimeType": picture.media_type, "data": picture.base64()});
            parts.push(json!({"inlineData": data}));
        }
        parts.push(json!({"text": request.prompt}));
        let mut generation = Map::new();
        self.generation.fill(&mut generation, request.draw);
        if let Some(top_p) = generation.remove("top_p") {
            generation.insert("topP".into(), top_p);
        }
        generation.insert(
            "maxOutputTokens".into(),
            json!(self.generation.max_tokens()),
        );
        if self.generation.wants(Signal::Logprobs) {
            generation.insert("responseLogprobs".into(), true.into());
            generation.insert("logprobs".into(), json!(self.generation.top_logprobs));
        }
        let mut body = json!({
            "contents": [{"role": "user", "parts": parts}],
            "generationConfig": generation,
        });
        if let Some(system) = &self.own.system {
            body["systemInstruction"] = json!({"parts": [{"text": system}]});
        }
        if let Some(safety_settings) = &self.own.safety_settings {
            body["safetySettings"] = safety_settings.clone();
        }
        Ok(body.to_string().into_bytes())
    }

    fn reply(&self, reply: &[u8]) -> Result<Reply, TeacherError> {
        let body: ReplyBody = json::read(reply, "generated content")?;
        let blocked = |problem: String| {
            TeacherError::new(ErrorClass::Deterministic, problem)
                .advise("the server's filters decide this; `safety_settings` of the teacher moves some of them")
        };
        let feedback = body
            .prompt_feedback
            .and_then(|feedback| feedback.block_reason);
        let Some(candidate) = body.candidates.into_iter().next() else {
            return Err(match feedback {
                Some(reason) => {
                    let reason = shorten(&reason);
                    blocked(format!("the server blocked the prompt: {reason}"))
                }
                None => json::without_answer(reply, "the reply has no candidates"),
            });
        };
        let reason = candidate.finish_reason.as_deref().unwrap_or_default();
        if !matches!(
            reason,
            "" | "STOP" | "MAX_TOKENS" | "FINISH_REASON_UNSPECIFIED"
        ) {
            let message = candidate.finish_message.unwrap_or_default();
            let said = shorten(&format!("{reason} {message}"));
            return Err(blocked(format!("the server stopped its reply: {said}")));
        }
        let parts = candidate.content.map(|content| content.parts);
        let texts: Vec<String> = parts
            .unwrap_or_default()
            .into_iter()
            .filter(|part| !part.thought)
            .filter_map(|part| part.text)
            .collect();
        let wants_text = self.generation.wants(Signal::Text);
        if texts.is_empty() && wants_text && reason != "MAX_TOKENS" {
            let problem = "the reply has no text";
            return Err(TeacherError::new(ErrorClass::Deterministic, problem));
        }
        if texts.concat().is_empty() && reason == "MAX_TOKENS" {
            let problem = "the reply ended before it had any text";
            return Err(TeacherError::new(ErrorClass::Deterministic, problem).advise(
                "raise `max_tokens`, or limit thinking: `options = {thinkingConfig = {thinkingBudget = 0}}`",
            ));
        }
        let usage = body.usage_metadata.as_ref();
        let provenance = Provenance {
            served_model: body.model_version,
            finish_reason: candidate.finish_reason,
            tokens_in: usage.and_then(|usage| usage.prompt_token_count),
            tokens_out: usage.and_then(UsageMetadata::tokens_out),
            ..Provenance::default()
        };
        let k = self.generation.top_logprobs.get();
        let logprobs = || match candidate.logprobs_result {
            Some(result) => result.read(k),
            None => Err(lacks(
                "`logprobsResult`",
                Signal::Logprobs.name(),
                WITHOUT_LOGPROBS,
            )),
        };
        generated::reply(&self.generation, texts.concat(), logprobs, provenance)
    }
}

impl UsageMetadata {
    /// Thinking is billed as output.
    fn tokens_out(&self) -> Option<u32> {
        match (self.candidates_token_count, self.thoughts_token_count) {
            (None, None) => None,
            (text, thoughts) => Some(text.unwrap_or(0).saturating_add(thoughts.unwrap_or(0))),
        }
    }
}

impl Exchange for Generate {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn path(&self) -> Vec<String> {
        path(&self.description.identity.model, "generateContent")
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        Box::pin(self.write(requests))
    }

    fn parse(&self, _requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        Ok(vec![self.reply(reply)].into())
    }

    /// Several models answer 400 where log-probabilities are asked for.
    fn explain(&self, error: TeacherError) -> TeacherError {
        let names_logprobs = error.message.to_ascii_lowercase().contains("logprobs");
        if names_logprobs && error.class == ErrorClass::Deterministic {
            return error.advise(WITHOUT_LOGPROBS);
        }
        error
    }

    fn most(&self, requests: &[Request]) -> Usage {
        let num_fixed_bytes = self.generation.num_fixed_bytes(self.own.system.as_deref());
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
            let generate = Generate {
                description: configured.describe(),
                generation: configured.generation.clone(),
                own: configured.own,
                media: media(".".as_ref(), &[]),
            };
            let inside = format!(
                r#"{{"candidates":[{{"logprobsResult":{{"chosenCandidates":[{{"logProbability":{body}}}],"topCandidates":[{body}]}}}}]}}"#
            );
            for body in [body, inside] {
                let _ = generate.parse(&[question("a")], body.as_bytes());
            }
        }
    }
}
