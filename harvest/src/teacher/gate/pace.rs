//! When a request may be sent: places in flight, pauses that a server asks for, and its allowances.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex as Queue, MutexGuard as Turn, Notify};
use tokio::time::Instant;

use super::limit::{Limit, Timed};
use crate::events::{Event, PauseReason};
use crate::reporter::Watch;
use crate::stop::Stop;
use crate::teacher::exchange::unix_milliseconds;
use crate::teacher::retry::LONGEST_SERVER_WAIT;
use crate::teacher::{Bucket, RateHints};

/// Weight of the latest reply in the share of tokens that requests really take.
const SHARE_WEIGHT: f64 = 0.1;

/// Hands out places in flight in the order of asking.
#[derive(Debug)]
pub(super) struct Pace {
    /// Whoever holds it is the next to send. Only the holder waits for a place.
    queue: Queue<()>,
    /// A place may be free, or a pause over.
    changed: Notify,
    state: Mutex<State>,
    watch: Watch,
    stop: Stop,
}

#[derive(Debug)]
struct State {
    limit: Limit,
    in_flight: usize,
    /// Number of the next request.
    next: u64,
    /// Requests with lower numbers that are in flight were so when the limit was last reached.
    full_before: u64,
    paused_until: Option<Instant>,
    requests: Allowance,
    tokens: Allowance,
    /// Tokens that requests take, as a share of the most that they can.
    share: f64,
}

/// What a server allows until its next renewal.
#[derive(Debug, Default)]
struct Allowance {
    /// Requests or tokens sent so far, over the whole run.
    sent: u64,
    left: Option<Left>,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    /// `sent` may grow up to this...
    up_to: u64,
    /// ...before this time.
    until: Instant,
    /// The request whose reply said so: earlier ones know less.
    said_by: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) sign: Sign,
    pub(super) hints: RateHints,
    /// When the server wants to be asked again, by anybody.
    pub(super) retry_after: Option<Duration>,
    /// Tokens that it took, where that is known.
    pub(super) tokens: Option<u64>,
    /// Whether the time it took says how busy the server is.
    pub(super) is_timed: bool,
}

/// What a request says about the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sign {
    /// The server takes more.
    Success,
    /// It takes less.
    Overload,
    /// Nothing.
    None,
}

/// A place in flight, given back when dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pace: &'a Pace,
    number: u64,
    /// With it.
    num_in_flight: usize,
    most_tokens: u64,
    /// What had been sent by then, this request included.
    requests_sent: u64,
    tokens_sent: u64,
    sent_at: Instant,
}

/// The run is stopped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped;

impl Pace {
    pub(super) fn new(ceiling: usize, watch: Watch, stop: Stop) -> Self {
        let limit = Limit::new(ceiling);
        watch.metrics.limit_changed(0, limit.get());
        Self {
            queue: Queue::default(),
            changed: Notify::new(),
            state: Mutex::new(State {
                limit,
                in_flight: 0,
                next: 0,
                full_before: 0,
                paused_until: None,
                requests: Allowance::default(),
                tokens: Allowance::default(),
                share: 1.0,
            }),
            watch,
            stop,
        }
    }

