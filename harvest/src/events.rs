//! The stream of events for programs that watch a run: one JSON object a line.
//!
//! `docs/observability.md` describes every event and field; a test compares the two.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use serde::Serialize;

use crate::failures::Failure;
use crate::teacher::ErrorClass;
use crate::teacher::exchange::unix_milliseconds;

/// Version of the events' form: it changes when a field changes its meaning or goes, not when one is added.
pub const VERSION: u32 = 1;

/// Why a teacher sends nothing for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// The server said when it wants to be asked again.
    RetryAfter,
    /// An allowance of requests or tokens is used up until it is renewed.
    Allowance,
}

/// Something that happened.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The run knows what there is to do.
    Started {
        /// SHA-256 of the configuration file.
        config_digest: &'a str,
        /// The cache.
        cache: &'a Path,
        /// Rows of the chosen splits, times draws.
        rows_wanted: u64,
        /// Of these, rows that the cache has.
        rows_known: u64,
        /// Of these, rows to ask about.
        rows_missing: u64,
    },
    /// Every few seconds.
    Progress {
        /// Rows answered or failed by this run.
        rows_settled: u64,
        /// Of these, rows that failed.
        rows_failed: u64,
        /// Requests in flight.
        in_flight: u64,
        /// Requests that may be.
        limit: u64,
        /// Requests a second since the last such event.
        requests_per_second: f64,
        /// Money spent by this run, in the currency of the price.
        spend: f64,
        /// Seconds to the end at the rate of rows so far; null where nothing is settled yet.
        eta_seconds: Option<f64>,
    },
    /// A shard was written.
    Committed {
        /// Its file name.
        shard: &'a str,
        /// Its rows.
        rows: u64,
    },
    /// A row failed for good.
    RowFailed {
        /// The example's id.
        id: String,
        /// The draw.
        draw: u32,
        /// The class of the last error.
        class: ErrorClass,
        /// The last error.
        message: &'a str,
        /// Requests sent with the row in them.
        tries: u32,
    },
    /// A teacher sends nothing until then.
    Paused {
        /// Why.
        reason: PauseReason,
        /// Milliseconds since 1970, UTC.
        until: Option<i64>,
    },
    /// Nothing new is sent; what is in flight is finished and committed.
    Stopping {
        /// Why, in words.
        reason: &'a str,
    },
    /// The last event.
    Finished {
        /// Rows of the chosen splits, times draws.
        rows_wanted: u64,
        /// Rows taken over from the journal of an earlier run.
        rows_recovered: u64,
        /// Rows answered and committed by this run.
        rows_committed: u64,
        /// Rows that failed in this run.
        rows_failed: u64,
        /// Rows that are still to be asked about.
        rows_left: u64,
        /// Requests sent by this run.
        requests: u64,
        /// Money spent by this run, in the currency of the price.
        spend: f64,
        /// The status that the process ends with.
        exit_status: u8,
    },
}

impl<'a> From<&'a Failure> for Event<'a> {
    fn from(failure: &'a Failure) -> Self {
        Self::RowFailed {
            id: failure.id.to_string(),
            draw: failure.draw,
            class: failure.class,
            message: &failure.message,
            tries: failure.tries,
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    version: u32,
    /// Milliseconds since 1970, UTC.
    time: Option<i64>,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// Where events go; off by default, which costs nothing.
#[derive(Clone, Default)]
pub struct Events(Option<Arc<Mutex<dyn Write + Send>>>);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.is_on()).finish()
    }
}

impl Events {
    /// To standard output.
    pub fn to_stdout() -> Self {
        Self::to(std::io::stdout())
    }

    /// To `writer`.
    pub fn to(writer: impl Write + Send + 'static) -> Self {
        Self(Some(Arc::new(Mutex::new(writer))))
    }

    /// Whether anybody listens.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Writes one line. A reader that went away does not end the run: what is paid for is kept.
    pub fn emit(&self, event: &Event<'_>) {
        let Some(writer) = &self.0 else { return };
        let line = Line {
            version: VERSION,
            time: unix_milliseconds(SystemTime::now()),
            event,
        };
        let mut line = serde_json::to_vec(&line).expect("events have string keys only");
        line.push(b'\n');
        let mut writer = writer.lock().expect("no holder panics");
        let written = writer.write_all(&line).and_then(|()| writer.flush());
        if let Err(error) = written {
            tracing::debug!("an event could not be written: {error}");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What was written so far, for tests of those who emit.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        pub(crate) fn events(&self) -> Vec<serde_json::Value> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'));
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        }
    }

    fn one_of_each() -> Vec<Event<'static>> {
        vec![
            Event::Started {
                config_digest: "ab",
                cache: Path::new("cache"),
                rows_wanted: 10,
                rows_known: 4,
                rows_missing: 6,
            },
            Event::Progress {
                rows_settled: 3,
                rows_failed: 1,
                in_flight: 2,
                limit: 4,
                requests_per_second: 1.5,
                spend: 0.25,
                eta_seconds: None,
            },
            Event::Committed {
                shard: "part-000001.parquet",
                rows: 2,
            },
            Event::RowFailed {
                id: "00".into(),
                draw: 0,
                class: ErrorClass::Deterministic,
                message: "two\nlines",
                tries: 1,
            },
            Event::Paused {
                reason: PauseReason::RetryAfter,
                until: Some(1),
            },
            Event::Stopping { reason: "a signal" },
            Event::Finished {
                rows_wanted: 10,
                rows_recovered: 0,
                rows_committed: 5,
                rows_failed: 1,
                rows_left: 0,
                requests: 7,
                spend: 0.5,
                exit_status: 1,
            },
        ]
    }

    #[test]
    fn each_event_is_a_line_with_version_time_and_name() {
        let written = Written::default();
        let events = Events::to(written.clone());
        for event in one_of_each() {
            events.emit(&event);
        }
        let lines = written.events();
        assert_eq!(lines.len(), one_of_each().len());
        for line in &lines {
            assert_eq!(line["version"], VERSION);
            assert!(
                line["time"]
                    .as_i64()
                    .is_some_and(|time| time > 1_600_000_000_000)
            );
        }
        assert_eq!(lines[1]["eta_seconds"], serde_json::Value::Null);
        assert_eq!(lines[3]["message"], "two\nlines");
        assert_eq!(
            (&lines[4]["reason"], &lines[6]["event"]),
            (&"retry_after".into(), &"finished".into())
        );
    }

    #[test]
    fn a_reader_that_went_away_ends_nothing() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Events::to(writer).emit(&Event::Stopping { reason: "test" });
        Events::default().emit(&Event::Stopping { reason: "test" });
    }

    #[test]
    fn every_event_and_field_is_documented() {
        let page = include_str!("../../docs/observability.md");
        for event in one_of_each() {
            let json = serde_json::to_value(&event).unwrap();
            let name = json["event"].as_str().unwrap();
            let section = page
                .split("\n### ")
                .find(|section| section.starts_with(&format!("`{name}`")))
                .unwrap_or_else(|| panic!("docs/observability.md has no `{name}`"));
            for field in json
                .as_object()
                .unwrap()
                .keys()
                .filter(|key| *key != "event")
            {
                assert!(
                    section.contains(&format!("| `{field}` |")),
                    "`{name}` lacks `{field}`"
                );
            }
        }
    }
}
