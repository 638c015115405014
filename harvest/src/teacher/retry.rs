//! Asks again after errors that may pass.

use std::num::NonZeroU32;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::future::BoxFuture;

use super::{Description, ErrorClass, Reply, Request, Teacher, TeacherError};
use crate::stop::Stop;

/// Wait before the second try, doubled before each further one, with jitter.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait that this program chooses.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Longest wait that a server may choose; a longer one is cut to this.
const LONGEST_SERVER_WAIT: Duration = Duration::from_mins(10);

/// A teacher that is asked again after a rate limit, an overload or a passing fault.
///
/// A server that says when to ask again is obeyed. Each question is sent at most `max_tries` times. A question that
/// waits when the run is stopped is given up with [`ErrorClass::Interrupted`].
#[derive(Debug)]
pub struct Retry<T> {
    inner: T,
    max_tries: NonZeroU32,
    stop: Stop,
}

impl<T: Teacher> Retry<T> {
    /// Wraps `inner`.
    pub fn new(inner: T, max_tries: NonZeroU32, stop: Stop) -> Self {
        Self {
            inner,
            max_tries,
            stop,
        }
    }

    async fn ask(&self, request: &Request) -> Result<Reply, TeacherError> {
        let backoff = ExponentialBuilder::new()
            .with_min_delay(FIRST_WAIT)
            .with_max_delay(LONGEST_WAIT);
        let mut waits = backoff.without_max_times().with_jitter().build();
        let mut tries = 0;
        loop {
            tries += 1;
            let mut error = match self.inner.query(request).await {
                Ok(mut reply) => {
                    reply.provenance.tries = tries;
                    return Ok(reply);
                }
                Err(error) => error,
            };
            error.tries = tries;
            if !error.is_retryable() || tries >= self.max_tries.get() {
                return Err(error);
            }
            let chosen = waits.next().unwrap_or(LONGEST_WAIT);
            let wait = error
                .retry_after
                .map_or(chosen, |server| server.min(LONGEST_SERVER_WAIT));
            tracing::debug!(example = %request.id, class = %error.class, tries, ?wait, "asking again: {error}");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.requested() => {
                    error.class = ErrorClass::Interrupted;
                    return Err(error);
                }
            }
        }
    }
}

impl<T: Teacher> Teacher for Retry<T> {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }

    fn query<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Reply, TeacherError>> {
        Box::pin(self.ask(request))
    }
}
