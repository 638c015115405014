//! What a run will send and take, if its rows are like a sample.

use std::time::Duration;

use super::check::Sample;
use crate::budget::Amount;
use crate::config::{PriceConfig, TeacherEntry};
use crate::error::Error;
use crate::pipeline::source::Packer;
use crate::plan::Plan;
use crate::progress::{human_bytes, human_time};
use crate::survey::Survey;
use crate::teacher::{Request, Teacher};

/// What a run sends while no row has to be asked again: its own batches, counted.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Work {
    num_rows: u64,
    num_batches: u64,
    num_requests: u64,
    /// Money besides that for tokens.
    fee: f64,
}

impl Work {
    /// Packs the rows that are left as a run does; the first row of a new cache goes alone.
    ///
    /// # Errors
    /// Those of reading the data set.
    pub(super) fn of(
        plan: &Plan,
        survey: &Survey,
        teacher: &dyn Teacher,
        is_new: bool,
    ) -> Result<Self, Error> {
        let mut work = Self::default();
        let mut packer = Packer::new(teacher.describe().batch);
        plan.each_pending(survey, &[], |pending| {
            if is_new && work.num_batches == 0 {
                work.add(teacher, &[pending.request]);
            } else if let Some(batch) = packer.add(pending) {
                work.add(teacher, &requests_of(batch));
            }
            true
        })?;
        work.add(teacher, &requests_of(packer.take()));
        Ok(work)
    }

    fn add(&mut self, teacher: &dyn Teacher, batch: &[Request]) {
        if batch.is_empty() {
            return;
        }
        self.num_rows += batch.len() as u64;
        self.num_batches += 1;
        self.num_requests += teacher.most(batch).requests;
        self.fee += teacher.fee(batch);
    }

    /// With what finding out about pictures takes.
    #[must_use]
    pub(super) fn and_looking(mut self, looked: Amount) -> Self {
        self.num_requests += looked.requests;
        self.fee += looked.cost();
        self
    }

    /// What a check prints of it.
    pub(super) fn lines(
        &self,
        sample: &Sample,
        teacher: &dyn Teacher,
        teachers: &[TeacherEntry],
        num_missing: u64,
        concurrency: usize,
    ) -> Vec<(&'static str, String)> {
        let tokens = |mean: Option<f64>| {
            mean.map_or_else(
                || "unknown: the server counts none".to_owned(),
                |mean| format!("{:.0}", mean * self.num_rows as f64),
            )
        };
        let bytes = sample.num_bytes() * num_missing / sample.num_answered().max(1);
        vec![
            (
                "requests",
                format!("{} for {} rows", self.num_requests, self.num_rows),
            ),
            (
                "tokens_in",
                tokens(sample.mean(|_, reply| reply.provenance.tokens_in.map(f64::from))),
            ),
            (
                "tokens_out",
                tokens(sample.mean(|_, reply| reply.provenance.tokens_out.map(f64::from))),
            ),
            ("cost", self.cost(sample, teacher, teachers)),
            ("time", self.time(sample.latency, concurrency)),
            (
                "bytes",
                format!("{bytes} ({} before compression)", human_bytes(bytes)),
            ),
        ]
    }

    fn cost(&self, sample: &Sample, teacher: &dyn Teacher, teachers: &[TeacherEntry]) -> String {
        let of_tokens = sample.mean(|request, reply| {
            let fee = teacher.fee(std::slice::from_ref(request));
            Some((reply.provenance.cost? - fee).max(0.0))
        });
        if let Some(mean) = of_tokens {
            return format!("{:.2}", mean * self.num_rows as f64 + self.fee);
        }
        let sections = teachers.iter().flat_map(TeacherEntry::sections);
        let prices: Vec<PriceConfig> = sections
            .filter_map(|(_, entry)| entry.common.price)
            .collect();
        if prices.is_empty() {
            "unknown: set `teacher.price`".to_owned()
        } else if prices.iter().all(|price| *price == PriceConfig::default()) {
            "0.00".to_owned()
        } else {
            "unknown: `price` is of tokens, and the server counts none".to_owned()
        }
    }

    /// A batch takes at least as long as one of its rows, and at most as long as all of them one after the other.
    fn time(&self, latency: Duration, concurrency: usize) -> String {
        let of = |number: u64| human_time(latency.mul_f64(number as f64 / concurrency as f64));
        let milliseconds = latency.as_secs_f64() * 1e3;
        if self.num_batches == self.num_rows {
            return format!(
                "{} ({milliseconds:.1} ms a reply, {concurrency} in flight)",
                of(self.num_rows)
            );
        }
        format!(
            "{} to {} ({milliseconds:.1} ms a row by itself, {} batches, {concurrency} in flight)",
            of(self.num_batches),
            of(self.num_rows),
            self.num_batches
        )
    }
}

fn requests_of(batch: crate::pipeline::source::Batch) -> Vec<Request> {
    batch.into_iter().map(|pending| pending.request).collect()
}
