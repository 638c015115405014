//! The `harvest` command.

#[cfg(target_os = "linux")]
mod allocator;

use std::process::ExitCode;

use harvest::cli::{self, Cli};

fn main() -> ExitCode {
    harvest::logging::start();
    match Cli::read() {
        Ok(cli) => cli::report(cli.run()),
        Err(usage) => cli::report_usage(&usage),
    }
}
