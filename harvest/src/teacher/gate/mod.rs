//! Rate and budget: a teacher is asked no faster than it can take, and no more than the budget allows.

mod limit;
mod pace;

use std::sync::OnceLock;

use futures::future::BoxFuture;

use super::{Answers, ErrorClass, Paid, Request, Sent, Teacher, TeacherError, Usage};
use crate::budget::{Amount, Reservation};
use crate::config::PriceConfig;
use crate::metrics::RequestOutcome;
use crate::reporter::Watch;
use crate::stop::Stop;

use pace::{Pace, Place, Seen, Sign, Stopped};

/// A teacher with a limit of requests in flight, which adapts to the server, and a budget.
///
/// Requests are sent in the order of asking. One that is dropped while it waits leaves no trace; one that is dropped
/// while it is in flight gives its place back and counts as paid for. One that waits when the run is stopped ends with
/// [`ErrorClass::Interrupted`]. Once the server has refused the key or the account, or is no server to talk to, nothing
/// more is sent to it, and what waits ends with that error. Gates must not stand one behind the other: the outer one's reservation could keep the
/// inner one waiting for ever.
#[derive(Debug)]
pub struct Gate<T> {
    inner: T,
    pace: Pace,
    price: PriceConfig,
    watch: Watch,
    stop: Stop,
    /// The error after which no request can succeed.
    refused: OnceLock<TeacherError>,
}

impl<T: Teacher> Gate<T> {
    /// Wraps `inner`; at most `concurrency` requests are in flight, and no more than are of use to it.
    pub fn new(inner: T, concurrency: usize, price: PriceConfig, watch: Watch, stop: Stop) -> Self {
        let of_use = inner.describe().max_in_flight.unwrap_or(usize::MAX);
        Self {
            pace: Pace::new(concurrency.min(of_use), watch.clone(), stop.clone()),
            inner,
            price,
            watch,
            stop,
            refused: OnceLock::new(),
        }
    }

    /// Asks about as many of the requests, from the first on, as the budget reaches for; the others are refused. They may
    /// fit once it is known what the first ones took.
    async fn ask(&self, requests: &[Request], paid: &dyn Paid) -> Result<Answers, TeacherError> {
        let mut asked = requests;
        let mut refusal = None;
        loop {
            match self.ask_at_once(asked, paid).await {
                Err(error) if error.class == ErrorClass::Budget => {
                    let reach = self.reach(asked);
                    // Where it reaches for all of them, it was refused for something else.
                    if reach == 0 || reach == asked.len() {
                        return Err(error);
                    }
                    asked = &requests[..reach];
                    refusal = Some(error);
                }
                outcome => {
                    let mut answers = outcome?;
                    let refused = refusal.into_iter().cycle().map(Err);
                    answers
                        .replies
                        .extend(refused.take(requests.len() - asked.len()));
                    return Ok(answers);
                }
            }
        }
    }

    /// How many of these requests, from the first on, the budget may reach for.
    fn reach(&self, requests: &[Request]) -> usize {
        let numbers: Vec<usize> = (1..=requests.len()).collect();
        numbers.partition_point(|&number| {
            let most = self.inner.most(&requests[..number]);
            let amount = Amount::of(most, &self.price);
            self.watch.budget.check(amount).is_ok()
        })
    }

    async fn ask_at_once(
        &self,
        requests: &[Request],
        paid: &dyn Paid,
    ) -> Result<Answers, TeacherError> {
        let most = self.inner.most(requests);
        let (place, reservation) = self.enter(most).await?;
        let mut outcome = self.inner.query(requests, paid).await;
        if let Err(error) = &outcome
            && (error.stops_the_run() || (error.finds_no_server() && !error.is_retryable()))
        {
            // Before the place is given to who waits for it.
            self.refused.get_or_init(|| error.clone());
        }
        let taken = self.taken(requests, most, &outcome);
        reservation.settle(taken);
        let is_sent = !matches!(&outcome, Err(error) if error.sent == Sent::Nothing);
        if is_sent {
            self.leave(place, taken, &outcome);
        }
        if let Ok(answers) = &mut outcome {
            self.fill_costs(requests, answers);
        }
        outcome
    }

    /// Waits for a place and for the budget.
    async fn enter(&self, most: Usage) -> Result<(Place<'_>, Reservation), TeacherError> {
        let amount = Amount::of(most, &self.price);
        self.watch.budget.check(amount)?;
        let turn = self.pace.turn().await.map_err(interrupted)?;
        let tokens = most.tokens_in.saturating_add(most.tokens_out);
        let place = self.pace.place(&turn, most.requests, tokens).await;
        let place = place.map_err(interrupted)?;
        if let Some(error) = self.refused.get() {
            let error = error.clone();
            // That no server is there blames no row, wherever the row waits.
            return Err(if error.finds_no_server() {
                error
            } else {
                error.having(Sent::Nothing)
            });
        }
        let reservation = tokio::select! {
            biased;
            reservation = self.watch.budget.reserve(amount) => reservation?,
            () = self.stop.requested() => return Err(interrupted(Stopped)),
        };
        Ok((place, reservation))
    }

