//! One running copy of a command.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use super::protocol;
use crate::teacher::http::shorten;
use crate::teacher::{ErrorClass, TeacherError};

/// Time that a process has to end by itself once its input is closed.
const GRACE: Duration = Duration::from_secs(2);
/// Longest line of standard error that is logged whole, in bytes.
const MAX_LOG_LINE: u64 = 4096;

/// How a copy is started.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) timeout: Duration,
    pub(super) max_line: usize,
}

/// A copy that has said hello. Dropped, its input is closed; what has not ended soon after is killed.
#[derive(Debug)]
pub(super) struct Process {
    /// Until it is dropped.
    child: Option<Child>,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    log: JoinHandle<()>,
    last_words: Arc<Mutex<String>>,
    max_line: usize,
}

impl Start {
    /// Starts a copy and waits for its hello.
    pub(super) async fn run(&self) -> Result<Process, TeacherError> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // Ctrl-C of a terminal goes to a whole group: the row that a copy has shall be finished.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn().map_err(|error| {
            TeacherError::new(
                ErrorClass::Deterministic,
                format!(
                    "`command`: `{}` cannot be started: {error}",
                    self.program.display()
                ),
            )
            .advise("run it by hand: what keeps it from starting comes again with every row")
        })?;
        let last_words = Arc::new(Mutex::default());
        let stderr = child.stderr.take().expect("it is piped");
        let log = tokio::spawn(log(BufReader::new(stderr), Arc::clone(&last_words)));
        let output = child.stdout.take().expect("it is piped");
        let mut process = Process {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child: Some(child),
            log,
            last_words,
            max_line: self.max_line,
        };
        match process.read(self.timeout, "its first line").await {
            Ok(line) => protocol::check_hello(&line).map(|()| process),
            Err(error) => Err(process.explain(error).await),
        }
    }
}

impl Process {
    /// Writes a line and reads one.
    pub(super) async fn ask(
        &mut self,
        line: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, TeacherError> {
        let Self { input, .. } = self;
        let input = input
            .as_mut()
            .expect("it is open until the process is dropped");
        let write = async {
            input.write_all(line).await?;
            input.flush().await
        };
        match tokio::time::timeout(timeout, write).await {
            Ok(Ok(())) => self.read(timeout, "the answer").await,
            Ok(Err(error)) => Err(lost(&format!("the command does not read: {error}"))),
            Err(_) => Err(lost("the command did not read the row in time")),
        }
    }

    async fn read(&mut self, timeout: Duration, what: &str) -> Result<Vec<u8>, TeacherError> {
        let mut line = Vec::new();
        let limit = self.max_line as u64 + 1;
        let mut bounded = (&mut self.output).take(limit);
        match tokio::time::timeout(timeout, bounded.read_until(b'\n', &mut line)).await {
            Err(_) => {
                let seconds = timeout.as_secs();
                Err(lost(&format!(
                    "the command did not write {what} within {seconds} seconds"
                )))
            }
            Ok(Err(error)) => Err(lost(&format!("{what} cannot be read: {error}"))),
            Ok(Ok(_)) if line.last() == Some(&b'\n') => Ok(line),
            Ok(Ok(_)) if line.len() > self.max_line => Err(TeacherError::new(
                ErrorClass::Deterministic,
                format!(
                    "{what} of the command is longer than {} MiB",
                    self.max_line >> 20
                ),
            )
            .advise("raise `max_line_mib` of the teacher if lines are meant to be so long")),
            Ok(Ok(_)) => Err(lost(&format!("the command ended before {what} was whole"))),
        }
    }

    /// The error with how the process ended and what it wrote last, where it has ended.
    pub(super) async fn explain(mut self, mut error: TeacherError) -> TeacherError {
        let mut child = self.child.take().expect("it is there until it is dropped");
        self.input = None;
        if let Ok(Ok(status)) = tokio::time::timeout(GRACE, child.wait()).await {
            error.message = format!("{} ({status})", error.message);
            // What it wrote may not have been read yet; a child of its own may keep it open for ever.
            let _ = tokio::time::timeout(GRACE, &mut self.log).await;
        }
        let last_words = self
            .last_words
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !last_words.is_empty() {
            error.message = format!("{}; it last wrote: {last_words}", error.message);
        }
        error
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let input = self.input.take();
        if let (Some(mut child), Ok(runtime)) =
            (self.child.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move {
                drop(input);
                // Whether it ends by itself or not, `kill_on_drop` has the last word.
                let _ = tokio::time::timeout(GRACE, child.wait()).await;
            });
        }
    }
}

/// A fault that may pass: another copy may answer.
fn lost(message: &str) -> TeacherError {
    TeacherError::new(ErrorClass::Transient, message)
}

/// Writes standard error to the log, line by line.
async fn log(mut stderr: BufReader<tokio::process::ChildStderr>, last_words: Arc<Mutex<String>>) {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut stderr)
            .take(MAX_LOG_LINE)
            .read_until(b'\n', &mut line)
            .await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        tracing::info!("command: {text}");
        if !text.trim().is_empty() {
            *last_words.lock().unwrap_or_else(PoisonError::into_inner) = shorten(text);
        }
    }
}
