//! Reads the reply of `/completions` as OpenAI and vLLM write it.

use std::fmt;
use std::marker::PhantomData;

use schemas::Provenance;
use schemas::record::{ScoredToken, Token, TopKPosition};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::super::class::{ErrorClass, TeacherError};
use super::super::http::shorten;
use super::super::json::{self, Usage};
use super::super::tokens::{VERY_UNLIKELY, WrittenPosition, lacks, position, token};

/// A reply with one choice for each prompt, in the order of the prompts.
#[derive(Debug)]
pub(super) struct CompletionsReply {
    pub(super) choices: Vec<Choice>,
    model: Option<String>,
    fingerprint: Option<String>,
    usage: Usage,
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

#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    index: Option<usize>,
    #[serde(default)]
    pub(super) text: Option<String>,
    #[serde(default)]
    pub(super) finish_reason: Option<String>,
    #[serde(default)]
    logprobs: Option<Lists>,
    #[serde(default)]
    prompt_logprobs: Option<Vec<Option<Pairs<ScoredById>>>>,
    #[serde(default)]
    prompt_token_ids: Option<Vec<u32>>,
}

/// `logprobs` of a choice: the lists of OpenAI, or what llama.cpp writes in their place.
#[derive(Debug, Deserialize)]
struct Lists {
    #[serde(default)]
    tokens: Option<Vec<String>>,
    #[serde(default)]
    token_logprobs: Option<Vec<Option<f32>>>,
    #[serde(default)]
    top_logprobs: Option<Vec<Option<Pairs<f32>>>>,
    #[serde(default)]
    content: Option<Vec<WrittenPosition>>,
}

#[derive(Debug, Deserialize)]
struct ScoredById {
    logprob: f32,
    #[serde(default)]
    rank: Option<u32>,
    #[serde(default)]
    decoded_token: Option<String>,
}

/// A JSON object as the list that it is written as: order is kept, and so are keys that repeat.
#[derive(Debug)]
struct Pairs<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a token for each key")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

fn unusable(problem: impl Into<String>) -> TeacherError {
    TeacherError::new(ErrorClass::Deterministic, problem)
}

const NOT_VLLM: &str = "set `teacher.dialect` to what the server is: \"openai\" where it honours `echo`, \"llamacpp\" \
    for llama.cpp, which scores no prompts";
const NO_ECHO: &str = "set `teacher.dialect` to what the server is: \"vllm\" scores prompts without `echo`, \
    \"llamacpp\" gives log-probabilities of generated tokens";

impl CompletionsReply {
    /// Reads a reply to `num_prompts` prompts.
    ///
    /// # Errors
    /// As [`json::read`]; deterministic where it has not one choice for each prompt.
    pub(super) fn parse(body: &[u8], num_prompts: usize) -> Result<Self, TeacherError> {
        let body: Body = json::read(body, "completion")?;
        let num_choices = body.choices.len();
        let mut choices: Vec<Option<Choice>> = (0..num_prompts).map(|_| None).collect();
        for (place, choice) in body.choices.into_iter().enumerate() {
            let index = choice.index.unwrap_or(place);
            match choices.get_mut(index) {
                Some(slot @ None) => *slot = Some(choice),
                Some(Some(_)) => {
                    let problem = format!("the reply has two choices with index {index}");
                    return Err(unusable(problem));
                }
                None => {
                    let problem = format!(
                        "the reply has a choice with index {index} for {num_prompts} prompts"
                    );
                    return Err(unusable(problem));
                }
            }
        }
        let choices = choices.into_iter().collect::<Option<Vec<_>>>();
        let choices = choices.ok_or_else(|| {
            unusable(format!(
                "the reply has {num_choices} choices for {num_prompts} prompts"
            ))
            .advise("ask a server that takes a list of prompts")
        })?;
        Ok(Self {
            choices,
            model: body.model,
            fingerprint: body.system_fingerprint,
            usage: body.usage.unwrap_or_default(),
        })
    }

    /// Tokens and model are those of the whole reply; the finish reason is that of a single choice.
    pub(super) fn provenance(&self) -> Provenance {
        let finish_reason = match &self.choices[..] {
            [only] => only.finish_reason.clone(),
            _ => None,
        };
        Provenance {
            served_model: self.model.clone(),
            fingerprint: self.fingerprint.clone(),
            finish_reason,
            tokens_in: self.usage.prompt_tokens,
            tokens_out: self.usage.completion_tokens,
            ..Provenance::default()
        }
    }

