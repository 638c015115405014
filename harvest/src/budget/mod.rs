//! What a cache may take, over all its runs: requests, tokens and money.
//!
//! Before anything is sent, the most that it can take is reserved; once the reply is there, what it did take is spent
//! instead. Both are in the ledger before the next thing happens, so a limit holds whatever order things happen in
//! and whenever the process dies: what was reserved and never settled counts as spent.

mod amount;
mod ledger;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::config::BudgetConfig;
use crate::error::Error;
use crate::slice::Slice;
use crate::teacher::{ErrorClass, Sent, TeacherError};

pub use amount::Amount;
use ledger::{Entry, Ledger};

/// Parts of the slices of one division that add up to the whole.
fn part(slice: Option<Slice>, whole: u64) -> u64 {
    let Some(slice) = slice else { return whole };
    let total = u64::from(slice.total());
    whole / total + u64::from(u64::from(slice.index()) <= whole % total)
}

/// The limits of a run and what is spent of them. All teachers of a cache share one.
#[derive(Debug, Default)]
pub struct Budget {
    limits: Limits,
    state: Mutex<State>,
    /// Something that was reserved has been settled.
    settled: Notify,
    begins: bool,
}

/// `None` where there is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Limits {
    requests: Option<u64>,
    tokens: Option<u64>,
    cost: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    earlier: Amount,
    spent: Amount,
    /// The sum of `open`.
    reserved: Amount,
    open: BTreeMap<u64, Amount>,
    next: u64,
    /// `None` where there is no limit.
    ledger: Option<Ledger>,
}

impl Budget {
    /// The budget of a cache whose ledgers lie in `folder`, with what earlier runs spent; a slice has an equal part of what is
    /// left. Without a limit nothing is read
    /// or written.
    ///
    /// # Errors
    /// [`schemas::Error::Io`]; [`Error::BadLedger`] where a ledger is damaged before its last line.
    pub fn open(config: &BudgetConfig, folder: &Path, slice: Option<Slice>) -> Result<Self, Error> {
        let cost = config.cost.map(|cost| Amount::of_cost(cost.next_up()).cost);
        let whole = Limits {
            requests: config.requests,
            tokens: config.tokens,
            cost,
        };
        if whole == Limits::default() {
            return Ok(Self::default());
        }
        let (ledger, earlier, others, is_new) = Ledger::open(folder, slice)?;
        let part = |limit: Option<u64>, others: u64| {
            limit.map(|limit| part(slice, limit.saturating_sub(others)))
        };
        Ok(Self {
            limits: Limits {
                requests: part(whole.requests, others.requests),
                tokens: part(whole.tokens, others.tokens),
                cost: part(whole.cost, others.cost),
            },
            state: Mutex::new(State {
                earlier,
                spent: earlier,
                ledger: Some(ledger),
                ..State::default()
            }),
            settled: Notify::new(),
            begins: is_new && others == Amount::ZERO,
        })
    }

    /// Whether it has limits and nothing was known of earlier runs.
    pub fn begins(&self) -> bool {
        self.begins
    }

    /// What is spent, earlier runs of this process's share included; what is reserved is not.
    pub fn spent(&self) -> Amount {
        self.state().spent
    }

    /// What this run has spent.
    pub fn spent_by_this_run(&self) -> Amount {
        let state = self.state();
        state.spent.minus(state.earlier)
    }

