//! The lines that go to a command and come back.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemas::record::{ScoredToken, Token, TokenTopK, TopKPosition};
use schemas::{Provenance, SignalValue};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::teacher::exchange::unix_milliseconds;
use crate::teacher::http::shorten;
use crate::teacher::{ErrorClass, Offer, OfferKind, Reply, Request, TeacherError};

/// Version of the protocol.
const VERSION: u64 = 1;
/// A probability of 1 may come out a little above 0 as a sum in f32.
const MAX_LOGPROB: f32 = 1e-3;

#[derive(Serialize)]
struct Question<'a> {
    id: String,
    draw: u32,
    prompt: &'a str,
    image: Option<&'a str>,
}

/// The line for a request.
pub(super) fn question(request: &Request, image: Option<&Path>) -> Result<Vec<u8>, TeacherError> {
    let image = image.map(|path| {
        path.to_str().ok_or_else(|| {
            let problem = format!("the path of a picture is no Unicode: {}", path.display());
            TeacherError::new(ErrorClass::Deterministic, problem)
        })
    });
    let question = Question {
        id: request.id.to_string(),
        draw: request.draw,
        prompt: &request.prompt,
        image: image.transpose()?,
    };
    let mut line = serde_json::to_vec(&question).expect("texts and numbers have a JSON form");
    line.push(b'\n');
    Ok(line)
}

/// Checks the first line of a process.
pub(super) fn check_hello(line: &[u8]) -> Result<(), TeacherError> {
    let refuse = |problem: String| {
        TeacherError::new(ErrorClass::Deterministic, problem).advise(
            "a command writes {\"armada\": 1} once it is ready, flushes it, and writes nothing but answers to \
             standard output; docs/teachers/command.md describes the lines",
        )
    };
    let hello: Option<Value> = serde_json::from_slice(line).ok();
    match hello.as_ref().and_then(|hello| hello.get("armada")) {
        Some(version) if version.as_u64() == Some(VERSION) => Ok(()),
        Some(version) => Err(refuse(format!(
            "the command speaks version {} of the protocol, this program speaks {VERSION}",
            shorten(&version.to_string())
        ))),
        None => Err(refuse(format!(
            "the command's first line is no hello: {}",
            shorten(&String::from_utf8_lossy(&line[..line.len().min(2048)]))
        ))),
    }
}

/// A line of a command that belongs to the request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Answer {
    id: String,
    draw: u32,
    #[serde(default)]
    signals: BTreeMap<String, Value>,
    #[serde(default)]
    provenance: Said,
    #[serde(default)]
    error: Option<Refusal>,
}

/// What a command may say about an answer.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    served_model: Option<String>,
    fingerprint: Option<String>,
    finish_reason: Option<String>,
    tokens_in: Option<u32>,
    tokens_out: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    class: Class,
    message: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Class {
    Rate,
    Overload,
    Transient,
    Deterministic,
    Credentials,
    Quota,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    chosen: Option<(u32, f32)>,
    entries: Vec<(u32, f32)>,
    remaining_mass: Option<f32>,
}

impl Answer {
    /// Reads a line.
    ///
    /// # Errors
    /// Deterministic where it is no answer to the request; the process is not to be trusted any more then.
    pub(super) fn parse(line: &[u8], request: &Request) -> Result<Self, TeacherError> {
        let refuse = |problem: String| {
            TeacherError::new(ErrorClass::Deterministic, problem).advise(
                "standard output is for answers, one line for each row, in order; everything else goes to standard \
                 error",
            )
        };
        let answer: Self = serde_json::from_slice(line).map_err(|error| {
            let text = String::from_utf8_lossy(&line[..line.len().min(2048)]);
            refuse(format!(
                "the command's line is no answer ({}): {}",
                shorten(&error.to_string()),
                shorten(&text)
            ))
        })?;
        if answer.id == request.id.to_string() && answer.draw == request.draw {
            return Ok(answer);
        }
        Err(refuse(format!(
            "the command answered {} draw {} when it was asked about {} draw {}",
            shorten(&answer.id),
            answer.draw,
            request.id,
            request.draw
        )))
    }

