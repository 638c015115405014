//! What teachers that generate text have in common.

use std::collections::BTreeMap;

use schemas::record::{TokenTopK, TopKPosition};
use schemas::{Provenance, SignalValue, TeacherIdentity};
use serde_json::{Map, Value};

use super::generation::{GenerationConfig, Signal};
use super::media::{Media, Picture};
use super::{
    BatchLimits, Description, ErrorClass, Offer, OpenContext, Reply, Request, TeacherError, Usage,
};
use crate::config::{ConfigError, Section, ServerConfig};

/// Most probable tokens at a position that hosted protocols give at most.
const MAX_TOP_LOGPROBS: u32 = 20;

/// Tokens that a picture takes at most, for budgets: the largest default among servers that scale pictures down.
const PICTURE_TOKENS: u64 = 16_384;

/// An upper bound for requests that generate at most `max_tokens` each, where `num_fixed_bytes` of text go with every
/// prompt.
pub(super) fn most(requests: &[Request], max_tokens: u32, num_fixed_bytes: usize) -> Usage {
    let num_pictures = requests
        .iter()
        .filter(|request| request.image.is_some())
        .count();
    let mut usage = Usage::of_prompts(requests);
    usage.tokens_in += num_pictures as u64 * PICTURE_TOKENS;
    usage.tokens_in += (requests.len() * num_fixed_bytes) as u64;
    usage.tokens_out = u64::from(max_tokens) * requests.len() as u64;
    usage
}

/// The picture of a request, where it has one.
///
/// # Errors
/// As [`Media::read`].
pub(super) async fn picture(
    media: &Media,
    request: &Request,
) -> Result<Option<Picture>, TeacherError> {
    match &request.image {
        Some(name) => Ok(Some(media.read(name).await?)),
        None => Ok(None),
    }
}

/// Refuses more of the most probable tokens than a protocol gives.
///
/// # Errors
/// [`ConfigError::Refused`].
pub(super) fn check_top_logprobs(
    generation: &GenerationConfig,
    section: &Section<'_>,
) -> Result<(), ConfigError> {
    if generation.wants(Signal::Logprobs) && generation.top_logprobs.get() > MAX_TOP_LOGPROBS {
        let problem = format!("the protocol gives at most {MAX_TOP_LOGPROBS} tokens a position");
        return Err(section.refuse_key("top_logprobs", &problem));
    }
    Ok(())
}

/// Refuses signals that a kind does not give.
///
/// # Errors
/// [`ConfigError::Refused`], with `problem`.
pub(super) fn check_signals(
    generation: &GenerationConfig,
    given: &[Signal],
    section: &Section<'_>,
    problem: &str,
) -> Result<(), ConfigError> {
    if generation
        .signals
        .iter()
        .all(|signal| given.contains(signal))
    {
        return Ok(());
    }
    Err(section.refuse_key("signals", problem))
}

/// What a teacher that generates says of itself: one text a request.
pub(super) fn describe(
    kind: &str,
    server: &ServerConfig,
    settings: Map<String, Value>,
    generation: &GenerationConfig,
) -> Description {
    Description {
        identity: TeacherIdentity {
            kind: kind.into(),
            model: server.model.clone(),
            settings: settings.into(),
        },
        offers: offers(generation),
        batch: BatchLimits::SINGLE,
        max_in_flight: None,
    }
}

/// The signals as they are offered.
pub(super) fn offers(generation: &GenerationConfig) -> Vec<Offer> {
    let k = generation.top_logprobs.get();
    let offer = |signal: &Signal| {
        let meaning = match signal {
            Signal::Text => "the reply",
            _ => "tokens and log-probabilities at each position of the reply",
        };
        signal.offer(k, 0, meaning)
    };
    generation.signals.iter().map(offer).collect()
}

/// A reply with those of its parts that are asked for.
///
/// # Errors
/// Those of `logprobs`, which is called only where log-probabilities are asked for.
pub(super) fn reply(
    generation: &GenerationConfig,
    text: String,
    logprobs: impl FnOnce() -> Result<Vec<TopKPosition>, TeacherError>,
    provenance: Provenance,
) -> Result<Reply, TeacherError> {
    let mut signals = BTreeMap::new();
    if generation.wants(Signal::Logprobs) {
        let positions = logprobs()?;
        let value = SignalValue::TokenTopK(TokenTopK { positions });
        signals.insert(Signal::Logprobs.name().to_owned(), value);
    }
    if generation.wants(Signal::Text) {
        signals.insert(Signal::Text.name().to_owned(), SignalValue::Text(text));
    }
    Ok(Reply {
        signals,
        provenance,
    })
}

/// Refuses a picture for a teacher that takes none.
///
/// # Errors
/// Deterministic where `image_field` is configured.
pub(super) fn refuse_pictures(context: &OpenContext<'_>, whose: &str) -> Result<(), TeacherError> {
    if context.common.image_field.is_none() {
        return Ok(());
    }
    let problem = format!("{whose} takes no pictures, and `image_field` names one");
    Err(TeacherError::new(ErrorClass::Deterministic, problem)
        .advise("leave `image_field` of the teacher out, or ask a teacher that takes pictures"))
}
