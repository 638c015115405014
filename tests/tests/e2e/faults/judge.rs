//! What the server's log says of a client.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tests::fault::{Poison, Sent};

/// An answer this much older than a kill has long been read and journalled by the client, however busy the machine.
const SURELY_RECEIVED: Duration = Duration::from_secs(1);

/// A client that is judged.
pub(super) struct Judge<'a> {
    pub(super) log: &'a [Sent],
    /// When each client was killed that was.
    pub(super) kills: &'a [Instant],
    pub(super) draws: usize,
    pub(super) concurrency: usize,
    pub(super) batch: usize,
}

/// What may be asked once: a text, with its seed where one is sent.
type Question<'a> = (&'a str, Option<u64>);

impl Judge<'_> {
    /// Panics where a question that was answered well was asked again. Excused is what a kill can have lost: an answer
    /// that left shortly before it, and no more rows than can have been in flight.
    pub(super) fn check_nothing_is_repaid(&self) {
        let mut answers: HashMap<Question, Vec<&Sent>> = HashMap::new();
        for sent in self.log {
            for (text, good) in sent.texts.iter().zip(&sent.good) {
                if *good && sent.completed_at.is_some() {
                    answers.entry((text, sent.seed)).or_default().push(sent);
                }
            }
        }
        let mut num_lost = 0;
        for ((text, seed), answers) in answers {
            let due = if seed.is_some() { 1 } else { self.draws };
            let num_repeated = answers.len().saturating_sub(due);
            let num_excused = answers.iter().filter(|sent| self.is_excused(sent)).count();
            assert!(
                num_repeated <= num_excused,
                "`{text}` was answered well {} times and was due {due} times",
                answers.len()
            );
            num_lost += num_repeated;
        }
        let num_in_flight = self.concurrency * self.batch;
        assert!(
            num_lost <= self.kills.len() * num_in_flight,
            "{num_lost} rows were repeated after {} kills with {num_in_flight} in flight",
            self.kills.len()
        );
    }

    /// Panics where a text was sent again after it alone was refused for good.
    pub(super) fn check_refusals_are_final(&self) {
        let mut refusals: HashMap<Question, Vec<&Sent>> = HashMap::new();
        for sent in self.log {
            let [text] = &sent.texts[..] else { continue };
            let is_final = Poison::of(text).is_some_and(Poison::is_deterministic);
            if is_final && sent.fault.is_none() && sent.completed_at.is_some() {
                refusals.entry((text, sent.seed)).or_default().push(sent);
            }
        }
        for ((text, seed), refusals) in refusals {
            let due = if seed.is_some() { 1 } else { self.draws };
            let excused = refusals.iter().filter(|sent| self.is_excused(sent)).count();
            assert!(
                refusals.len() <= due + excused,
                "`{text}` was refused for good {} times",
                refusals.len()
            );
        }
    }

    /// Whether the client of this answer was killed before it had surely read it.
    fn is_excused(&self, sent: &Sent) -> bool {
        let kill = self.kills.get(sent.num_deaths);
        kill.is_some_and(|kill| {
            sent.completed_at
                .is_some_and(|at| at + SURELY_RECEIVED > *kill)
        })
    }
}

/// What the server bills: requests, tokens and money in thousandths, at the prices of the configuration.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Bill {
    pub(super) requests: u64,
    pub(super) tokens: u64,
    pub(super) cost: f64,
}

impl Bill {
    pub(super) fn of(log: &[Sent], is_chat: bool) -> Self {
        let mut bill = Self::default();
        for sent in log {
            bill.requests += 1;
            bill.tokens += sent.tokens;
            let tokens_out = if is_chat {
                sent.tokens.min(tests::fault::REPLY_TOKENS)
            } else {
                0
            };
            bill.cost += (sent.tokens - tokens_out) as f64 * 1e-3 + tokens_out as f64 * 5e-3;
            if is_chat {
                bill.cost += 1e-3;
            }
        }
        bill
    }
}
