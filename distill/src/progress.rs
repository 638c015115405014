//! How far a run is: a bar on a terminal, a log line every few seconds elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::logging::BARS;
use crate::run_log::{StepLine, Update};

/// Time between two log lines where there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Counts steps of a run, or runs of a comparison, and tells of them on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    unit: &'static str,
    num_all: u64,
    num_done: u64,
    /// Done before this process began: no measure of its speed.
    num_before: u64,
    started: Instant,
    last_line: Instant,
    /// Of the last logged step.
    losses: String,
}

impl Progress {
    /// Progress over `num_all` of some unit, of which `num_before` were done before.
    pub fn new(unit: &'static str, num_all: u64, num_before: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = format!("{{bar:32}} {{pos}}/{{len}} {unit}  {{eta}} left  {{msg}}");
            let style = ProgressStyle::with_template(&style).expect("the template is a literal");
            let bar = BARS
                .add(ProgressBar::new(num_all))
                .with_style(style)
                .with_position(num_before);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            unit,
            num_all,
            num_done: num_before,
            num_before,
            started: now,
            last_line: now,
            losses: String::new(),
        }
    }

    /// Progress that nobody is told of.
    pub fn silent() -> Self {
        let now = Instant::now();
        Self {
            bar: None,
            unit: "",
            num_all: 0,
            num_done: 0,
            num_before: 0,
            started: now,
            last_line: now,
            losses: String::new(),
        }
    }

    /// One more step is done; a step that is not logged has no line.
    pub fn step(&mut self, line: Option<&StepLine>) {
        if let Some(line) = line {
            self.losses = losses(line);
        }
        let losses = self.losses.clone();
        self.advance(|| losses);
    }

    /// One more is done; `message` says what.
    pub fn advance(&mut self, message: impl FnOnce() -> String) {
        if self.num_all == 0 {
            return;
        }
        self.num_done += 1;
        if let Some(bar) = &self.bar {
            bar.set_message(message());
            bar.inc(1);
        } else if self.last_line.elapsed() >= LOG_INTERVAL {
            self.last_line = Instant::now();
            tracing::info!("{}, {}", self.line(), message());
        }
    }

    fn line(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let per_second = (self.num_done - self.num_before) as f64 / seconds;
        let left = self.num_all.saturating_sub(self.num_done) as f64 / per_second;
        let left = Duration::try_from_secs_f64(left)
            .map_or_else(|_| "unknown time".to_owned(), human_time);
        format!(
            "{}/{} {}, {left} left",
            self.num_done, self.num_all, self.unit
        )
    }
}

fn losses(line: &StepLine) -> String {
    let loss = |update: &Update| update.loss;
    let (aligner, student) = (
        line.aligner.as_ref().map(loss),
        line.student.as_ref().map(loss),
    );
    let losses = [("student", student), ("aligner", aligner)];
    let losses = losses
        .iter()
        .filter_map(|(name, loss)| Some(format!("{name} loss {:.4}", (*loss)?)));
    format!(
        "epoch {} {}",
        line.epoch,
        losses.collect::<Vec<_>>().join(" ")
    )
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A duration in the two largest units that it fills: `2h 5m`, `3m 20s`, `4.2s`.
pub fn human_time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(human_time(Duration::from_millis(4_200)), "4.2s");
        assert_eq!(human_time(Duration::from_secs(200)), "3m 20s");
        assert_eq!(human_time(Duration::from_secs(7_501)), "2h 5m");
    }
}
