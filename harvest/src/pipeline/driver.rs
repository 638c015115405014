//! The loop that keeps requests in flight and rolls shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schemas::{Manifest, TeacherRecord};
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;

use super::committer::Committer;
use super::open_shard::{Committed, OpenShard};
use super::source::{Batch, Queue};
use super::{Ending, Job, Summary, record};
use crate::budget::Budget;
use crate::cache::{Cache, Key, publish};
use crate::error::Error;
use crate::failures::Failure;
use crate::journal::{Line, Segment};
use crate::parts::{Parts, SegmentParts};
use crate::plan::NUM_LISTED;
use crate::reporter::Reporter;
use crate::reserve::Reserve;
use crate::stop::Stop;
use crate::survey::Pending;
use crate::teacher::{ErrorClass, Reply, Request, Teacher, TeacherError};

/// Time between two synchronisations of the journal: what a power cut can cost at most.
const SYNC_INTERVAL: Duration = Duration::from_secs(2);

/// A run into a cache without any reply gives up once this many rows failed. A survey lists as many, so the first
/// reply is sought among them.
const MAX_FAILED_AT_START: u64 = NUM_LISTED as u64;

/// Rows that must be settled before their share of failures stops a run.
const MIN_SETTLED: u64 = 100;

/// Shards that are open or being written at a time: one takes requests while others wait for a slow last reply.
const MAX_OPEN_SHARDS: usize = 4;

/// What became of a request.
enum Outcome {
    Kept(Key, Line),
    Failed(Request, TeacherError),
    /// The reply could not be journalled.
    Lost(Error),
}

struct Answer {
    shard: u32,
    rows: Vec<(u64, Outcome)>,
}

pub(super) struct Driver<'a> {
    cache: &'a mut Cache,
    summary: &'a mut Summary,
    manifest: Arc<Manifest>,
    teacher: Arc<dyn Teacher>,
    parts: Arc<Parts>,
    reserve: Arc<Reserve>,
    rows_per_shard: usize,
    batch_rows: usize,
    max_failure_share: f64,
    /// The shard that takes requests.
    filling: Option<u32>,
    open: BTreeMap<u32, OpenShard>,
    asking: JoinSet<Answer>,
    committer: Committer,
    reporter: &'a mut Reporter,
    budget: Arc<Budget>,
    /// Replies that the cache has, those of earlier runs included.
    num_answered: u64,
    num_settled: u64,
    /// The first error that ends the run.
    fatal: Option<Error>,
}

impl<'a> Driver<'a> {
    /// Within a runtime.
    pub(super) fn new(
        job: &Job,
        cache: &'a mut Cache,
        manifest: Manifest,
        parts: Arc<Parts>,
        reserve: Arc<Reserve>,
        summary: &'a mut Summary,
        reporter: &'a mut Reporter,
    ) -> Self {
        let manifest = Arc::new(manifest);
        let survey = &summary.survey;
        Self {
            reporter,
            budget: Arc::clone(&job.watch.budget),
            num_answered: survey.num_wanted - survey.num_missing - survey.num_failed,
            num_settled: cache.failures().num_new(),
            committer: Committer::start(
                &Handle::current(),
                cache.place().clone(),
                Arc::clone(&manifest),
                Arc::clone(&parts),
            ),
            cache,
            summary,
            manifest,
            teacher: Arc::clone(&job.teacher),
            parts,
            reserve,
            rows_per_shard: job.cache.rows_per_shard.get(),
            batch_rows: job.teacher.describe().batch.max_requests,
            max_failure_share: job.run.max_failure_share,
            filling: None,
            open: BTreeMap::new(),
            asking: JoinSet::new(),
            fatal: None,
        }
    }