    /// How many tokens of each choice were generated, where each may have one: all or none by the server's count, or
    /// else as the text shows.
    pub(super) fn num_generated(&self, prompts: &[String]) -> Vec<usize> {
        let counted = self.usage.completion_tokens.map(|count| count as usize);
        let seen = self.choices.iter().zip(prompts).map(|(choice, prompt)| {
            let text = choice.text.as_deref().unwrap_or_default();
            match counted {
                Some(0) => 0,
                Some(count) if count == prompts.len() => 1,
                _ => usize::from(text.len() > prompt.len()),
            }
        });
        seen.collect()
    }
}

impl Choice {
    /// The positions of the prompt by vLLM's `prompt_logprobs`.
    ///
    /// # Errors
    /// Deterministic where the server ignored the wish, or its numbers are no log-probabilities.
    pub(super) fn scored_prompt(
        &self,
        k: u32,
        signal: &str,
    ) -> Result<Vec<TopKPosition>, TeacherError> {
        let positions = self.prompt_logprobs.as_ref();
        let positions = positions.ok_or_else(|| lacks("`prompt_logprobs`", signal, NOT_VLLM))?;
        let ids = self.prompt_token_ids.as_ref();
        // Ids of another number of positions would name the wrong tokens.
        let ids = ids.filter(|ids| ids.len() == positions.len());
        let read = |(index, position): (usize, &Option<Pairs<ScoredById>>)| match position {
            None => Ok(unscored()),
            Some(pairs) => scored_by_id(pairs, ids.map(|ids| ids[index]), k),
        };
        positions.iter().enumerate().map(read).collect()
    }

    /// The positions of the prompt by `echo`: all but the last `num_generated`.
    ///
    /// # Errors
    /// As for [`Self::scored_prompt`].
    pub(super) fn echoed(
        &self,
        prompt: &str,
        num_generated: usize,
        k: u32,
        signal: &str,
    ) -> Result<Vec<TopKPosition>, TeacherError> {
        let text = self.text.as_deref().unwrap_or_default();
        if !text.starts_with(prompt) {
            return Err(lacks("the echoed prompt", signal, NO_ECHO));
        }
        let mut positions = self.listed(k, signal)?;
        positions.truncate(positions.len().saturating_sub(num_generated));
        if !prompt.is_empty() && positions.is_empty() {
            return Err(lacks("log-probabilities of the prompt", signal, NO_ECHO));
        }
        Ok(positions)
    }

    /// The positions of the generated tokens.
    ///
    /// # Errors
    /// As for [`Self::scored_prompt`].
    pub(super) fn generated(
        &self,
        k: u32,
        signal: &str,
    ) -> Result<Vec<TopKPosition>, TeacherError> {
        let positions = self.listed(k, signal)?;
        if !positions.is_empty() && positions.iter().all(|position| position.entries.is_empty()) {
            let advice = "the server gives the generated tokens' own log-probabilities only: leave \"logprobs\" out of \
                `teacher.signals`";
            return Err(lacks("`top_logprobs`", signal, advice));
        }
        Ok(positions)
    }

    /// The lists of `logprobs`.
    fn listed(&self, k: u32, signal: &str) -> Result<Vec<TopKPosition>, TeacherError> {
        let advice =
            "the server ignored `logprobs`: leave the signal out, or ask a server that gives it";
        let logprobs = self.logprobs.as_ref();
        let logprobs = logprobs.ok_or_else(|| lacks("`logprobs`", signal, advice))?;
        let (Some(tokens), Some(own)) = (&logprobs.tokens, &logprobs.token_logprobs) else {
            let advice = match logprobs.content {
                Some(_) => {
                    "the server answers in the shape of a chat, as llama.cpp does: set `dialect = \"llamacpp\"`"
                }
                None => advice,
            };
            return Err(lacks("`tokens` and `token_logprobs`", signal, advice));
        };
        let top = logprobs.top_logprobs.as_deref().unwrap_or_default();
        if own.len() != tokens.len() || !(top.is_empty() || top.len() == tokens.len()) {
            return Err(unusable(format!(
                "`logprobs` has {} tokens, {} log-probabilities and {} lists of entries",
                tokens.len(),
                own.len(),
                top.len()
            )));
        }
        let read = |(index, (text, logprob)): (usize, (&String, &Option<f32>))| {
            let entries = top.get(index).and_then(Option::as_ref);
            let entries = entries.map_or(&[][..], |pairs| &pairs.0);
            let scored = |text: &String, logprob| ScoredToken {
                token: token(text),
                logprob,
            };
            let entries = entries.iter().map(|(text, logprob)| scored(text, *logprob));
            position(
                logprob.map(|logprob| scored(text, logprob)),
                entries.collect(),
                k,
            )
        };
        tokens.iter().zip(own).enumerate().map(read).collect()
    }
}

