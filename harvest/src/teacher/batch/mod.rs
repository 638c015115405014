//! The OpenAI-style Batch API: the requests of another teacher, sent as files and answered within a day, at a lower
//! price.
//!
//! A query becomes one or more batches, each of which goes through the stages of [`state::Stage`]. Every stage is on
//! disk before the next begins, so a process can die at any point and no row is submitted twice: a later query for a row
//! that is in a batch awaits that batch, whatever rows it is asked with. The one step whose success can go unseen is the
//! creation of a batch; after a doubt, the server's list is searched for it, twice, before it is created.
//!
//! What an ended batch brought stays on disk, since its replies are safe elsewhere only some time after `query` has
//! returned. In the process that collected it, each row is handed out once, as a reply or as an error; asked again, the
//! row is a new question. A later process answers from it what it has an answer for and submits the rest anew. It is
//! removed by [`Teacher::finished`], which is called when everything that was asked for is committed.
//!
//! The budget counts a row once for each batch that it was submitted in: by the query that submitted it, at its most where
//! that query ends without its answer. Whoever awaits the batch later, in this process or another one, takes nothing.

mod api;
mod drive;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod ledger;
mod prepare;
mod results;
mod state;

use std::collections::HashSet;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use schemas::{ExampleId, Sha256Digest, TeacherIdentity};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::exchange::{Exchange, ExchangeKind, Served};
use super::http::{Endpoint, KeyHeader};
use super::{
    Answers, BatchLimits, Description, ErrorClass, NotKept, OpenContext, Paid, Reply, Request,
    Teacher, TeacherError, TeacherKind, Usage, kinds,
};
use crate::config::{ConfigError, Section, ServerConfig};
use api::Api;
use drive::{Batch, Driver, Waits};
use ledger::{Ledger, Plan};
use prepare::Preparer;
use results::Results;
use state::{Row, Store};
pub(crate) use state::{has_batches, take_over};

/// Room in a line of results for what is around the reply.
const LINE_OVERHEAD: usize = 64 << 10;
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Rows after which other tasks of the process get their turn.
const ROWS_BETWEEN_YIELDS: usize = 64;

/// `[teacher]` with `kind = "batch"`, besides `[teacher.of]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchConfig {
    /// The most rows in one batch.
    #[serde(default = "default_max_requests")]
    pub max_requests: NonZeroUsize,
    /// Largest request file, in MiB; it is in memory while it is sent.
    #[serde(default = "default_max_file_mib")]
    pub max_file_mib: NonZeroU32,
    /// Largest file of results that is fetched, in MiB; it goes to disk.
    #[serde(default = "default_max_result_mib")]
    pub max_result_mib: NonZeroU32,
    /// Longest time between two looks at a batch, in seconds.
    #[serde(default = "default_poll_seconds")]
    pub poll_seconds: NonZeroU64,
    /// Seconds after which a file that is sent or fetched counts as lost.
    #[serde(default = "default_transfer_seconds")]
    pub transfer_seconds: NonZeroU64,
    /// Time within which the server shall answer, in its words.
    #[serde(default = "default_window")]
    pub window: String,
    /// Fewer new rows than this are asked directly, at the ordinary price: a check that takes a day helps nobody.
    #[serde(default = "default_direct_below")]
    pub direct_below: usize,
}

fn default_max_requests() -> NonZeroUsize {
    const { NonZeroUsize::new(50_000).expect("not zero") }
}

fn default_max_file_mib() -> NonZeroU32 {
    const { NonZeroU32::new(100).expect("not zero") }
}

fn default_max_result_mib() -> NonZeroU32 {
    const { NonZeroU32::new(8192).expect("not zero") }
}

fn default_poll_seconds() -> NonZeroU64 {
    const { NonZeroU64::new(60).expect("not zero") }
}

fn default_transfer_seconds() -> NonZeroU64 {
    const { NonZeroU64::new(3600).expect("not zero") }
}

fn default_window() -> String {
    "24h".to_owned()
}

fn default_direct_below() -> usize {
    2
}

#[derive(Debug)]
struct Configured {
    server: ServerConfig,
    own: BatchConfig,
    of: Arc<dyn ExchangeKind>,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let server: ServerConfig = section.part(&ServerConfig::KEYS)?;
    let Some(of) = section.section("of")? else {
        return Err(section.refuse("the section [teacher.of] is missing, which says what is asked"));
    };
    let of = kinds::read_exchange(server.clone(), of)?;
    let own = section.rest()?;
    Ok(Arc::new(Configured { server, own, of }))
}

