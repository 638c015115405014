//! Whether a teacher still says what a cache holds.
//!
//! Every chosen row is asked about again twice. The difference between the two live replies is the noise floor: what
//! the teacher differs from itself. The difference between the cached reply and the first live one is set beside it.
//!
//! The verdict is a sign test. Were the cached reply one more reply of the same teacher, it and the second live one
//! would be interchangeable, so either would be as likely as the other to lie farther from the first live one. Rows
//! where the two differences are equal within a tolerance say nothing. If of the `n` others the cached reply is the
//! farther one in `m`, the chance of `m` or more is the upper tail of a binomial distribution with probability one
//! half; below [`SIGNIFICANCE`] the cache is outside the noise floor. Seven such rows are the fewest that can show it.

mod distance;
mod sample;

use std::collections::BTreeMap;

use schemas::{SignalSpec, TeacherRecord};
use serde::Serialize;

use crate::stats::{Spread, SpreadSummary, short};
use crate::teacher::Reply;

pub use distance::Measure;
pub use sample::choose;

/// The chance of an undeserved "outside" for one measure.
pub const SIGNIFICANCE: f64 = 0.01;

/// What was found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Rows that were chosen.
    pub num_rows: usize,
    /// Rows that were answered twice in a form that fits the cache, and so were compared.
    pub num_compared: usize,
    /// Rows that were answered in a form that does not fit the cache: the teacher is another one.
    pub num_unfit: usize,
    /// Each signal by its name.
    pub signals: BTreeMap<String, Vec<Comparison>>,
    /// Served models of the cached rows, and of the live replies where they differ from the row's.
    pub changed_models: Vec<String>,
    /// The verdict over all signals.
    pub verdict: Verdict,
}

/// One measure of one signal.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Comparison {
    /// What was measured.
    pub measure: Measure,
    /// Between the cached reply and the first live one.
    pub cached_live: SpreadSummary,
    /// Between the two live replies.
    pub live_live: SpreadSummary,
    /// Rows where the cached reply is the farther one.
    pub num_farther: u64,
    /// Rows where the second live reply is the farther one.
    pub num_nearer: u64,
    /// The chance of so many farther rows, were the cached reply one more live one.
    pub chance: f64,
    /// What follows.
    pub verdict: Verdict,
}

/// Whether the cache lies within the noise floor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No difference beyond the floor.
    Within,
    /// There are differences beyond the tolerance, and too few rows to tell whether they are beyond the floor.
    TooFewRows,
    /// Beyond the floor.
    Outside,
}

impl Verdict {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Within => "within the noise floor",
            Self::TooFewRows => "too few rows to tell",
            Self::Outside => "outside the noise floor",
        }
    }
}

/// Compares cached records with two live replies each; a record with a missing reply is left out, and one with an
/// unfitting reply is no longer what the teacher says.
///
/// # Panics
/// Where the three slices differ in length.
pub fn compare(
    specs: &[SignalSpec],
    records: &[TeacherRecord],
    live: [&[Option<Reply>]; 2],
) -> Report {
    assert!(
        live.iter().all(|live| live.len() == records.len()),
        "each record has two outcomes"
    );
    let mut rows = Vec::new();
    let mut num_unfit = 0;
    let mut changed_models = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        let replies = live.map(|live| live[index].as_ref());
        let fitted = replies.map(|reply| fit(record, reply?, specs));
        let pairs = replies.iter().zip(&fitted);
        num_unfit += usize::from(
            pairs
                .into_iter()
                .any(|(reply, fitted)| reply.is_some() && fitted.is_none()),
        );
        if let [Some(first), Some(second)] = fitted {
            let served = |record: &TeacherRecord| {
                let name = record.provenance.served_model.as_deref();
                let print = record.provenance.fingerprint.as_deref();
                format!("{} {}", name.unwrap_or("-"), print.unwrap_or("-"))
            };
            if served(record) != served(&first) {
                let change = format!("{} -> {}", served(record), served(&first));
                *changed_models.entry(change).or_insert(0_u64) += 1;
            }
            rows.push([record.clone(), first, second]);
        }
    }
    let signals: BTreeMap<String, Vec<Comparison>> = specs
        .iter()
        .map(|spec| (spec.name().to_owned(), compare_signal(spec, &rows)))
        .collect();
    let verdicts = signals.values().flatten().map(|found| found.verdict);
    let unfit = (num_unfit > 0).then_some(Verdict::Outside);
    let verdict = verdicts.chain(unfit).max();
    Report {
        num_rows: records.len(),
        num_compared: rows.len(),
        num_unfit,
        signals,
        changed_models: changed_models
            .into_iter()
            .map(|(change, num)| format!("{change} ({num} rows)"))
            .collect(),
        verdict: verdict.unwrap_or(Verdict::TooFewRows),
    }
}

