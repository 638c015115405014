//! Did the teacher help? The method beside its controls, over seeds, at the same budget.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{Config, Control};
use crate::objective::TaskKind;
use crate::schedule::{Supervision, Variant};
use crate::setup::RunResult;
use crate::statistics::{Pair, mean, paired_t_test, sample_deviation};

/// One run that has to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRun {
    /// What is trained.
    pub variant: Variant,
    /// With which seed.
    pub seed: u64,
    /// Where it goes.
    pub folder: PathBuf,
}

impl PlannedRun {
    /// Variant and seed in words.
    pub fn name(&self) -> String {
        format!("{} with seed {}", self.variant, self.seed)
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PlannedRow {
    variant: Variant,
    /// The variant whose runs these are: the variant itself, or an earlier one that comes to the same.
    trained_as: Variant,
}

/// What a comparison runs and shows.
#[derive(Clone, Debug)]
pub struct Plan {
    rows: Vec<PlannedRow>,
    seeds: Vec<u64>,
    folder: PathBuf,
}

impl Plan {
    /// The comparison that a configuration asks for of a task of this kind. Variants that come to the same are trained once.
    pub fn new(config: &Config, kind: TaskKind) -> Self {
        let run = &config.run;
        let mut variants = vec![Variant::Undistilled, Variant::Method];
        for control in &run.compare.controls {
            match control {
                Control::Undistilled => {}
                Control::AuxOnly => variants.push(Variant::AuxOnly),
                Control::Shuffled => variants.push(Variant::Shuffled),
                Control::FrozenRandom => variants.push(Variant::FrozenRandom),
                Control::Noise => {
                    variants.extend(
                        run.compare
                            .noise_sigmas
                            .iter()
                            .map(|sigma| Variant::Noise(sigma.get())),
                    );
                }
            }
        }
        let supervision =
            |variant| Supervision::new(variant, &run.objective, run.training.schedule, kind);
        let rows = variants
            .iter()
            .map(|&variant| {
                let same = variants
                    .iter()
                    .find(|&&other| supervision(other) == supervision(variant));
                PlannedRow {
                    variant,
                    trained_as: *same.expect("a variant comes to the same as itself"),
                }
            })
            .collect();
        Self {
            rows,
            seeds: run.compare.seeds.clone(),
            folder: config.output().join("compare"),
        }
    }

    /// Every run once, all variants of a seed before the next seed.
    pub fn runs(&self) -> Vec<PlannedRun> {
        let trained = self.rows.iter().filter(|row| row.variant == row.trained_as);
        let trained: Vec<Variant> = trained.map(|row| row.variant).collect();
        let runs = self
            .seeds
            .iter()
            .flat_map(|&seed| trained.iter().map(move |&variant| (variant, seed)));
        runs.map(|(variant, seed)| PlannedRun {
            variant,
            seed,
            folder: self.run_folder(variant, seed),
        })
        .collect()
    }

    fn run_folder(&self, variant: Variant, seed: u64) -> PathBuf {
        self.folder
            .join(variant.to_string())
            .join(format!("seed-{seed}"))
    }

    /// The table of finished runs.
    pub fn report(&self, results: &[(PlannedRun, RunResult)]) -> Report {
        let of = |variant: Variant| -> Vec<SeedResult> {
            let runs = results.iter().filter(|(run, _)| run.variant == variant);
            let mut seeds: Vec<SeedResult> = runs
                .map(|(run, result)| SeedResult::new(run.seed, result))
                .collect();
            seeds.sort_by_key(|result| self.seeds.iter().position(|&seed| seed == result.seed));
            seeds
        };
        // Once for the whole table: scores on different splits are no pair.
        let has_test = !results.is_empty()
            && results
                .iter()
                .all(|(_, result)| !result.test_scores.is_empty());
        let compared = if has_test {
            ComparedSplit::Test
        } else {
            ComparedSplit::Validation
        };
        let baseline = of(Variant::Undistilled);
        let rows = self
            .rows
            .iter()
            .map(|row| {
                let same_as = (row.trained_as != row.variant).then(|| row.trained_as.to_string());
                ReportRow::new(
                    row.variant,
                    same_as,
                    of(row.trained_as),
                    &baseline,
                    compared,
                )
            })
            .collect();
        let first = results.first().map(|(_, result)| result);
        Report {
            metric: first
                .map(|result| result.metric.clone())
                .unwrap_or_default(),
            compared,
            num_train_rows: first.map_or(0, |result| result.num_train_rows),
            cache: first
                .map(|result| result.run.cache.clone())
                .unwrap_or_default(),
            data: first
                .map(|result| result.run.data.clone())
                .unwrap_or_default(),
            config: first
                .map(|result| result.run.config.clone())
                .unwrap_or_default(),
            rows,
        }
    }
}

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
    fn new(seed: u64, result: &RunResult) -> Self {
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
    fn new(
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(config: &Config) -> Plan {
        Plan::new(config, TaskKind::Regression)
    }
    use crate::checkpoint::RunIdentity;

    fn config(text: &str) -> Config {
        let text = format!(
            "[dataset]\npath = \"d\"\n[cache]\npath = \"c\"\n[student]\npath = \"s\"\n[output]\npath = \"o\"\n{text}"
        );
        Config::parse(&text, PathBuf::new()).unwrap()
    }

    fn result(run: &PlannedRun, validation: f64, test: Option<f64>) -> (PlannedRun, RunResult) {
        let identity = RunIdentity {
            variant: run.variant.to_string(),
            seed: run.seed,
            cache: "sha256:00".into(),
            data: "sha256:01".into(),
            metric: "accuracy".into(),
            classes: None,
            student: None,
            num_devices: 1,
            config: json!({}),
        };
        let result = RunResult {
            run: identity,
            metric: "accuracy".into(),
            validation: Some(validation),
            test,
            test_scores: test
                .map(|score| ("accuracy".to_owned(), score.into()))
                .into_iter()
                .collect(),
            best_epoch: 2,
            best_step: 8,
            num_train_rows: 12,
        };
        (run.clone(), result)
    }

    #[test]
    fn equal_variants_are_trained_once() {
        let plan = planned(&config(
            "[objective]\nalpha = 0\nbeta = 0\n[compare]\nseeds = [4, 2]",
        ));
        let names: Vec<String> = plan.runs().iter().map(PlannedRun::name).collect();
        assert_eq!(
            names,
            [
                "undistilled with seed 4",
                "method with seed 4",
                "undistilled with seed 2",
                "method with seed 2"
            ]
        );
        let all = planned(&config(""));
        assert_eq!(all.runs().len(), 3 * 8);
        assert_eq!(
            all.runs()[0].folder,
            Path::new("o/compare/undistilled/seed-1")
        );
    }

    #[test]
    fn the_table_shows_means_deviations_and_the_paired_test() {
        let plan = planned(&config(
            "[compare]\ncontrols = [\"aux-only\"]\n[objective]\nbeta = 0\nalpha = 0",
        ));
        let scores = [0.60, 0.62, 0.61, 0.64, 0.62, 0.63];
        let results: Vec<_> = plan
            .runs()
            .iter()
            .zip(scores)
            .map(|(run, score)| result(run, score + 0.1, Some(score)))
            .collect();
        let report = plan.report(&results);
        insta::assert_snapshot!(report.to_string(), @r#"
        variant           validation             test  to undistilled  paired p   n
        undistilled     71.00 ± 1.00     61.00 ± 1.00               -         -   3
        method          73.00 ± 1.00     63.00 ± 1.00           +2.00    0.0742   3
        aux-only        73.00 ± 1.00     63.00 ± 1.00           +2.00    0.0742   3  the runs of method: it comes to the same here
        accuracy in percent, mean ± standard deviation over seeds; checkpoints chosen on validation; differences and p on test; 12 training rows
        "#);
        assert_eq!(
            report.rows[1]
                .difference
                .unwrap()
                .p_value
                .map(|p| (p * 1e4).round()),
            Some(742.0)
        );
    }

    #[test]
    fn without_test_labels_the_validation_split_is_compared() {
        let plan = planned(&config("[compare]\ncontrols = []\nseeds = [1, 2]"));
        let scores = [0.5, 0.75, 0.5, 1.0];
        let results: Vec<_> = plan
            .runs()
            .iter()
            .zip(scores)
            .map(|(run, score)| result(run, score, None))
            .collect();
        let report = plan.report(&results);
        assert_eq!(report.rows[1].test.mean, None);
        assert_eq!(report.rows[1].difference.unwrap().mean, 0.375);
        let caption = report.to_string();
        assert!(
            caption.contains(
                "; differences and p on validation, for the test split is absent or has no labels; "
            ),
            "{caption}"
        );
    }

    #[test]
    fn an_undefined_test_score_moves_no_row_to_the_validation_split() {
        let plan = planned(&config(
            "[compare]\ncontrols = [\"shuffled\"]\nseeds = [1, 2]",
        ));
        let mut results: Vec<_> = plan
            .runs()
            .iter()
            .map(|run| result(run, 0.5, Some(0.25)))
            .collect();
        for (run, result) in &mut results {
            if run.variant == Variant::Method && run.seed == 2 {
                result.test = None;
                result.test_scores["accuracy"] = serde_json::Value::Null;
            }
        }
        let report = plan.report(&results);
        assert_eq!(report.compared, ComparedSplit::Test);
        assert_eq!(report.rows[1].difference, None);
        assert_eq!(report.rows[2].difference.unwrap().mean, 0.0);
    }
}
