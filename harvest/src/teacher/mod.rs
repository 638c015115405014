//! Teachers: what can be asked about an example.
//!
//! One file per teacher. Behaviour that several share is a decorator: [`Retry`] asks again and finds the bad row of a
//! batch, [`Gate`] keeps rate and budget.

mod anthropic;
pub(crate) mod batch;
mod binary;
mod chat;
mod class;
mod command;
mod completions;
mod embeddings;
mod embeddings_reply;
pub(crate) mod exchange;
#[cfg(test)]
mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod gate;
mod gemini;
mod generated;
mod generation;
mod hints;
pub(crate) mod http;
mod images;
mod json;
pub mod kinds;
mod labels;
pub(crate) mod media;
mod ollama;
mod options;
#[cfg(test)]
mod pages;
mod paid;
mod retry;
mod retry_header;
mod several;
pub mod sight;
mod sketch;
mod tei;
#[cfg(test)]
mod test_server;
mod tokens;
mod vector;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::{
    ExampleId, FloatType, Provenance, SignalKind, SignalSpec, SignalValue, Task, TeacherIdentity,
};

use sha2::{Digest as _, Sha256};

use crate::config::{CommonConfig, RunConfig, TeacherEntry};
use crate::reporter::Watch;
use crate::stop::Stop;

pub use class::{ErrorClass, Sent, TeacherError};
pub use gate::Gate;
pub use hints::{Bucket, RateHints};
pub use http::BaseUrl;
pub(crate) use http::install_tls;
pub use paid::{NotKept, Paid};
pub use retry::Retry;
pub use several::Several;
pub(crate) use several::holds;

/// One question to a teacher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The example asked about.
    pub id: ExampleId,
    /// Which of several replies to the same example this shall be, from 0.
    pub draw: u32,
    /// The text, rendered from the example.
    pub prompt: String,
    /// The picture, as the data set names it: a path or an address. It is read when it is sent.
    pub image: Option<String>,
    /// Text and picture for the second teacher of a cache and those after it.
    pub further: Vec<(String, Option<String>)>,
}

impl Request {
    /// A question without a picture.
    pub fn text(id: ExampleId, draw: u32, prompt: impl Into<String>) -> Self {
        Self {
            id,
            draw,
            prompt: prompt.into(),
            image: None,
            further: Vec::new(),
        }
    }

    /// Bytes of the longest prompt: each of several teachers is sent its own.
    pub(crate) fn longest_prompt(&self) -> usize {
        let further = self.further.iter().map(|(prompt, _)| prompt.len());
        further.fold(self.prompt.len(), usize::max)
    }

    /// 128 bits of SHA-256 over what is said; example and draw do not enter.
    pub(crate) fn digest(&self) -> [u8; 16] {
        let mut hasher = Sha256::new();
        let mut say = |text: &str, image: Option<&str>| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
            let image = image.unwrap_or_default();
            hasher.update((image.len() as u64).to_le_bytes());
            hasher.update(image.as_bytes());
        };
        say(&self.prompt, self.image.as_deref());
        for (text, image) in &self.further {
            say(text, image.as_deref());
        }
        let digest = hasher.finalize();
        *digest.first_chunk().expect("a digest has 32 bytes")
    }
}

/// What a teacher said.
#[derive(Clone, PartialEq, Debug)]
pub struct Reply {
    /// The values by signal name.
    pub signals: BTreeMap<String, SignalValue>,
    /// How the reply came to be.
    pub provenance: Provenance,
}

/// What came back for several questions that were sent together.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Answers {
    /// One outcome for each request, in their order.
    pub replies: Vec<Result<Reply, TeacherError>>,
    /// What the server said about its limits.
    pub hints: RateHints,
    /// What they took, where the replies do not tell: some were paid for by an earlier query.
    pub taken: Option<Usage>,
}

impl From<Vec<Result<Reply, TeacherError>>> for Answers {
    fn from(replies: Vec<Result<Reply, TeacherError>>) -> Self {
        Self {
            replies,
            ..Self::default()
        }
    }
}

/// What requests take.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Usage {
    /// Requests.
    pub requests: u64,
    /// Tokens of prompts.
    pub tokens_in: u64,
    /// Tokens of replies.
    pub tokens_out: u64,
}

