//! The command line.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cmd;
use crate::error::{Error, Status};
use crate::merge::Prefer;
use crate::slice::Slice;

/// Asks a teacher about every example of a data set, once, and keeps what it said.
#[derive(Debug, Parser)]
#[command(name = "harvest", version, after_help = EXIT_STATUS)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  something to mend: usage, configuration, data, server, or rows that failed
  2  something failed that should not
  3  stopped before the end, what was received is committed

Logs go to standard error; RUST_LOG chooses what is logged.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the configuration, ask the teacher about a few examples, and tell what a run will take
    Check(CheckArgs),
    /// Ask the teacher about every row that the cache lacks
    Run(RunArgs),
    /// Tell what a cache holds, from its manifest and the keys of its rows; reads no signal
    Status(TargetArgs),
    /// Read every shard of a cache and check digests, row counts and keys
    Verify(VerifyArgs),
    /// Verify a cache, list its shards in the manifest and give it a digest
    Freeze(FreezeArgs),
    /// Add the rows of other caches of the same source to a cache, here or in an object store
    Merge(MergeArgs),
    /// Read every row of a cache and tell its quality
    Stats(StatsArgs),
    /// Write the data card and the Croissant metadata of a cache
    Card(CardArgs),
    /// Make a cache of features that were made elsewhere
    Import(ImportArgs),
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration
    pub config: PathBuf,
    /// Skip up to N bad rows of the data set, and list them
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip_bad_rows: u64,
    /// Rows to ask about, drawn at random; each costs what a row costs
    #[arg(long, value_name = "N", default_value = "3")]
    pub sample: NonZeroUsize,
    /// Look at slice I of N only
    #[arg(long, value_name = "I/N")]
    pub slice: Option<Slice>,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration
    pub config: PathBuf,
    /// Skip up to N bad rows of the data set, and list them
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip_bad_rows: u64,
    /// Ask about the rows of slice I of N only, as one worker of several
    #[arg(long, value_name = "I/N")]
    pub slice: Option<Slice>,
    /// Ask again about rows that failed before
    #[arg(long)]
    pub retry_failures: bool,
    /// Write events to standard output, one JSON object a line, instead of the summary
    #[arg(long)]
    pub json: bool,
    /// Write the run's numbers to FILE every few seconds, as OpenMetrics text
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
    /// Serve the run's numbers at http://ADDR/metrics, as OpenMetrics text; ADDR is an IP address and a port
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<SocketAddr>,
}

/// Arguments of verbs that look at a cache.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The cache folder or address, or the configuration, with which rows are compared with the data set
    pub target: String,
    /// Skip up to N bad rows of the data set
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip_bad_rows: u64,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Ask the teacher twice about N rows again and compare; needs the configuration and costs 2 N requests
    #[arg(long, value_name = "N")]
    pub(crate) replay: Option<NonZeroUsize>,
    /// Chooses the rows that are asked about again
    #[arg(long, value_name = "SEED", default_value_t = 0, requires = "replay")]
    pub(crate) seed: u64,
}

/// Arguments of `freeze`.
#[derive(Debug, Args)]
pub struct FreezeArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Freeze although rows are missing; replies that are only in the journal are committed first
    #[arg(long)]
    pub(crate) allow_missing: bool,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The configuration, with a section `import`
    pub config: PathBuf,
}

/// Arguments of `merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The cache that gains rows: a folder or an address; it is made where there is none
    pub into: String,
    /// The caches whose rows it gains
    #[arg(required = true)]
    pub from: Vec<String>,
    /// Which of two rows with the same key and other signals is kept; left out, such rows are refused
    #[arg(long, value_enum)]
    pub prefer: Option<Prefer>,
}

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The cache, as a folder or an address, or its configuration
    pub target: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `card`.
#[derive(Debug, Args)]
pub struct CardArgs {
    /// The cache, as a folder or an address, or its configuration
    pub target: String,
    /// Folder or address to write to; left out, the cache itself
    #[arg(long, value_name = "DIR")]
    pub into: Option<String>,
}

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    /// Clap's refusal, or the help or version that was asked for.
    pub fn read() -> Result<Self, clap::Error> {
        Self::try_parse()
    }

    /// Does what was asked.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run(self) -> Result<Status, Error> {
        match self.command {
            Command::Check(args) => cmd::check::run(&args),
            Command::Run(args) => cmd::run::run(&args),
            Command::Status(args) => cmd::status::run(&args),
            Command::Verify(args) => cmd::verify::run(&args),
            Command::Freeze(args) => cmd::freeze::run(&args),
            Command::Import(args) => cmd::import::run(&args),
            Command::Merge(args) => cmd::merge::run(&args),
            Command::Stats(args) => cmd::stats::run(&args),
            Command::Card(args) => cmd::card::run(&args),
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Prints an error with its hint, and gives the exit status.
pub fn report(result: Result<Status, Error>) -> ExitCode {
    let status = result.unwrap_or_else(|error| {
        complain(&error.to_string(), error.hint().as_deref());
        error.status()
    });
    status.into()
}

/// Prints what clap has to say: help and version on standard output with status 0, refusals with status 1.
pub fn report_usage(usage: &clap::Error) -> ExitCode {
    if let Err(error) = written(usage.print()) {
        return report(Err(error));
    }
    if usage.use_stderr() {
        Status::UserError.into()
    } else {
        Status::Done.into()
    }
}

/// Writes `error: ...` and `hint: ...` on standard error.
pub(crate) fn complain(error: &str, hint: Option<&str>) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "error: {error}");
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

/// Writes lines of a name and a value on standard output, two spaces or more between them.
///
/// # Errors
/// [`Error::Schemas`] where it cannot be written.
pub(crate) fn print<N: AsRef<str>>(lines: &[(N, String)]) -> Result<(), Error> {
    let width = lines
        .iter()
        .map(|(name, _)| name.as_ref().len())
        .max()
        .unwrap_or(0);
    let mut stdout = io::stdout().lock();
    let mut write = || -> io::Result<()> {
        for (name, value) in lines {
            writeln!(stdout, "{:width$}  {value}", name.as_ref())?;
        }
        stdout.flush()
    };
    written(write())
}

/// Writes one line on standard output.
///
/// # Errors
/// [`Error::Schemas`] where it cannot be written.
pub(crate) fn print_line(line: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    written(writeln!(stdout, "{line}").and_then(|()| stdout.flush()))
}

/// A reader that has seen enough closes the pipe, which is no error; everything else is.
fn written(result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(schemas::Error::io("standard output".as_ref(), "write to", source).into())
        }
        _ => Ok(()),
    }
}
