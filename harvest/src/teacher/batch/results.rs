//! What an ended batch brought: lines in any order, some rows twice, some not at all.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use schemas::ExampleId;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::api::Api;
use super::state::{self, Ended, Problem, Row, parse_custom_id};
use crate::teacher::exchange::Exchange;
use crate::teacher::http::shorten;
use crate::teacher::{Answers, ErrorClass, Reply, Request, Sent, TeacherError};

type Key = (ExampleId, u32);

/// Where the line of each row lies, so that memory holds no more than one line.
#[derive(Debug)]
pub(super) struct Results {
    ended: Ended,
    files: [PathBuf; 2],
    spans: HashMap<Key, Span>,
    /// Lines of rows that the request file names by number.
    refused: HashMap<Key, Problem>,
    num_too_long: u64,
}

/// Reads through the files of a batch one after the other, and says of each whether it came whole.
#[derive(Clone, Debug)]
pub(super) struct Scan<'a> {
    rows: &'a [Row],
    max_line: usize,
    spans: HashMap<Key, Option<Span>>,
    found: Found,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    file: usize,
    start: u64,
    len: usize,
    is_good: bool,
}

/// As much of a line as says whose it is and whether it is an answer.
#[derive(Deserialize)]
struct Head {
    custom_id: String,
    #[serde(default)]
    response: Option<HeadResponse>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct HeadResponse {
    #[serde(default)]
    status_code: u16,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    response: Option<Response>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    status_code: u16,
    #[serde(default)]
    body: serde_json::Value,
}

/// Numbers of lines that a reader of result files came across.
#[derive(Clone, Copy, Default, Debug)]
struct Found {
    /// Of rows, the first line of each.
    first: u64,
    duplicate: u64,
    unknown: u64,
    /// That name a row and are spoiled.
    spoiled: u64,
    /// That say of no row that they are its line.
    foreign: u64,
    too_long: u64,
    /// Whether the last line breaks off.
    is_cut: bool,
}

impl Results {
    /// Reads through the files of a batch with these rows; either may be absent.
    pub(super) fn read(
        files: [PathBuf; 2],
        rows: &[Row],
        ended: Ended,
        max_line: usize,
    ) -> Result<Self, TeacherError> {
        let mut scan = Scan::new(rows, max_line);
        for (file, path) in files.iter().enumerate() {
            scan.read(file, path)?;
        }
        Ok(scan.finish(files, ended))
    }

    /// Whether the batch has an answer for the row, rather than an error or nothing.
    pub(super) fn is_good(&self, key: Key) -> bool {
        self.spans.get(&key).is_some_and(|span| span.is_good)
    }

    /// What became of a request, as if the server had answered it directly.
    pub(super) fn outcome(
        &self,
        request: &Request,
        exchange: &dyn Exchange,
        api: &Api,
    ) -> Result<Reply, TeacherError> {
        let key = (request.id, request.draw);
        let Some(span) = self.spans.get(&key) else {
            return Err(api.endpoint.redacted(self.missing(key)));
        };
        let path = &self.files[span.file];
        let line = read_span(path, *span).map_err(|error| state::on_disk("read", path, &error))?;
        let line: Line = serde_json::from_slice(&line).map_err(|error| {
            let error = shorten(&error.to_string());
            let problem = format!("a line of the batch cannot be read: {error}");
            TeacherError::new(ErrorClass::Deterministic, problem)
        })?;
        let answer = line.answer(api)?;
        let parsed = exchange.parse(std::slice::from_ref(request), &answer);
        let outcome = parsed.and_then(|Answers { mut replies, .. }| {
            replies.pop().expect("one request has one outcome")
        });
        let mut reply = outcome.map_err(|error| api.endpoint.redacted(error))?;
        reply.provenance.answered_at = self.ended.at;
        reply.provenance.tries = 1;
        Ok(reply)
    }

