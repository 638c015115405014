//! The loop that keeps requests in flight and rolls shards.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemas::{Manifest, TeacherRecord};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;

use super::open_shard::OpenShard;
use super::{Ending, Queue, Summary, record};
use crate::cache::{Cache, publish};
use crate::error::Error;
use crate::failures::{Failure, Failures};
use crate::journal::Segment;
use crate::plan::{NUM_LISTED, Pending};
use crate::progress::Progress;
use crate::stop::Stop;
use crate::teacher::{ErrorClass, Request, Teacher, TeacherError};

/// Time between two synchronisations of the journal: what a power cut can cost at most.
const SYNC_INTERVAL: Duration = Duration::from_secs(2);

/// A run into a cache without any reply gives up once this many rows failed. A survey lists as many, so the first
/// reply is sought among them.
const MAX_FAILED_AT_START: u64 = NUM_LISTED as u64;

/// Shards that are open or being written at a time.
const MAX_OPEN_SHARDS: usize = 2;

/// What became of a request.
enum Outcome {
    Kept(TeacherRecord),
    Failed(Request, TeacherError),
    /// The reply could not be journalled.
    Lost(Error),
}

struct Answer {
    shard: u32,
    position: u64,
    outcome: Outcome,
}

pub(super) struct Driver {
    folder: PathBuf,
    cache: Cache,
    manifest: Arc<Manifest>,
    teacher: Arc<dyn Teacher>,
    rows_per_shard: usize,
    /// The shard that takes requests.
    filling: Option<u32>,
    open: BTreeMap<u32, OpenShard>,
    asking: JoinSet<Answer>,
    committing: JoinSet<Result<u64, schemas::Error>>,
    failures: Failures,
    progress: Progress,
    summary: Summary,
    /// Replies that the cache has, those of earlier runs included.
    num_answered: u64,
    /// The first error that ends the run.
    fatal: Option<Error>,
}

impl Driver {
    pub(super) fn new(
        cache: Cache,
        manifest: Manifest,
        teacher: Arc<dyn Teacher>,
        rows_per_shard: usize,
        failures: Failures,
        summary: Summary,
    ) -> Self {
        let survey = &summary.survey;
        Self {
            folder: cache.folder().to_owned(),
            progress: Progress::new(survey.num_missing - failures.num_failed()),
            num_answered: survey.num_wanted - survey.num_missing,
            failures,
            cache,
            manifest: Arc::new(manifest),
            teacher,
            rows_per_shard,
            filling: None,
            open: BTreeMap::new(),
            asking: JoinSet::new(),
            committing: JoinSet::new(),
            summary,
            fatal: None,
        }
    }

    /// Runs until every request is settled and every shard committed. `first` is the reply to the first request,
    /// where the probe has it already. After an error nothing more is sent, but what is in flight is journalled.
    pub(super) async fn run(
        mut self,
        mut queue: Queue,
        concurrency: usize,
        first: Option<TeacherRecord>,
        stop: &Stop,
    ) -> Result<Summary, Error> {
        self.begin(&mut queue, first).await?;
        let mut sync = tokio::time::interval(SYNC_INTERVAL);
        sync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut accepting = true;
        while accepting || !self.asking.is_empty() || !self.committing.is_empty() {
            let has_room =
                self.filling.is_some() || self.open.len() + self.committing.len() < MAX_OPEN_SHARDS;
            let may_send = accepting && has_room && self.asking.len() < concurrency;
            let done = tokio::select! {
                biased;
                () = stop.requested(), if accepting => {
                    self.summary.ending = Ending::Stopped;
                    Ok(())
                }
                Some(answer) = self.asking.join_next() => self.answered(answer),
                Some(committed) = self.committing.join_next() => self.committed(committed),
                _ = sync.tick() => self.sync().await,
                pending = queue.recv(), if may_send => {
                    accepting = pending.is_some();
                    pending.map_or(Ok(()), |pending| self.ask(pending?))
                }
            };
            if let Err(error) = done {
                self.fatal.get_or_insert(error);
                // Rows that wait to be asked again need not be waited for.
                stop.request();
            }
            accepting &= self.summary.ending == Ending::Complete && self.fatal.is_none();
            if !accepting {
                queue.close();
                self.close();
            }
        }
        match self.fatal {
            Some(error) => Err(error),
            None => Ok(self.summary.with(self.failures)),
        }
    }

    fn answered(&mut self, answer: Result<Answer, JoinError>) -> Result<(), Error> {
        self.settle(answer?)
    }

    fn committed(
        &mut self,
        num_rows: Result<Result<u64, schemas::Error>, JoinError>,
    ) -> Result<(), Error> {
        self.summary.num_committed += num_rows??;
        Ok(())
    }

