//! `harvest verify --replay N`: does the teacher still say what the cache holds?

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt as _, stream};
use schemas::{Manifest, TeacherRecord};

use crate::budget::{Amount, Budget};
use crate::cache::Key;
use crate::error::Error;
use crate::replay::{Report, choose, compare};
use crate::stats::shard_names;
use crate::store::Store;
use crate::teacher::{ErrorClass, Reply, Request, Teacher, TeacherError, ask_alone};

/// What is asked again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replay {
    /// Rows.
    pub num_rows: usize,
    /// Chooses them.
    pub seed: u64,
    /// Requests in flight.
    pub concurrency: usize,
}

/// Asks `teacher` twice about rows of the cache in `store`, first about all of them once. `requests_of` renders the
/// requests of some rows again, from the data set; rows that it leaves out are not asked about. It costs twice what the
/// rows cost, which `teacher` sends within `budget`; where that does not reach for all of them, nothing is sent.
///
/// A row that the teacher cannot answer is left out of the comparison, with a warning.
///
/// # Errors
/// [`Error::Teacher`] where nothing else can be asked (credentials, quota, budget, interruption) or no row was
/// answered; [`Error::Schemas`] where the cache cannot be read.
pub async fn run(
    teacher: Arc<dyn Teacher>,
    store: &Store,
    manifest: &Manifest,
    replay: Replay,
    budget: &Budget,
    requests_of: impl FnOnce(&HashSet<Key>) -> Result<Vec<Request>, Error>,
) -> Result<Report, Error> {
    let (store, of) = (store.clone(), manifest.clone());
    let read = move || read_rows(&store, &of, replay);
    let mut rows = tokio::task::spawn_blocking(read).await??;
    let requests = requests_of(&rows.keys().copied().collect())?;
    tracing::info!(
        "asks again about {} rows: {} requests",
        requests.len(),
        2 * requests.len()
    );
    budget
        .check_whole(twice(
            teacher.as_ref(),
            &requests,
            &rows,
            replay.concurrency,
        ))
        .map_err(|error| error.advise("ask about fewer rows, or raise [budget]"))?;
    let first = ask_all(&teacher, &requests, replay.concurrency).await?;
    let second = ask_all(&teacher, &requests, replay.concurrency).await?;
    let records: Vec<TeacherRecord> = requests
        .iter()
        .map(|request| {
            rows.remove(&(request.id, request.draw))
                .expect("requests are of chosen rows, each once")
        })
        .collect();
    Ok(compare(&manifest.signals, &records, [&first, &second]))
}

/// What asking about these rows twice takes, each by itself, if they take what they took; and what is reserved for those
/// that are in flight.
fn twice(
    teacher: &dyn Teacher,
    requests: &[Request],
    rows: &HashMap<Key, TeacherRecord>,
    concurrency: usize,
) -> Amount {
    let mut whole = Amount::ZERO;
    let mut reserved = 0;
    for request in requests {
        let most = teacher.most(std::slice::from_ref(request));
        let took = rows.get(&(request.id, request.draw));
        let took = took
            .map(|record| record.provenance.clone())
            .unwrap_or_default();
        let tokens = [took.tokens_in, took.tokens_out].into_iter().flatten();
        let fee = teacher.fee(std::slice::from_ref(request));
        let once = Amount {
            requests: most.requests,
            tokens: tokens.map(u64::from).sum(),
            // Of a batch its rows share one fee.
            ..Amount::of_cost(took.cost.unwrap_or(0.0).max(fee))
        };
        reserved = reserved.max(most.tokens_in.saturating_add(most.tokens_out));
        whole = whole.plus(once).plus(once);
    }
    let in_flight = concurrency.clamp(1, requests.len().max(1)) as u64;
    whole.plus(Amount {
        tokens: reserved.saturating_mul(in_flight),
        ..Amount::ZERO
    })
}

/// The chosen rows of a cache.
fn read_rows(
    store: &Store,
    manifest: &Manifest,
    replay: Replay,
) -> Result<HashMap<Key, TeacherRecord>, Error> {
    let names = shard_names(store, manifest)?;
    let mut chosen: Vec<Key> = Vec::new();
    for name in &names {
        let keys = store.open_shard(name)?.keys()?;
        chosen = choose(chosen.into_iter().chain(keys), replay.num_rows, replay.seed);
    }
    let mut wanted: HashSet<Key> = chosen.into_iter().collect();
    let mut rows = HashMap::new();
    for name in &names {
        if wanted.is_empty() {
            break;
        }
        let reader = store.open_shard(name)?;
        if !reader.keys()?.iter().any(|key| wanted.contains(key)) {
            continue;
        }
        for record in store.open_shard_verified(name)?.records()? {
            let record = record?;
            let key = (record.id, record.draw);
            if wanted.remove(&key) {
                rows.insert(key, record);
            }
        }
    }
    Ok(rows)
}

/// One outcome for each request; `None` for one that the teacher cannot answer.
async fn ask_all(
    teacher: &Arc<dyn Teacher>,
    requests: &[Request],
    concurrency: usize,
) -> Result<Vec<Option<Reply>>, TeacherError> {
    let mut outcomes = stream::iter(requests)
        .map(|request| ask_alone(teacher.as_ref(), request))
        .buffered(concurrency.max(1));
    let mut replies = Vec::with_capacity(requests.len());
    let mut last = None;
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(reply) => replies.push(Some(reply)),
            Err(error) if error.stops_the_run() || error.class == ErrorClass::Interrupted => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!("{}: {error}", requests[replies.len()].id);
                last = Some(error);
                replies.push(None);
            }
        }
    }
    match last {
        Some(error) if replies.iter().all(Option::is_none) => Err(error),
        _ => Ok(replies),
    }
}

#[cfg(test)]
mod tests;
