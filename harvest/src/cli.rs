//! The command line.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cmd;
use crate::error::{Error, Status};

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
    /// Check the configuration, ask the teacher about one example, and tell what a run will take
    Check(ConfigArgs),
    /// Ask the teacher about every row that the cache lacks
    Run(ConfigArgs),
    /// Tell what a cache holds, from its manifest and the keys of its rows; reads no signal
    Status(TargetArgs),
    /// Read every shard of a cache and check digests, row counts and keys
    Verify(TargetArgs),
    /// Verify a cache, list its shards in the manifest and give it a digest
    Freeze(FreezeArgs),
    /// Make a cache of features that were made elsewhere
    Import(ImportArgs),
}

/// Arguments of verbs that need a configuration.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration
    pub config: PathBuf,
    /// Skip up to N bad rows of the data set, and list them
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip_bad_rows: u64,
}

/// Arguments of verbs that look at a cache.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The cache folder, or the configuration, with which rows are compared with the data set
    pub target: PathBuf,
    /// Skip up to N bad rows of the data set
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip_bad_rows: u64,
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
pub(crate) fn print(lines: &[(&str, String)]) -> Result<(), Error> {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut stdout = io::stdout().lock();
    let mut write = || -> io::Result<()> {
        for (name, value) in lines {
            writeln!(stdout, "{name:width$}  {value}")?;
        }
        stdout.flush()
    };
    written(write())
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