    /// The reply with the signals that are offered.
    pub(super) fn reply(mut self, offers: &[Offer]) -> Result<Reply, TeacherError> {
        if let Some(Refusal { class, message }) = self.error {
            let class = match class {
                Class::Rate => ErrorClass::Rate,
                Class::Overload => ErrorClass::Overload,
                Class::Transient => ErrorClass::Transient,
                Class::Deterministic => ErrorClass::Deterministic,
                Class::Credentials => ErrorClass::Credentials,
                Class::Quota => ErrorClass::Quota,
            };
            let message = format!("the command says: {}", shorten(&message));
            return Err(TeacherError::new(class, message));
        }
        let mut signals = BTreeMap::new();
        for offer in offers {
            let refuse = |problem: &str| {
                let problem = format!("signal `{}` of the command: {problem}", offer.name);
                TeacherError::new(ErrorClass::Deterministic, problem)
            };
            let value = self.signals.remove(&offer.name);
            let value = value.ok_or_else(|| refuse("the answer lacks it"))?;
            let value = signal(value, offer.kind).map_err(|problem| refuse(&problem))?;
            signals.insert(offer.name.clone(), value);
        }
        if let Some((name, _)) = self.signals.pop_first() {
            return Err(TeacherError::new(
                ErrorClass::Deterministic,
                format!(
                    "the command gives a signal `{}`, which is not configured",
                    shorten(&name)
                ),
            )
            .advise("add it to `signals` of the teacher, or leave it out of the answers"));
        }
        Ok(Reply {
            signals,
            provenance: Provenance {
                served_model: self.provenance.served_model,
                fingerprint: self.provenance.fingerprint,
                finish_reason: self.provenance.finish_reason,
                tokens_in: self.provenance.tokens_in,
                tokens_out: self.provenance.tokens_out,
                answered_at: unix_milliseconds(std::time::SystemTime::now()),
                tries: 1,
                ..Provenance::default()
            },
        })
    }
}

/// A value of this kind, or what is wrong with it.
fn signal(value: Value, kind: OfferKind) -> Result<SignalValue, String> {
    match kind {
        OfferKind::Feature => vector(value, None),
        OfferKind::ClassLogits { width } => vector(value, Some(width)),
        OfferKind::Text => match value {
            Value::String(text) => Ok(SignalValue::Text(text)),
            _ => Err("expected a text".into()),
        },
        OfferKind::Image => match value {
            Value::String(text) => base64(&text).map(SignalValue::Image),
            _ => Err("expected a picture in base64".into()),
        },
        OfferKind::TokenTopK { k } => top_k(value, k),
    }
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    BASE64
        .decode(text)
        .map_err(|error| format!("it is no base64: {error}"))
}

fn vector(value: Value, width: Option<u32>) -> Result<SignalValue, String> {
    let vector = serde_json::from_value(value)
        .map_err(|_| "expected a list of numbers, or base64 of little-endian f32")?;
    let values = match vector {
        Vector::Numbers(values) => values,
        Vector::Base64(text) => {
            let bytes = base64(&text)?;
            let (values, rest) = bytes.as_chunks::<4>();
            if !rest.is_empty() {
                return Err(format!("{} bytes are no whole number of f32", bytes.len()));
            }
            values.iter().copied().map(f32::from_le_bytes).collect()
        }
    };
    match (values.iter().position(|value| !value.is_finite()), width) {
        _ if values.is_empty() => Err("the vector is empty".into()),
        (Some(index), _) => Err(format!("value {index} is {}", values[index])),
        (None, Some(width)) if values.len() != width as usize => Err(format!(
            "{} values, the task has {width} classes",
            values.len()
        )),
        (None, _) => Ok(SignalValue::Vector(values)),
    }
}

fn top_k(value: Value, k: u32) -> Result<SignalValue, String> {
    let positions: Vec<Position> = serde_json::from_value(value).map_err(|error| {
        format!(
            "expected a list of positions: {}",
            shorten(&error.to_string())
        )
    })?;
    let positions = positions.into_iter().enumerate().map(|(index, position)| {
        let mut entries = position.entries;
        if entries.len() > k as usize {
            return Err(format!(
                "position {index} has {} entries, k is {k}",
                entries.len()
            ));
        }
        if let Some((id, logprob)) = entries
            .iter()
            .find(|(_, logprob)| logprob.is_nan() || *logprob > MAX_LOGPROB)
        {
            return Err(format!(
                "position {index}: {logprob} of token {id} is no log-probability"
            ));
        }
        entries.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let kept: f64 = entries
            .iter()
            .map(|(_, logprob)| f64::from(*logprob).exp())
            .sum();
        let remaining_mass = position
            .remaining_mass
            .unwrap_or((1.0 - kept).clamp(0.0, 1.0) as f32);
        if !(0.0..=1.0).contains(&remaining_mass) {
            return Err(format!(
                "position {index}: {remaining_mass} is no mass in [0, 1]"
            ));
        }
        Ok(TopKPosition {
            chosen: position.chosen.map(scored),
            remaining_mass,
            entries: entries.into_iter().map(scored).collect(),
        })
    });
    let positions = positions.collect::<Result<Vec<_>, _>>()?;
    Ok(SignalValue::TokenTopK(TokenTopK { positions }))
}

fn scored((id, logprob): (u32, f32)) -> ScoredToken {
    let token = Token {
        id: Some(id),
        bytes: None,
    };
    ScoredToken { token, logprob }
}