impl TeacherKind for Configured {
    fn open(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Teacher>, TeacherError> {
        Ok(context.guard(self.batched(context)?))
    }

    fn takes_long(&self) -> bool {
        self.own.direct_below < 2
    }
}

impl Configured {
    fn batched(&self, context: &OpenContext<'_>) -> Result<Batched, TeacherError> {
        let endpoint = || Endpoint::open(&self.server, KeyHeader::Bearer);
        let transfer = ServerConfig {
            timeout_seconds: self.own.transfer_seconds,
            ..self.server.clone()
        };
        let mebibytes = |number: NonZeroU32| number.get() as usize * (1 << 20);
        let exchange = self.of.exchange(context)?;
        let max_bytes = mebibytes(self.own.max_file_mib);
        let longest = Duration::from_secs(self.own.poll_seconds.get());
        let driver = Driver {
            api: Api {
                endpoint: endpoint()?,
                transfer: Endpoint::open(&transfer, KeyHeader::Bearer)?,
                max_result_bytes: mebibytes(self.own.max_result_mib) as u64,
            },
            waits: Waits {
                first: FIRST_WAIT.min(longest),
                longest,
            },
            url: format!("/v1/{}", exchange.path().join("/")),
            window: self.own.window.clone(),
            max_line: mebibytes(self.server.max_reply_mib) + LINE_OVERHEAD,
            stop: context.stop.clone(),
        };
        // What a file holds is said the same way when it is sent row by row, so the identity is that of the exchange.
        let description = Description {
            batch: BatchLimits {
                max_requests: self.own.max_requests.get(),
                max_bytes,
            },
            max_in_flight: None,
            ..exchange.describe().clone()
        };
        Ok(Batched {
            direct: Served::new(Arc::clone(&exchange), endpoint()?),
            direct_below: self.own.direct_below,
            exchange,
            driver,
            max_bytes,
            part: part_name(&description.identity),
            description,
            state_folder: context.state_folder.clone(),
            ledger: Mutex::new(None),
            booked: std::sync::Mutex::default(),
        })
    }
}

/// What the names of directly asked rows start with, as parts that are paid for: several teachers can fill one cache.
fn part_name(identity: &TeacherIdentity) -> String {
    let identity = serde_json::to_vec(identity).expect("an identity has a JSON form");
    format!("direct {}", Sha256Digest::of(&identity).short())
}

/// Asks through a Batch API.
#[derive(Debug)]
struct Batched {
    description: Description,
    part: String,
    exchange: Arc<dyn Exchange>,
    direct: Served<Arc<dyn Exchange>>,
    direct_below: usize,
    driver: Driver,
    max_bytes: usize,
    state_folder: PathBuf,
    /// Opened by the first query: what only describes itself needs no lock.
    ledger: Mutex<Option<Ledger>>,
    /// Rows that are in a batch whose cost an earlier query was counted for.
    booked: std::sync::Mutex<HashSet<Row>>,
}

type Outcome = Result<Reply, TeacherError>;

/// What becomes of a query.
struct Outcomes {
    replies: Vec<Option<Outcome>>,
    /// Rows that this query pays for, if it sends them.
    is_new: Vec<bool>,
    taken: Usage,
}

impl Batched {
    async fn ask(&self, requests: &[Request], paid: &dyn Paid) -> Answers {
        let find = |request| paid.find(&self.part(request), request).map(Ok);
        let mut outcomes = Outcomes {
            replies: requests.iter().map(find).collect(),
            is_new: self.are_new(requests),
            taken: Usage::default(),
        };
        match self.plan(requests, &mut outcomes.replies).await {
            Ok(plan) => self.follow(plan, requests, &mut outcomes, paid).await,
            // Of the rows and not of the query: a query that is refused as a whole is asked again in halves.
            Err(error) => {
                for reply in outcomes.replies.iter_mut().filter(|reply| reply.is_none()) {
                    *reply = Some(Err(error.clone()));
                }
            }
        }
        Answers {
            replies: outcomes.replies.into_iter().flatten().collect(),
            taken: Some(outcomes.taken),
            ..Answers::default()
        }
    }

