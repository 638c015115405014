//! Leases: of several workers, one writes a cache in an object store, or one slice of it.
//!
//! A lease is an object, `lease-whole.json` or `lease-slice-03-of-16.json`, that says who holds it. It is written only
//! where there is none (`If-None-Match: *`) and replaced only by who knows its latest version (`If-Match`), so of two
//! workers one succeeds. The holder replaces it every third of its lifetime, and stops as soon as it finds that it
//! could not for a whole lifetime, or that another has it. A worker that finds a lease watches it: a version that
//! changes has a living holder; one that is older than its lifetime is taken over.
//!
//! The age is the store's `Date` less the object's `Last-Modified`. Both are the store's own clock; the clocks of
//! workers do not matter. Where the store does not say what time it is, a lease is old once it was watched, unchanged,
//! for its lifetime.
//!
//! A lease is a fence, too: a holder that was suspended for longer than the lifetime wakes up and goes on writing. So
//! before a shard is written its name goes into the lease, on the condition that it is held still, and a shard is written
//! only where there is nothing of its name. Who takes a lease over finds the name of the one shard that may yet come. It
//! is there already, and counts; or an empty object is put in its place, so that the store refuses it. Empty objects are
//! no shards. They stay, since nobody knows when what is on its way will come.
//!
//! What remains: a large shard comes in parts, which become an object whatever there is. The name is looked at
//! before the last part, so what comes too late nevertheless was shut out after that. Its rows may be there twice then, and
//! `verify` finds them. The lease is confirmed afterwards, so the journal of the worker keeps them.

mod claim;
mod note;

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::slice::Slice;
use crate::stop::Stop;
use crate::store::{Store, Version};

use claim::Claim;

/// Why a lease is not held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Another worker holds it, or one that overlaps it.
    #[error("cache `{store}`: {lease} is held by {holder}")]
    Held {
        /// The cache.
        store: String,
        /// What is held: the whole, or a slice.
        lease: String,
        /// Who holds it.
        holder: String,
    },
    /// Another worker took it over, or somebody removed it.
    #[error("cache `{store}`: the lease on {lease} was lost: {now}")]
    Lost {
        /// The cache.
        store: String,
        /// What was held.
        lease: String,
        /// Who holds it now, or what became of it.
        now: String,
    },
    /// It could not be renewed for a whole lifetime.
    #[error(
        "cache `{store}`: the lease on {lease} ended, because the store did not answer: {cause}"
    )]
    Silent {
        /// The cache.
        store: String,
        /// What was held.
        lease: String,
        /// The last failure.
        cause: String,
    },
    /// The store writes whatever the condition.
    #[error("cache `{store}`: the store ignores the conditions of conditional writes")]
    Unconditional {
        /// The cache.
        store: String,
    },
    /// An object with the name of a lease that is none.
    #[error("`{path}` is not a lease: {problem}")]
    NotALease {
        /// The object.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The run was stopped while it waited.
    #[error("cache `{store}`: stopped while waiting for {lease}, which {holder} held")]
    Stopped {
        /// The cache.
        store: String,
        /// What was waited for.
        lease: String,
        /// Who holds it.
        holder: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] schemas::Error),
}

impl LeaseError {
    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Held { .. } => Some("wait for it to end, or give each worker a slice of its own: all with the same total".into()),
            Self::Lost { .. } | Self::Silent { .. } => {
                Some("run the same command again: what was committed is kept".into())
            }
            Self::Unconditional { .. } => Some(
                "use a store that honours If-None-Match and If-Match, or keep the cache in a folder".into(),
            ),
            Self::NotALease { .. } => Some("remove the object if it is not needed".into()),
            Self::Stopped { .. } => None,
            Self::Store(error) => error.hint(),
        }
    }
}

/// A lease that is held and renewed until it is [released](Self::release) or dropped.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    renewal: Option<Renewal>,
}

#[derive(Debug)]
struct Renewal {
    thread: JoinHandle<()>,
    /// Dropped to end the thread.
    end: Sender<()>,
}

/// What the holder and its renewing thread share.
#[derive(Debug)]
struct Shared {
    claim: Claim,
    state: Mutex<State>,
    /// Held while the lease is written: each version is to be replaced once.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    hold: Hold,
    /// Why it is not held any more.
    loss: Option<Loss>,
}

/// A written lease.
#[derive(Clone, Debug)]
struct Hold {
    version: Version,
    /// How often it was renewed, which makes the content of each version another.
    num_renewals: u64,
    /// When the write began: no later than the time that the store gives it.
    since: Instant,
    /// The shard that is written, or was written last.
    writing: Option<String>,
    /// Shards of earlier holders that are not barred yet.
    barred: Vec<String>,
}

#[derive(Clone, Debug)]
enum Loss {
    /// Who holds it now, or what became of it.
    Taken(String),
    /// Why it was not renewed.
    Silent(String),
}

