//! `distill train`.

use std::path::PathBuf;

use schemas::Sha256Digest;
use schemas::dataset::SkipBadRows;

use crate::cli::{TrainingArguments, how_to_go_on, print, tell_skipped};
use crate::config::Config;
use crate::error::{Error, Status};
use crate::schedule::Variant;
use crate::setup::{Outcome, RunOptions, Setup};
use crate::stop::Stop;
use crate::student::PretrainedFiles;

/// The verb's command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: TrainingArguments,
    /// Digest of the frozen cache, as `harvest freeze` prints it; goes before the configuration's.
    #[arg(long)]
    cache_digest: Option<Sha256Digest>,
    /// Throw away what the run's folder holds and start over.
    #[arg(long)]
    restart: bool,
    /// Allow this many rows of the data set that cannot be used.
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_bad_rows: u64,
    /// Stop with the state saved, and exit status 3, after this many steps.
    #[arg(long, value_name = "N")]
    stop_after_steps: Option<u64>,
    /// Train a control instead of the method, as `compare` does.
    #[arg(long, default_value_t = Variant::Method)]
    variant: Variant,
    /// Instead of the configuration's seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Instead of the configuration's `output.path`.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Stop with the state saved when standard input ends.
    #[arg(long, hide = true)]
    stop_at_end_of_input: bool,
}

impl Arguments {
    /// Trains.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self) -> Result<Status, Error> {
        let config = Config::read(&self.run.config)?;
        let digest = config.cache_digest(self.cache_digest)?;
        if let Some(warning) = config.run.objective.warning() {
            tracing::warn!("{warning}");
        }
        let options = RunOptions {
            variant: self.variant,
            seed: self.seed.unwrap_or(config.run.seed),
            folder: self.folder.unwrap_or_else(|| config.output()),
            restart: self.restart,
        };
        let stop = self
            .stop_after_steps
            .map_or_else(Stop::default, Stop::after_steps);
        stop.on_signals();
        if self.stop_at_end_of_input {
            stop.on_end_of_input();
        }
        let mut skip = SkipBadRows::new(self.skip_bad_rows);
        let setup = Setup::open(config, digest, self.run.device, &mut skip)?;
        tell_skipped(&skip);
        let pretrained = setup.inference.pretrained.as_ref();
        if let Some(warning) = pretrained.and_then(PretrainedFiles::warning) {
            tracing::warn!("{warning}");
        }
        tracing::info!("{}", setup.join_report());
        match setup.train(&options, &stop, true)? {
            Outcome::Finished(result) => {
                let text = serde_json::to_string(&result).expect("plain data");
                print(&format!("{text}\n"))?;
                Ok(Status::Done)
            }
            Outcome::Stopped { step } => {
                let how = how_to_go_on(options.restart);
                tracing::warn!("stopped after step {step}; {how}");
                Ok(Status::StoppedEarly)
            }
        }
    }
}
