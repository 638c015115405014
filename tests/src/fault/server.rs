//! The server: answers as the schedule says and keeps the log.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::answers::{Endpoint, Poison, Question};
use super::batches::{Batches, Call};
use super::certificate::{Authority, Identity};
use super::connection::listen;
use super::pictures;
use super::schedule::{Fault, LASTING, Schedule};
use super::spoil::{reorder, repeat_headers, spoil};
use super::wire::{Incoming, Outgoing, header};

/// One question that the server was asked, and what became of it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Where it was sent.
    pub endpoint: Endpoint,
    /// The model that was asked.
    pub model: String,
    /// The texts asked about; of pictures, what they show.
    pub texts: Vec<String>,
    /// The seed, where one was sent.
    pub seed: Option<u64>,
    /// What went wrong on the schedule's or the text's account.
    pub fault: Option<Fault>,
    /// For each text, whether it was answered well; all `false` unless the answer is completed.
    pub good: Vec<bool>,
    /// Tokens of the question that the server bills, also where the answer did not arrive.
    pub tokens_in: u64,
    /// Tokens of the answer, likewise.
    pub tokens_out: u64,
    /// When the last byte of the answer was handed to the socket.
    pub completed_at: Option<Instant>,
    /// The head of the request.
    pub head: String,
    /// Whether it is a row of a batch: its answer stays where the client can fetch it, whatever becomes of the client.
    pub is_batched: bool,
}

impl Sent {
    /// The key that it was sent with: clients that are told apart have each their own.
    pub fn client(&self) -> Option<&str> {
        header(&self.head, "authorization")?.strip_prefix("Bearer ")
    }
}

/// A running server; it stops when this is dropped.
#[derive(Debug)]
pub struct FaultServer {
    shared: Arc<Shared>,
    // Dropped last: ends the server's tasks.
    _runtime: Runtime,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) latency: Duration,
    url: String,
}

/// What a request is answered with.
pub(super) struct Turn {
    /// Its place in the log, where it is a question.
    pub(super) place: Option<usize>,
    pub(super) fault: Option<Fault>,
    pub(super) answer: Outgoing,
}

#[derive(Debug, Default)]
struct State {
    schedule: Schedule,
    log: Vec<Sent>,
    /// How often each request came.
    repeats: HashMap<Vec<u8>, u64>,
    num_arrivals: u64,
    batches: Batches,
    num_connections: u64,
    repeats_headers: bool,
    /// From the request of this number on every one earns this fault.
    end_of_account: Option<(usize, Fault)>,
    is_stalled: bool,
    num_stalled: usize,
}

impl FaultServer {
    /// Starts a server that takes `latency` for each answer.
    ///
    /// # Errors
    /// The operating system's, where no socket can be had.
    pub fn start(schedule: Schedule, latency: Duration) -> io::Result<Self> {
        Self::start_with(schedule, latency, None)
    }

    /// Starts a server that speaks TLS.
    ///
    /// # Errors
    /// As [`start`](Self::start), and where no key can be made.
    pub fn start_tls(authority: &Authority, identity: Identity) -> io::Result<Self> {
        let acceptor = authority.acceptor(identity).map_err(io::Error::other)?;
        Self::start_with(Schedule::CALM, Duration::ZERO, Some(acceptor))
    }