    /// Journals the reply that the probe brought before anything else, and opens the manifest for new rows.
    async fn begin(
        &mut self,
        queue: &mut Queue,
        first: Option<TeacherRecord>,
    ) -> Result<(), Error> {
        if let Some(record) = first {
            let shard = self.shard()?;
            shard.segment().append(&record)?;
            shard.sent();
            // The source hands out the request of the probe first, since both follow the order of the data set and
            // the rows that failed before it are left out.
            let pending = queue
                .recv()
                .await
                .expect("the survey found a missing row")?;
            let answer = Answer {
                shard: self.filling.expect("the first shard takes requests"),
                position: pending.position,
                outcome: Outcome::Kept(record),
            };
            self.close_if_full();
            self.settle(answer)?;
        }
        Ok(publish(&self.folder, &self.manifest)?)
    }

    /// The shard that takes requests, opened where there is none.
    fn shard(&mut self) -> Result<&mut OpenShard, Error> {
        if self.filling.is_none() {
            let number = self.cache.take_number();
            let segment = Segment::create(&self.folder, number, &self.manifest)?;
            self.open.insert(number, OpenShard::new(number, segment));
            self.filling = Some(number);
        }
        let shard = self.filling.and_then(|number| self.open.get_mut(&number));
        Ok(shard.expect("the shard that takes requests is open"))
    }

    fn ask(&mut self, pending: Pending) -> Result<(), Error> {
        let Pending { position, request } = pending;
        let shard = self.shard()?;
        shard.sent();
        let segment = Arc::clone(shard.segment());
        let shard = self.filling.expect("the shard that takes requests is open");
        let (teacher, manifest) = (Arc::clone(&self.teacher), Arc::clone(&self.manifest));
        self.asking.spawn(async move {
            let outcome = match teacher.query(&request).await {
                Err(error) => Outcome::Failed(request, error),
                Ok(reply) => keep(request, reply, &manifest, &segment),
            };
            Answer {
                shard,
                position,
                outcome,
            }
        });
        self.close_if_full();
        Ok(())
    }

    fn close_if_full(&mut self) {
        let full = |number| {
            self.open
                .get(&number)
                .is_some_and(|shard| shard.num_sent() >= self.rows_per_shard)
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
            let (folder, manifest) = (self.folder.clone(), Arc::clone(&self.manifest));
            self.committing
                .spawn_blocking(move || shard.commit(&folder, &manifest));
        }
    }

    fn settle(&mut self, answer: Answer) -> Result<(), Error> {
        let row = match answer.outcome {
            Outcome::Lost(error) => return Err(error),
            Outcome::Failed(request, error) => {
                self.fail(&request, error)?;
                None
            }
            Outcome::Kept(record) => {
                self.num_answered += 1;
                self.progress.settle();
                Some((answer.position, record))
            }
        };
        self.open
            .get_mut(&answer.shard)
            .expect("a shard stays open until its last answer")
            .settle(row);
        self.commit_if_settled(answer.shard);
        Ok(())
    }

    fn fail(&mut self, request: &Request, error: TeacherError) -> Result<(), Error> {
        if error.class == ErrorClass::Interrupted {
            return Ok(());
        }
        if error.stops_the_run() {
            if !matches!(self.summary.ending, Ending::Refused(_)) {
                tracing::error!("stopping, since no request can succeed: {error}");
                self.summary.ending = Ending::Refused(error);
            }
            return Ok(());
        }
        self.progress.settle();
        tracing::debug!(example = %request.id, class = %error.class, "failed: {error}");
        self.failures.add(Failure::new(request, &error))?;
        let hopeless = self.num_answered == 0 && self.failures.num_failed() >= MAX_FAILED_AT_START;
        if hopeless && self.summary.ending == Ending::Complete {
            self.summary.ending = Ending::AllFailed(error);
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), Error> {
        let segments: Vec<_> = self
            .open
            .values()
            .map(|shard| Arc::clone(shard.segment()))
            .collect();
        let sync = move || segments.iter().try_for_each(|segment| segment.sync());
        Ok(tokio::task::spawn_blocking(sync).await??)
    }
}

/// Journals a reply as soon as it is there.
fn keep(
    request: Request,
    reply: crate::teacher::Reply,
    manifest: &Manifest,
    segment: &Segment,
) -> Outcome {
    match record(&request, reply, manifest) {
        Err(error) => Outcome::Failed(request, error),
        Ok(record) => match segment.append(&record) {
            Ok(()) => Outcome::Kept(record),
            Err(error) => Outcome::Lost(error.into()),
        },
    }
}
