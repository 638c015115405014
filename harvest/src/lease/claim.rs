//! Conditional writes that take, renew and give back a lease.

use std::fmt;
use std::time::{Duration, Instant};

use schemas::Error;

use super::note::{Holder, Note};
use super::{Hold, LeaseError};
use crate::slice::Slice;
use crate::stop::Stop;
use crate::store::{Remote, Seen, Store, Version};

const PREFIX: &str = "lease-";
const SUFFIX: &str = ".json";
const WHOLE: &str = "whole";

/// Added to a lifetime before a lease is taken over: the times of a store are cut to the second.
const MARGIN: Duration = Duration::from_secs(2);

/// What one worker wants to hold, and how it signs.
#[derive(Debug)]
pub(super) struct Claim {
    remote: Remote,
    store: String,
    scope: Scope,
    holder: Holder,
    pub(super) lifetime: Duration,
}

/// What a lease is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    Whole,
    Slice(Slice),
}

impl Scope {
    fn of(slice: Option<Slice>) -> Self {
        slice.map_or(Self::Whole, Self::Slice)
    }

    fn object_name(self) -> String {
        let label = match self {
            Self::Whole => WHOLE.to_owned(),
            Self::Slice(slice) => slice.label(),
        };
        format!("{PREFIX}{label}{SUFFIX}")
    }

    /// `None` where it is not the name of a lease.
    fn from_object_name(name: &str) -> Option<Self> {
        let label = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        match label {
            WHOLE => Some(Self::Whole),
            _ => Slice::from_label(label).map(Self::Slice),
        }
    }

    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Slice(one), Self::Slice(other)) => one.overlaps(other),
            _ => true,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("the whole cache"),
            Self::Slice(slice) => write!(f, "slice {slice}"),
        }
    }
}

impl Claim {
    pub(super) fn new(
        store: &Store,
        remote: &Remote,
        slice: Option<Slice>,
        lifetime: Duration,
    ) -> Self {
        Self {
            // A renewal that takes longer would be followed by its own end.
            remote: remote.within(lifetime / 3),
            store: store.location(),
            scope: Scope::of(slice),
            holder: Holder::this(),
            lifetime,
        }
    }

    fn name(&self) -> String {
        self.scope.object_name()
    }

    fn note(&self, num_renewals: u64, released: bool) -> Note {
        Note {
            holder: self.holder.clone(),
            lifetime_ms: self.lifetime.as_millis() as u64,
            num_renewals,
            released,
        }
    }

    fn parse(&self, name: &str, seen: &Seen) -> Result<Note, LeaseError> {
        serde_json::from_slice(&seen.bytes).map_err(|error| LeaseError::NotALease {
            path: format!("{}/{name}", self.store),
            problem: error.to_string(),
        })
    }

    pub(super) fn lost(&self, now: String) -> LeaseError {
        LeaseError::Lost {
            store: self.store.clone(),
            lease: self.scope.to_string(),
            now,
        }
    }

    pub(super) fn silent(&self, cause: String) -> LeaseError {
        LeaseError::Silent {
            store: self.store.clone(),
            lease: self.scope.to_string(),
            cause,
        }
    }

    /// Who holds the lease now, in words.
    pub(super) fn holder_now(&self) -> String {
        let name = self.name();
        match self.remote.look(&name) {
            Ok(None) => "somebody removed it".into(),
            Err(error) => format!("who holds it now is unknown: {error}"),
            Ok(Some(seen)) => match self.parse(&name, &seen) {
                Err(error) => error.to_string(),
                Ok(note) if note.released => format!("{} held it since", note.holder),
                Ok(note) => format!("{} holds it now", note.holder),
            },
        }
    }

    /// Writes the note where `over` is the version there is, or where there is none. `None` where another was quicker.
    fn write(&self, over: Option<&Version>, note: &Note) -> Result<Option<Hold>, Error> {
        let since = Instant::now();
        let name = self.name();
        let bytes = serde_json::to_vec_pretty(note).expect("a note has string keys only");
        let written = match over {
            None => self.remote.create(&name, &bytes),
            Some(version) => self.remote.update(&name, &bytes, version),
        };
        let version = match written {
            Ok(Some(version)) => version,
            // An answer that is lost and a request that is repeated after it was done look like a refusal.
            refused => match self.remote.look(&name) {
                Ok(Some(seen)) if seen.bytes == bytes => seen.version,
                _ => return refused.map(|_| None),
            },
        };
        Ok(Some(Hold {
            version,
            num_renewals: note.num_renewals,
            since,
        }))
    }

