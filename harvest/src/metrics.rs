//! Counters and gauges of a run, as OpenMetrics text in a file or over HTTP.
//!
//! `docs/observability.md` lists them; a test compares the two.

mod server;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::teacher::ErrorClass;

pub use server::{MetricsListener, MetricsServer};

/// Bounds of the buckets of a request's duration, in seconds: from a local server to a slow generation.
const SECONDS: [f64; 12] = [
    0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RequestOutcome {
    /// With an answer.
    Answered,
    /// With an error of this class.
    Failed(ErrorClass),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Outcome {
    outcome: RequestOutcome,
}

impl EncodeLabelValue for RequestOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        match self {
            Self::Answered => "answered".encode(encoder),
            Self::Failed(class) => class.to_string().encode(encoder),
        }
    }
}

/// Numbers of one run. Every method is cheap enough for every request.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Outcome, Counter>,
    num_requests: AtomicU64,
    retries: Counter,
    tokens_in: Counter,
    tokens_out: Counter,
    spend: Counter<f64, AtomicU64>,
    limit: Gauge<i64, AtomicI64>,
    in_flight: Gauge<i64, AtomicI64>,
    queue_depth: Gauge<i64, AtomicI64>,
    pauses: Counter,
    rows_committed: Counter,
    rows_failed: Counter,
    bytes_committed: Counter,
    duration: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("harvest");
        let requests = Family::default();
        registry.register("requests", "Requests that ended, by how", requests.clone());
        let duration = Histogram::new(SECONDS);
        registry.register_with_unit(
            "request_duration",
            "Time from sending a request to the end of its reply",
            Unit::Seconds,
            duration.clone(),
        );
        Self {
            requests,
            num_requests: AtomicU64::new(0),
            duration,
            retries: counter(
                &mut registry,
                "retries",
                "Requests sent for rows that had been sent before",
            ),
            tokens_in: counter(
                &mut registry,
                "tokens_in",
                "Tokens of answered prompts, as servers count them",
            ),
            tokens_out: counter(
                &mut registry,
                "tokens_out",
                "Tokens of replies, as servers count them",
            ),
            spend: counter(
                &mut registry,
                "spend",
                "Money that requests of this run took, in the currency of the price",
            ),
            limit: gauge(
                &mut registry,
                "concurrency_limit",
                "Requests that may be in flight",
            ),
            in_flight: gauge(&mut registry, "requests_in_flight", "Requests in flight"),
            queue_depth: gauge(
                &mut registry,
                "queue_depth",
                "Rows read from the data set that wait to be sent",
            ),
            pauses: counter(
                &mut registry,
                "pauses",
                "Times that a server's word made a teacher pause",
            ),
            rows_committed: counter(
                &mut registry,
                "rows_committed",
                "Rows in shards written by this run",
            ),
            rows_failed: counter(&mut registry, "rows_failed", "Rows that failed in this run"),
            bytes_committed: {
                let bytes = Counter::default();
                registry.register_with_unit(
                    "committed",
                    "Size of shards written by this run",
                    Unit::Bytes,
                    bytes.clone(),
                );
                bytes
            },
            registry,
        }
    }
}

fn counter<N, A>(registry: &mut Registry, name: &str, help: &str) -> Counter<N, A>
where
    Counter<N, A>: Default + Clone + prometheus_client::registry::Metric,
{
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge<i64, AtomicI64> {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

impl Metrics {
    /// A request ended.
    pub fn request_ended(&self, outcome: RequestOutcome, took: Duration) {
        self.requests.get_or_create(&Outcome { outcome }).inc();
        self.num_requests.fetch_add(1, Ordering::Relaxed);
        self.duration.observe(took.as_secs_f64());
    }

    /// Rows are sent once more.
    pub fn retried(&self) {
        self.retries.inc();
    }

    /// What an answered request took, as the server counts.
    pub fn tokens(&self, tokens_in: u64, tokens_out: u64) {
        self.tokens_in.inc_by(tokens_in);
        self.tokens_out.inc_by(tokens_out);
    }

    /// Money went out.
    pub fn spent(&self, cost: f64) {
        self.spend.inc_by(cost);
    }

    /// A teacher's limit of requests in flight changed; the gauge is the sum over all teachers.
    pub fn limit_changed(&self, from: usize, to: usize) {
        let number = |limit: usize| i64::try_from(limit).unwrap_or(i64::MAX);
        self.limit.inc_by(number(to) - number(from));
    }

    /// One more request is in flight.
    pub fn request_started(&self) {
        self.in_flight.inc();
    }

    /// One less is.
    pub fn request_left(&self) {
        self.in_flight.dec();
    }

    /// So many rows wait to be sent.
    pub fn queue_depth(&self, num_rows: usize) {
        self.queue_depth
            .set(i64::try_from(num_rows).unwrap_or(i64::MAX));
    }

    /// A teacher pauses because its server asks for it.
    pub fn paused(&self) {
        self.pauses.inc();
    }

    /// A shard was written.
    pub fn committed(&self, num_rows: u64, num_bytes: u64) {
        self.rows_committed.inc_by(num_rows);
        self.bytes_committed.inc_by(num_bytes);
    }

    /// A row failed.
    pub fn row_failed(&self) {
        self.rows_failed.inc();
    }

    /// Requests in flight, and how many may be.
    pub fn in_flight_and_limit(&self) -> (i64, i64) {
        (self.in_flight.get(), self.limit.get())
    }

    /// Requests that ended with an answer or an error.
    pub fn num_requests(&self) -> u64 {
        self.num_requests.load(Ordering::Relaxed)
    }

    /// The OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all");
        text
    }

    /// Replaces the file at `path` by the text in one step, as node_exporter's textfile collector wants it.
    ///
    /// # Errors
    /// [`schemas::Error::Io`].
    pub fn write(&self, path: &Path) -> Result<(), schemas::Error> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(".metrics-")
                .suffix(".tmp")
                .permissions(readable_by_all())
                .tempfile_in(folder)?;
            file.write_all(self.text().as_bytes())?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|source| schemas::Error::io(path, "write", source))
    }
}

/// A collector commonly runs as another user.
#[cfg(unix)]
fn readable_by_all() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::Permissions::from_mode(0o644)
}

#[cfg(test)]
mod tests;