    /// Runs until every request is settled and every shard committed. `first` is the reply to the first request,
    /// where the probe has it already. After an error nothing more is sent, but what is in flight is journalled.
    pub(super) async fn run(
        mut self,
        mut queue: Queue,
        concurrency: usize,
        first: Option<(u64, TeacherRecord)>,
        stop: &Stop,
    ) -> Result<(), Error> {
        self.begin(first).await?;
        let mut sync = tokio::time::interval(SYNC_INTERVAL);
        sync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut telling = Reporter::interval();
        let mut accepting = true;
        let mut has_heard = false;
        while accepting || !self.asking.is_empty() || self.committer.num_waiting() > 0 {
            let has_room = self.filling.is_some()
                || self.open.len() + self.committer.num_waiting() < MAX_OPEN_SHARDS;
            let may_send = accepting && has_room && self.asking.len() < concurrency;
            let done = tokio::select! {
                biased;
                () = stop.requested(), if !has_heard => {
                    has_heard = true;
                    self.asked_to_stop(accepting)
                }
                Some(answer) = self.asking.join_next() => self.answered(answer),
                Some(committed) = self.committer.next() => self.committed(committed),
                _ = telling.tick() => {
                    self.reporter.queue_depth(queue.len() * self.batch_rows);
                    self.reporter.tell();
                    Ok(())
                }
                _ = sync.tick() => self.sync().await,
                batch = queue.recv(), if may_send => {
                    accepting = batch.is_some();
                    batch.map_or(Ok(()), |batch| self.ask(batch?))
                }
            };
            if let Err(error) = done {
                self.reporter.stopping(&error.to_string());
                self.fatal.get_or_insert(error);
            }
            let goes_on = self.summary.ending == Ending::Complete && self.fatal.is_none();
            if !goes_on {
                // What waits for its turn or to be asked again is given up; what is in flight is waited for.
                stop.request();
            }
            accepting &= goes_on;
            if !accepting {
                queue.close();
                self.close();
            }
        }
        self.fatal.map_or(Ok(()), Err)
    }

    fn asked_to_stop(&mut self, accepting: bool) -> Result<(), Error> {
        self.cache.place().check_lease()?;
        self.reporter.stopping("asked to");
        if accepting {
            self.summary.ending = Ending::Stopped;
        }
        Ok(())
    }

    fn answered(&mut self, answer: Result<Answer, JoinError>) -> Result<(), Error> {
        self.settle(answer?)?;
        self.parts.take_failure().map_or(Ok(()), Err)?;
        Ok(self.reserve.check()?)
    }

    fn committed(&mut self, committed: Result<Committed, Error>) -> Result<(), Error> {
        let Committed { file, num_rows } = committed?;
        if let Some((file, num_bytes)) = file {
            tracing::debug!("committed {file} with {num_rows} rows");
            self.reporter.committed(&file, num_rows, num_bytes);
        }
        self.summary.num_committed += num_rows;
        Ok(())
    }

    /// Journals the reply that the probe brought before anything else, and opens the manifest for new rows.
    async fn begin(&mut self, first: Option<(u64, TeacherRecord)>) -> Result<(), Error> {
        if let Some((position, record)) = first {
            let shard = self.shard()?;
            let line = shard.segment().append(&record)?;
            shard.sent(1);
            let answer = Answer {
                shard: self.filling.expect("the first shard takes requests"),
                rows: vec![(position, Outcome::Kept((record.id, record.draw), line))],
            };
            self.close_if_full();
            self.settle(answer)?;
        }
        let (place, manifest) = (self.cache.place().clone(), Arc::clone(&self.manifest));
        tokio::task::spawn_blocking(move || publish(&place, &manifest)).await?
    }

    /// The shard that takes requests, opened where there is none.
    fn shard(&mut self) -> Result<&mut OpenShard, Error> {
        if self.filling.is_none() {
            let number = self.cache.take_number();
            let segment = Segment::create_with(
                &self.cache.place().work,
                number,
                &self.manifest,
                Some(Arc::clone(&self.reserve)),
            )?;
            self.open.insert(number, OpenShard::new(number, segment));
            self.filling = Some(number);
        }
        let shard = self.filling.and_then(|number| self.open.get_mut(&number));
        Ok(shard.expect("the shard that takes requests is open"))
    }

    fn ask(&mut self, batch: Batch) -> Result<(), Error> {
        let shard = self.shard()?;
        shard.sent(batch.len());
        let segment = Arc::clone(shard.segment());
        let shard = self.filling.expect("the shard that takes requests is open");
        let (teacher, manifest) = (Arc::clone(&self.teacher), Arc::clone(&self.manifest));
        let carried = Arc::clone(&self.parts);
        self.asking.spawn(async move {
            let (positions, requests): (Vec<u64>, Vec<Request>) = batch
                .into_iter()
                .map(|Pending { position, request }| (position, request))
                .unzip();
            let paid = SegmentParts::new(segment, carried);
            let replies = match teacher.query(&requests, &paid).await {
                Ok(answers) => answers.replies,
                Err(error) => vec![Err(error); requests.len()],
            };
            let outcomes = requests
                .into_iter()
                .zip(replies)
                .map(|(request, reply)| keep(request, reply, &manifest, &paid));
            Answer {
                shard,
                rows: positions.into_iter().zip(outcomes).collect(),
            }
        });
        self.close_if_full();
        Ok(())
    }