/// The first token of a text, which has nothing before it to be predicted from.
fn unscored() -> TopKPosition {
    TopKPosition {
        remaining_mass: 1.0,
        ..TopKPosition::default()
    }
}

/// vLLM writes the prompt's own token first, and besides the `k` most probable ones only where it is none of them.
fn scored_by_id(
    pairs: &Pairs<ScoredById>,
    own: Option<u32>,
    k: u32,
) -> Result<TopKPosition, TeacherError> {
    let mut entries = Vec::with_capacity(pairs.0.len());
    for (key, scored) in &pairs.0 {
        let id: u32 = key.parse().map_err(|_| {
            let key = shorten(key);
            unusable(format!(
                "`prompt_logprobs` has the key `{key}`, which is no id"
            ))
        })?;
        entries.push(ScoredToken {
            token: Token {
                id: Some(id),
                bytes: scored
                    .decoded_token
                    .as_ref()
                    .map(|text| text.clone().into_bytes()),
            },
            logprob: scored.logprob,
        });
    }
    let by_id = entries
        .iter()
        .position(|entry| own.is_some() && entry.token.id == own);
    let outside = |scored: &ScoredById| scored.rank.is_some_and(|rank| rank > k.max(1));
    let by_rank = pairs.0.iter().position(|(_, scored)| outside(scored));
    let chosen = entries.get(by_id.or(by_rank).unwrap_or(0)).cloned();
    position(chosen, entries, k)
}

/// The log-probability of each text after the tokens with which all begin. What comes before is common to all, whatever
/// the tokeniser makes of the place where prompt and word meet.
///
/// # Errors
/// Deterministic where the tokens of a text begin those of another, or it holds a token without a log-probability.
pub(super) fn after_common_prefix(texts: &[Vec<TopKPosition>]) -> Result<Vec<f64>, TeacherError> {
    let tokens: Vec<Vec<Option<&Token>>> = texts.iter().map(|text| tokens_of(text)).collect();
    let refuse = |problem: &str| unusable(format!("signal `class_logits`: {problem}"));
    for (index, one) in tokens.iter().enumerate() {
        let mut others = tokens
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index);
        if others.any(|(_, other)| other.starts_with(one)) {
            return Err(
                refuse("the tokens of one word begin those of another").advise(
                    "end the words of `teacher.labels` differently, for example with a full stop",
                ),
            );
        }
    }
    let is_shared = |index: &usize| tokens.iter().all(|text| text[*index] == tokens[0][*index]);
    let shortest = tokens.iter().map(Vec::len).min().unwrap_or(0);
    let shared = (0..shortest).take_while(is_shared).count();
    let score = |text: &Vec<TopKPosition>| {
        let mut sum = 0.0;
        for position in &text[shared..] {
            match &position.chosen {
                Some(scored) if scored.logprob > VERY_UNLIKELY => sum += f64::from(scored.logprob),
                _ => {
                    return Err(refuse("a token of a word has no log-probability")
                        .advise("give the class another word in `teacher.labels`"));
                }
            }
        }
        Ok(sum)
    };
    texts.iter().map(score).collect()
}

/// The tokens of a text; the first one, which has no log-probability, is known by its place alone.
fn tokens_of(text: &[TopKPosition]) -> Vec<Option<&Token>> {
    let chosen = text.iter().map(|position| position.chosen.as_ref());
    chosen
        .map(|chosen| chosen.map(|scored| &scored.token))
        .collect()
}
