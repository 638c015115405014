//! Text -> picture -> feature: a text-to-image server that is asked as a black box, and an encoder of its pictures.

mod address;
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

use self::address::{Addresses, is_gone};
use self::encoder::{Encoder, EncoderConfig};
use self::generator::{ADDRESS, Generator, GeneratorConfig, IMAGE, REVISED_PROMPT};
use self::grid::is_broken;
use super::media::Picture;
use super::options::Settings;
use super::{
    Answers, BatchLimits, Description, ErrorClass, Offer, OfferKind, OpenContext, Paid, Reply,
    Request, Sent, Teacher, TeacherError, TeacherKind, Usage,
};
use crate::config::{ConfigError, Section, ServerConfig, TeacherEntry};

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
    fn encoder_entry(&self) -> Option<&TeacherEntry> {
        match &self.encoder {
            EncoderConfig::Builtin(_) => None,
            EncoderConfig::Teacher(entry) => Some(entry),
        }
    }

    fn encoder(&self, context: &OpenContext<'_>) -> Result<Option<Arc<dyn Teacher>>, TeacherError> {
        match self.encoder.open(context)? {
            Encoder::Builtin(_) => Ok(None),
            Encoder::Teacher(teacher) => Ok(Some(teacher)),
        }
    }

    fn open(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Teacher>, TeacherError> {
        super::generated::refuse_pictures(context, "a text-to-image teacher")?;
        let generator = Generator::open(&self.server, &self.generator)?;
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
            address_part: format!("{part}-{ADDRESS}"),
            part,
            addresses: Addresses::open(&self.server, context)?,
            generator: context.guard(generator),
            encoder,
        }))
    }
}

/// The part of a row that a picture is. Its name tells generators apart.
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
    address_part: String,
    generator: Arc<dyn Teacher>,
    addresses: Addresses,
    encoder: Encoder,
}

impl Images {
    async fn ask_one(&self, request: &Request, paid: &dyn Paid) -> Result<Reply, TeacherError> {
        let picture = self.picture(request, paid).await?;
        let tries = picture.provenance.tries;
        self.encoded(request, picture, paid)
            .await
            .map_err(|error| TeacherError {
                tries: error.tries.saturating_add(tries),
                ..error
            })
    }

    /// The reply with the row's picture, made now or kept.
    async fn picture(&self, request: &Request, paid: &dyn Paid) -> Result<Reply, TeacherError> {
        if let Some(kept) = paid.find(&self.part, request) {
            return Ok(kept);
        }
        if let Some(kept) = paid.find(&self.address_part, request) {
            match self.fetched(request, kept, paid).await {
                Err(error) if is_gone(&error) => {}
                outcome => return outcome,
            }
        }
        let made = only(self.generator.as_ref(), request, paid).await?;
        if made.signals.contains_key(ADDRESS) {
            paid.keep(&self.address_part, request, &made)?;
            return self.fetched(request, made, paid).await;
        }
        paid.keep(&self.part, request, &made)?;
        Ok(made)
    }

    /// The reply with the picture in place of its address.
    async fn fetched(
        &self,
        request: &Request,
        mut made: Reply,
        paid: &dyn Paid,
    ) -> Result<Reply, TeacherError> {
        let Some(SignalValue::Text(url)) = made.signals.remove(ADDRESS) else {
            return Err(
                unusable("what is kept of the picture is no address").having(Sent::Unusable)
            );
        };
        let picture = self.addresses.picture(url, request, paid).await;
        let picture = picture.map_err(|error| TeacherError {
            tries: made.provenance.tries,
            ..error
        })?;
        made.signals.insert(IMAGE.to_owned(), picture);
        paid.keep(&self.part, request, &made)?;
        Ok(made)
    }

    /// Forgets the row's picture, and its address: what lies there is the same.
    fn forget(&self, request: &Request, paid: &dyn Paid) -> Result<(), TeacherError> {
        if paid.find(&self.address_part, request).is_some() {
            paid.forget(&self.address_part, request)?;
        }
        paid.forget(&self.part, request)
    }

    /// The row: the picture's feature, and what else is kept of the picture. A picture that will never do is forgotten.
    async fn encoded(
        &self,
        request: &Request,
        mut picture: Reply,
        paid: &dyn Paid,
    ) -> Result<Reply, TeacherError> {
        let revised = picture.signals.remove(REVISED_PROMPT);
        if self.own.revised_prompt && revised.is_none() {
            self.forget(request, paid)?;
            let advice = "leave `revised_prompt` of the teacher out: this model changes no prompt";
            return Err(unusable("the reply has no `revised_prompt`")
                .advise(advice)
                .lacking());
        }
        let Some(SignalValue::Image(bytes)) = picture.signals.remove(IMAGE) else {
            self.forget(request, paid)?;
            return Err(unusable("what is kept of the picture is none"));
        };
        let decoded = Picture::new(bytes, "generated")?;
        let encoded = match self.encoder.encode(request, &decoded, paid).await {
            Err(error) => {
                if error.class == ErrorClass::Deterministic && is_broken(decoded.bytes).await {
                    self.forget(request, paid)?;
                }
                return Err(error);
            }
            Ok(encoded) => encoded,
        };
        let mut signals = encoded.signals;
        if self.own.keep_image {
            signals.insert(IMAGE.to_owned(), SignalValue::Image(decoded.bytes));
        }
        if let Some(revised) = revised.filter(|_| self.own.revised_prompt) {
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

fn unusable(problem: &str) -> TeacherError {
    TeacherError::new(ErrorClass::Deterministic, problem)
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

    fn fee(&self, requests: &[Request]) -> f64 {
        self.generator.fee(requests) + self.encoder.fee(requests)
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
