//! `distill compare`: every run is a process of its own, so that runs can share the processor and a crash of one loses
//! nothing of the others.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use schemas::Sha256Digest;
use schemas::dataset::SkipBadRows;

use crate::cli::{TrainingArguments, how_to_go_on, print, tell_skipped};
use crate::compare::{Plan, PlannedRun, report_path, write_report};
use crate::config::Config;
use crate::device::Devices;
use crate::error::{Error, Status};
use crate::model::open_pretrained;
use crate::objective::TaskKind;
use crate::progress::Progress;
use crate::setup::{RunResult, read_result};
use crate::stop::Stop;
use crate::student::PretrainedFiles;

/// Time between two looks at the runs under way.
const POLL: Duration = Duration::from_millis(20);

/// The verb's command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: TrainingArguments,
    /// Digest of the frozen cache, as `harvest freeze` prints it; goes before the configuration's.
    #[arg(long)]
    cache_digest: Option<Sha256Digest>,
    /// Throw away finished and unfinished runs and start over.
    #[arg(long)]
    restart: bool,
    /// Allow this many rows of the data set that cannot be used.
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_bad_rows: u64,
    /// Runs at the same time; goes before the configuration's `compare.jobs`.
    #[arg(long)]
    jobs: Option<std::num::NonZeroUsize>,
}

/// What every run of a comparison is started with.
struct Launcher {
    program: PathBuf,
    config: PathBuf,
    digest: Sha256Digest,
    device: Devices,
    restart: bool,
    skip_bad_rows: u64,
    num_threads: usize,
}

impl Launcher {
    fn start(&self, run: &PlannedRun) -> Result<Child, Error> {
        let mut command = Command::new(&self.program);
        command.arg("train").arg(&self.config);
        command.args(["--device", &self.device.to_string()]);
        command.args(["--cache-digest", &self.digest.to_string()]);
        command.args(["--variant", &run.variant.to_string()]);
        command.args(["--seed", &run.seed.to_string()]);
        command.args(["--skip-bad-rows", &self.skip_bad_rows.to_string()]);
        command.arg("--folder").arg(&run.folder);
        // The run stops, with its state saved, when this process closes the pipe or dies.
        command.arg("--stop-at-end-of-input").stdin(Stdio::piped());
        if self.restart {
            command.arg("--restart");
        }
        command
            .stdout(Stdio::null())
            .env("RAYON_NUM_THREADS", self.num_threads.to_string());
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "error");
        }
        command.spawn().map_err(Error::io(&self.program, "start"))
    }
}

impl Arguments {
    /// Prints the table on standard output and writes `compare.json` beside the runs.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self) -> Result<Status, Error> {
        let config = Config::read(&self.run.config)?;
        let digest = config.cache_digest(self.cache_digest)?;
        if let Some(warning) = config.run.objective.warning() {
            tracing::warn!("{warning}");
        }
        // Said here rather than by every run.
        drop(self.run.device.open()?);
        schemas::Manifest::open_frozen(&config.cache(), &digest)?;
        let pretrained = open_pretrained(&config.run.student, config.base())?;
        if let Some(warning) = pretrained.as_ref().and_then(PretrainedFiles::warning) {
            tracing::warn!("{warning}");
        }
        let dataset = config.run.dataset.open(config.base())?;
        if self.skip_bad_rows > 0 {
            let mut skip = SkipBadRows::new(self.skip_bad_rows);
            for split in dataset.splits() {
                dataset.read(&split, &mut skip)?;
            }
            tell_skipped(&skip);
        }
        let plan = Plan::new(&config, TaskKind::from(dataset.task().label()));
        let jobs = self.jobs.unwrap_or(config.run.compare.jobs).get();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let launcher = Launcher {
            program: std::env::current_exe()
                .map_err(Error::io(&self.run.config, "find the program for"))?,
            config: self.run.config,
            digest,
            device: self.run.device,
            restart: self.restart,
            skip_bad_rows: self.skip_bad_rows,
            num_threads: (cores / jobs).max(1),
        };
        let stop = Stop::default();
        stop.on_signals();
        let Some(results) = run_all(&launcher, plan.runs(), jobs, &stop)? else {
            tracing::warn!("stopped; {}", how_to_go_on(self.restart));
            return Ok(Status::StoppedEarly);
        };
        let report = plan.report(&results);
        write_report(&report_path(&config), &report)?;
        print(&format!("{report}\n"))?;
        Ok(Status::Done)
    }
}

/// Runs everything; `None` if asked to stop before the end.
fn run_all(
    launcher: &Launcher,
    runs: Vec<PlannedRun>,
    jobs: usize,
    stop: &Stop,
) -> Result<Option<Vec<(PlannedRun, RunResult)>>, Error> {
    let mut progress = Progress::new("runs", runs.len() as u64, 0);
    let mut waiting = VecDeque::from(runs);
    let mut running: Vec<(PlannedRun, Child)> = Vec::new();
    let mut results = Vec::new();
    let mut failure = None;
    loop {
        let is_ending = failure.is_some() || stop.is_requested();
        while !is_ending && running.len() < jobs {
            let Some(run) = waiting.pop_front() else {
                break;
            };
            let child = launcher.start(&run)?;
            running.push((run, child));
        }
        if is_ending {
            for (_, child) in &mut running {
                drop(child.stdin.take());
            }
        }
        if running.is_empty() {
            break;
        }
        std::thread::sleep(POLL);
        let mut index = 0;
        while index < running.len() {
            let (run, child) = &mut running[index];
            let Some(status) = child
                .try_wait()
                .map_err(Error::io(&run.folder, "wait for"))?
            else {
                index += 1;
                continue;
            };
            let (run, _) = running.swap_remove(index);
            match (status.code(), read_result(&run.folder)?) {
                (Some(0), Some(result)) => {
                    progress.advance(|| run.name());
                    results.push((run, result));
                }
                // Stopped with its state saved, as it was asked to.
                (Some(3), _) => stop.request(),
                _ => {
                    failure = Some(Error::FailedRun {
                        run: run.name(),
                        status,
                    });
                }
            }
        }
    }
    match failure {
        Some(error) => Err(error),
        None if waiting.is_empty() && !stop.is_requested() => Ok(Some(results)),
        None => Ok(None),
    }
}