    /// Waits until nobody who asked before is still waiting.
    pub(super) async fn turn(&self) -> Result<Turn<'_, ()>, Stopped> {
        if let Ok(turn) = self.queue.try_lock() {
            return Ok(turn);
        }
        tokio::select! {
            biased;
            () = self.stop.requested() => Err(Stopped),
            turn = self.queue.lock() => Ok(turn),
        }
    }

    /// Waits for a place; `_turn` makes sure that nobody else does.
    pub(super) async fn place(
        &self,
        _turn: &Turn<'_, ()>,
        requests: u64,
        most_tokens: u64,
    ) -> Result<Place<'_>, Stopped> {
        loop {
            if self.stop.is_requested() {
                return Err(Stopped);
            }
            let changed = self.changed.notified();
            let until = match self.try_place(requests, most_tokens) {
                Ok(place) => return Ok(place),
                Err(until) => until,
            };
            let over = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.stop.requested() => return Err(Stopped),
                () = changed => {}
                () = over => {}
            }
        }
    }

    /// A place, or the time at which there may be one, where it is known.
    fn try_place(&self, requests: u64, most_tokens: u64) -> Result<Place<'_>, Option<Instant>> {
        let mut state = self.state();
        let now = Instant::now();
        if state.in_flight >= state.limit.get() {
            state.full_before = state.next;
            return Err(None);
        }
        let tokens = state.estimate(most_tokens);
        let waits = [
            state.paused_until.filter(|until| *until > now),
            state.requests.wait(requests, now),
            state.tokens.wait(tokens, now),
        ];
        if let Some(until) = waits.into_iter().flatten().max() {
            return Err(Some(until));
        }
        state.paused_until = None;
        state.requests.sent += requests;
        state.tokens.sent += tokens;
        state.in_flight += 1;
        let number = state.next;
        state.next += 1;
        if state.in_flight >= state.limit.get() {
            state.full_before = state.next;
        }
        self.watch.metrics.request_started();
        Ok(Place {
            pace: self,
            number,
            num_in_flight: state.in_flight,
            most_tokens,
            requests_sent: state.requests.sent,
            tokens_sent: state.tokens.sent,
            sent_at: now,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn tell_of_pause(&self, reason: PauseReason, wait: Duration) {
        self.watch.metrics.paused();
        let until = SystemTime::now()
            .checked_add(wait)
            .and_then(unix_milliseconds);
        tracing::info!("the server asks for a pause of {wait:?}");
        self.watch.events.emit(&Event::Paused { reason, until });
    }
}

impl State {
    #[expect(clippy::cast_sign_loss, reason = "a share of a count is not negative")]
    fn estimate(&self, most_tokens: u64) -> u64 {
        (most_tokens as f64 * self.share) as u64
    }
}

impl Place<'_> {
    /// Gives the place back, with what was seen. Returns how long the request took.
    pub(super) fn give_back(self, seen: &Seen) -> Duration {
        let took = self.sent_at.elapsed();
        let now = Instant::now();
        let mut state = self.pace.state();
        let before = state.limit.get();
        let next = state.next;
        match seen.sign {
            Sign::Success => {
                let was_full = self.number < state.full_before;
                state.limit.succeeded(self.number, was_full);
            }
            Sign::Overload => state.limit.overloaded(self.number, next),
            Sign::None => {}
        }
        if seen.is_timed {
            let timed = Timed {
                number: self.number,
                tokens: self.most_tokens,
                num_in_flight: self.num_in_flight,
                latency: took,
            };
            state.limit.took(timed, next);
        }
        if let Some(tokens) = seen.tokens.filter(|_| self.most_tokens > 0) {
            let share = (tokens as f64 / self.most_tokens as f64).min(1.0);
            state.share += SHARE_WEIGHT * (share - state.share);
        }
        let (requests, tokens) = (seen.hints.requests, seen.hints.tokens);
        let emptied = [
            state
                .requests
                .learn(requests, self.number, self.requests_sent, now),
            state
                .tokens
                .learn(tokens, self.number, self.tokens_sent, now),
        ];
        let asked = seen.retry_after.map(|wait| wait.min(LONGEST_SERVER_WAIT));
        let until = asked.map(|wait| now + wait);
        let is_longer = until > state.paused_until && until > Some(now);
        if is_longer {
            state.paused_until = until;
        }
        let after = state.limit.get();
        drop(state);
        self.pace.watch.metrics.limit_changed(before, after);
        if let Some(wait) = asked.filter(|_| is_longer) {
            self.pace.tell_of_pause(PauseReason::RetryAfter, wait);
        }
        if let Some(wait) = emptied.into_iter().flatten().max() {
            self.pace.tell_of_pause(PauseReason::Allowance, wait);
        }
        took
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pace.state().in_flight -= 1;
        self.pace.watch.metrics.request_left();
        self.pace.changed.notify_one();
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        let limit = self.state().limit.get();
        self.watch.metrics.limit_changed(limit, 0);
    }
}

impl Allowance {
    /// The time to wait for before `more` may be sent.
    fn wait(&mut self, more: u64, now: Instant) -> Option<Instant> {
        let left = self.left?;
        if left.until <= now {
            self.left = None;
            return None;
        }
        (self.sent + more > left.up_to).then_some(left.until)
    }

    /// Takes over what the reply to request `number` said, which was sent when `sent` was what it was. Returns the time
    /// to wait where nothing is left that was left before.
    fn learn(
        &mut self,
        bucket: Option<Bucket>,
        number: u64,
        sent: u64,
        now: Instant,
    ) -> Option<Duration> {
        let bucket = bucket?;
        let reset = bucket.reset?.min(LONGEST_SERVER_WAIT);
        if self.left.is_some_and(|left| left.said_by > number) {
            return None;
        }
        let was_empty = self
            .left
            .is_some_and(|left| left.up_to <= self.sent && left.until > now);
        // What was sent after this request is not in the server's count yet.
        let up_to = sent.saturating_add(bucket.remaining);
        self.left = Some(Left {
            up_to,
            until: now + reset,
            said_by: number,
        });
        (bucket.remaining == 0 && !was_empty && !reset.is_zero()).then_some(reset)
    }
}