    fn open_ledger(&self) -> Result<Ledger, TeacherError> {
        let identity = &self.description.identity;
        let (store, records) = Store::open(&self.state_folder, identity)?;
        let (ledger, booked) = Ledger::open(store, records, self.driver.max_line)?;
        self.booked().extend(booked);
        Ok(ledger)
    }

    fn booked(&self) -> MutexGuard<'_, HashSet<Row>> {
        self.booked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which rows are not paid for.
    fn are_new(&self, requests: &[Request]) -> Vec<bool> {
        // A ledger that cannot be opened is what the query will tell.
        if let Ok(mut ledger) = self.ledger.try_lock()
            && ledger.is_none()
        {
            *ledger = self.open_ledger().ok();
        }
        let booked = self.booked();
        let is_new = |request| !booked.contains(&Row::of(request));
        requests.iter().map(is_new).collect()
    }

    fn most_of(&self, request: &Request) -> Usage {
        self.exchange.most(std::slice::from_ref(request))
    }

    /// What one row took, or may have taken, that was asked and has this outcome.
    fn taken(&self, request: &Request, outcome: &Outcome) -> Usage {
        let most = self.most_of(request);
        let or_most = |counted: Option<u32>, most| counted.map_or(most, u64::from);
        match outcome {
            Ok(Reply { provenance, .. }) => Usage {
                tokens_in: or_most(provenance.tokens_in, most.tokens_in),
                tokens_out: or_most(provenance.tokens_out, most.tokens_out),
                ..most
            },
            Err(error) => most.of_failed(error.sent),
        }
    }

    /// Finds or makes the batch of each row. Queries do so one at a time, so that none submits what another does.
    async fn plan(
        &self,
        requests: &[Request],
        replies: &mut [Option<Outcome>],
    ) -> Result<Plan, TeacherError> {
        let mut ledger = self.ledger.lock().await;
        let ledger = match &mut *ledger {
            Some(ledger) => ledger,
            none => none.insert(self.open_ledger()?),
        };
        let rows: Vec<Row> = requests.iter().map(Row::of).collect();
        let mut fresh = Vec::new();
        for (position, row) in rows.iter().enumerate() {
            if replies[position].is_some() {
                continue;
            }
            if let Some(results) = ledger.answered.remove(row) {
                self.booked().remove(row);
                // Nothing was set aside for asking it anew, so that is for the next try.
                let outcome = self.outcome(&results, &requests[position]);
                replies[position] = Some(outcome.map_err(of_an_earlier_batch));
            } else if !ledger.awaited.contains_key(row) {
                fresh.push(position);
            }
        }
        if fresh.len() < self.direct_below {
            return Ok(ledger.plan(&rows, replies, fresh));
        }
        self.submit(ledger, &rows, &fresh, requests, replies)
            .await?;
        Ok(ledger.plan(&rows, replies, Vec::new()))
    }

    /// Writes the request files of rows that are in no batch.
    async fn submit(
        &self,
        ledger: &mut Ledger,
        rows: &[Row],
        fresh: &[usize],
        requests: &[Request],
        replies: &mut [Option<Outcome>],
    ) -> Result<(), TeacherError> {
        let max_rows = self.description.batch.max_requests;
        let store = Arc::clone(&ledger.store);
        let mut preparer = Preparer::new(&store, &self.driver.url, max_rows, self.max_bytes);
        let mut seen = HashSet::new();
        for &position in fresh
            .iter()
            .filter(|position| seen.insert(rows[**position]))
        {
            let added = match self.exchange.body(&requests[position..=position]).await {
                Ok(body) => preparer.add(rows[position], &body),
                Err(error) => Err(error),
            };
            if let Err(error) = added {
                replies[position] = Some(Err(error));
            }
        }
        for record in preparer.finish()? {
            let rows = record.rows.clone();
            let batch = Arc::new(Batch::new(record));
            let entries = rows.into_iter().map(|row| (row, Arc::clone(&batch)));
            ledger.awaited.extend(entries);
        }
        Ok(())
    }

