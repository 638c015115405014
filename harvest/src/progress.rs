//! How far a run is: a bar on a terminal, a log line every few seconds elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::logging::BARS;

/// Counts settled rows and tells of them on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    num_rows: u64,
    num_settled: u64,
    started: Instant,
}

impl Progress {
    /// Progress over `num_rows` rows.
    pub fn new(num_rows: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{bar:32} {pos}/{len} rows  {per_sec}  {eta} left";
            let style = ProgressStyle::with_template(style).expect("the template is a literal");
            BARS.add(ProgressBar::new(num_rows)).with_style(style)
        });
        Self {
            bar,
            num_rows,
            num_settled: 0,
            started: Instant::now(),
        }
    }

    /// One more row is answered or failed.
    pub fn settle(&mut self) {
        self.num_settled += 1;
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// Writes a line where there is no bar.
    pub fn tell(&self) {
        if self.bar.is_none() {
            tracing::info!("{}", self.line());
        }
    }

    fn line(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let per_second = self.num_settled as f64 / seconds;
        let left = self.num_rows.saturating_sub(self.num_settled) as f64 / per_second;
        let left = Duration::try_from_secs_f64(left)
            .map_or_else(|_| "unknown time".to_owned(), human_time);
        format!(
            "{}/{} rows, {per_second:.1} rows/s, {left} left",
            self.num_settled, self.num_rows
        )
    }
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

/// A size in decimal units: `4.7 MB`.
pub fn human_bytes(num_bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB"];
    if num_bytes < 1000 {
        return format!("{num_bytes} B");
    }
    let mut value = num_bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(human_time(Duration::from_millis(4_200)), "4.2s");
        assert_eq!(human_time(Duration::from_secs(200)), "3m 20s");
        assert_eq!(human_time(Duration::from_mins(125)), "2h 5m");
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(4_710_400), "4.7 MB");
        assert_eq!(human_bytes(999_990_000), "1.0 GB");
    }
}
