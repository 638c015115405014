//! Moves one batch on from stage to stage. A step is written down before the next one begins, so that whoever takes
//! over, after an error, a drop or a kill, starts from what is known.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::api::{Api, Remote};
use super::results::{self, Results, Scan};
use super::state::{self, Ended, Record, Stage, Store};
use crate::stop::Stop;
use crate::teacher::http::shorten;
use crate::teacher::{ErrorClass, Sent, TeacherError, hints};

/// Failures in a row to learn a batch's state before its rows count as failed.
const MAX_POLL_FAILURES: u32 = 20;

/// A batch of this process.
#[derive(Debug)]
pub(super) struct Batch {
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: Record,
    /// Whether this process has sent the request file, so that the server must still have it.
    uploaded_here: bool,
    over: Option<Result<Arc<Results>, TeacherError>>,
}

/// Where a batch stands after it was driven.
#[derive(Debug)]
pub(super) struct Driven {
    pub(super) outcome: Result<Arc<Results>, TeacherError>,
    /// Whether nothing more will come of it, so that what it has not answered can be asked anew.
    pub(super) is_over: bool,
    /// Whether the server may have it, so that it is paid for.
    pub(super) is_submitted: bool,
}

/// Time between two looks at a batch: doubled from the first to the longest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

/// What drives batches.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) api: Api,
    pub(super) waits: Waits,
    /// Path that the requests are for, such as `/v1/embeddings`.
    pub(super) url: String,
    pub(super) window: String,
    pub(super) max_line: usize,
    pub(super) stop: Stop,
}

impl Batch {
    pub(super) fn new(record: Record) -> Self {
        Self {
            state: tokio::sync::Mutex::new(State {
                record,
                uploaded_here: false,
                over: None,
            }),
        }
    }
}

impl Driver {
    /// Drives the batch to its end, or waits for whoever does.
    pub(super) async fn drive(&self, batch: &Batch, store: &Store) -> Driven {
        let mut state = tokio::select! {
            state = batch.state.lock() => state,
            () = self.stop.requested() => {
                return Driven { outcome: Err(interrupted()), is_over: false, is_submitted: true };
            }
        };
        if state.over.is_none() {
            let outcome = self.advance(&mut state, store).await;
            if outcome.is_err() && state.over.is_none() {
                let is_submitted = state.record.stage.is_submitted();
                return Driven {
                    outcome,
                    is_over: false,
                    is_submitted,
                };
            }
            state.over.get_or_insert(outcome);
        }
        let outcome = state.over.clone().expect("it was just set");
        Driven {
            is_submitted: outcome.is_ok(),
            is_over: true,
            outcome,
        }
    }

    async fn advance(
        &self,
        state: &mut State,
        store: &Store,
    ) -> Result<Arc<Results>, TeacherError> {
        // A process that is here for the first time cannot know whether an earlier one got through.
        let mut is_doubtful = matches!(state.record.stage, Stage::Creating { .. });
        loop {
            if self.stop.is_requested() {
                return Err(interrupted());
            }
            let name = state.record.name.clone();
            let next = match state.record.stage.clone() {
                Stage::Prepared => {
                    let requests = store.requests(&name);
                    if !requests.exists() {
                        return Err(give_up(state, store, gone(&requests)));
                    }
                    let sent = self.api.upload(&name, &requests).await;
                    let file = sent.map_err(|error| give_up_if_lasting(state, store, error))?;
                    state.uploaded_here = true;
                    Stage::Uploaded { file }
                }
                Stage::Uploaded { file } => Stage::Creating { file },
                Stage::Creating { file } if is_doubtful => {
                    is_doubtful = false;
                    match self.seek(&name, &file).await? {
                        Some(batch) => Stage::Created { batch },
                        None => continue,
                    }
                }
                Stage::Creating { file } => self.create(state, store, &name, file).await?,
                Stage::Created { batch } => {
                    let remote = self.wait(&batch).await?;
                    self.collect(&state.record, &remote, store).await?
                }
                Stage::Collected { ended } => {
                    state::remove_if_there(&store.requests(&name))?;
                    let rows = &state.record.rows;
                    let results = Results::read(store.results(&name), rows, ended, self.max_line)?;
                    return Ok(Arc::new(results));
                }
            };
            let mut record = state.record.clone();
            record.stage = next;
            store.save(&record)?;
            state.record = record;
        }
    }

