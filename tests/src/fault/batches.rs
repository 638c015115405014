//! The Batch API: files, batches and their results.

use serde_json::{Value, json};

use super::answers::Question;
use super::schedule::Fault;
use super::wire::{Incoming, Outgoing};

/// What was uploaded and made so far.
#[derive(Debug, Default)]
pub(super) struct Batches {
    files: Vec<String>,
    made: Vec<Made>,
    /// How many of the next files of results end after half of their lines.
    pub(super) num_cuts: usize,
}

#[derive(Debug)]
struct Made {
    file: usize,
    metadata: Value,
    num_looks: usize,
    /// Answers, and errors.
    results: [String; 2],
}

/// What a client wants of the API.
#[derive(Debug)]
pub(super) enum Call {
    Upload { file: String },
    Create { file: usize, metadata: Value },
    List { after: Option<usize> },
    Look { batch: usize },
    Content { batch: usize, of_errors: bool },
}

impl Call {
    /// Reads a request; `None` where it is no call of the API.
    pub(super) fn read(incoming: &Incoming) -> Option<Self> {
        let (path, query) = incoming
            .path
            .split_once('?')
            .unwrap_or((&incoming.path, ""));
        let path: Vec<&str> = path.strip_prefix("/v1/")?.split('/').collect();
        let number = |text: &str| text.rsplit('-').next()?.parse().ok();
        Some(match (incoming.method.as_str(), &path[..]) {
            ("POST", ["files"]) => Self::Upload {
                file: file_of_form(&incoming.body)?,
            },
            ("POST", ["batches"]) => {
                let body: Value = serde_json::from_slice(&incoming.body).ok()?;
                Self::Create {
                    file: number(body["input_file_id"].as_str()?)?,
                    metadata: body["metadata"].clone(),
                }
            }
            ("GET", ["batches"]) => {
                let after = query
                    .split('&')
                    .find_map(|pair| pair.strip_prefix("after="));
                Self::List {
                    after: after.and_then(number),
                }
            }
            ("GET", ["batches", id]) => Self::Look { batch: number(id)? },
            ("GET", ["files", id, "content"]) => Self::Content {
                batch: number(id)?,
                of_errors: id.starts_with("errors"),
            },
            _ => return None,
        })
    }
}

/// The part `file` of a multipart form.
fn file_of_form(body: &[u8]) -> Option<String> {
    let body = std::str::from_utf8(body).ok()?;
    let boundary = body.lines().next()?;
    let mut parts = body
        .split(boundary)
        .filter_map(|part| part.split_once("\r\n\r\n"));
    let (_, file) = parts.find(|(head, _)| head.contains("name=\"file\""))?;
    Some(file.trim_end_matches("\r\n").to_owned())
}

impl Batches {
    /// Does what it is told to. `ask` says what goes wrong with a row, given its body too, and its answer.
    pub(super) fn answer(
        &mut self,
        call: Call,
        ask: impl FnMut(Question, &[u8]) -> (Option<Fault>, Outgoing),
    ) -> Outgoing {
        let answer = match call {
            Call::Upload { file } => {
                self.files.push(file);
                Some(json!({"id": format!("file-{}", self.files.len() - 1), "purpose": "batch"}))
            }
            Call::Create { file, metadata } if file < self.files.len() => {
                let results = results(&self.files[file], ask);
                self.made.push(Made {
                    file,
                    metadata,
                    num_looks: 0,
                    results,
                });
                self.describe(self.made.len() - 1)
            }
            Call::List { after } => {
                // One a page, the newest first.
                let end = after.unwrap_or(self.made.len());
                let last = end.checked_sub(1).and_then(|last| self.describe(last));
                let data: Vec<Value> = last.into_iter().collect();
                Some(json!({"data": data, "has_more": end > 1}))
            }
            Call::Look { batch } => {
                if let Some(made) = self.made.get_mut(batch) {
                    made.num_looks += 1;
                }
                self.describe(batch)
            }
            Call::Content { batch, of_errors } if batch < self.made.len() => {
                let mut file = self.made[batch].results[usize::from(of_errors)].clone();
                let num_lines = file.lines().count();
                if self.num_cuts > 0 && num_lines > 0 {
                    self.num_cuts -= 1;
                    let kept = file.split_inclusive('\n').take(num_lines / 2);
                    file = kept.collect();
                }
                return Outgoing {
                    body: file,
                    ..Outgoing::json(200, &json!(null))
                };
            }
            Call::Create { .. } | Call::Content { .. } => None,
        };
        match answer {
            Some(answer) => Outgoing::json(200, &answer),
            None => Outgoing::json(404, &json!({"error": {"message": "no such thing"}})),
        }
    }

    /// Every fourth batch takes until the second look at it.
    fn describe(&self, number: usize) -> Option<Value> {
        let made = self.made.get(number)?;
        let has_ended = made.num_looks > usize::from(number % 4 == 3);
        let file = |name: &str| has_ended.then(|| format!("{name}-{number}"));
        let num_lines = |file: &String| {
            let lines = file.lines();
            lines.filter(|line| line.contains("custom_id")).count()
        };
        let [completed, failed] = [0, 1].map(|file: usize| {
            if has_ended {
                num_lines(&made.results[file])
            } else {
                0
            }
        });
        Some(json!({
            "id": format!("batch-{number}"),
            "status": if has_ended { "completed" } else { "in_progress" },
            "input_file_id": format!("file-{}", made.file), "metadata": made.metadata, "errors": null,
            "output_file_id": file("answers"), "error_file_id": file("errors"),
            "completed_at": has_ended.then_some(1_700_000_000),
            "request_counts": {"total": completed + failed, "completed": completed, "failed": failed},
        }))
    }
}

/// The files of answers and of errors, the last row first.
fn results(
    file: &str,
    mut ask: impl FnMut(Question, &[u8]) -> (Option<Fault>, Outgoing),
) -> [String; 2] {
    let (mut answers, mut errors) = (String::new(), String::new());
    for line in file.lines().rev() {
        let row: Value = serde_json::from_str(line).unwrap_or_default();
        let (id, body) = (&row["custom_id"], row["body"].to_string());
        let url = row["url"].as_str().unwrap_or_default();
        let Some(question) = Question::read(url, body.as_bytes()) else {
            continue;
        };
        let (fault, answer) = ask(question, body.as_bytes());
        // By hand: what a broken server writes into a body need not be JSON.
        let line = |status: u16, body: &str| {
            format!(
                "{{\"custom_id\": {id}, \"response\": {{\"status_code\": {status}, \"body\": {body}}}, \"error\": null}}\n"
            )
        };
        match fault {
            None if answer.status == 200 => answers.push_str(&line(200, &answer.body)),
            None => errors.push_str(&line(answer.status, &answer.body)),
            Some(Fault::Limited(_)) => {
                errors.push_str(&line(429, "{\"error\": {\"message\": \"slow down\"}}"));
            }
            Some(Fault::Html502 | Fault::Status500 | Fault::Unavailable) => {
                let expired = json!({"custom_id": id, "response": null,
                    "error": {"code": "batch_expired", "message": "it took too long"}});
                errors.push_str(&expired.to_string());
                errors.push('\n');
            }
            // The server forgets the row.
            Some(_) => {}
        }
    }
    [answers, errors]
}
