//! Asks again after errors that may pass, and finds the row that makes a server refuse a whole batch.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::future::BoxFuture;
use schemas::Sha256Digest;

use super::{Answers, ErrorClass, Paid, Reply, Request, Sent, Teacher, TeacherError};
use crate::metrics::Metrics;
use crate::stop::Stop;

/// Wait before the second try, doubled before each further one, with jitter.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait that this program chooses.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Longest wait that a server may choose; a longer one is cut to this.
pub(super) const LONGEST_SERVER_WAIT: Duration = Duration::from_mins(10);

/// How many times as often as `max_tries` a request is sent that the server turns away.
const PATIENCE: u32 = 10;

/// A teacher that is asked again after a rate limit, an overload or a passing fault, and whose batches are taken apart
/// where one row spoils them.
///
/// - A batch is sent at most `max_tries` times; one that the server turns away for its rate or load ten times as often,
///   since that says nothing of the batch. Between two tries it waits as long as the server says; where that is no time
///   at all, or it says nothing, half a second, doubled up to 30 seconds, with jitter.
/// - Of a batch that was answered only in part, the rows that may succeed are asked again, together.
/// - Of a batch for which the budget did not reach as a whole, the rows that were left are asked about once the others
///   have been answered: these take less than was reserved for them.
/// - A batch that is refused for good, or that the server answers for with a fault which does not pass, is asked again
///   in halves, until the rows that are to blame stand alone. A half is not asked again for such a fault, only for what
///   is not of its rows: rate, overload, no answer. A fault that no server answered for takes no batch apart.
///
/// What is answered while other rows of its batch are still to be asked is handed to [`Paid`] at once: they can take
/// minutes, and a process can die meanwhile.
///
/// So a batch of `n` rows of which `b` are bad takes at most `max_tries + 2·b·⌈log₂ n⌉` requests while nothing else goes
/// wrong, no row is sent more than `max_tries + ⌈log₂ n⌉` times, and no good row fails. Whatever goes wrong, a row waits
/// at most `12·(max_tries − 1)` times. What waits when the run is stopped is given up with [`ErrorClass::Interrupted`].
#[derive(Debug)]
pub struct Retry<T> {
    inner: T,
    max_tries: NonZeroU32,
    stop: Stop,
    metrics: Arc<Metrics>,
    /// Digest of who is asked, for the names of parts.
    teacher: Sha256Digest,
}

/// Rows that are asked together.
#[derive(Debug)]
struct Group {
    /// Positions in the batch.
    rows: Vec<usize>,
    /// How often these rows have waited after a fault.
    num_waits: u32,
    /// How often these rows have waited because the server turned them away.
    num_turned_away: u32,
    /// Whether it was taken out of a group that failed for good.
    is_part: bool,
    backoff: ExponentialBackoff,
}

impl Group {
    /// Rows that were not sent before; none where there are none.
    fn of(rows: Vec<usize>) -> Option<Self> {
        (!rows.is_empty()).then(|| Self {
            rows,
            num_waits: 0,
            num_turned_away: 0,
            is_part: false,
            backoff: backoff(),
        })
    }

    fn halves(&self) -> impl Iterator<Item = Self> {
        let half = self.rows.len().div_ceil(2);
        self.rows.chunks(half).map(|rows| Self {
            rows: rows.to_vec(),
            num_waits: self.num_waits,
            num_turned_away: self.num_turned_away,
            is_part: true,
            backoff: backoff(),
        })
    }
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(FIRST_WAIT)
        .with_max_delay(LONGEST_WAIT)
        .without_max_times()
        .with_jitter()
        .build()
}

/// What is known of a batch so far.
struct Batch<'a> {
    requests: &'a [Request],
    teacher: &'a Sha256Digest,
    replies: Vec<Option<Result<Reply, TeacherError>>>,
    /// Requests that each row was sent in.
    tries: Vec<u32>,
    hints: super::RateHints,
}

