//! Text -> picture -> feature: a text-to-image server that is asked as a black box, and an encoder of its pictures.

mod encoder;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod generator;
mod grid;

use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::{Provenance, SignalValue, TeacherIdentity};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use self::encoder::{Encoder, EncoderConfig};
use self::generator::{Generator, GeneratorConfig, IMAGE, REVISED_PROMPT};
use super::media::Picture;
use super::options::Settings;
use super::{
    Answers, BatchLimits, Description, ErrorClass, Offer, OfferKind, OpenContext, Paid, Reply,
    Request, Teacher, TeacherError, TeacherKind, Usage,
};
use crate::config::{ConfigError, Section, ServerConfig};

/// `[teacher]` with `kind = "images"`, besides what belongs to the generator and the encoder.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImagesConfig {
    /// Whether the picture is kept as the signal `image`.
    #[serde(default)]
    keep_image: bool,
    /// Whether the prompt as the server changed it is kept as the signal `revised_prompt`.
    #[serde(default)]
    revised_prompt: bool,
}

#[derive(Debug)]
struct Configured {
    server: ServerConfig,
    generator: GeneratorConfig,
    encoder: EncoderConfig,
    own: ImagesConfig,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let whole = section.clone();
    let server = section.part(&ServerConfig::KEYS)?;
    let generator = GeneratorConfig::read(&mut section)?;
    let encoder = section.section("encoder")?;
    let encoder = encoder.ok_or_else(|| {
        whole.refuse(
            "the section [teacher.encoder] is missing: it says how a picture becomes a feature",
        )
    })?;
    let encoder = EncoderConfig::read(encoder)?;
    let own: ImagesConfig = section.rest()?;
    if own.revised_prompt && !generator.revises_prompts() {
        let problem = "this `api` does not change prompts";
        return Err(whole.refuse_key("revised_prompt", problem));
    }
    Ok(Arc::new(Configured {
        server,
        generator,
        encoder,
        own,
    }))
}

impl TeacherKind for Configured {
    fn encoder(&self, context: &OpenContext<'_>) -> Result<Option<Arc<dyn Teacher>>, TeacherError> {
        match self.encoder.open(context)? {
            Encoder::Builtin(_) => Ok(None),
            Encoder::Teacher(teacher) => Ok(Some(teacher)),
        }
    }

    fn open(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Teacher>, TeacherError> {
        super::generated::refuse_pictures(context, "a text-to-image teacher")?;
        let generator = Generator::open(&self.server, &self.generator, context)?;
        let encoder = self.encoder.open(context)?;
        let identity = &generator.describe().identity;
        let mut settings = Settings::new("generator", &identity.settings);
        settings.add("encoder", Some(encoder.settings()));
        let part = part_name(identity);
        let identity = TeacherIdentity {
            kind: "images".into(),
            model: identity.model.clone(),
            settings: settings.into(),
        };
        let mut offers = vec![Offer::new("feature", OfferKind::Feature, encoder.meaning())];
        if self.own.keep_image {
            offers.push(Offer::new(IMAGE, OfferKind::Image, "the generated picture"));
        }
        if self.own.revised_prompt {
            let meaning = "the prompt as the server changed it";
            offers.push(Offer::new(REVISED_PROMPT, OfferKind::Text, meaning));
        }
        Ok(Arc::new(Images {
            description: Description {
                identity,
                offers,
                batch: BatchLimits::SINGLE,
                max_in_flight: None,
            },
            own: self.own,
            part,
            generator: context.guard(generator),
            encoder,
        }))
    }
}

/// The part of a row that a picture is. Its name tells generators apart, so that several teachers of one cache find
/// their own.
fn part_name(generator: &TeacherIdentity) -> String {
    let identity = serde_json::to_vec(generator).expect("an identity has a JSON form");
    let digest = Sha256::digest(identity);
    let start = digest.first_chunk().expect("a digest has 32 bytes");
    format!("picture-{:016x}", u64::from_be_bytes(*start))
}

/// Asks for a picture, which is kept as soon as it is there, and then for its feature.
#[derive(Debug)]
struct Images {
    description: Description,
    own: ImagesConfig,
    part: String,
    generator: Arc<dyn Teacher>,
    encoder: Encoder,
}

impl Images {
    async fn ask_one(&self, request: &Request, paid: &dyn Paid) -> Result<Reply, TeacherError> {
        let mut picture = if let Some(kept) = paid.find(&self.part, request) {
            kept
        } else {
            let new = only(self.generator.as_ref(), request, paid).await?;
            paid.keep(&self.part, request, &new)?;
            new
        };
        let Some(SignalValue::Image(bytes)) = picture.signals.remove(IMAGE) else {
            let problem = "what was kept of an earlier run is no picture";
            return Err(TeacherError::new(ErrorClass::Deterministic, problem));
        };
        let decoded = Picture::new(bytes, "generated")?;
        let encoded = self.encoder.encode(request, &decoded, paid).await?;
        let mut signals = encoded.signals;
        if self.own.keep_image {
            signals.insert(IMAGE.to_owned(), SignalValue::Image(decoded.bytes));
        }
        if self.own.revised_prompt {
            let revised = picture.signals.remove(REVISED_PROMPT).ok_or_else(|| {
                let problem = "the reply has no `revised_prompt`";
                TeacherError::new(ErrorClass::Deterministic, problem).advise(
                    "leave `revised_prompt` of the teacher out: this model changes no prompt",
                )
            })?;
            signals.insert(REVISED_PROMPT.to_owned(), revised);
        }
        Ok(Reply {
            signals,
            provenance: both(picture.provenance, encoded.provenance),
        })
    }