    /// The error of a row that the batch has no line for.
    fn missing(&self, key: Key) -> TeacherError {
        if let Some(problem) = self.refused.get(&key) {
            return problem.error(ErrorClass::Deterministic);
        }
        if self.num_too_long > 0 {
            return TeacherError::new(
                ErrorClass::Deterministic,
                "the batch has no line for the row, and lines that are longer than `max_reply_mib`",
            )
            .advise("raise `max_reply_mib` of the teacher if replies are meant to be so large");
        }
        if self.ended.status == "failed" {
            let of_the_whole = |problem: &&Problem| problem.line.is_none();
            return match self.ended.problems.iter().find(of_the_whole) {
                Some(problem) => problem.of_the_whole(),
                None if self.refused.is_empty() => TeacherError::new(
                    ErrorClass::Deterministic,
                    "the server refused the batch and did not say why",
                ),
                None => TeacherError::new(
                    ErrorClass::Transient,
                    "the server refused the batch for other rows of it",
                ),
            }
            .having(Sent::Refused);
        }
        TeacherError::new(
            ErrorClass::Transient,
            format!("the batch ended as {} without the row", self.ended.status),
        )
    }
}

impl<'a> Scan<'a> {
    pub(super) fn new(rows: &'a [Row], max_line: usize) -> Self {
        Self {
            rows,
            max_line,
            spans: rows.iter().map(|row| (row.key, None)).collect(),
            found: Found::default(),
        }
    }

    /// Reads the next file, which may be absent.
    fn read(&mut self, file: usize, path: &Path) -> Result<Found, TeacherError> {
        let found = scan(path, file, self.max_line, &mut self.spans)
            .map_err(|error| state::on_disk("read", path, &error))?;
        self.found = self.found.plus(found);
        Ok(found)
    }

    /// Reads the next file and checks that it came whole: rows of a file that did not would be submitted, and paid for,
    /// again. The server says how many lines this file and those before it have together, where it counts them; some count
    /// lines that come twice as two. Where every row has one, nothing can be missing, whatever it counts.
    ///
    /// # Errors
    /// Transient; the scan is of no use then.
    pub(super) fn read_whole(
        &mut self,
        file: usize,
        path: &Path,
        num_counted: u64,
    ) -> Result<(), TeacherError> {
        let found = self.read(file, path)?;
        if found.is_cut || (found.foreign > 0 && found.num_own() == 0) {
            return Err(broken(
                "what came as the results of the batch is not whole, or something else",
            ));
        }
        let num_own = self.found.num_own();
        let is_whole = num_own >= num_counted
            || num_own + self.found.duplicate == num_counted
            || self.found.first >= self.rows.len() as u64;
        if !is_whole {
            return Err(broken(&format!(
                "the results of the batch came with {num_own} of the {num_counted} lines that the server counts"
            )));
        }
        Ok(())
    }

    fn finish(self, files: [PathBuf; 2], ended: Ended) -> Results {
        self.found.warn(&files[0]);
        let by_line = |problem: &Problem| {
            let row = self.rows.get(problem.line?.checked_sub(1)?)?;
            Some((row.key, problem.clone()))
        };
        Results {
            refused: ended.problems.iter().filter_map(by_line).collect(),
            ended,
            files,
            spans: self
                .spans
                .into_iter()
                .filter_map(|(key, span)| Some((key, span?)))
                .collect(),
            num_too_long: self.found.too_long,
        }
    }
}

/// The error of results that have not arrived.
pub(super) fn broken(problem: &str) -> TeacherError {
    TeacherError::new(ErrorClass::Transient, problem).advise(
        "run again with --retry-failures: it is fetched again, and nothing is submitted again; if it stays so, look at the file at the provider",
    )
}

impl Problem {
    fn error(&self, class: ErrorClass) -> TeacherError {
        let message = self.message.as_deref().unwrap_or("no reason was given");
        let code = self.code.as_deref().unwrap_or("no code");
        TeacherError::new(
            class,
            format!(
                "the server refused the batch: {} ({})",
                shorten(message),
                shorten(code)
            ),
        )
        .having(Sent::Refused)
    }