impl Batch<'_> {
    /// The rows that no earlier run was answered about while their batch lasted.
    fn open(&mut self, paid: &dyn Paid) -> Option<Group> {
        for (row, request) in self.requests.iter().enumerate() {
            self.replies[row] = paid.find(&self.part(request), request).map(Ok);
        }
        let is_missing = |row: &usize| self.replies[*row].is_none();
        Group::of((0..self.requests.len()).filter(is_missing).collect())
    }

    /// Name of the part that is a whole reply: several teachers, or one with several prompts, can be asked about a row.
    fn part(&self, request: &Request) -> String {
        let digest = u128::from_be_bytes(request.digest());
        format!("reply {} {digest:032x}", self.teacher.short())
    }

    /// Keeps the replies to these rows while others of the batch are asked about.
    fn keep(&self, rows: &[usize], paid: &dyn Paid) {
        for row in rows {
            if let Some(Ok(reply)) = &self.replies[*row]
                && let request = &self.requests[*row]
                && let Err(error) = paid.keep(&self.part(request), request, reply)
            {
                // It is in memory still, and journalled once the batch ends.
                tracing::warn!("{error}");
            }
        }
    }

    fn settle(&mut self, row: usize, mut reply: Result<Reply, TeacherError>) {
        match &mut reply {
            Ok(reply) => reply.provenance.tries = self.tries[row],
            Err(error) => error.tries = self.tries[row],
        }
        self.replies[row] = Some(reply);
    }

    fn fail(&mut self, group: &Group, error: &TeacherError) {
        for row in &group.rows {
            self.settle(*row, Err(error.clone()));
        }
    }
}

impl<T: Teacher> Retry<T> {
    /// Wraps `inner`.
    pub fn new(inner: T, max_tries: NonZeroU32, stop: Stop) -> Self {
        let identity = serde_json::json!(inner.describe().identity);
        Self {
            teacher: Sha256Digest::of(identity.to_string().as_bytes()),
            inner,
            max_tries,
            stop,
            metrics: Arc::default(),
        }
    }

