//! Tells those who watch a run: a bar or log lines for people, a file of metrics, a stream of events.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior};

use crate::budget::Budget;
use crate::events::{Event, Events};
use crate::failures::Failure;
use crate::metrics::Metrics;
use crate::observed::Observed;
use crate::progress::Progress;

/// Time between two events of progress, and between two writings of the file.
const INTERVAL: Duration = Duration::from_secs(5);

/// What teachers and the pipeline tell about a run, and where it goes. Every teacher of a run shares one.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// What the run may spend, and has.
    pub budget: Arc<Budget>,
    /// Its numbers.
    pub metrics: Arc<Metrics>,
    /// Its events.
    pub events: Events,
    /// What its replies have shown of its teachers.
    pub observed: Arc<Observed>,
}

/// What the pipeline calls as rows are settled.
#[derive(Debug)]
pub struct Reporter {
    watch: Watch,
    progress: Progress,
    metrics_file: Option<PathBuf>,
    num_rows: u64,
    num_settled: u64,
    num_failed: u64,
    is_stopping: bool,
    started: Instant,
    last: Instant,
    /// Requests that had ended then.
    last_requests: u64,
}

impl Reporter {
    /// For a run over `num_rows` rows that are missing.
    pub fn new(num_rows: u64, watch: Watch, metrics_file: Option<PathBuf>) -> Self {
        let now = Instant::now();
        Self {
            progress: Progress::new(num_rows),
            last_requests: watch.metrics.num_requests(),
            watch,
            metrics_file,
            num_rows,
            num_settled: 0,
            num_failed: 0,
            is_stopping: false,
            started: now,
            last: now,
        }
    }

    /// A row is answered and in the journal.
    pub fn answered(&mut self) {
        self.settle();
    }

    /// A row failed for good.
    pub fn failed(&mut self, failure: &Failure) {
        self.num_failed += 1;
        self.watch.metrics.row_failed();
        self.watch.events.emit(&failure.into());
        self.settle();
    }

    /// A shard was written.
    pub fn committed(&mut self, shard: &str, num_rows: u64, num_bytes: u64) {
        self.watch.metrics.committed(num_rows, num_bytes);
        let rows = num_rows;
        self.watch.events.emit(&Event::Committed { shard, rows });
    }

    /// So many rows wait to be sent.
    pub fn queue_depth(&self, num_rows: usize) {
        self.watch.metrics.queue_depth(num_rows);
    }

    /// Nothing new is sent from here on. Only the first reason is told.
    pub fn stopping(&mut self, reason: &str) {
        if !self.is_stopping {
            self.is_stopping = true;
            self.watch.events.emit(&Event::Stopping { reason });
        }
    }

    /// Whether nothing new is sent.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// When to [`tell`](Self::tell): every five seconds, first five seconds from now.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn interval() -> Interval {
        let first = tokio::time::Instant::now() + INTERVAL;
        let mut interval = tokio::time::interval_at(first, INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    }

    fn settle(&mut self) {
        self.num_settled += 1;
        self.progress.settle();
    }

    /// Tells how far the run is.
    pub fn tell(&mut self) {
        self.progress.tell();
        let (in_flight, limit) = self.watch.metrics.in_flight_and_limit();
        let requests = self.watch.metrics.num_requests();
        let seconds = self.last.elapsed().as_secs_f64().max(1e-9);
        let rows_per_second =
            self.num_settled as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let rows_left = self.num_rows.saturating_sub(self.num_settled) as f64;
        self.watch.events.emit(&Event::Progress {
            rows_settled: self.num_settled,
            rows_failed: self.num_failed,
            in_flight: u64::try_from(in_flight).unwrap_or(0),
            limit: u64::try_from(limit).unwrap_or(0),
            requests_per_second: (requests - self.last_requests) as f64 / seconds,
            spend: self.watch.budget.spent_by_this_run().cost(),
            eta_seconds: (self.num_settled > 0).then(|| rows_left / rows_per_second),
        });
        self.last = Instant::now();
        self.last_requests = requests;
        self.write_metrics();
    }

    /// A file that cannot be written is no reason to end a run that pays for replies.
    fn write_metrics(&self) {
        if let Some(path) = &self.metrics_file
            && let Err(error) = self.watch.metrics.write(path)
        {
            tracing::warn!("{error}");
        }
    }
}

/// The last state is in the file however the run ends.
impl Drop for Reporter {
    fn drop(&mut self) {
        self.watch.metrics.queue_depth(0);
        self.write_metrics();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::tests::Written;
    use crate::teacher::ErrorClass;

    #[tokio::test(start_paused = true)]
    async fn it_is_told_every_five_seconds() {
        let started = tokio::time::Instant::now();
        let mut interval = Reporter::interval();
        for seconds in [5, 10, 15] {
            interval.tick().await;
            assert_eq!(started.elapsed().as_secs(), seconds);
        }
    }

    #[test]
    fn what_happens_is_told_everywhere() {
        let written = Written::default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("harvest.prom");
        let watch = Watch {
            events: Events::to(written.clone()),
            ..Watch::default()
        };
        let mut reporter = Reporter::new(4, watch, Some(path.clone()));
        reporter.answered();
        reporter.failed(&Failure {
            id: schemas::ExampleId::from([0; 16]),
            failed_at: None,
            draw: 1,
            class: ErrorClass::Deterministic,
            message: "too long".into(),
            tries: 2,
            text: String::new(),
        });
        reporter.queue_depth(7);
        reporter.tell();
        reporter.committed("part-000000.parquet", 1, 100);
        reporter.stopping("a signal");
        reporter.stopping("what came of it");
        drop(reporter);
        let events = written.events();
        let names: Vec<&str> = events
            .iter()
            .map(|event| event["event"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["row_failed", "progress", "committed", "stopping"]);
        assert_eq!(
            (&events[1]["rows_settled"], &events[1]["rows_failed"]),
            (&2.into(), &1.into())
        );
        assert!(
            events[1]["eta_seconds"]
                .as_f64()
                .is_some_and(f64::is_finite)
        );
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.contains("harvest_rows_failed_total 1\n")
                && text.contains("harvest_rows_committed_total 1\n")
                && text.contains("harvest_queue_depth 0\n"),
            "{text}"
        );
    }
}