    /// The class of a refusal that no row is to blame for.
    pub(super) fn of_the_whole(&self) -> TeacherError {
        let code = self.code.as_deref().unwrap_or_default();
        if code.contains("token_limit") || code.contains("rate_limit") {
            let mut error = self.error(ErrorClass::Rate).advise(
                "too much is enqueued at the server: lower `max_requests` of the teacher or `run.concurrency`",
            );
            error.retry_after = Some(std::time::Duration::from_mins(10));
            return error;
        }
        if code.contains("quota") || code.contains("billing") {
            return self.error(ErrorClass::Quota);
        }
        self.error(ErrorClass::Deterministic)
    }
}

impl Line {
    /// The body of the answer.
    fn answer(self, api: &Api) -> Result<Vec<u8>, TeacherError> {
        let bytes = |value: &serde_json::Value| serde_json::to_vec(value).expect("it came as JSON");
        match (self.response, self.error) {
            (Some(response), None) if (200..300).contains(&response.status_code) => {
                Ok(bytes(&response.body))
            }
            (Some(response), _) if response.status_code >= 300 => Err(api
                .endpoint
                .refused_row(response.status_code, &bytes(&response.body))),
            (_, Some(error)) => {
                let code = error.get("code");
                let status = code.and_then(serde_json::Value::as_u64);
                // `batch_expired`, `batch_cancelled` and what else has no status never reached the model.
                let status = status
                    .and_then(|status| status.try_into().ok())
                    .unwrap_or(500);
                let body = serde_json::json!({"error": error});
                Err(api.endpoint.refused_row(status, &bytes(&body)))
            }
            (_, None) => Err(TeacherError::new(
                ErrorClass::Transient,
                "the batch has neither an answer nor an error for the row",
            )),
        }
    }
}

impl Found {
    /// Lines that stand for a row, each row once.
    fn num_own(&self) -> u64 {
        self.first + self.unknown + self.spoiled + self.too_long
    }

    fn plus(self, other: Self) -> Self {
        Self {
            first: self.first + other.first,
            duplicate: self.duplicate + other.duplicate,
            unknown: self.unknown + other.unknown,
            spoiled: self.spoiled + other.spoiled,
            foreign: self.foreign + other.foreign,
            too_long: self.too_long + other.too_long,
            is_cut: self.is_cut || other.is_cut,
        }
    }

    fn warn(&self, path: &Path) {
        for (number, what) in [
            (
                self.duplicate,
                "of rows that had one already; the first answer of each counts",
            ),
            (self.unknown, "with a custom_id that was not asked for"),
            (
                self.spoiled + self.foreign,
                "that are no JSON with a custom_id",
            ),
            (self.too_long, "longer than `max_reply_mib`"),
        ] {
            if number > 0 {
                tracing::warn!("`{}` and its errors: {number} lines {what}", path.display());
            }
        }
    }
}

fn scan(
    path: &Path,
    file: usize,
    max_line: usize,
    spans: &mut HashMap<Key, Option<Span>>,
) -> io::Result<Found> {
    let mut found = Found::default();
    let mut reader = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        opened => BufReader::new(opened?),
    };
    let (mut start, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let limit = max_line as u64 + 1;
        let len = reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
        if len == 0 {
            return Ok(found);
        }
        if len > max_line && line.last() != Some(&b'\n') {
            found.too_long += 1;
            start += len as u64 + reader.skip_until(b'\n')? as u64;
            continue;
        }
        let span = |is_good| Span {
            file,
            start,
            len,
            is_good,
        };
        match serde_json::from_slice::<Head>(&line) {
            _ if line.trim_ascii().is_empty() => {}
            Err(_) => {
                let is_own = line.windows(9).any(|part| part == b"custom_id");
                found.spoiled += u64::from(is_own);
                found.foreign += u64::from(!is_own);
                found.is_cut = line.last() != Some(&b'\n');
            }
            Ok(head) => {
                let key = parse_custom_id(&head.custom_id);
                match key.and_then(|key| spans.get_mut(&key)) {
                    None => found.unknown += 1,
                    Some(slot @ None) => {
                        found.first += 1;
                        *slot = Some(span(head.is_good()));
                    }
                    Some(Some(first)) => {
                        found.duplicate += 1;
                        if !first.is_good && head.is_good() {
                            *first = span(true);
                        }
                    }
                }
            }
        }
        start += len as u64;
    }
}

impl Head {
    fn is_good(&self) -> bool {
        let status = self
            .response
            .as_ref()
            .map_or(0, |response| response.status_code);
        self.error.is_none() && (200..300).contains(&status)
    }
}

fn read_span(path: &Path, span: Span) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(span.start))?;
    let mut line = vec![0; span.len];
    file.read_exact(&mut line)?;
    Ok(line)
}
