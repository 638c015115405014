//! Teachers: what can be asked about an example.
//!
//! One file per teacher; behaviour that several share is a decorator, such as [`Retry`].

mod class;
mod embeddings;
mod embeddings_reply;
mod http;
mod retry;
mod retry_header;
mod sketch;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::{
    ExampleId, FloatType, Provenance, SignalKind, SignalSpec, SignalValue, TeacherIdentity,
};

use crate::config::{RunConfig, TeacherConfig};
use crate::stop::Stop;

pub use class::{ErrorClass, TeacherError};
pub use embeddings::Embeddings;
pub use http::BaseUrl;
pub use retry::Retry;
pub use sketch::Sketch;

/// One question to a teacher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The example asked about.
    pub id: ExampleId,
    /// Which of several replies to the same example this shall be, from 0.
    pub draw: u32,
    /// The text, rendered from the example.
    pub prompt: String,
}

/// What a teacher said.
#[derive(Clone, PartialEq, Debug)]
pub struct Reply {
    /// The values by signal name.
    pub signals: BTreeMap<String, SignalValue>,
    /// How the reply came to be.
    pub provenance: Provenance,
}

/// The kind of an offered signal; its width is known once a reply was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OfferKind {
    /// One vector for the whole example.
    Feature,
    /// An encoded picture.
    Image,
}

/// One signal that a teacher gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Name of the signal and of its column.
    pub name: &'static str,
    /// What it is.
    pub kind: OfferKind,
    /// What the values mean, in words.
    pub meaning: String,
}

impl Offer {
    /// The signal as a cache stores it; `width` is ignored for pictures.
    ///
    /// # Errors
    /// [`schemas::Error::InvalidSignalSpec`] where the width is zero.
    pub fn spec(&self, width: u32, dtype: FloatType) -> Result<SignalSpec, schemas::Error> {
        let kind = match self.kind {
            OfferKind::Feature => SignalKind::Feature { width, dtype },
            OfferKind::Image => SignalKind::Image,
        };
        SignalSpec::new(self.name, kind, self.meaning.clone())
    }
}

/// What a teacher says of itself without being asked anything that costs.
#[derive(Clone, PartialEq, Debug)]
pub struct Description {
    /// Who it is, for the manifest.
    pub identity: TeacherIdentity,
    /// What it gives.
    pub offers: Vec<Offer>,
    /// The most requests in flight that are of use; `None` where the configuration alone decides.
    pub max_in_flight: Option<usize>,
}

impl Description {
    /// The signals as `reply` shows them.
    ///
    /// # Errors
    /// A [`TeacherError`] where the reply lacks one, or it is of another kind.
    pub fn specs(&self, reply: &Reply, dtype: FloatType) -> Result<Vec<SignalSpec>, TeacherError> {
        let unusable = |offer: &Offer, problem: &str| {
            TeacherError::new(
                ErrorClass::Deterministic,
                format!("signal `{}`: {problem}", offer.name),
            )
        };
        self.offers
            .iter()
            .map(|offer| {
                let width = match (reply.signals.get(offer.name), offer.kind) {
                    (Some(SignalValue::Vector(values)), OfferKind::Feature) => {
                        u32::try_from(values.len())
                            .map_err(|_| unusable(offer, "it is too wide"))?
                    }
                    (Some(SignalValue::Image(_)), OfferKind::Image) => 0,
                    (None, _) => return Err(unusable(offer, "the reply lacks it")),
                    (Some(_), _) => {
                        return Err(unusable(offer, "the reply has another kind of value"));
                    }
                };
                offer
                    .spec(width, dtype)
                    .map_err(|error| unusable(offer, &error.to_string()))
            })
            .collect()
    }
}

/// Something that answers questions about examples.
pub trait Teacher: Send + Sync + fmt::Debug {
    /// Identity, signals and limits; costs nothing.
    fn describe(&self) -> &Description;

    /// Asks about one example.
    ///
    /// # Errors
    /// A [`TeacherError`] whose class says what can be done about it.
    fn query<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Reply, TeacherError>>;
}

/// The configured teacher, retrying where it can fail for a while. Nothing is sent yet.
///
/// # Errors
/// A [`TeacherError`] where a secret is missing or the client cannot be set up.
pub fn open(
    config: &TeacherConfig,
    run: &RunConfig,
    stop: &Stop,
) -> Result<Arc<dyn Teacher>, TeacherError> {
    Ok(match config {
        TeacherConfig::Sketch(config) => Arc::new(Sketch::new(config)),
        TeacherConfig::Embeddings(config) => Arc::new(Retry::new(
            Embeddings::new(config)?,
            run.max_tries,
            stop.clone(),
        )),
    })
}