    /// What the request took, or may have taken where nobody knows.
    fn taken(
        &self,
        requests: &[Request],
        most: Usage,
        outcome: &Result<Answers, TeacherError>,
    ) -> Amount {
        let usage = match outcome {
            Ok(Answers {
                taken: Some(taken), ..
            }) => *taken,
            Ok(answers) => {
                let own = Usage {
                    requests: most.requests,
                    ..Usage::default()
                };
                let rows = requests.iter().zip(&answers.replies);
                rows.map(|(row, reply)| self.tokens_of_row(row, reply))
                    .fold(own, Usage::plus)
            }
            Err(error) => most.of_failed(error.sent),
        };
        Amount::of(usage, &self.price)
    }

    /// Tokens as the server counted them; what it did not count is taken at its most.
    fn tokens_of_row(&self, row: &Request, reply: &Result<super::Reply, TeacherError>) -> Usage {
        let counted = match reply {
            Ok(reply) => (reply.provenance.tokens_in, reply.provenance.tokens_out),
            Err(_) => (None, None),
        };
        let most = match counted {
            (Some(_), Some(_)) => Usage::default(),
            _ => self.inner.most(std::slice::from_ref(row)),
        };
        Usage {
            requests: 0,
            tokens_in: counted.0.map_or(most.tokens_in, u64::from),
            tokens_out: counted.1.map_or(most.tokens_out, u64::from),
        }
    }

    /// What each reply cost, so that the request's own price is shared by those that were answered. It stays out where
    /// there is no price, or the server did not count what has one.
    fn fill_costs(&self, requests: &[Request], answers: &mut Answers) {
        if self.price == PriceConfig::default() {
            return;
        }
        let num_answered = answers.replies.iter().flatten().count().max(1);
        let own = self.fee(requests) / num_answered as f64;
        for (row, reply) in requests.iter().zip(&mut answers.replies) {
            let Ok(reply) = reply else { continue };
            let provenance = &mut reply.provenance;
            let can_answer = || self.inner.most(std::slice::from_ref(row)).tokens_out > 0;
            let tokens_in = match provenance.tokens_in {
                None if self.price.input_per_million > 0.0 => continue,
                counted => f64::from(counted.unwrap_or(0)),
            };
            let tokens_out = match provenance.tokens_out {
                None if self.price.output_per_million > 0.0 && can_answer() => continue,
                counted => f64::from(counted.unwrap_or(0)),
            };
            let of_tokens = tokens_in * self.price.input_per_million
                + tokens_out * self.price.output_per_million;
            provenance.cost = Some(own + of_tokens / 1e6);
        }
    }

    /// Gives the place back and tells the limit and the metrics what was seen.
    fn leave(&self, place: Place<'_>, taken: Amount, outcome: &Result<Answers, TeacherError>) {
        let metrics = &self.watch.metrics;
        let took = place.give_back(&seen(outcome, taken.tokens));
        let ended = match outcome {
            Ok(_) => RequestOutcome::Answered,
            Err(error) => RequestOutcome::Failed(error.class),
        };
        metrics.request_ended(ended, took);
        metrics.spent(taken.cost());
        if let Ok(answers) = outcome {
            let sum = |of: fn(&schemas::Provenance) -> Option<u32>| {
                let replies = answers.replies.iter().flatten();
                replies
                    .filter_map(|reply| of(&reply.provenance))
                    .map(u64::from)
                    .sum()
            };
            metrics.tokens(sum(|p| p.tokens_in), sum(|p| p.tokens_out));
        }
    }
}

fn interrupted(_: Stopped) -> TeacherError {
    let message = "the run was stopped before the request was sent";
    TeacherError::new(ErrorClass::Interrupted, message).having(Sent::Nothing)
}

fn is_overload(error: &TeacherError) -> bool {
    matches!(error.class, ErrorClass::Rate | ErrorClass::Overload)
}

fn seen(outcome: &Result<Answers, TeacherError>, tokens: u64) -> Seen {
    match outcome {
        Ok(answers) => {
            let mut errors = answers
                .replies
                .iter()
                .filter_map(|reply| reply.as_ref().err());
            let refused = errors.find(|error| is_overload(error));
            Seen {
                sign: if refused.is_some() {
                    Sign::Overload
                } else {
                    Sign::Success
                },
                hints: answers.hints,
                retry_after: refused.and_then(|error| error.retry_after),
                tokens: Some(tokens),
                is_timed: true,
            }
        }
        Err(error) => Seen {
            sign: if is_overload(error) {
                Sign::Overload
            } else {
                Sign::None
            },
            hints: error.hints,
            retry_after: error.retry_after.filter(|_| is_overload(error)),
            tokens: None,
            // A request that is lost after a long time is as slow as it can be.
            is_timed: error.sent == Sent::Unanswered,
        },
    }
}

impl<T: Teacher> Teacher for Gate<T> {
    super::forwards_to_inner!();

    fn fee(&self, requests: &[Request]) -> f64 {
        self.price.per_request * self.inner.most(requests).requests as f64
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
#[cfg(test)]
mod wire_tests;
