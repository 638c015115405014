//! What the server's log says of a client.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tests::fault::{Endpoint, Poison, Sent};

use super::setup::{Kind, Setup};

/// An answer this much older than a kill has long been read and journalled by the client, however busy the machine.
const SURELY_RECEIVED: Duration = Duration::from_secs(1);

/// The end of a client by `kill -9`.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Kill {
    /// The key of its requests.
    pub(super) client: String,
    pub(super) at: Instant,
}

/// Clients that are judged.
pub(super) struct Judge<'a> {
    pub(super) log: &'a [Sent],
    /// Those that were killed.
    pub(super) kills: &'a [Kill],
    pub(super) setup: &'a Setup,
}

/// What may be asked once: a text, of a model, with its seed where one is sent.
type Question<'a> = (Endpoint, &'a str, &'a str, Option<u64>);

/// Whether it is a picture that the client makes to find out whether pictures are looked at: those of the server are GIF.
fn is_of_a_look(text: &str) -> bool {
    text.starts_with("data:image/png")
}

fn question<'a>(sent: &'a Sent, text: &'a str) -> Question<'a> {
    (sent.endpoint, &sent.model, text, sent.seed)
}

impl Judge<'_> {
    /// Panics where a question that was answered well was asked again. Excused is what a kill can have lost: an answer
    /// that left shortly before it, and no more rows than can have been in flight.
    pub(super) fn check_nothing_is_repaid(&self) {
        let mut answers: HashMap<Question, Vec<&Sent>> = HashMap::new();
        for sent in self.log {
            for (text, good) in sent.texts.iter().zip(&sent.good) {
                if *good && sent.completed_at.is_some() && !is_of_a_look(text) {
                    answers.entry(question(sent, text)).or_default().push(sent);
                }
            }
        }
        let mut num_lost = 0;
        for (question, answers) in answers {
            let due = self.due(&question);
            let num_repeated = answers.len().saturating_sub(due);
            let num_excused = answers.iter().filter(|sent| self.is_excused(sent)).count();
            assert!(
                num_repeated <= num_excused,
                "{question:?} was due {due} times and was answered well of {:?}, where {:?}",
                answers
                    .iter()
                    .map(|sent| (sent.client(), sent.is_batched, sent.completed_at))
                    .collect::<Vec<_>>(),
                self.kills
            );
            num_lost += num_repeated;
        }
        let num_in_flight = self.setup.num_in_flight();
        assert!(
            num_lost <= self.kills.len() * num_in_flight,
            "{num_lost} rows were repeated after {} kills with {num_in_flight} in flight",
            self.kills.len()
        );
    }

    /// Panics where a text was sent again after it alone was refused for good. What several requests are made for is
    /// asked again where another of them ends the run; so it is with 501, which says that the teacher lacks something,
    /// by every worker that asks about its first row.
    pub(super) fn check_refusals_are_final(&self) {
        let is_alone = matches!(self.setup.kind, Kind::Embeddings | Kind::Chat);
        let mut refusals: HashMap<(Question, Option<&str>), Vec<&Sent>> = HashMap::new();
        for sent in self.log {
            let [text] = &sent.texts[..] else { continue };
            let poison = Poison::of(text).filter(|poison| poison.is_deterministic());
            let is_refused = poison.is_some() && sent.good == [false];
            if is_refused && sent.fault.is_none() && sent.completed_at.is_some() {
                let is_kept = is_alone && poison != Some(Poison::NotImplemented);
                let client = sent.client().filter(|_| !is_kept);
                let refusals = refusals.entry((question(sent, text), client));
                refusals.or_default().push(sent);
            }
        }
        for ((question, client), refusals) in refusals {
            let due = self.due(&question);
            let excused = refusals.iter().filter(|sent| self.is_excused(sent)).count();
            assert!(
                refusals.len() <= due + excused,
                "{question:?} was refused for good {} times, of {client:?}",
                refusals.len()
            );
        }
    }

    /// How often a question is to be asked.
    fn due(&self, (_, _, _, seed): &Question<'_>) -> usize {
        match seed {
            Some(_) => 1,
            None => self.setup.draws as usize,
        }
    }

    fn kill_of(&self, sent: &Sent) -> Option<&Kill> {
        self.kills
            .iter()
            .find(|kill| sent.client() == Some(&kill.client))
    }

    /// Whether the client of this answer was killed before it had surely read it. What a batch brought is there to be
    /// read as long as it takes.
    fn is_excused(&self, sent: &Sent) -> bool {
        let completed = sent.completed_at.filter(|_| !sent.is_batched);
        self.kill_of(sent)
            .zip(completed)
            .is_some_and(|(kill, completed)| completed + SURELY_RECEIVED > kill.at)
    }
}