impl Usage {
    /// Both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens_in: self.tokens_in.saturating_add(other.tokens_in),
            tokens_out: self.tokens_out.saturating_add(other.tokens_out),
        }
    }

    /// What a request that could take this much took, or may have taken, where it got this far and failed.
    pub(crate) fn of_failed(self, sent: Sent) -> Self {
        match sent {
            Sent::Nothing => Self::default(),
            // A server bills no tokens of what it did not take.
            Sent::Unconnected | Sent::Refused => Self {
                requests: self.requests,
                ..Self::default()
            },
            Sent::Unanswered | Sent::Unusable => self,
        }
    }

    /// An upper bound for these prompts in one request: no tokeniser makes more tokens than there are bytes, and a
    /// chat template adds few.
    pub fn of_prompts(requests: &[Request]) -> Self {
        const TEMPLATE_TOKENS: u64 = 64;
        let tokens = |request: &Request| request.prompt.len() as u64 + TEMPLATE_TOKENS;
        Self {
            requests: 1,
            tokens_in: requests.iter().map(tokens).sum(),
            tokens_out: 0,
        }
    }
}

/// The kind of an offered signal; the width of a feature is known once a reply was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OfferKind {
    /// One vector for the whole example.
    Feature,
    /// One logit for each class.
    ClassLogits {
        /// Number of classes.
        width: u32,
    },
    /// The most probable tokens at each position.
    TokenTopK {
        /// The most entries at a position.
        k: u32,
    },
    /// Text.
    Text,
    /// An encoded picture.
    Image,
}

/// One signal that a teacher gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Name of the signal and of its column.
    pub name: String,
    /// What it is.
    pub kind: OfferKind,
    /// What the values mean, in words.
    pub meaning: String,
}

impl Offer {
    /// An offer.
    pub fn new(name: impl Into<String>, kind: OfferKind, meaning: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind,
            meaning: meaning.into(),
        }
    }

    /// The signal as a cache stores it; `width` is that of a feature.
    ///
    /// # Errors
    /// [`schemas::Error::InvalidSignalSpec`] where the width is zero.
    pub fn spec(&self, width: u32, dtype: FloatType) -> Result<SignalSpec, schemas::Error> {
        let kind = match self.kind {
            OfferKind::Feature => SignalKind::Feature { width, dtype },
            OfferKind::ClassLogits { width } => SignalKind::ClassLogits { width, dtype },
            OfferKind::TokenTopK { k } => SignalKind::TokenTopK { k },
            OfferKind::Text => SignalKind::Text,
            OfferKind::Image => SignalKind::Image,
        };
        SignalSpec::new(self.name.as_str(), kind, self.meaning.clone())
    }
}

/// How many requests may be sent together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchLimits {
    /// The most requests.
    pub max_requests: usize,
    /// The most bytes of prompts.
    pub max_bytes: usize,
}

impl BatchLimits {
    /// One at a time.
    pub const SINGLE: Self = Self {
        max_requests: 1,
        max_bytes: usize::MAX,
    };
}

/// What a teacher says of itself without being asked anything that costs.
#[derive(Clone, PartialEq, Debug)]
pub struct Description {
    /// Who it is, for the manifest.
    pub identity: TeacherIdentity,
    /// What it gives.
    pub offers: Vec<Offer>,
    /// How many requests it takes together.
    pub batch: BatchLimits,
    /// The most batches in flight that are of use; `None` where the configuration alone decides.
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
                let width = match (reply.signals.get(&offer.name), offer.kind) {
                    (Some(SignalValue::Vector(values)), OfferKind::Feature) => {
                        u32::try_from(values.len())
                            .map_err(|_| unusable(offer, "it is too wide"))?
                    }
                    (Some(SignalValue::Vector(_)), OfferKind::ClassLogits { .. })
                    | (Some(SignalValue::TokenTopK(_)), OfferKind::TokenTopK { .. })
                    | (Some(SignalValue::Text(_)), OfferKind::Text)
                    | (Some(SignalValue::Image(_)), OfferKind::Image) => 0,
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

    /// The most that asking these requests once can take.
    fn most(&self, requests: &[Request]) -> Usage;

    /// Money that asking these requests once costs besides their tokens, in the currency of the configured price.
    fn fee(&self, _requests: &[Request]) -> f64 {
        0.0
    }

    /// Asks about several examples together, within `describe().batch`. A teacher that needs several requests for one
    /// reply hands what it has paid for to `paid`.
    ///
    /// # Errors
    /// A [`TeacherError`] where none of them was answered, whose class says what can be done about it.
    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>>;

    /// Everything that was asked for is committed, or among the rows that `failed`, which may be asked for again: what
    /// the teacher keeps to survive a restart may go. Called at the end of a run that is complete, when no query is in
    /// flight.
    fn finished<'a>(&'a self, _failed: &'a HashSet<(ExampleId, u32)>) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Reads `reply` as if a server had sent it with a status of success; `None` of a teacher that is more than one
    /// exchange.
    #[cfg(any(test, feature = "fuzzing"))]
    #[doc(hidden)]
    fn parse_reply(
        &self,
        _requests: &[Request],
        _reply: &[u8],
    ) -> Option<Result<Answers, TeacherError>> {
        None
    }
}

/// What a decorator leaves to the teacher that it wraps, in its field `inner`: all but `query` and `fee`.
macro_rules! forwards_to_inner {
    () => {
        fn describe(&self) -> &$crate::teacher::Description {
            self.inner.describe()
        }

        fn most(&self, requests: &[$crate::teacher::Request]) -> $crate::teacher::Usage {
            self.inner.most(requests)
        }

        fn finished<'a>(
            &'a self,
            failed: &'a std::collections::HashSet<(schemas::ExampleId, u32)>,
        ) -> futures::future::BoxFuture<'a, ()> {
            self.inner.finished(failed)
        }