/// A live reply in the precision in which the cache keeps it.
fn fit(record: &TeacherRecord, reply: &Reply, specs: &[SignalSpec]) -> Option<TeacherRecord> {
    let live = TeacherRecord {
        id: record.id,
        draw: record.draw,
        signals: reply.signals.clone(),
        provenance: reply.provenance.clone(),
    };
    live.fit(specs)
        .inspect_err(|error| tracing::warn!("it does not fit: {error}"))
        .ok()
}

fn compare_signal(spec: &SignalSpec, rows: &[[TeacherRecord; 3]]) -> Vec<Comparison> {
    let mut found = Vec::new();
    for measure in Measure::of(spec.kind()) {
        let (mut cached_live, mut live_live) = (Spread::default(), Spread::default());
        let (mut num_farther, mut num_nearer) = (0, 0);
        for row in rows {
            let [cached, first, second] = row.each_ref().map(|record| &record.signals[spec.name()]);
            let (near, far) = (
                measure.between(first, second),
                measure.between(first, cached),
            );
            live_live.add(near);
            cached_live.add(far);
            let tolerance = measure.tolerance(cached);
            num_farther += u64::from(far > near + tolerance);
            num_nearer += u64::from(near > far + tolerance);
        }
        let (Some(cached_live), Some(live_live)) = (cached_live.summary(), live_live.summary())
        else {
            continue;
        };
        let chance = upper_tail(num_farther + num_nearer, num_farther);
        found.push(Comparison {
            measure,
            cached_live,
            live_live,
            num_farther,
            num_nearer,
            chance,
            verdict: verdict(num_farther, num_nearer, chance),
        });
    }
    found
}

fn verdict(num_farther: u64, num_nearer: u64, chance: f64) -> Verdict {
    let num_telling = num_farther + num_nearer;
    if num_farther == 0 {
        Verdict::Within
    } else if upper_tail(num_telling, num_telling) >= SIGNIFICANCE {
        // Not even if all of them were farther.
        Verdict::TooFewRows
    } else if chance < SIGNIFICANCE {
        Verdict::Outside
    } else {
        Verdict::Within
    }
}

/// The chance of `least` or more heads in `num` throws of a fair coin.
fn upper_tail(num: u64, least: u64) -> f64 {
    // Logarithms of the binomial coefficients: their powers of two alone leave the range of f64.
    let mut log_choose = 0.0_f64;
    let mut tail = 0.0;
    for heads in 0..=num {
        if heads > 0 {
            log_choose += ((num - heads + 1) as f64).ln() - (heads as f64).ln();
        }
        if heads >= least {
            tail += (log_choose - num as f64 * std::f64::consts::LN_2).exp();
        }
    }
    tail.min(1.0)
}

impl Report {
    /// What the verb prints: a name and a value each.
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines = vec![
            ("replayed".to_owned(), self.num_rows.to_string()),
            ("compared".to_owned(), self.num_compared.to_string()),
            ("unfit".to_owned(), self.num_unfit.to_string()),
        ];
        for (name, comparisons) in &self.signals {
            for comparison in comparisons {
                let name = format!("{name}.{}", comparison.measure.name());
                let side = |spread: &SpreadSummary| {
                    format!("mean {}, max {}", short(spread.mean), short(spread.max))
                };
                lines.push((
                    name,
                    format!(
                        "cached to live: {}; live to live: {}; farther in {}, nearer in {}: {}",
                        side(&comparison.cached_live),
                        side(&comparison.live_live),
                        comparison.num_farther,
                        comparison.num_nearer,
                        comparison.verdict.words()
                    ),
                ));
            }
        }
        for change in &self.changed_models {
            lines.push(("changed_model".to_owned(), change.clone()));
        }
        lines.push(("replay".to_owned(), self.verdict.words().to_owned()));
        lines
    }
}

#[cfg(test)]
mod tests;
