//! The command line.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use schemas::dataset::SkipBadRows;

use crate::checkpoint::StoredCheckpoint;
use crate::cmd;
use crate::config::Config;
use crate::error::{Error, Status};
use crate::inference::Inference;
use crate::model::Student;

/// Trains text-only student language models from a teacher cache.
#[derive(Debug, Parser)]
#[command(name = "distill", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Train a student, or go on where an earlier call stopped.
    Train(cmd::train::Arguments),
    /// Score a trained student on a split.
    Eval(cmd::eval::Arguments),
    /// Predict labels of a split or of rows from a file.
    Predict(cmd::predict::Arguments),
    /// Write a trained student as a Hugging Face directory.
    Export(cmd::export::Arguments),
    /// Train the method and its controls over several seeds and print the table.
    Compare(cmd::compare::Arguments),
    /// Compare what a device computes with the CPU.
    CheckDevice(cmd::check_device::Arguments),
}

/// What most verbs read: a configuration and a device.
#[derive(Debug, clap::Args)]
pub struct RunArguments {
    /// The run's configuration.
    pub config: PathBuf,
    /// `cpu`, or `cuda:0` and so on in a build with feature `cuda`.
    #[arg(long, default_value = "cpu")]
    pub device: crate::device::DeviceChoice,
}

/// What training reads: a configuration and devices.
#[derive(Debug, clap::Args)]
pub struct TrainingArguments {
    /// The run's configuration.
    pub config: PathBuf,
    /// `cpu`, or `cuda:0` and so on in a build with feature `cuda`; `cuda:0,cuda:1` splits every step over both.
    #[arg(long, default_value = "cpu")]
    pub device: crate::device::Devices,
}

/// Which of a configuration's runs a verb reads.
#[derive(Debug, clap::Args)]
pub struct StudentArguments {
    /// The run's folder; left out, the configuration's `output.path`. Runs of `compare` are in
    /// `compare/<variant>/seed-<n>` under it.
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Which checkpoint.
    #[arg(long, value_enum, default_value_t)]
    pub checkpoint: crate::checkpoint::Which,
}

impl StudentArguments {
    /// Opens what inference needs and reads the student.
    ///
    /// # Errors
    /// The configuration or the device cannot be opened, or the run's folder holds no such student.
    pub fn open(
        &self,
        run: &RunArguments,
    ) -> Result<(Inference, Student, StoredCheckpoint), Error> {
        let config = Config::read(&run.config)?;
        let folder = self.folder.clone().unwrap_or_else(|| config.output());
        let inference = Inference::open(config, run.device)?;
        let (student, checkpoint) = inference.student(&folder, self.checkpoint)?;
        Ok((inference, student, checkpoint))
    }
}

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    /// It is not one; also where help was asked for.
    pub fn read() -> Result<Self, clap::Error> {
        Self::try_parse()
    }

    /// Does what was asked.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self) -> Result<Status, Error> {
        match self.verb {
            Verb::Train(arguments) => arguments.run(),
            Verb::Eval(arguments) => arguments.run(),
            Verb::Predict(arguments) => arguments.run(),
            Verb::Export(arguments) => arguments.run(),
            Verb::Compare(arguments) => arguments.run(),
            Verb::CheckDevice(arguments) => arguments.run(),
        }
    }
}

/// Tells a user about an error and gives the exit status.
pub fn report(result: Result<Status, Error>) -> ExitCode {
    let status = result.unwrap_or_else(|error| {
        let mut text = format!("error: {error}\n");
        if let Some(hint) = error.hint() {
            writeln!(text, "hint: {hint}").expect("a string takes any text");
        }
        write_error(&text);
        error.status()
    });
    ExitCode::from(status as u8)
}

/// Prints help, or what is wrong with a command line.
pub fn report_usage(usage: &clap::Error) -> ExitCode {
    // Nobody is left to be told that standard error is closed.
    let _ = usage.print();
    if usage.use_stderr() {
        ExitCode::from(Status::UserError as u8)
    } else {
        ExitCode::SUCCESS
    }
}

fn write_error(text: &str) {
    crate::logging::BARS.suspend(|| {
        let _ = std::io::stderr().write_all(text.as_bytes());
    });
}

/// Tells which rows were skipped.
pub fn tell_skipped(skip: &SkipBadRows) {
    for row in skip.skipped() {
        tracing::warn!("skipped {row}");
    }
    let num_unlisted = skip.num_skipped() - skip.skipped().len() as u64;
    if num_unlisted > 0 {
        tracing::warn!("skipped {num_unlisted} more");
    }
}

/// What a stopped command says about going on.
pub fn how_to_go_on(restart: bool) -> &'static str {
    if restart {
        "the same command without --restart goes on from there"
    } else {
        "the same command goes on from there"
    }
}

/// Writes data to standard output; a reader that has seen enough ends the process quietly.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::io(std::path::Path::new("standard output"), "write")(
            error,
        )),
        Ok(()) => Ok(()),
    }
}