    /// Sets `most` aside. Where it fits only once what others have reserved turns out to take less, this waits for them;
    /// so nobody who holds a reservation may ask for another.
    ///
    /// # Errors
    /// Class `budget` where it does not fit whatever the others take, or where the ledger cannot be written.
    pub async fn reserve(self: &Arc<Self>, most: Amount) -> Result<Reservation, TeacherError> {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            // From here on no settlement is missed.
            settled.as_mut().enable();
            if let Some(reservation) = self.try_reserve(most)? {
                return Ok(reservation);
            }
            settled.await;
        }
    }

    /// As [`reserve`](Self::reserve), with `None` instead of waiting.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn try_reserve(
        self: &Arc<Self>,
        most: Amount,
    ) -> Result<Option<Reservation>, TeacherError> {
        let mut state = self.state();
        self.refuse(state.spent, most)?;
        let taken = state.spent.plus(state.reserved);
        if self.limits.first_exceeded(taken.plus(most)).is_some() {
            return Ok(None);
        }
        let id = state.next;
        state.write(&Entry::Reserve { id, most })?;
        state.next += 1;
        state.reserved = state.reserved.plus(most);
        state.open.insert(id, most);
        Ok(Some(Reservation {
            budget: Arc::clone(self),
            id,
        }))
    }

    /// Says at once whether `most` can no longer be reserved.
    ///
    /// # Errors
    /// Class `budget`.
    pub fn check(&self, most: Amount) -> Result<(), TeacherError> {
        self.refuse(self.state().spent, most)
    }

    /// Says whether `whole`, which several requests take, fits as far as can be told before they are sent.
    ///
    /// # Errors
    /// Class `budget`.
    pub fn check_whole(&self, whole: Amount) -> Result<(), TeacherError> {
        let spent = self.state().spent;
        match self.limits.first_exceeded(spent.plus(whole)) {
            None => Ok(()),
            Some(unit) => {
                let [name, limit, spent, whole] = self.limits.told(unit, spent, whole);
                let message = format!(
                    "the budget does not reach: `budget.{name}` allows {limit}, {spent} are spent, and this takes {whole}"
                );
                Err(TeacherError::new(ErrorClass::Budget, message).having(Sent::Nothing))
            }
        }
    }

    /// Makes what was written so far survive a power cut.
    ///
    /// # Errors
    /// [`schemas::Error::Io`].
    pub fn sync(&self) -> Result<(), schemas::Error> {
        let file = match &self.state().ledger {
            Some(ledger) => ledger.for_sync()?,
            None => return Ok(()),
        };
        file.sync()
    }

    fn refuse(&self, spent: Amount, most: Amount) -> Result<(), TeacherError> {
        match self.limits.first_exceeded(spent.plus(most)) {
            None => Ok(()),
            Some(unit) => Err(self.limits.used_up(unit, spent, most)),
        }
    }

    fn settle(&self, id: u64, spent: Option<Amount>) {
        let mut state = self.state();
        let Some(most) = state.open.remove(&id) else {
            return;
        };
        state.reserved = state.reserved.minus(most);
        state.spent = state.spent.plus(spent.unwrap_or(most));
        if let Some(spent) = spent {
            // Without this line the next run counts the reservation, which is more than was spent but never less.
            if let Err(error) = state.write(&Entry::Settle { id, spent }) {
                tracing::warn!("{error}");
            }
            state.compact();
        }
        drop(state);
        self.settled.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl State {
    fn write(&mut self, entry: &Entry) -> Result<(), TeacherError> {
        let Some(ledger) = &mut self.ledger else {
            return Ok(());
        };
        ledger.append(entry).map_err(|error| {
            TeacherError::new(
                ErrorClass::Budget,
                format!("what is spent cannot be recorded: {error}"),
            )
            .advise(
                "free space in the folder of the cache, then run again: committed rows are kept",
            )
            .having(Sent::Nothing)
        })
    }

    /// Called where the file says just what this state does.
    fn compact(&mut self) {
        if let Some(ledger) = &mut self.ledger
            && ledger.is_long()
            && let Err(error) = ledger.compact(self.spent, &self.open)
        {
            tracing::warn!("the ledger of the budget stays long: {error}");
        }
    }
}

/// What a limit counts.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Requests,
    Tokens,
    Cost,
}

impl Limits {
    fn first_exceeded(&self, amount: Amount) -> Option<Unit> {
        let above = |limit: Option<u64>, amount: u64| limit.is_some_and(|limit| amount > limit);
        if above(self.requests, amount.requests) {
            Some(Unit::Requests)
        } else if above(self.tokens, amount.tokens) {
            Some(Unit::Tokens)
        } else if above(self.cost, amount.cost) {
            Some(Unit::Cost)
        } else {
            None
        }
    }

    fn used_up(&self, unit: Unit, spent: Amount, most: Amount) -> TeacherError {
        let [name, limit, spent, most] = self.told(unit, spent, most);
        let message = format!(
            "the budget is used up: `budget.{name}` allows {limit}, {spent} are spent, and the next request can take {most}"
        );
        TeacherError::new(ErrorClass::Budget, message).having(Sent::Nothing)
    }

    /// The name of what is limited, its limit, and how much of it these are.
    fn told(&self, unit: Unit, spent: Amount, most: Amount) -> [String; 4] {
        let count = |number: Option<u64>| number.unwrap_or_default().to_string();
        let money = |number: u64| {
            format!(
                "{:.6}",
                Amount {
                    cost: number,
                    ..Amount::ZERO
                }
                .cost()
            )
        };
        match unit {
            Unit::Requests => [
                "requests".into(),
                count(self.requests),
                spent.requests.to_string(),
                most.requests.to_string(),
            ],
            Unit::Tokens => [
                "tokens".into(),
                count(self.tokens),
                spent.tokens.to_string(),
                most.tokens.to_string(),
            ],
            Unit::Cost => [
                "cost".into(),
                money(self.cost.unwrap_or_default()),
                money(spent.cost),
                money(most.cost),
            ],
        }
    }
}

/// What is set aside for a request that is about to be sent. Dropped without a word, as when the process stops waiting
/// for the reply, it counts as spent.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    id: u64,
}

impl Reservation {
    /// Replaces what was set aside with what was taken.
    pub fn settle(self, spent: Amount) {
        self.budget.settle(self.id, Some(spent));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.settle(self.id, None);
    }
}

#[cfg(test)]
mod tests;