    async fn ask(&self, requests: &[Request], paid: &dyn Paid) -> Answers {
        let mut replies = Vec::with_capacity(requests.len());
        for request in requests {
            replies.push(self.ask_one(request, paid).await);
        }
        replies.into()
    }
}

/// The one reply of a teacher to one request.
async fn only(
    teacher: &dyn Teacher,
    request: &Request,
    paid: &dyn Paid,
) -> Result<Reply, TeacherError> {
    let answers = teacher.query(std::slice::from_ref(request), paid).await?;
    let mut replies = answers.replies.into_iter();
    replies.next().expect("one request has one outcome")
}

/// The provenance of a picture and its feature: counts and latencies add up, models are joined.
fn both(picture: Provenance, encoded: Provenance) -> Provenance {
    let joined = |one: Option<String>, two: Option<String>| match (one, two) {
        (Some(one), Some(two)) => Some(format!("{one} + {two}")),
        (one, two) => one.or(two),
    };
    let added = |one: Option<u32>, two: Option<u32>| match (one, two) {
        (Some(one), Some(two)) => Some(one.saturating_add(two)),
        (one, two) => one.or(two),
    };
    Provenance {
        served_model: joined(picture.served_model, encoded.served_model),
        fingerprint: joined(picture.fingerprint, encoded.fingerprint),
        finish_reason: joined(picture.finish_reason, encoded.finish_reason),
        tokens_in: added(picture.tokens_in, encoded.tokens_in),
        tokens_out: added(picture.tokens_out, encoded.tokens_out),
        cost: match (picture.cost, encoded.cost) {
            (Some(one), Some(two)) => Some(one + two),
            (one, two) => one.or(two),
        },
        answered_at: picture.answered_at.max(encoded.answered_at),
        tries: picture.tries.saturating_add(encoded.tries),
        latency_ms: match (picture.latency_ms, encoded.latency_ms) {
            (Some(one), Some(two)) => Some(one + two),
            (one, two) => one.or(two),
        },
    }
}

impl Teacher for Images {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn most(&self, requests: &[Request]) -> Usage {
        let of_pictures = self.generator.most(requests);
        of_pictures.plus(self.encoder.most(requests))
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        Box::pin(async { Ok(self.ask(requests, paid).await) })
    }
}

#[cfg(test)]
mod tests;
