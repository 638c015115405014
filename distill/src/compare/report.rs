//! The table of a comparison.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Config;
use crate::schedule::Variant;
use crate::setup::RunResult;
use crate::statistics::{Pair, mean, paired_t_test, sample_deviation};

/// The scores of one seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SeedResult {
    /// The seed.
    pub seed: u64,
    /// Score on the validation split.
    pub validation: Option<f64>,
    /// Score on the test split.
    pub test: Option<f64>,
    /// The epoch of the chosen checkpoint.
    pub best_epoch: usize,
}

impl SeedResult {
    pub(super) fn new(seed: u64, result: &RunResult) -> Self {
        Self {
            seed,
            validation: result.validation,
            test: result.test,
            best_epoch: result.best_epoch,
        }
    }
}

/// The split on which a table's variants are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComparedSplit {
    /// The test split.
    Test,
    /// The validation split, where the test split is absent or has no labels.
    Validation,
}

impl ComparedSplit {
    fn score(self, result: &SeedResult) -> Option<f64> {
        match self {
            Self::Test => result.test,
            Self::Validation => result.validation,
        }
    }
}

impl fmt::Display for ComparedSplit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Test => "differences and p on test",
            Self::Validation => {
                "differences and p on validation, for the test split is absent or has no labels"
            }
        })
    }
}

/// Mean and sample standard deviation over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The mean; null where a score is not defined.
    pub mean: Option<f64>,
    /// The standard deviation, n - 1; null with fewer than two seeds.
    pub deviation: Option<f64>,
}

impl Summary {
    fn of(scores: Option<Vec<f64>>) -> Self {
        let scores = scores.unwrap_or_default();
        Self {
            mean: mean(&scores),
            deviation: sample_deviation(&scores),
        }
    }
}

/// A variant against the undistilled student, seed by seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Mean of the differences.
    pub mean: f64,
    /// Two-sided p of a paired t-test; null where it is not defined.
    pub p_value: Option<f64>,
}

/// One variant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportRow {
    /// Its name.
    pub variant: String,
    /// The variant that comes to the same under this configuration and whose runs these are.
    pub same_as: Option<String>,
    /// Validation scores.
    pub validation: Summary,
    /// Test scores.
    pub test: Summary,
    /// On the compared split; null where a score on it is not defined.
    pub difference: Option<Difference>,
    /// Every seed.
    pub seeds: Vec<SeedResult>,
}

impl ReportRow {
    pub(super) fn new(
        variant: Variant,
        same_as: Option<String>,
        seeds: Vec<SeedResult>,
        baseline: &[SeedResult],
        compared: ComparedSplit,
    ) -> Self {
        let all = |score: fn(&SeedResult) -> Option<f64>| {
            seeds.iter().map(score).collect::<Option<Vec<f64>>>()
        };
        Self {
            variant: variant.to_string(),
            same_as,
            validation: Summary::of(all(|seed| seed.validation)),
            test: Summary::of(all(|seed| seed.test)),
            difference: if variant == Variant::Undistilled {
                None
            } else {
                Difference::of(&seeds, baseline, compared)
            },
            seeds,
        }
    }
}

impl Difference {
    fn of(seeds: &[SeedResult], baseline: &[SeedResult], compared: ComparedSplit) -> Option<Self> {
        let pairs: Option<Vec<Pair>> = seeds
            .iter()
            .map(|treatment| {
                let control = baseline
                    .iter()
                    .find(|control| control.seed == treatment.seed)?;
                Some(Pair {
                    treatment: compared.score(treatment)?,
                    control: compared.score(control)?,
                })
            })
            .collect();
        let pairs = pairs?;
        let differences: Vec<f64> = pairs
            .iter()
            .map(|pair| pair.treatment - pair.control)
            .collect();
        Some(Self {
            mean: mean(&differences)?,
            p_value: paired_t_test(&pairs).map(|test| test.p_value),
        })
    }
}

/// A finished comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The task's metric.
    pub metric: String,
    /// Where the differences were taken.
    pub compared: ComparedSplit,
    /// Training rows.
    pub num_train_rows: usize,
    /// Digest of the cache.
    pub cache: String,
    /// Digest of the data.
    pub data: String,
    /// The resolved configuration.
    pub config: serde_json::Value,
    /// One row for each variant.
    pub rows: Vec<ReportRow>,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |value: f64| format!("{:.2}", 100.0 * value);
        let summary = |summary: &Summary| match (summary.mean, summary.deviation) {
            (None, _) => "-".to_owned(),
            (Some(mean), None) => percent(mean),
            (Some(mean), Some(deviation)) => format!("{} ± {}", percent(mean), percent(deviation)),
        };
        let width = self
            .rows
            .iter()
            .map(|row| row.variant.len())
            .max()
            .unwrap_or(0)
            .max("variant".len());
        writeln!(
            formatter,
            "{:width$}  {:>15}  {:>15}  {:>14}  {:>8}  {:>2}",
            "variant", "validation", "test", "to undistilled", "paired p", "n"
        )?;
        for row in &self.rows {
            let difference = row.difference.map_or("-".to_owned(), |difference| {
                format!("{:+.2}", 100.0 * difference.mean)
            });
            let p = row.difference.and_then(|difference| difference.p_value);
            write!(
                formatter,
                "{:width$}  {:>15}  {:>15}  {:>14}  {:>8}  {:>2}",
                row.variant,
                summary(&row.validation),
                summary(&row.test),
                difference,
                p.map_or("-".to_owned(), |p| format!("{p:.4}")),
                row.seeds.len()
            )?;
            match &row.same_as {
                Some(other) => writeln!(
                    formatter,
                    "  the runs of {other}: it comes to the same here"
                )?,
                None => writeln!(formatter)?,
            }
        }
        write!(
            formatter,
            "{} in percent, mean ± standard deviation over seeds; checkpoints chosen on validation; {}; {} training rows",
            self.metric, self.compared, self.num_train_rows
        )
    }
}

/// Where the figures of a comparison go.
pub fn report_path(config: &Config) -> PathBuf {
    config.output().join("compare.json")
}

/// Writes the figures as JSON.
///
/// # Errors
/// The file cannot be written.
pub fn write_report(path: &Path, report: &Report) -> Result<(), crate::error::Error> {
    Ok(crate::checkpoint::write_json(path, report)?)
}