    /// Writes the lease again. `None` where another has it by now.
    pub(super) fn renew(&self, hold: &Hold) -> Result<Option<Hold>, Error> {
        let note = self.note(hold.num_renewals + 1, false);
        self.write(Some(&hold.version), &note)
    }

    /// Marks the lease as given back; `false` where another has it by now. The object stays: a removal knows no
    /// condition, and could remove another's lease.
    pub(super) fn give_back(&self, hold: &Hold) -> Result<bool, Error> {
        let note = self.note(hold.num_renewals + 1, true);
        Ok(self.write(Some(&hold.version), &note)?.is_some())
    }

    /// Takes the lease.
    ///
    /// # Errors
    /// [`LeaseError::Held`] once its holder is seen alive; [`LeaseError::Unconditional`].
    pub(super) fn win(&self, stop: &Stop) -> Result<Hold, LeaseError> {
        let name = self.name();
        let note = self.note(0, false);
        loop {
            let old = self.wait_until_free(&name, self.scope, stop)?;
            if let Some(hold) = self.write(old.as_ref(), &note)? {
                return self.prove(&hold);
            }
        }
    }

    /// Makes sure that the store refuses what it must: a second creation, and the replacement of an old version.
    fn prove(&self, hold: &Hold) -> Result<Hold, LeaseError> {
        let created = self.remote.create(&self.name(), b"{}")?;
        let unconditional = || LeaseError::Unconditional {
            store: self.store.clone(),
        };
        if created.is_some() {
            return Err(unconditional());
        }
        let renewed = self
            .renew(hold)?
            .ok_or_else(|| self.lost(self.holder_now()))?;
        match self.remote.update(&self.name(), b"{}", &hold.version)? {
            None => Ok(renewed),
            Some(_) => Err(unconditional()),
        }
    }

    /// Waits until nobody holds the lease of this name, as long as its holder may be dead. Gives the version to
    /// replace, or `None` where there is no object.
    fn wait_until_free(
        &self,
        name: &str,
        scope: Scope,
        stop: &Stop,
    ) -> Result<Option<Version>, LeaseError> {
        let mut watched: Option<(Version, Instant)> = None;
        loop {
            let Some(seen) = self.remote.look(name)? else {
                return Ok(None);
            };
            let note = self.parse(name, &seen)?;
            if note.released {
                return Ok(Some(seen.version));
            }
            let (first, since) = watched.get_or_insert_with(|| {
                tracing::info!("{name}: {} holds it, if it is alive", note.holder);
                (seen.version.clone(), Instant::now())
            });
            if *first != seen.version {
                return Err(LeaseError::Held {
                    store: self.store.clone(),
                    lease: scope.to_string(),
                    holder: note.holder.to_string(),
                });
            }
            let age = seen.age.unwrap_or_default().max(since.elapsed());
            let rest = (note.lifetime() + MARGIN).saturating_sub(age);
            if rest.is_zero() {
                tracing::warn!(
                    "{name}: {} has not renewed it for {age:?} and is taken for dead",
                    note.holder
                );
                return Ok(Some(seen.version));
            }
            if stop.is_requested() {
                return Err(LeaseError::Stopped {
                    store: self.store.clone(),
                    lease: scope.to_string(),
                    holder: note.holder.to_string(),
                });
            }
            std::thread::sleep(rest.min(note.lifetime() / 6));
        }
    }

    /// Makes sure that no other lease has rows in common with this one. Each worker writes its own lease before it
    /// looks for others, so of two that overlap at least one sees the other.
    ///
    /// # Errors
    /// [`LeaseError::Held`].
    pub(super) fn refuse_overlaps(&self, store: &Store, stop: &Stop) -> Result<(), LeaseError> {
        for entry in store.list()? {
            let Some(scope) = Scope::from_object_name(&entry.name) else {
                continue;
            };
            if scope != self.scope && scope.overlaps(self.scope) {
                self.wait_until_free(&entry.name, scope, stop)?;
            }
        }
        Ok(())
    }
}