    /// Creates the batch. A refusal says that there is none; after any other error there may be one.
    async fn create(
        &self,
        state: &mut State,
        store: &Store,
        name: &str,
        file: String,
    ) -> Result<Stage, TeacherError> {
        let created = self.api.create(name, &file, &self.url, &self.window).await;
        match created {
            Ok(batch) => {
                let rows = state.record.rows.len();
                tracing::info!("batch {batch} is submitted with {rows} rows");
                Ok(Stage::Created { batch })
            }
            Err(error) if matches!(error.class, ErrorClass::Transient | ErrorClass::Overload) => {
                Err(error)
            }
            // The file may have been removed since it was sent.
            Err(error) if error.class == ErrorClass::Deterministic && !state.uploaded_here => {
                tracing::warn!(
                    "the request file is sent again, since the server refused it: {error}"
                );
                Ok(Stage::Prepared)
            }
            Err(error) if error.class == ErrorClass::Deterministic => {
                Err(give_up_if_lasting(state, store, error))
            }
            Err(error) => {
                let mut record = state.record.clone();
                record.stage = Stage::Uploaded { file };
                store.save(&record)?;
                state.record = record;
                Err(error)
            }
        }
    }

    /// Looks twice whether the server has a batch that an interrupted request may have created: that request may still
    /// be under way.
    async fn seek(&self, name: &str, file: &str) -> Result<Option<String>, TeacherError> {
        let cannot_tell = |error: TeacherError| {
            match error.class {
            ErrorClass::Deterministic => TeacherError::new(
                ErrorClass::Credentials,
                format!("cannot find out whether a batch of {file} was created: {error}"),
            )
            .advise(format!(
                "look for it at the provider; if there is none, remove the files that start with `{name}` in the \
                 folder `batches` of the cache, and its rows are submitted again"
            )),
            _ => error,
        }
        };
        if let Some(found) = self.api.find(name, file).await.map_err(cannot_tell)? {
            return Ok(Some(found));
        }
        self.pause(self.waits.first).await?;
        self.api.find(name, file).await.map_err(cannot_tell)
    }

    /// Waits until the batch has ended.
    async fn wait(&self, id: &str) -> Result<Remote, TeacherError> {
        let mut wait = self.waits.first;
        let mut num_failures = 0;
        let mut last = (String::new(), 0);
        let (began, mut is_late) = (SystemTime::now(), false);
        loop {
            match self.api.get(id).await {
                Ok(remote) if remote.has_ended() => return Ok(remote),
                Ok(remote) => {
                    num_failures = 0;
                    if !is_late && has_passed(&self.window, remote.created_at(), began) {
                        is_late = true;
                        tracing::warn!(
                            "batch {id} is {} still, though it was to end within {}: look at it at the provider; \
                             it is awaited until it ends or Ctrl-C",
                            shorten(&remote.status),
                            self.window
                        );
                    }
                    tell(id, &remote, &mut last);
                }
                Err(error) if error.class == ErrorClass::Deterministic => {
                    return Err(lost(id, &error));
                }
                Err(error) if error.is_retryable() && num_failures < MAX_POLL_FAILURES => {
                    num_failures += 1;
                    tracing::warn!("batch {id}: its state is not known: {error}");
                    wait = wait
                        .max(error.retry_after.unwrap_or_default())
                        .min(self.waits.longest);
                }
                Err(error) => return Err(error),
            }
            self.pause(wait).await?;
            wait = (2 * wait).min(self.waits.longest);
        }
    }

    async fn pause(&self, wait: Duration) -> Result<(), TeacherError> {
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.stop.requested() => Err(interrupted()),
        }
    }

    /// Fetches what an ended batch brought; an expired one has finished rows, too.
    async fn collect(
        &self,
        record: &Record,
        remote: &Remote,
        store: &Store,
    ) -> Result<Stage, TeacherError> {
        if remote.status != "completed" {
            tracing::warn!("batch {} ended as {}", remote.id, remote.status);
        }
        let (ids, counts) = (remote.files()?, remote.num_lines());
        if ids == [None; 2] && (counts[0] > 0 || remote.status == "completed") {
            let ([completed, _], Remote { id, status, .. }) = (counts, remote);
            return Err(results::broken(&format!(
                "batch {id} ended as {status}, with {completed} completed rows as the server counts, and it names no \
                 file of results"
            )));
        }
        let mut scan = Scan::new(&record.rows, self.max_line);
        for (file, path) in store.results(&record.name).iter().enumerate() {
            let Some(id) = ids[file] else { continue };
            if path.exists() {
                // It came whole before the other one did not, unless an earlier version of this program put it there,
                // which named files before it judged them.
                let mut with_it = scan.clone();
                match with_it.read_whole(file, path, counts[file]) {
                    Ok(()) => {
                        scan = with_it;
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!("`{}` is fetched again: {error}", path.display());
                    }
                }
            }
            let judge = |path: &Path| scan.read_whole(file, path, counts[file]);
            let fetched = self.api.download(id, path, judge).await;
            fetched.map_err(|error| match error.class {
                ErrorClass::Deterministic => lost(&remote.id, &error),
                _ => error,
            })?;
        }
        let ended = Ended {
            status: remote.status.clone(),
            at: remote.ended_at(),
            problems: remote.problems(),
        };
        Ok(Stage::Collected { ended })
    }
}

