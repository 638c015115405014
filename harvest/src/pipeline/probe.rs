//! The first reply of a new cache, which shows the widths of its signals.

use std::sync::Arc;

use schemas::{Manifest, TeacherRecord};

use super::{Ending, Job, new_manifest, record};
use crate::cache::{Cache, Key};
use crate::error::Error;
use crate::failures::Failure;
use crate::parts::Parts;
use crate::plan::Plan;
use crate::stop::Stop;
use crate::survey::{Pending, Survey};
use crate::teacher::{ErrorClass, Teacher, TeacherError};

pub(super) struct Probe {
    plan: Arc<Plan>,
    teacher: Arc<dyn Teacher>,
    config: crate::config::CacheConfig,
    parts: Arc<Parts>,
    stop: Stop,
}

/// The manifest that the first reply shows, and the row that it is.
pub(super) struct Found {
    pub(super) manifest: Manifest,
    pub(super) row: (u64, TeacherRecord),
}

impl Probe {
    pub(super) fn new(job: &Job, parts: Arc<Parts>, stop: &Stop) -> Self {
        Self {
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
    /// [`Error::Teacher`] where no request can succeed.
    pub(super) async fn first_reply(
        &self,
        survey: &Survey,
        cache: &mut Cache,
        settled: &mut Vec<Key>,
    ) -> Result<Result<Found, Ending>, Error> {
        let mut ending = Ending::Complete;
        for pending in &survey.first_missing {
            if self.stop.is_requested() {
                return Ok(Err(Ending::Stopped));
            }
            let request = &pending.request;
            let error = match self.ask(pending).await {
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
                return Err(error.into());
            }
            tracing::warn!("row {} failed, asking about the next: {error}", request.id);
            cache.failures().add(Failure::new(request, &error))?;
            settled.push((request.id, request.draw));
            ending = Ending::AllFailed(error);
        }
        Ok(Err(ending))
    }

    async fn ask(&self, pending: &Pending) -> Result<Found, TeacherError> {
        let request = &pending.request;
        let mut answers = self
            .teacher
            .query(std::slice::from_ref(request), self.parts.as_ref())
            .await?;
        let reply = answers
            .replies
            .pop()
            .expect("one request has one outcome")?;
        let teacher = self.teacher.describe();
        let manifest = new_manifest(&self.plan, teacher, &reply, &self.config)?;
        let forget = |signal: &str| self.parts.forget_signal(request, signal);
        let record = record(request, reply, &manifest, forget)?;
        Ok(Found {
            manifest,
            row: (pending.position, record),
        })
    }
}
