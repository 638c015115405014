//! What goes wrong, and when: decided by a seed, the request and how often it came.

use std::time::Duration;

use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// What goes wrong with one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A good answer after a while.
    Latency(Duration),
    /// The connection is reset where the answer should begin.
    ResetBeforeHeaders,
    /// The connection is reset in the middle of the headers.
    ResetInHeaders,
    /// The connection is reset in the middle of the body.
    ResetInBody,
    /// The connection is closed in order before the announced end of the body.
    TruncatedBody,
    /// A good answer, a few bytes now and then.
    SlowBody,
    /// The headers, and then nothing for longer than any client waits.
    Hang,
    /// 200 with JSON that breaks off.
    BrokenJson,
    /// 200 with a page of HTML.
    Html200,
    /// 502 with a page of HTML.
    Html502,
    /// 500, once.
    Status500,
    /// 429 and one of the forms of headers that say when to come back.
    Limited(LimitHeader),
    /// 503, to be asked again in two milliseconds.
    Unavailable,
    /// 529, to be asked again in two milliseconds.
    Overloaded,
    /// 200 with an error inside, as routers write it.
    WrappedError,
    /// A good answer whose items come last first.
    OutOfOrder,
    /// Two items with the same index.
    DuplicateIndex,
    /// A redirect to another host.
    Redirect,
    /// A body over the client's limit, whose length is announced.
    TooLarge,
    /// A body over the client's limit, in chunks.
    TooLargeInChunks,
    /// 401.
    Unauthorized,
    /// 402.
    PaymentRequired,
    /// 429 with `insufficient_quota`.
    InsufficientQuota,
}

impl Fault {
    /// Whether the server does nothing of what it was asked to do.
    pub(super) fn turns_away(self) -> bool {
        matches!(
            self,
            Self::Limited(_)
                | Self::Unavailable
                | Self::Overloaded
                | Self::Redirect
                | Self::Unauthorized
                | Self::PaymentRequired
                | Self::InsufficientQuota
        )
    }

    /// Whether the client gets a part of the answer at most.
    pub(super) fn breaks_off(self) -> bool {
        matches!(
            self,
            Self::ResetBeforeHeaders
                | Self::ResetInHeaders
                | Self::ResetInBody
                | Self::TruncatedBody
        )
    }

    /// Whether it can happen to a row of a batch.
    pub(super) fn is_of_a_row(self) -> bool {
        let passes = [Self::Html502, Self::Status500, Self::Unavailable];
        self.breaks_off() || passes.contains(&self) || matches!(self, Self::Limited(_))
    }
}

/// How a server says when to come back. The values are small: what matters is that each is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitHeader {
    /// `retry-after-ms: 3`
    Milliseconds,
    /// `retry-after: 0`
    Seconds,
    /// `retry-after: 0.004`
    Fraction,
    /// `retry-after` with a date that has just passed.
    Date,
    /// `x-ratelimit-remaining-requests: 0` and `x-ratelimit-reset-requests: 12ms`
    Bucket,
    /// A bucket that is far from empty and whole in `6m0s`, and `retry-after-ms`.
    FullBucket,
    /// Every number is -1, and `retry-after-ms`.
    MinusOne,
}

const LIMIT_HEADERS: [LimitHeader; 7] = [
    LimitHeader::Milliseconds,
    LimitHeader::Seconds,
    LimitHeader::Fraction,
    LimitHeader::Date,
    LimitHeader::Bucket,
    LimitHeader::FullBucket,
    LimitHeader::MinusOne,
];

/// Faults after which the client chooses how long it waits: rare, since it waits half a second and more.
const UNTIMED: [Fault; 12] = [
    Fault::ResetBeforeHeaders,
    Fault::ResetInHeaders,
    Fault::ResetInBody,
    Fault::TruncatedBody,
    Fault::BrokenJson,
    Fault::Html200,
    Fault::Html502,
    Fault::Status500,
    Fault::Unavailable,
    Fault::Overloaded,
    Fault::WrappedError,
    Fault::DuplicateIndex,
];

/// Faults that end a run.
const ENDING: [Fault; 4] = [
    Fault::Redirect,
    Fault::Unauthorized,
    Fault::PaymentRequired,
    Fault::InsufficientQuota,
];

/// Every fault that a server can have for ever without ending the run, and without which no row is answered well.
pub const LASTING: [Fault; 16] = [
    Fault::ResetBeforeHeaders,
    Fault::ResetInHeaders,
    Fault::ResetInBody,
    Fault::TruncatedBody,
    Fault::Hang,
    Fault::BrokenJson,
    Fault::Html200,
    Fault::Html502,
    Fault::Status500,
    Fault::Limited(LimitHeader::Milliseconds),
    Fault::Unavailable,
    Fault::Overloaded,
    Fault::WrappedError,
    Fault::DuplicateIndex,
    Fault::TooLarge,
    Fault::TooLargeInChunks,
];

/// How often what goes wrong, in requests of a thousand. The same seed decides the same for the same request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    /// Decides.
    pub seed: u64,
    /// Answers that are late, slow or out of order, but good.
    pub odd: u32,
    /// 429 with headers.
    pub limited: u32,
    /// Faults without a word on when to come back.
    pub untimed: u32,
    /// Faults that end a run.
    pub ending: u32,
    /// Bodies that are too large, which cost the server and the client some time.
    pub too_large: u32,
    /// Every `storm_every` requests the next `storm_length` are answered with 429, whatever they ask; 0 for never.
    pub storm_every: u64,
    /// See `storm_every`.
    pub storm_length: u64,
}

impl Schedule {
    /// Nothing goes wrong.
    pub const CALM: Self = Self {
        seed: 0,
        odd: 0,
        limited: 0,
        untimed: 0,
        ending: 0,
        too_large: 0,
        storm_every: 0,
        storm_length: 0,
    };

    /// What goes wrong with the request with this body that comes for the `repeat`th time, as the `arrival`th of all.
    pub(super) fn fault(&self, body: &[u8], repeat: u64, arrival: u64) -> Option<Fault> {
        let mut random = self.random(body, repeat);
        if self.storm_every > 0
            && arrival % (self.storm_every + self.storm_length) >= self.storm_every
        {
            return Some(Fault::Limited(*LIMIT_HEADERS.choose(&mut random)?));
        }
        let mut share = random.random_range(0..1_000);
        let mut takes = |part: u32| {
            let hit = share < part;
            share = share.saturating_sub(part);
            hit
        };
        if takes(self.odd) {
            let wait = Duration::from_millis(random.random_range(1..40));
            let odd = [Fault::Latency(wait), Fault::SlowBody, Fault::OutOfOrder];
            return odd.choose(&mut random).copied();
        }
        if takes(self.limited) {
            return Some(Fault::Limited(*LIMIT_HEADERS.choose(&mut random)?));
        }
        if takes(self.untimed) {
            return UNTIMED.choose(&mut random).copied();
        }
        if takes(self.ending) {
            return ENDING.choose(&mut random).copied();
        }
        takes(self.too_large).then_some(Fault::TooLarge)
    }

    fn random(&self, body: &[u8], repeat: u64) -> ChaCha8Rng {
        // FNV-1a: stable from release to release, which the standard library's hasher is not.
        let start = 0xcbf2_9ce4_8422_2325 ^ self.seed ^ repeat.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = body.iter().fold(start, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        ChaCha8Rng::seed_from_u64(hash)
    }
}
