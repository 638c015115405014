//! Did the teacher help? The method beside its controls, over seeds, at the same budget.

mod report;

use std::path::PathBuf;

pub use report::{
    ComparedSplit, Difference, Report, ReportRow, SeedResult, Summary, report_path, write_report,
};

use crate::config::{Config, Control};
use crate::objective::TaskKind;
use crate::schedule::{Supervision, Variant};
use crate::setup::RunResult;

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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::checkpoint::RunIdentity;

    fn planned(config: &Config) -> Plan {
        Plan::new(config, TaskKind::Regression)
    }

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