    fn close_if_full(&mut self) {
        let full = |number| {
            self.open
                .get(&number)
                .is_some_and(|shard| shard.is_full(self.rows_per_shard))
        };
        if self.filling.is_some_and(full) {
            self.close();
        }
    }

    /// No further request goes into the shard that takes them.
    fn close(&mut self) {
        if let Some(number) = self.filling.take() {
            self.commit_if_settled(number);
        }
    }

    fn commit_if_settled(&mut self, number: u32) {
        if self.filling != Some(number) && self.open.get(&number).is_some_and(OpenShard::is_settled)
        {
            let shard = self.open.remove(&number).expect("it was just seen");
            self.committer.commit(shard);
        }
    }

    fn settle(&mut self, answer: Answer) -> Result<(), Error> {
        for (position, outcome) in answer.rows {
            let row = match outcome {
                Outcome::Lost(error) => return Err(error),
                Outcome::Failed(request, error) => {
                    self.fail(&request, error)?;
                    None
                }
                Outcome::Kept(key, line) => {
                    self.num_answered += 1;
                    self.num_settled += 1;
                    self.reporter.answered();
                    self.cache.failures().resolve(&key);
                    Some((position, line))
                }
            };
            self.open
                .get_mut(&answer.shard)
                .expect("a shard stays open until its last answer")
                .settle(row);
        }
        self.close_if_full();
        self.commit_if_settled(answer.shard);
        Ok(())
    }

    fn fail(&mut self, request: &Request, error: TeacherError) -> Result<(), Error> {
        if error.class == ErrorClass::Interrupted {
            if self.summary.ending == Ending::Complete {
                self.reporter.stopping("asked to");
                self.summary.ending = Ending::Stopped;
            }
            return Ok(());
        }
        // Where no server is, no request can succeed, and no row is to blame.
        if error.stops_the_run() || error.finds_no_server() {
            if !matches!(self.summary.ending, Ending::Refused(_)) {
                tracing::error!("stopping, since no request can succeed: {error}");
                self.reporter.stopping(&error.message);
                self.summary.ending = Ending::Refused(error);
            }
            return Ok(());
        }
        self.num_settled += 1;
        tracing::debug!(example = %request.id, class = %error.class, "failed: {error}");
        let failure = Failure::new(request, &error);
        self.reporter.failed(&failure);
        self.cache.failures().add(failure)?;
        if self.summary.ending == Ending::Complete {
            let num_failed = self.cache.failures().num_new();
            let share = num_failed as f64 / self.num_settled as f64;
            if self.num_answered == 0 && num_failed >= MAX_FAILED_AT_START {
                self.reporter.stopping("the first rows all failed");
                self.summary.ending = Ending::AllFailed(error);
            } else if self.num_settled >= MIN_SETTLED && share > self.max_failure_share {
                let reason = format!("{num_failed} of {} rows failed", self.num_settled);
                tracing::error!("stopping: {reason}");
                self.reporter.stopping(&reason);
                self.summary.ending = Ending::TooManyFailed(error);
            }
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), Error> {
        let segments: Vec<_> = self
            .open
            .values()
            .map(|shard| Arc::clone(shard.segment()))
            .collect();
        let budget = Arc::clone(&self.budget);
        let sync = move || {
            budget.sync()?;
            segments.iter().try_for_each(|segment| segment.sync())
        };
        Ok(tokio::task::spawn_blocking(sync).await??)
    }
}

/// Journals a reply as soon as it is there.
fn keep(
    request: Request,
    reply: Result<Reply, TeacherError>,
    manifest: &Manifest,
    paid: &SegmentParts,
) -> Outcome {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return Outcome::Failed(request, error),
    };
    let forget = |signal: &str| paid.forget_signal(&request, signal);
    match record(&request, reply, manifest, forget) {
        Err(error) => Outcome::Failed(request, error),
        Ok(record) => match paid.segment.append(&record) {
            Ok(line) => Outcome::Kept((record.id, record.draw), line),
            Err(error) => Outcome::Lost(error.into()),
        },
    }
}
