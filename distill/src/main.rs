//! The `distill` command.

use std::process::ExitCode;

use distill::cli::{self, Cli};

fn main() -> ExitCode {
    distill::logging::start();
    match Cli::read() {
        Ok(cli) => cli::report(cli.run()),
        Err(usage) => cli::report_usage(&usage),
    }
}