    fn start_with(
        schedule: Schedule,
        latency: Duration,
        tls: Option<TlsAcceptor>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let state = State {
            schedule,
            ..State::default()
        };
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let port = listener.local_addr()?.port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            latency,
            url: format!("{scheme}://localhost:{port}/v1"),
        });
        runtime.spawn(listen(listener, tls, Arc::clone(&shared)));
        Ok(Self {
            shared,
            _runtime: runtime,
        })
    }

    /// Base address for a configuration.
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// From now on this goes wrong.
    pub fn set_schedule(&self, schedule: Schedule) {
        self.shared.state().schedule = schedule;
    }

    /// From now on errors repeat the headers of the request, key included, as badly written servers do.
    pub fn repeat_headers(&self) {
        self.shared.state().repeats_headers = true;
    }

    /// The next files of a batch's results, so many, end after half of their lines, as if that were all.
    pub fn cut_results(&self, num_files: usize) {
        self.shared.state().batches.num_cuts = num_files;
    }

    /// From the request of this number on, counted from 0, every one earns `fault`.
    pub fn end_account_after(&self, number: usize, fault: Fault) {
        self.shared.state().end_of_account = Some((number, fault));
    }

    /// Whether requests are taken and never answered from now on. What was taken before is answered.
    pub fn stall(&self, is_stalled: bool) {
        self.shared.state().is_stalled = is_stalled;
    }

    /// Requests that were taken and are never answered.
    pub fn num_stalled(&self) -> usize {
        self.shared.state().num_stalled
    }

    /// Every question so far that was read whole, in order.
    pub fn log(&self) -> Vec<Sent> {
        self.shared.state().log.clone()
    }

    /// How many there are.
    pub fn num_requests(&self) -> usize {
        self.shared.state().log.len()
    }

    /// Requests so far that were read whole, those that ask nothing included, such as for the state of a batch.
    pub fn num_arrivals(&self) -> u64 {
        self.shared.state().num_arrivals
    }

    /// Connections that were taken, TLS or not.
    pub fn num_connections(&self) -> u64 {
        self.shared.state().num_connections
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connected(&self) {
        self.state().num_connections += 1;
    }

    /// What a request is answered with; a question is entered into the log.
    pub(super) fn turn(&self, incoming: Incoming) -> Turn {
        let mut state = self.state();
        state.num_arrivals += 1;
        if let Some(question) = Question::read(&incoming.path, &incoming.body) {
            return self.ask(&mut state, incoming, question);
        }
        let key = [incoming.path.as_bytes(), &incoming.body].concat();
        if let Some(picture) = pictures::at(&incoming.path) {
            let fault = state.fault(&key, None);
            let fault = fault.filter(|fault| fault.breaks_off());
            return Turn {
                place: None,
                fault,
                answer: Outgoing::picture(picture).or_spoiled(fault),
            };
        }
        let Some(call) = Call::read(&incoming) else {
            let unknown = json!({"error": {"message": "no such endpoint"}});
            return Turn {
                place: None,
                fault: None,
                answer: Outgoing::json(404, &unknown),
            };
        };
        let fault = state.fault(&key, None);
        let is_turned_away = fault.is_some_and(Fault::turns_away);
        let answer = if is_turned_away {
            Outgoing::json(200, &json!({}))
        } else {
            state.call(call, &incoming, &self.url)
        };
        Turn {
            place: None,
            fault,
            answer: answer.or_spoiled(fault),
        }
    }

    fn ask(&self, state: &mut State, incoming: Incoming, question: Question) -> Turn {
        let fault = state.fault(&incoming.body, question.poison());
        let repeated = state.repeats_headers.then(|| incoming.head.clone());
        let (mut answer, mut good) = question.answer(&self.url);
        if fault == Some(Fault::OutOfOrder) && answer.status == 200 {
            reorder(&mut answer.body);
        }
        if let Some(spoiled) = fault.and_then(|fault| spoil(fault, &answer)) {
            answer = spoiled;
            good.fill(false);
        }
        if let Some(head) = repeated.filter(|_| answer.status >= 300 || good.contains(&false)) {
            answer = repeat_headers(answer, &head);
        }
        let mut sent = Sent::of(question, incoming.head, fault, good);
        // A server that fails before it has understood the question bills nothing for it.
        if answer.status != 200 {
            (sent.tokens_in, sent.tokens_out) = (0, 0);
        }
        state.log.push(sent);
        Turn {
            place: Some(state.log.len() - 1),
            fault,
            answer,
        }
    }

    pub(super) fn complete(&self, place: usize, is_whole: bool) {
        let mut state = self.state();
        let sent = &mut state.log[place];
        if is_whole {
            sent.completed_at = Some(Instant::now());
        } else {
            sent.good.fill(false);
        }
    }
}

impl Sent {
    fn of(question: Question, head: String, fault: Option<Fault>, good: Vec<bool>) -> Self {
        let (tokens_in, tokens_out) = question.tokens();
        Self {
            endpoint: question.endpoint,
            model: question.model,
            texts: question.texts,
            seed: question.seed,
            fault,
            good,
            tokens_in,
            tokens_out,
            completed_at: None,
            head,
            is_batched: false,
        }
    }
}

impl State {
    /// What goes wrong with a request whose content is `key`, and that asks about a text of this poison.
    fn fault(&mut self, key: &[u8], poison: Option<Poison>) -> Option<Fault> {
        let arrival = self.num_arrivals - 1;
        let repeat = self.repeats.entry(key.to_vec()).or_default();
        *repeat += 1;
        match poison {
            Some(Poison::Lasting(place)) => Some(LASTING[place]),
            _ if self.is_stalled => {
                self.num_stalled += 1;
                Some(Fault::Hang)
            }
            _ if self
                .end_of_account
                .is_some_and(|(number, _)| self.log.len() >= number) =>
            {
                self.end_of_account.map(|(_, fault)| fault)
            }
            _ => self.schedule.fault(key, *repeat, arrival),
        }
    }

    fn call(&mut self, call: Call, incoming: &Incoming, url: &str) -> Outgoing {
        let (schedule, repeats) = (self.schedule, &mut self.repeats);
        let mut rows = Vec::new();
        let answer = self.batches.answer(call, |question, body| {
            let repeat = repeats.entry(body.to_vec()).or_default();
            *repeat += 1;
            // No storm: it is weather of connections.
            let fault = schedule.fault(body, *repeat, 0);
            let (answer, good) = question.answer(url);
            let fault = fault.filter(|fault| fault.is_of_a_row());
            let mut sent = Sent::of(question, incoming.head.clone(), fault, good);
            sent.is_batched = true;
            sent.completed_at = Some(Instant::now());
            if fault.is_some() {
                sent.good.fill(false);
            }
            if serde_json::from_str::<serde_json::Value>(&answer.body).is_err() {
                // A line that cannot be read is not seen to be a refusal.
                sent.fault = Some(Fault::BrokenJson);
            }
            if fault.is_some() || answer.status != 200 {
                (sent.tokens_in, sent.tokens_out) = (0, 0);
            }
            rows.push(sent);
            (fault, answer)
        });
        self.log.extend(rows);
        answer
    }
}