impl Lease {
    /// Takes the lease on a slice of `store`, or on the whole, and renews it until it is released. A lease whose
    /// holder seems dead is waited for, for `lifetime` at most. Where the lease is lost, `stop` is raised. A local
    /// store has no leases, since its lock file does the same: `None`.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn take(
        store: &Store,
        slice: Option<Slice>,
        lifetime: Duration,
        stop: &Stop,
    ) -> Result<Option<Self>, LeaseError> {
        let Some(remote) = store.remote() else {
            return Ok(None);
        };
        let claim = Claim::new(store, remote, slice, lifetime);
        let hold = claim.win(stop)?;
        let shared = Arc::new(Shared {
            claim,
            state: Mutex::new(State { hold, loss: None }),
            writing: Mutex::default(),
        });
        let (end, ended) = mpsc::channel();
        let (renewed, raised) = (Arc::clone(&shared), stop.clone());
        let thread = std::thread::spawn(move || renewed.renew_until(&ended, &raised));
        let lease = Self {
            shared,
            renewal: Some(Renewal { thread, end }),
        };
        // Dropped, the lease is given back.
        lease.shared.claim.refuse_overlaps(store, stop)?;
        Ok(Some(lease))
    }

    /// Says that the shard of this name is about to be written. From here on whoever takes the lease over knows of it.
    ///
    /// # Errors
    /// [`LeaseError::Lost`]; [`LeaseError::Silent`]; [`LeaseError::Store`].
    pub(crate) fn announce(&self, shard: &str) -> Result<(), LeaseError> {
        self.rewrite(|hold| hold.writing = Some(shard.to_owned()))
    }

    /// Asks the store whether the lease is held still.
    ///
    /// # Errors
    /// As [`announce`](Self::announce).
    pub(crate) fn confirm(&self) -> Result<(), LeaseError> {
        self.rewrite(|_| ())
    }

    fn rewrite(&self, change: impl FnOnce(&mut Hold)) -> Result<(), LeaseError> {
        self.check()?;
        if self.shared.rewrite(change)? {
            return Ok(());
        }
        Err(self.lost())
    }

    /// The error of a holder that another one has shut out; from here on the lease counts as lost.
    pub(crate) fn lost(&self) -> LeaseError {
        let now = self.shared.claim.holder_now();
        let mut state = self.shared.state();
        state.loss.get_or_insert(Loss::Taken(now.clone()));
        self.shared.claim.lost(now)
    }

    /// Whether the lease is held still; to be asked before anything is committed. It asks no server.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] says who has it now; [`LeaseError::Silent`].
    pub fn check(&self) -> Result<(), LeaseError> {
        self.shared.check()
    }

    /// Gives the lease back, so that the next worker need not wait for its end.
    ///
    /// # Errors
    /// [`LeaseError`] where it was lost before, or the store fails: it ends by itself then.
    pub fn release(mut self) -> Result<(), LeaseError> {
        let released = self.end();
        // Dropping must not try again.
        self.shared
            .state()
            .loss
            .get_or_insert(Loss::Taken("it was given back".into()));
        released
    }

    fn end(&mut self) -> Result<(), LeaseError> {
        if let Some(Renewal { thread, end }) = self.renewal.take() {
            drop(end);
            // A thread that panicked renews no more, and the check below tells.
            let _ = thread.join();
        }
        self.shared.check()?;
        let hold = self.shared.state().hold.clone();
        let claim = &self.shared.claim;
        if claim.give_back(&hold)? {
            Ok(())
        } else {
            Err(claim.lost(claim.holder_now()))
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.shared.state().loss.is_some() {
            self.renewal = None;
        } else if let Err(error) = self.end() {
            tracing::warn!("{error}");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<(), LeaseError> {
        let state = self.state();
        match &state.loss {
            Some(Loss::Taken(now)) => Err(self.claim.lost(now.clone())),
            Some(Loss::Silent(cause)) => Err(self.claim.silent(cause.clone())),
            None if state.hold.since.elapsed() >= self.claim.lifetime => {
                Err(self.claim.silent("it is older than its lifetime".into()))
            }
            None => Ok(()),
        }
    }

    /// Writes the lease again with what `change` makes of it; `false` where another has it by now.
    fn rewrite(&self, change: impl FnOnce(&mut Hold)) -> Result<bool, schemas::Error> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hold = self.state().hold.clone();
        change(&mut hold);
        let renewed = self.claim.renew(&hold)?;
        let is_held = renewed.is_some();
        if let Some(renewed) = renewed {
            self.state().hold = renewed;
        }
        Ok(is_held)
    }

    /// Renews the lease until the other end of `ended` is dropped or the lease is lost, in which case `stop` is raised.
    fn renew_until(&self, ended: &mpsc::Receiver<()>, stop: &Stop) {
        let pause = self.claim.lifetime / 3;
        let mut wait = pause;
        while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            let loss = match self.rewrite(|_| ()) {
                Ok(true) => {
                    wait = pause;
                    continue;
                }
                Ok(false) => Loss::Taken(self.claim.holder_now()),
                Err(error) if self.state().hold.since.elapsed() < self.claim.lifetime => {
                    tracing::warn!("the lease could not be renewed yet: {error}");
                    wait = pause / 4;
                    continue;
                }
                Err(error) => Loss::Silent(error.to_string()),
            };
            self.state().loss = Some(loss);
            if let Err(error) = self.check() {
                tracing::error!("{error}");
            }
            stop.request();
            return;
        }
    }
}

#[cfg(test)]
mod tests;
