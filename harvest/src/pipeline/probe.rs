//! The first reply of a new cache, which shows the widths of its signals.

use std::collections::HashSet;

use schemas::{Manifest, TeacherRecord};

use super::{Ending, new_manifest, record};
use crate::cache::Key;
use crate::config::CacheConfig;
use crate::error::Error;
use crate::failures::{Failure, Failures};
use crate::plan::Plan;
use crate::stop::Stop;
use crate::teacher::{ErrorClass, Request, Teacher, TeacherError};

pub(super) struct Probe<'a> {
    pub(super) plan: &'a Plan,
    pub(super) teacher: &'a dyn Teacher,
    pub(super) cache_config: &'a CacheConfig,
    pub(super) stop: &'a Stop,
}

impl Probe<'_> {
    /// Asks about one row after the other until one is answered. The reply is kept as that row's: it was paid for.
    /// Rows that fail before are listed in `failures`, and count as `known`, so that this run does not ask again. The
    /// inner result is how the run ends where none is answered.
    ///
    /// # Errors
    /// [`Error::Teacher`] where no request can succeed.
    pub(super) async fn first_reply(
        &self,
        requests: &[Request],
        failures: &mut Failures,
        known: &mut HashSet<Key>,
    ) -> Result<Result<(Manifest, TeacherRecord), Ending>, Error> {
        let mut ending = Ending::Complete;
        for request in requests {
            if self.stop.is_requested() {
                return Ok(Err(Ending::Stopped));
            }
            let error = match self.ask(request).await {
                Ok(first) => return Ok(Ok(first)),
                Err(error) => error,
            };
            if error.class == ErrorClass::Interrupted {
                return Ok(Err(Ending::Stopped));
            }
            if error.stops_the_run() {
                return Err(error.into());
            }
            tracing::warn!("row {} failed, asking about the next: {error}", request.id);
            failures.add(Failure::new(request, &error))?;
            known.insert((request.id, request.draw));
            ending = Ending::AllFailed(error);
        }
        Ok(Err(ending))
    }

    async fn ask(&self, request: &Request) -> Result<(Manifest, TeacherRecord), TeacherError> {
        let reply = self.teacher.query(request).await?;
        let teacher = self.teacher.describe();
        let manifest = new_manifest(self.plan, teacher, &reply, self.cache_config)?;
        let record = record(request, reply, &manifest)?;
        Ok((manifest, record))
    }
}