    async fn follow(
        &self,
        plan: Plan,
        requests: &[Request],
        outcomes: &mut Outcomes,
        paid: &dyn Paid,
    ) {
        let Plan {
            store,
            batches,
            direct,
        } = plan;
        let driven = batches
            .iter()
            .map(|(batch, _)| self.driver.drive(batch, &store));
        let asked = direct
            .iter()
            .map(|&position| self.ask_directly(&requests[position], paid));
        let (driven, asked) = futures::join!(join_all(driven), join_all(asked));
        for (position, outcome) in direct.into_iter().zip(asked) {
            let taken = self.taken(&requests[position], &outcome);
            outcomes.taken = outcomes.taken.plus(taken);
            outcomes.replies[position] = Some(outcome);
        }
        for ((batch, positions), driven) in batches.into_iter().zip(driven) {
            for (number, position) in positions.iter().copied().enumerate() {
                let request = &requests[position];
                let (outcome, taken) = match &driven.outcome {
                    Ok(results) => {
                        let outcome = self.outcome(results, request);
                        let taken = self.taken(request, &outcome);
                        (outcome, taken)
                    }
                    // However the call about the batch failed, its rows may be answered, and nobody counts them later.
                    Err(error) => (Err(error.clone()), self.most_of(request)),
                };
                if driven.is_submitted && outcomes.is_new[position] {
                    outcomes.taken = outcomes.taken.plus(taken);
                }
                outcomes.replies[position] = Some(outcome);
                if number % ROWS_BETWEEN_YIELDS == 0 {
                    tokio::task::yield_now().await;
                }
            }
            let rows = positions
                .iter()
                .map(|&position| Row::of(&requests[position]));
            if driven.is_over {
                self.hand_out(&batch, rows).await;
            } else if driven.is_submitted {
                self.booked().extend(rows);
            }
        }
    }

    /// Asked again, these rows are new questions.
    async fn hand_out(&self, batch: &Arc<Batch>, rows: impl Iterator<Item = Row>) {
        if let Some(ledger) = &mut *self.ledger.lock().await {
            let mut booked = self.booked();
            for row in rows {
                // Another query may have submitted it anew meanwhile.
                let awaited = ledger.awaited.get(&row);
                if awaited.is_some_and(|of| Arc::ptr_eq(of, batch)) {
                    ledger.awaited.remove(&row);
                    booked.remove(&row);
                }
            }
        }
    }

    fn outcome(&self, results: &Results, request: &Request) -> Outcome {
        results.outcome(request, self.exchange.as_ref(), &self.driver.api)
    }

    fn part(&self, request: &Request) -> String {
        let digest = u128::from_be_bytes(request.digest());
        format!("{} {digest:032x}", self.part)
    }

    /// The reply is kept at once: the batches of the same query can take a day.
    async fn ask_directly(&self, request: &Request, paid: &dyn Paid) -> Outcome {
        let answers = self
            .direct
            .query(std::slice::from_ref(request), &NotKept)
            .await?;
        let mut replies = answers.replies;
        let reply = replies.pop().expect("one request has one outcome")?;
        if let Err(error) = paid.keep(&self.part(request), request, &reply) {
            // It is in memory still, and journalled once the query ends.
            tracing::warn!("{error}");
        }
        Ok(reply)
    }
}

/// The error of a row whose answer is there and cannot be used.
fn of_an_earlier_batch(error: TeacherError) -> TeacherError {
    let problem = format!("what an earlier batch brought of the row cannot be used: {error}");
    TeacherError {
        advice: error.advice,
        ..TeacherError::new(ErrorClass::Transient, problem)
    }
}

impl Teacher for Batched {
    fn describe(&self) -> &Description {
        &self.description
    }

    /// Without the rows that are paid for.
    fn most(&self, requests: &[Request]) -> Usage {
        let rows = requests.iter().zip(self.are_new(requests));
        rows.filter(|(_, is_new)| *is_new)
            .map(|(request, _)| self.most_of(request))
            .fold(Usage::default(), Usage::plus)
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        Box::pin(async move { Ok(self.ask(requests, paid).await) })
    }

    fn finished<'a>(&'a self, failed: &'a HashSet<(ExampleId, u32)>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // Whoever asks next opens it anew.
            let ledger = match self.ledger.lock().await.take() {
                Some(ledger) => Ok(ledger),
                // Nothing was asked: a process that was killed before its end may have left some.
                None if has_batches(&self.state_folder).unwrap_or(true) => self.open_ledger(),
                None => return,
            };
            let cleared = match ledger {
                Ok(ledger) => ledger.clear(&self.driver, failed).await,
                Err(error) => Err(error),
            };
            self.booked().clear();
            if let Err(error) = cleared {
                tracing::warn!("results of batches stay on disk: {error}");
            }
        })
    }
}

#[cfg(test)]
mod tests;