    /// Counts what is asked again.
    #[must_use]
    pub fn counted(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    async fn ask(&self, requests: &[Request], paid: &dyn Paid) -> Result<Answers, TeacherError> {
        let mut batch = Batch {
            requests,
            teacher: &self.teacher,
            replies: vec![None; requests.len()],
            tries: vec![0; requests.len()],
            hints: super::RateHints::default(),
        };
        let mut groups: Vec<Group> = batch.open(paid).into_iter().collect();
        while let Some(group) = groups.pop() {
            let is_first = group.rows.iter().all(|row| batch.tries[*row] == 0) && !group.is_part;
            if !is_first {
                if self.stop.is_requested() {
                    let message = "the run was stopped before the row was sent again";
                    let error = TeacherError::new(ErrorClass::Interrupted, message);
                    batch.fail(&group, &error);
                    continue;
                }
                self.metrics.retried();
            }
            let was_whole = group.rows.len() == requests.len();
            match self.send(&mut batch, group, paid).await {
                Ok(further) => groups.extend(further),
                Err(error) if was_whole => return Err(error),
                Err(error) if error.stops_the_run() => {
                    for group in groups.drain(..) {
                        batch.fail(&group, &error);
                    }
                }
                Err(_) => {}
            }
        }
        Ok(Answers {
            replies: batch.replies.into_iter().flatten().collect(),
            hints: batch.hints,
            taken: None,
        })
    }

    /// Sends a group and settles what is settled by it. Returns what is to be sent next, the last one first; the error is
    /// that of a group that failed for good.
    async fn send(
        &self,
        batch: &mut Batch<'_>,
        group: Group,
        paid: &dyn Paid,
    ) -> Result<Vec<Group>, TeacherError> {
        let answers = if group.rows.len() == batch.requests.len() {
            self.inner.query(batch.requests, paid).await
        } else {
            let asked: Vec<Request> = group
                .rows
                .iter()
                .map(|row| batch.requests[*row].clone())
                .collect();
            self.inner.query(&asked, paid).await
        };
        if !matches!(&answers, Err(error) if error.sent == Sent::Nothing) {
            group.rows.iter().for_each(|row| batch.tries[*row] += 1);
        }
        match answers {
            Ok(answers) => Ok(self.settle(batch, group, answers, paid).await),
            Err(error) if self.asks_again(&error, &group) => {
                Ok(self.wait(batch, group, &error).await)
            }
            Err(error) if error.may_be_of_one_row() && group.rows.len() > 1 => {
                tracing::debug!(class = %error.class, rows = group.rows.len(), "asking in halves: {error}");
                let mut halves: Vec<_> = group.halves().collect();
                halves.reverse();
                Ok(halves)
            }
            Err(mut error) => {
                batch.fail(&group, &error);
                error.tries = group
                    .rows
                    .iter()
                    .map(|row| batch.tries[*row])
                    .max()
                    .unwrap_or(0);
                Err(error)
            }
        }
    }

    /// Settles the rows that are answered or failed for good, and waits with the others.
    async fn settle(
        &self,
        batch: &mut Batch<'_>,
        group: Group,
        answers: Answers,
        paid: &dyn Paid,
    ) -> Vec<Group> {
        batch.hints = answers.hints;
        let mut again = Vec::new();
        let mut last: Option<TeacherError> = None;
        let mut left = Vec::new();
        let is_answered = answers.replies.iter().any(Result::is_ok);
        for (&row, reply) in group.rows.iter().zip(answers.replies) {
            if matches!(&reply, Err(error) if error.class == ErrorClass::Budget) {
                batch.tries[row] -= 1;
                if is_answered {
                    left.push(row);
                    continue;
                }
            }
            if let Err(error) = &reply
                && self.asks_again(error, &group)
            {
                again.push(row);
                if last.as_ref().is_none_or(|last| wish(last) < wish(error)) {
                    last = Some(error.clone());
                }
            }
            batch.settle(row, reply);
        }
        if group.is_part || last.is_some() || !left.is_empty() {
            batch.keep(&group.rows, paid);
        }
        let mut further: Vec<Group> = Group::of(left).into_iter().collect();
        if let Some(error) = last {
            let group = Group {
                rows: again,
                ..group
            };
            further.extend(self.wait(batch, group, &error).await);
        }
        further
    }

    fn asks_again(&self, error: &TeacherError, group: &Group) -> bool {
        let max_waits = self.max_tries.get() - 1;
        if is_turned_away(error) {
            return error.is_retryable()
                && group.num_turned_away < max_waits.saturating_mul(PATIENCE);
        }
        let may_wait = if group.is_part {
            !error.may_be_of_one_row() && group.num_waits < max_waits.saturating_mul(2)
        } else {
            group.num_waits < max_waits
        };
        error.is_retryable() && may_wait
    }

    /// Waits before the next try; there is none where the run is stopped meanwhile.
    async fn wait(
        &self,
        batch: &mut Batch<'_>,
        mut group: Group,
        error: &TeacherError,
    ) -> Vec<Group> {
        let chosen = group.backoff.next().unwrap_or(LONGEST_WAIT);
        let wait = wish(error).map_or(chosen, |server| server.min(LONGEST_SERVER_WAIT));
        tracing::debug!(class = %error.class, num_waits = group.num_waits, ?wait, "asking again: {error}");
        tokio::select! {
            biased;
            () = self.stop.requested() => {
                let error = TeacherError { class: ErrorClass::Interrupted, ..error.clone() };
                batch.fail(&group, &error);
                Vec::new()
            }
            () = tokio::time::sleep(wait) => {
                if is_turned_away(error) {
                    group.num_turned_away += 1;
                } else {
                    group.num_waits += 1;
                }
                vec![group]
            }
        }
    }
}

/// Whether the server did not look at the request: it has too many.
fn is_turned_away(error: &TeacherError) -> bool {
    matches!(error.class, ErrorClass::Rate | ErrorClass::Overload)
}

/// When the server wants to be asked again, in as many words or because an allowance is used up. `retry-after: 0`, a date
/// that has passed, a reset that is due: servers round, and one that turned a request away does not want it at once.
fn wish(error: &TeacherError) -> Option<Duration> {
    let asked = error.retry_after.filter(|wait| !wait.is_zero());
    asked.or_else(|| error.hints.pause().filter(|wait| !wait.is_zero()))
}

impl<T: Teacher> Teacher for Retry<T> {
    super::forwards_to_inner!();

    fn fee(&self, requests: &[Request]) -> f64 {
        self.inner.fee(requests)
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        Box::pin(self.ask(requests, paid))
    }
}

#[cfg(test)]
mod tests;
