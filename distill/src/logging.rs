//! Logs on standard error, written around the progress bar.

use std::io::{self, Write};
use std::sync::LazyLock;

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;

/// Every progress bar of the process; a log line makes them step aside.
pub(crate) static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Starts logging. `RUST_LOG` chooses what is logged; without it, this program's messages and others' warnings are.
pub fn start() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,distill=info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_writer(|| AroundBars);
    // A second start in one process, as tests do, keeps the first.
    let _ = subscriber.try_init();
}

struct AroundBars;

impl Write for AroundBars {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
