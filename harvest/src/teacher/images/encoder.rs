//! What makes a feature of a picture.

use std::num::NonZeroU32;
use std::sync::Arc;

use schemas::{Provenance, SignalValue};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::embeddings::feature;
use super::super::media::Picture;
use super::super::{
    ErrorClass, OfferKind, OpenContext, Paid, Reply, Request, Teacher, TeacherError, Usage, kinds,
};
use super::grid::Grid;
use super::only;
use crate::config::{CommonConfig, ConfigError, Section, TeacherEntry};

/// The largest grid: wider features than any student reads.
const MAX_GRID: u32 = 128;

/// `[teacher.encoder]`
#[derive(Clone, Debug)]
pub(super) enum EncoderConfig {
    /// `kind = "builtin"`
    Builtin(Grid),
    /// A second teacher.
    Teacher(Box<TeacherEntry>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BuiltinConfig {
    #[serde(rename = "kind")]
    _kind: String,
    /// Cells along one side.
    #[serde(default = "default_grid")]
    grid: NonZeroU32,
    /// Whether a cell has red, green and blue instead of its brightness.
    #[serde(default)]
    colour: bool,
}

/// That of the built-in teacher's pictures.
fn default_grid() -> NonZeroU32 {
    const { NonZeroU32::new(32).expect("not zero") }
}

impl EncoderConfig {
    pub(super) fn read(section: Section<'_>) -> Result<Self, ConfigError> {
        let whole = section.clone();
        match section.kind()?.as_str() {
            "builtin" => {
                let builtin: BuiltinConfig = section.rest()?;
                if builtin.grid.get() > MAX_GRID {
                    let problem = format!("at most {MAX_GRID} cells along a side");
                    return Err(whole.refuse_key("grid", &problem));
                }
                Ok(Self::Builtin(Grid::new(builtin.grid, builtin.colour)))
            }
            "images" | "sketch" => {
                let problem = "it draws pictures and reads none; expected `builtin` or a teacher that takes pictures, \
                               such as `embeddings`";
                Err(whole.refuse_key("kind", problem))
            }
            _ => {
                let entry = kinds::read(None, section)?;
                let given = "the encoder is given the generated picture and nothing else";
                match &entry.common {
                    CommonConfig {
                        prompt: Some(_), ..
                    } => Err(whole.refuse_key("prompt", given)),
                    CommonConfig {
                        image_field: Some(_),
                        ..
                    } => Err(whole.refuse_key("image_field", given)),
                    _ => Ok(Self::Teacher(Box::new(entry))),
                }
            }
        }
    }

    pub(super) fn open(&self, context: &OpenContext<'_>) -> Result<Encoder, TeacherError> {
        let entry = match self {
            Self::Builtin(grid) => return Ok(Encoder::Builtin(*grid)),
            Self::Teacher(entry) => entry,
        };
        let common = CommonConfig {
            image_field: Some("the generated picture".to_owned()),
            inline_images: true,
            ..entry.common.clone()
        };
        let teacher = entry.kind.open(&OpenContext {
            common: &common,
            ..context.clone()
        })?;
        let offers = &teacher.describe().offers;
        if !matches!(offers.as_slice(), [only] if only.kind == OfferKind::Feature) {
            let kind = &common.kind;
            let problem = format!("the encoder `{kind}` gives something else than one feature");
            return Err(TeacherError::new(ErrorClass::Deterministic, problem)
                .advise("set `kind` of [teacher.encoder] to \"builtin\" or \"embeddings\""));
        }
        Ok(Encoder::Teacher(teacher))
    }
}

/// An encoder that is ready.
#[derive(Debug)]
pub(super) enum Encoder {
    Builtin(Grid),
    Teacher(Arc<dyn Teacher>),
}

impl Encoder {
    pub(super) fn settings(&self) -> Value {
        match self {
            Self::Builtin(grid) => grid.settings(),
            Self::Teacher(teacher) => json!(teacher.describe().identity),
        }
    }

    pub(super) fn meaning(&self) -> String {
        match self {
            Self::Builtin(grid) => grid.meaning(),
            Self::Teacher(teacher) => {
                let model = &teacher.describe().identity.model;
                format!("the embedding by {model} of the generated picture")
            }
        }
    }

    pub(super) fn most(&self, requests: &[Request]) -> Usage {
        match self {
            Self::Builtin(_) => Usage::default(),
            Self::Teacher(teacher) => teacher.most(&all_asked(requests)),
        }
    }

    pub(super) fn fee(&self, requests: &[Request]) -> f64 {
        match self {
            Self::Builtin(_) => 0.0,
            Self::Teacher(teacher) => teacher.fee(&all_asked(requests)),
        }
    }

    /// The reply whose one signal is the picture's feature.
    pub(super) async fn encode(
        &self,
        request: &Request,
        picture: &Picture,
        paid: &dyn Paid,
    ) -> Result<Reply, TeacherError> {
        let teacher = match self {
            Self::Builtin(grid) => {
                let (grid, bytes) = (*grid, picture.bytes.clone());
                let encoded = tokio::task::spawn_blocking(move || grid.encode(&bytes)).await;
                let vector = encoded.expect("decoding a picture does not panic")?;
                return Ok(feature(vector, Provenance::default()));
            }
            Self::Teacher(teacher) => teacher,
        };
        let asked = asked(request, picture.data_uri());
        let mut reply = only(teacher.as_ref(), &asked, paid).await?;
        if let Some((_, SignalValue::Vector(vector))) = reply.signals.pop_first() {
            return Ok(feature(vector, reply.provenance));
        }
        let problem = "the encoder's reply has no feature";
        Err(TeacherError::new(ErrorClass::Deterministic, problem))
    }
}

/// What a second teacher is asked, as far as it is known before there are pictures.
fn all_asked(requests: &[Request]) -> Vec<Request> {
    requests.iter().map(|of| asked(of, String::new())).collect()
}

/// What a second teacher is asked about a request's picture.
fn asked(request: &Request, picture: String) -> Request {
    let mut asked = Request::text(request.id, request.draw, "");
    asked.image = Some(picture);
    asked
}
