//! Reads the reply of `/chat/completions` as OpenAI, vLLM and llama.cpp write it.

use schemas::record::{TokenTopK, TopKPosition};
use serde::Deserialize;

use super::super::class::{ErrorClass, TeacherError};
use super::super::http::shorten;
use super::super::json::{self, Usage};
use super::super::tokens::{WrittenPosition, check_whole, lacks};

/// A reply that the model did not refuse.
#[derive(Debug)]
pub(super) struct ChatReply {
    pub(super) model: Option<String>,
    pub(super) fingerprint: Option<String>,
    pub(super) finish_reason: Option<String>,
    pub(super) usage: Usage,
    text: Option<String>,
    positions: Option<Vec<WrittenPosition>>,
}

#[derive(Deserialize)]
struct Body {
    choices: Vec<Choice>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    system_fingerprint: Option<String>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    message: Option<Message>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    #[serde(default)]
    content: Option<Vec<WrittenPosition>>,
}

impl Content {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Parts(parts) => parts
                .into_iter()
                .filter_map(|part| part.text)
                .reduce(|text, part| text + &part),
        }
    }
}

const WITHOUT_LOGPROBS: &str = "the server ignored `logprobs`: leave \"logprobs\" and \"class_logits\" out of \
    `teacher.signals`, or ask a server that gives them";

impl ChatReply {
    /// Reads a reply.
    ///
    /// # Errors
    /// As [`json::read`]; deterministic where the model or a filter refused to answer.
    pub(super) fn parse(body: &[u8]) -> Result<Self, TeacherError> {
        let body: Body = json::read(body, "chat completion")?;
        let refuse = |problem: String| TeacherError::new(ErrorClass::Deterministic, problem);
        let choice = body.choices.into_iter().next();
        let choice = choice.ok_or_else(|| refuse("the reply has no choice".into()))?;
        if choice.finish_reason.as_deref() == Some("content_filter") {
            return Err(
                refuse("the server's content filter stopped the reply".into())
                    .advise("leave the row out, or change what is asked"),
            );
        }
        let message = choice.message;
        let (content, refusal) = message.map_or((None, None), |m| (m.content, m.refusal));
        let text = content.and_then(Content::text);
        if let (None, Some(refusal)) = (text.as_ref().filter(|text| !text.is_empty()), refusal) {
            let problem = format!("the model refused to answer: {}", shorten(&refusal));
            return Err(refuse(problem).advise("leave the row out, or change what is asked"));
        }
        Ok(Self {
            model: body.model,
            fingerprint: body.system_fingerprint,
            finish_reason: choice.finish_reason,
            usage: body.usage.unwrap_or_default(),
            text,
            positions: choice.logprobs.and_then(|logprobs| logprobs.content),
        })
    }

    /// The text; empty only where the model chose to say nothing.
    ///
    /// # Errors
    /// Deterministic where there is none.
    pub(super) fn text(&self) -> Result<String, TeacherError> {
        let cut_off = self.finish_reason.as_deref() == Some("length");
        match &self.text {
            Some(text) if !text.is_empty() || !cut_off => Ok(text.clone()),
            _ if cut_off => Err(TeacherError::new(
                ErrorClass::Deterministic,
                "the reply ended before it had any text",
            )
            .advise("raise `teacher.max_tokens`: models that think first need more")),
            _ => Err(
                TeacherError::new(ErrorClass::Deterministic, "the reply has no text")
                    .advise("a reply of tool calls or pictures is not understood"),
            ),
        }
    }

    /// Takes tokens and log-probabilities of every position, for the signal named.
    ///
    /// # Errors
    /// Deterministic where the server ignored the wish, or its numbers are no log-probabilities.
    pub(super) fn top_k(&mut self, k: u32, signal: &str) -> Result<TokenTopK, TeacherError> {
        let Some(positions) = self.positions.take() else {
            return Err(lacks("`logprobs`", signal, WITHOUT_LOGPROBS));
        };
        let positions = positions.into_iter().map(|position| position.read(k));
        let positions = positions.collect::<Result<Vec<_>, _>>()?;
        if !positions.is_empty() && positions.iter().all(|position| position.entries.is_empty()) {
            return Err(lacks("`top_logprobs`", signal, WITHOUT_LOGPROBS));
        }
        Ok(TokenTopK { positions })
    }

    /// Refuses positions with holes where that can be told: a server that gives ids counts the same tokens, and others
    /// also count those of hidden thoughts.
    ///
    /// # Errors
    /// As [`check_whole`].
    pub(super) fn check_whole(&self, top_k: &TokenTopK, signal: &str) -> Result<(), TeacherError> {
        let mut chosen = top_k
            .positions
            .iter()
            .filter_map(|position| position.chosen.as_ref());
        if chosen.any(|scored| scored.token.id.is_some() && scored.token.bytes.is_some()) {
            check_whole(top_k.positions.len(), self.usage.completion_tokens, signal)?;
        }
        Ok(())
    }
}

/// The position that class logits are read from.
pub(super) fn first_position(top_k: &TokenTopK) -> Result<&TopKPosition, TeacherError> {
    top_k.positions.first().ok_or_else(|| {
        lacks(
            "a first token",
            "class_logits",
            "the model ended at once: change what is asked",
        )
    })
}