impl Driver {
    /// Sees that a batch whose rows nobody asks for any more costs as little as it can. Whether nothing more can come of
    /// it, so that its record may go.
    ///
    /// # Errors
    /// A [`TeacherError`] where that cannot be found out now.
    pub(super) async fn give_up(&self, record: &Record) -> Result<bool, TeacherError> {
        let id = match &record.stage {
            Stage::Prepared | Stage::Uploaded { .. } | Stage::Collected { .. } => return Ok(true),
            Stage::Created { batch } => batch.clone(),
            Stage::Creating { file } => match self.seek(&record.name, file).await? {
                Some(id) => id,
                None => return Ok(true),
            },
        };
        match self.api.get(&id).await {
            Ok(remote) if remote.has_ended() => tracing::warn!(
                "batch {id} has ended and its rows are no longer asked for: its results stay at the server"
            ),
            Ok(_) if self.api.cancel(&id).await? => tracing::warn!(
                "batch {id} is cancelled at the server, since its rows are no longer asked for"
            ),
            Ok(_) => {
                tracing::warn!(
                    "batch {id} goes on at the server, which does not cancel it; its rows are no longer asked for"
                );
                return Ok(false);
            }
            // The server has it no longer.
            Err(error) if error.class == ErrorClass::Deterministic => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

/// Tells how far a batch is, where that is news; `last` is what was told.
fn tell(id: &str, remote: &Remote, last: &mut (String, u64)) {
    let counts = remote.counts();
    let done = counts.completed.saturating_add(counts.failed);
    let (status, total) = (shorten(&remote.status), counts.total);
    if !remote.goes_on() && last.0 != remote.status {
        tracing::warn!(
            "batch {id}: `{status}` is no state of the protocol; it is awaited as if it were `in_progress`"
        );
    }
    if *last != (remote.status.clone(), done) {
        tracing::info!("batch {id}: {status}, {done} of {total} rows");
        *last = (remote.status.clone(), done);
    }
}

/// Whether the time is over within which a batch was to end: since the server created it, in milliseconds since 1970, or
/// else since this process has been waiting. A window in words that are no duration is never over.
fn has_passed(window: &str, created_at: Option<i64>, began: SystemTime) -> bool {
    let Some(window) = hints::duration(window) else {
        return false;
    };
    let since_1970 = |at: i64| Some(Duration::from_millis(u64::try_from(at).ok()?));
    let created = created_at.and_then(since_1970);
    let created = created.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
    let age = SystemTime::now().duration_since(created.unwrap_or(began));
    age.is_ok_and(|age| age > window)
}

/// The error of rows whose request file somebody removed before it was sent.
fn gone(requests: &Path) -> TeacherError {
    let requests = requests.display();
    let problem = format!("`{requests}` was removed before it was sent; its rows are asked anew");
    tracing::warn!("{problem}");
    TeacherError::new(ErrorClass::Transient, problem).having(Sent::Nothing)
}

/// After a refusal that would come again, nothing was submitted and nothing is worth keeping.
fn give_up_if_lasting(state: &mut State, store: &Store, error: TeacherError) -> TeacherError {
    match error.class {
        ErrorClass::Deterministic => give_up(state, store, error),
        _ => error,
    }
}

/// Forgets a batch that was not submitted, so that its rows are new ones.
fn give_up(state: &mut State, store: &Store, error: TeacherError) -> TeacherError {
    match store.remove(&state.record.name) {
        Ok(()) => state.over = Some(Err(error.clone())),
        Err(on_disk) => tracing::warn!("{on_disk}"),
    }
    error
}

/// What was submitted and paid for cannot be had: nothing is submitted again without the user's word.
fn lost(id: &str, error: &TeacherError) -> TeacherError {
    TeacherError::new(
        ErrorClass::Credentials,
        format!("batch {id}, which was submitted earlier, cannot be had: {error}"),
    )
    .advise(
        error.advice.clone().unwrap_or_else(|| {
            "check that url and key are those it was submitted with; if it is gone, remove its record from the folder \
             `batches` of the cache, and its rows are submitted and paid for again"
                .into()
        }),
    )
}

fn interrupted() -> TeacherError {
    TeacherError::new(
        ErrorClass::Interrupted,
        "stopped before the batch ended; the next run awaits it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_over_once_its_time_has_passed() {
        let (now, long_ago) = (SystemTime::now(), Some(1_700_000_000_000));
        let of_today = crate::teacher::exchange::unix_milliseconds(now);
        assert!(has_passed("24h", long_ago, now));
        assert!(!has_passed("24h", of_today, SystemTime::UNIX_EPOCH));
        assert!(has_passed("7d", None, SystemTime::UNIX_EPOCH));
        assert!(!has_passed("7d", None, now));
        assert!(!has_passed("by tomorrow", long_ago, now));
    }
}
