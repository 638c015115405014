//! The first reply of a new cache, which shows the widths of its signals.

use std::sync::Arc;

use schemas::{Manifest, Sha256Digest, TeacherRecord};
use tokio::time::Interval;

use super::{Ending, Job, new_manifest, record};
use crate::cache::{Cache, Key};
use crate::error::Error;
use crate::failures::Failure;
use crate::parts::Parts;
use crate::plan::Plan;
use crate::reporter::Reporter;
use crate::stop::Stop;
use crate::survey::{Pending, Survey};
use crate::teacher::{ErrorClass, Paid, Reply, Request, Teacher, TeacherError};

pub(super) struct Probe {
    plan: Arc<Plan>,
    teacher: Arc<dyn Teacher>,
    config: crate::config::CacheConfig,
    parts: Arc<Parts>,
    stop: Stop,
    /// Digest of who is asked, for the names of parts.
    identity: Sha256Digest,
}

/// The manifest that the first reply shows, and the row that it is.
pub(super) struct Found {
    pub(super) manifest: Manifest,
    pub(super) row: (u64, TeacherRecord),
}

impl Probe {
    pub(super) fn new(job: &Job, parts: Arc<Parts>, stop: &Stop) -> Self {
        let identity = serde_json::json!(job.teacher.describe().identity);
        Self {
            identity: Sha256Digest::of(identity.to_string().as_bytes()),
            plan: Arc::clone(&job.plan),
            teacher: Arc::clone(&job.teacher),
            config: job.cache.clone(),
            parts,
            stop: stop.clone(),
        }
    }

    /// Asks about one row after the other until one is answered. The reply is kept as that row's: it was paid for.
    /// Rows that were asked about are `settled`, so that this run does not ask again. The inner result is how the run
    /// ends where none is answered.
    ///
    /// # Errors
    /// [`Error::Schemas`] where what was paid for or what failed cannot be written.
    pub(super) async fn first_reply(
        &self,
        survey: &Survey,
        cache: &mut Cache,
        settled: &mut Vec<Key>,
        reporter: &mut Reporter,
    ) -> Result<Result<Found, Ending>, Error> {
        let mut ending = Ending::Complete;
        let mut telling = Reporter::interval();
        for pending in &survey.first_missing {
            if self.stop.is_requested() {
                return Ok(Err(Ending::Stopped));
            }
            let request = &pending.request;
            let error = match self.ask_watched(pending, reporter, &mut telling).await {
                Ok(found) => {
                    settled.push((request.id, request.draw));
                    return Ok(Ok(found));
                }
                Err(error) => error,
            };
            if error.class == ErrorClass::Interrupted {
                if let Some(error) = self.parts.take_failure() {
                    return Err(error.into());
                }
                return Ok(Err(Ending::Stopped));
            }
            // What a teacher does not have, it has for no row.
            if error.stops_the_run() || error.is_lacking || error.finds_no_server() {
                reporter.stopping(&error.message);
                return Ok(Err(Ending::Refused(error)));
            }
            tracing::warn!("row {} failed, asking about the next: {error}", request.id);
            let failure = Failure::new(request, &error);
            reporter.failed(&failure);
            cache.failures().add(failure)?;
            settled.push((request.id, request.draw));
            ending = Ending::AllFailed(error);
        }
        if survey.num_requests() > survey.first_missing.len() as u64 {
            reporter.stopping("the first rows all failed");
        }
        Ok(Err(ending))
    }

    /// The first reply that an earlier run kept, while another worker came to begin the cache.
    pub(super) fn kept(
        &self,
        survey: &Survey,
        manifest: &Manifest,
    ) -> Option<(u64, TeacherRecord)> {
        let parts: &dyn Paid = self.parts.as_ref();
        survey.first_missing.iter().find_map(|pending| {
            let request = &pending.request;
            let reply = parts.find(&self.part(request), request)?;
            let forget = |signal: &str| self.parts.forget_signal(request, signal);
            let record = record(request, reply, manifest, forget).ok()?;
            Some((pending.position, record))
        })
    }

    /// Asks about a row and tells those who watch meanwhile: it can take minutes.
    async fn ask_watched(
        &self,
        pending: &Pending,
        reporter: &mut Reporter,
        telling: &mut Interval,
    ) -> Result<Found, TeacherError> {
        let mut asking = std::pin::pin!(self.ask(pending));
        loop {
            tokio::select! {
                biased;
                () = self.stop.requested(), if !reporter.is_stopping() => reporter.stopping("asked to"),
                found = &mut asking => {
                    // The request hears of it as well, and may be the first to.
                    if self.stop.is_requested() && !reporter.is_stopping() {
                        reporter.stopping("asked to");
                    }
                    return found;
                }
                _ = telling.tick() => reporter.tell(),
            }
        }
    }

    async fn ask(&self, pending: &Pending) -> Result<Found, TeacherError> {
        let request = &pending.request;
        let parts: &dyn Paid = self.parts.as_ref();
        let reply = match parts.find(&self.part(request), request) {
            Some(reply) => reply,
            None => self.query(request).await?,
        };
        let teacher = self.teacher.describe();
        let manifest = new_manifest(&self.plan, teacher, &reply, &self.config)?;
        let forget = |signal: &str| self.parts.forget_signal(request, signal);
        let record = record(request, reply, &manifest, forget)?;
        Ok(Found {
            manifest,
            row: (pending.position, record),
        })
    }

    async fn query(&self, request: &Request) -> Result<Reply, TeacherError> {
        let mut answers = self
            .teacher
            .query(std::slice::from_ref(request), self.parts.as_ref())
            .await?;
        answers.replies.pop().expect("one request has one outcome")
    }

    /// Keeps the first reply while the teacher is looked at further, which can take long or end the run: a new cache has
    /// no journal yet.
    ///
    /// # Errors
    /// [`Error::Schemas`] where it cannot be written.
    pub(super) fn keep(&self, request: &Request, first: &TeacherRecord) -> Result<(), Error> {
        let reply = Reply {
            signals: first.signals.clone(),
            provenance: first.provenance.clone(),
        };
        let parts: &dyn Paid = self.parts.as_ref();
        let kept = parts.keep(&self.part(request), request, &reply);
        match (kept, self.parts.take_failure()) {
            (Err(_), Some(error)) => Err(error.into()),
            (kept, _) => Ok(kept?),
        }
    }

    /// Forgets what was kept of a row.
    ///
    /// # Errors
    /// [`Error::Schemas`] where it stays on the disk.
    pub(super) fn forget(&self, first: &TeacherRecord) -> Result<(), Error> {
        self.parts.forget_row(&(first.id, first.draw));
        Ok(self.parts.compact()?)
    }

    fn part(&self, request: &Request) -> String {
        let digest = u128::from_be_bytes(request.digest());
        format!("first {} {digest:032x}", self.identity.short())
    }
}
