//! `distill eval`.

use schemas::Split;
use schemas::dataset::SkipBadRows;
use serde_json::json;

use crate::cli::{RunArguments, StudentArguments, print, tell_skipped};
use crate::data::Rows;
use crate::error::{Error, Status};
use crate::evaluate::metric_name;

/// The verb's command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    student: StudentArguments,
    /// The split to score; left out, the configuration's `splits.validation`.
    #[arg(long)]
    split: Option<String>,
    /// Allow this many rows of the data set that cannot be used.
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_bad_rows: u64,
}

impl Arguments {
    /// Prints the scores as JSON on standard output and as a table on standard error.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self) -> Result<Status, Error> {
        let (inference, student, checkpoint) = self.student.open(&self.run)?;
        let dataset = inference.config.run.dataset.open(inference.config.base())?;
        let configured = &inference.config.run.splits.validation;
        let split = self.split.map_or_else(|| configured.clone(), Split::new);
        let mut skip = SkipBadRows::new(self.skip_bad_rows);
        let examples = dataset.read(&split, &mut skip)?;
        tell_skipped(&skip);
        let rows = Rows::new(
            split.clone(),
            &inference.task,
            &examples,
            inference.encoder(),
        )?;
        let scores = inference
            .scores(&student, &rows, checkpoint.state.run.seed)?
            .ok_or(crate::data::JoinError::Unlabelled {
                split: split.clone(),
            })?;
        for (name, value) in &scores.all {
            let value = value
                .as_f64()
                .map_or("undefined".to_owned(), |value| format!("{value:.4}"));
            tracing::info!("{name:10} {value}");
        }
        let line = json!({
            "split": split, "rows": rows.len(), "metric": metric_name(inference.task.metric()),
            "score": scores.main, "scores": scores.all, "step": checkpoint.state.position.step,
            "variant": checkpoint.state.run.variant, "seed": checkpoint.state.run.seed,
        });
        print(&format!("{line}\n"))?;
        Ok(Status::Done)
    }
}