        #[cfg(any(test, feature = "fuzzing"))]
        fn parse_reply(
            &self,
            requests: &[$crate::teacher::Request],
            reply: &[u8],
        ) -> Option<Result<$crate::teacher::Answers, $crate::teacher::TeacherError>> {
            self.inner.parse_reply(requests, reply)
        }
    };
}
use forwards_to_inner;

/// A teacher as configured: what its kind has, checked. One for each file of this folder that is a teacher.
pub trait TeacherKind: fmt::Debug + Send + Sync {
    /// The teacher; nothing is sent yet. A teacher that can fail for a while goes through
    /// [`OpenContext::guard`].
    ///
    /// # Errors
    /// A [`TeacherError`] where a secret is missing or the client cannot be set up.
    fn open(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Teacher>, TeacherError>;

    /// Whether even a single row is answered after hours.
    fn takes_long(&self) -> bool {
        false
    }

    /// Whether asking it starts a program here, which a second teacher of the same configuration would start once more.
    fn starts_a_program(&self) -> bool {
        false
    }

    /// The entry of the teacher that this one hands pictures on to, where there is one.
    fn encoder_entry(&self) -> Option<&TeacherEntry> {
        None
    }

    /// The teacher that this one hands pictures on to, where there is one, opened by itself.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn encoder(
        &self,
        _context: &OpenContext<'_>,
    ) -> Result<Option<Arc<dyn Teacher>>, TeacherError> {
        Ok(None)
    }
}

/// What opening a teacher takes besides its own section.
#[derive(Clone, Debug)]
pub struct OpenContext<'a> {
    /// What every teacher has.
    pub common: &'a CommonConfig,
    /// How it is asked.
    pub run: &'a RunConfig,
    /// What a row of the data set means.
    pub task: &'a Task,
    /// The data set's folder: pictures are read from nowhere else.
    pub data_folder: PathBuf,
    /// Folder for what must survive a restart, such as the ids of submitted batches.
    pub state_folder: PathBuf,
    /// The run's budget, metrics and events: one for all its teachers.
    pub watch: Watch,
    /// Ends waiting.
    pub stop: Stop,
}

impl OpenContext<'_> {
    /// The teacher behind rate, budget and retries.
    pub fn guard(&self, teacher: impl Teacher + 'static) -> Arc<dyn Teacher> {
        let gate = Gate::new(
            teacher,
            self.run.concurrency.get(),
            self.common.price.unwrap_or_default(),
            self.watch.clone(),
            self.stop.clone(),
        );
        let retry = Retry::new(gate, self.run.max_tries, self.stop.clone());
        Arc::new(retry.counted(Arc::clone(&self.watch.metrics)))
    }
}

/// The configured teacher. Nothing is sent yet.
///
/// # Errors
/// As [`TeacherKind::open`]; also where two of several teachers give signals of one name.
pub fn open<'a>(
    entries: &'a [TeacherEntry],
    context: impl Fn(&'a TeacherEntry) -> OpenContext<'a>,
) -> Result<Arc<dyn Teacher>, TeacherError> {
    match entries {
        [only] if only.name.is_none() => only.kind.open(&context(only)),
        several => {
            let named = several.iter().map(|entry| {
                let name = entry.name.clone().unwrap_or_default();
                Ok((name, entry.kind.open(&context(entry))?))
            });
            let named = named.collect::<Result<_, TeacherError>>()?;
            Ok(Arc::new(Several::new(named)?))
        }
    }
}

/// Asks about one example; nothing that is paid for on the way is kept.
///
/// # Errors
/// The [`TeacherError`] of the request.
pub async fn ask_alone(teacher: &dyn Teacher, request: &Request) -> Result<Reply, TeacherError> {
    let mut answers = teacher
        .query(std::slice::from_ref(request), &NotKept)
        .await?;
    answers.replies.pop().expect("one request has one outcome")
}
