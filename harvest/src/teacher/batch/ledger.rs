//! Which batch each row of a process is in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use schemas::ExampleId;

use super::Outcome;
use super::drive::{Batch, Driver};
use super::results::Results;
use super::state::{Record, Row, Stage, Store};
use crate::teacher::TeacherError;

/// Which batch a row is in.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) store: Arc<Store>,
    pub(super) awaited: HashMap<Row, Arc<Batch>>,
    /// Rows that batches of an earlier process answered.
    pub(super) answered: HashMap<Row, Arc<Results>>,
}

/// What a query has to wait for.
pub(super) struct Plan {
    pub(super) store: Arc<Store>,
    /// Positions in the query by batch.
    pub(super) batches: Vec<(Arc<Batch>, Vec<usize>)>,
    pub(super) direct: Vec<usize>,
}

impl Ledger {
    /// With the rows that are paid for.
    pub(super) fn open(
        store: Store,
        records: Vec<Record>,
        max_line: usize,
    ) -> Result<(Self, HashSet<Row>), TeacherError> {
        let (mut awaited, mut answered) = (HashMap::new(), HashMap::new());
        let mut booked = HashSet::new();
        for record in records {
            let rows = record.rows.clone();
            if let Stage::Collected { ended } = record.stage {
                let files = store.results(&record.name);
                let results = Arc::new(Results::read(files, &rows, ended, max_line)?);
                let good = rows.into_iter().filter(|row| results.is_good(row.key));
                answered.extend(good.map(|row| (row, Arc::clone(&results))));
            } else {
                if record.stage.is_submitted() {
                    booked.extend(&rows);
                }
                let batch = Arc::new(Batch::new(record));
                awaited.extend(rows.into_iter().map(|row| (row, Arc::clone(&batch))));
            }
        }
        booked.extend(answered.keys());
        let ledger = Self {
            store: Arc::new(store),
            awaited,
            answered,
        };
        Ok((ledger, booked))
    }

    /// The batches of the rows that have no outcome yet.
    pub(super) fn plan(
        &self,
        rows: &[Row],
        replies: &[Option<Outcome>],
        direct: Vec<usize>,
    ) -> Plan {
        let mut batches: Vec<(Arc<Batch>, Vec<usize>)> = Vec::new();
        let mut places: HashMap<*const Batch, usize> = HashMap::new();
        for (position, row) in rows.iter().enumerate() {
            if let (None, Some(batch)) = (&replies[position], self.awaited.get(row)) {
                let place = *places.entry(Arc::as_ptr(batch)).or_insert(batches.len());
                if place == batches.len() {
                    batches.push((Arc::clone(batch), Vec::new()));
                }
                batches[place].1.push(position);
            }
        }
        Plan {
            store: Arc::clone(&self.store),
            batches,
            direct,
        }
    }

    /// Removes what is collected or was never submitted, and gives up what is still to come, unless it is of a row that
    /// `failed`: its results can be fetched yet.
    pub(super) async fn clear(
        self,
        driver: &Driver,
        failed: &HashSet<(ExampleId, u32)>,
    ) -> Result<(), TeacherError> {
        for record in self.store.records()? {
            let is_wanted = record.rows.iter().any(|row| failed.contains(&row.key));
            if is_wanted && record.stage.is_under_way() {
                continue;
            }
            match driver.give_up(&record).await {
                Ok(true) => self.store.remove(&record.name)?,
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    "a batch whose rows are no longer asked for is looked after by the next run: {error}"
                ),
            }
        }
        Ok(())
    }
}
