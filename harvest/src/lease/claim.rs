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

    /// A note that is no renewal, with the shards that are barred.
    fn note(&self, barred: Vec<String>) -> Note {
        Note {
            holder: self.holder.clone(),
            lifetime_ms: self.lifetime.as_millis() as u64,
            num_renewals: 0,
            released: false,
            writing: None,
            barred,
        }
    }

    /// The note that comes after `hold`.
    fn renewal(&self, hold: &Hold) -> Note {
        Note {
            num_renewals: hold.num_renewals + 1,
            writing: hold.writing.clone(),
            ..self.note(hold.barred.clone())
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

    /// Whether it is this holder's.
    fn wrote(&self, seen: &Seen) -> bool {
        serde_json::from_slice(&seen.bytes).is_ok_and(|note: Note| note.holder == self.holder)
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
        self.write_to(&self.name(), over, note)
    }

    fn write_to(
        &self,
        name: &str,
        over: Option<&Version>,
        note: &Note,
    ) -> Result<Option<Hold>, Error> {
        let since = Instant::now();
        let bytes = serde_json::to_vec_pretty(note).expect("a note has string keys only");
        let mut over = over.cloned();
        let version = loop {
            let written = match &over {
                None => self.remote.create(name, &bytes),
                Some(version) => self.remote.update(name, &bytes, version),
            };
            let refused = match written {
                Ok(Some(version)) => break version,
                refused => refused.map(|_| None),
            };
            // An answer that is lost and a request that is repeated after it was done look like a refusal.
            match self.remote.look(name) {
                Ok(Some(seen)) if seen.bytes == bytes => break seen.version,
                Ok(Some(seen)) if over.as_ref() != Some(&seen.version) && self.wrote(&seen) => {
                    over = Some(seen.version);
                }
                _ => return refused,
            }
        };
        Ok(Some(Hold {
            version,
            num_renewals: note.num_renewals,
            since,
            writing: note.writing.clone(),
            barred: note.barred.clone(),
        }))
    }

    /// Writes the lease again. `None` where another has it by now.
    pub(super) fn renew(&self, hold: &Hold) -> Result<Option<Hold>, Error> {
        self.write(Some(&hold.version), &self.renewal(hold))
    }

    /// Marks the lease as given back; `false` where another has it by now. The object stays: a removal knows no
    /// condition, and could remove another's lease.
    pub(super) fn give_back(&self, hold: &Hold) -> Result<bool, Error> {
        let note = Note {
            released: true,
            writing: None,
            ..self.renewal(hold)
        };
        Ok(self.write(Some(&hold.version), &note)?.is_some())
    }

    /// Takes the lease.
    ///
    /// # Errors
    /// [`LeaseError::Held`] once its holder is seen alive; [`LeaseError::Unconditional`].
    pub(super) fn win(&self, stop: &Stop) -> Result<Hold, LeaseError> {
        let name = self.name();
        loop {
            let old = self.wait_until_free(&name, self.scope, stop)?;
            let (version, to_bar) = match old {
                Some((version, note)) => (Some(version), note.to_bar()),
                None => (None, Vec::new()),
            };
            if let Some(hold) = self.write(version.as_ref(), &self.note(to_bar))? {
                let mut hold = self.prove(&hold)?;
                self.bar(std::mem::take(&mut hold.barred))?;
                return Ok(hold);
            }
        }
    }

    /// Puts something in the place of shards that a silent holder may be about to write, where they are not there yet.
    fn bar(&self, names: Vec<String>) -> Result<(), Error> {
        for name in names {
            if self.remote.bar(&name)? {
                tracing::warn!("{name}: whoever was writing it is taken for dead and shut out");
            }
        }
        Ok(())
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
    /// replace and what it says, or `None` where there is no object.
    fn wait_until_free(
        &self,
        name: &str,
        scope: Scope,
        stop: &Stop,
    ) -> Result<Option<(Version, Note)>, LeaseError> {
        let mut watched: Option<(Version, Instant)> = None;
        loop {
            let Some(seen) = self.remote.look(name)? else {
                return Ok(None);
            };
            let note = self.parse(name, &seen)?;
            if note.released {
                return Ok(Some((seen.version, note)));
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
                return Ok(Some((seen.version, note)));
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
    /// looks for others, so of two that overlap at least one sees the other. The lease of a holder that seems dead is
    /// marked as given back, so that it cannot be renewed, and its shard is barred.
    ///
    /// # Errors
    /// [`LeaseError::Held`].
    pub(super) fn refuse_overlaps(&self, store: &Store, stop: &Stop) -> Result<(), LeaseError> {
        for entry in store.list()? {
            let Some(scope) = Scope::from_object_name(&entry.name) else {
                continue;
            };
            if scope == self.scope || !scope.overlaps(self.scope) {
                continue;
            }
            while let Some((version, note)) = self.wait_until_free(&entry.name, scope, stop)? {
                if note.released && note.barred.is_empty() {
                    break;
                }
                let mut ended = Note {
                    released: true,
                    ..self.note(note.to_bar())
                };
                let Some(hold) = self.write_to(&entry.name, Some(&version), &ended)? else {
                    continue;
                };
                if !ended.barred.is_empty() {
                    self.bar(std::mem::take(&mut ended.barred))?;
                    // Who was quicker has found the names, and barred them.
                    self.write_to(&entry.name, Some(&hold.version), &ended)?;
                }
                break;
            }
        }
        Ok(())
    }
}
