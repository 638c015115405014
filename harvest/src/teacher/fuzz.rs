//! Replies of servers: every exchange, pictures, batches, a command, and refusals with their headers.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemas::{ExampleId, FloatType, SignalValue, Task, TeacherRecord};

use super::{
    Description, OfferKind, OpenContext, Reply, Request, Sent, Teacher, TeacherError, http,
};
use crate::config::{self, Source};
use crate::reporter::Watch;
use crate::stop::Stop;

pub(crate) use super::batch::fuzz as batch;
pub(crate) use super::command::fuzz as command;
pub(crate) use super::images::fuzz as images;

/// What a key is in these targets. No part of it of eight characters may come back in an error.
pub(super) const SECRET: &str = "sk-9Zq4TfWm7Xc2Lp8RvKd3";

/// Bytes of the longest message of an error: messages go to logs and lists of failures.
const MAX_MESSAGE_BYTES: usize = 4 << 10;

/// A teacher and what it is asked.
struct Case {
    teacher: Arc<dyn Teacher>,
    requests: Vec<Request>,
}

/// Questions of different lengths.
pub(super) fn requests(number: usize) -> Vec<Request> {
    let texts = ["What is it?", "", "A longer question, in words.", "Grün?"];
    (0..number)
        .map(|row| Request::text(ExampleId::from([row as u8; 16]), 0, texts[row % 4]))
        .collect()
}

/// The teacher of this kind with these keys, at an address where nobody listens.
pub(super) fn teacher(kind: &str, keys: &str) -> Arc<dyn Teacher> {
    let text = format!(
        "[dataset]\npath = \".\"\n[cache]\npath = \"c\"\n[teacher]\nkind = \"{kind}\"\n\
         url = \"http://127.0.0.1:9\"\nmodel = \"m\"\n{keys}"
    );
    let config = config::parse("a.toml".as_ref(), &text).expect("the keys of a case are right");
    let Source::Teachers(entries, run) = config.source else {
        unreachable!("a case is a teacher")
    };
    let context = OpenContext {
        common: &entries[0].common,
        run: &run,
        task: &Task::builtin("sst2").expect("it is built in"),
        data_folder: PathBuf::new(),
        state_folder: PathBuf::new(),
        watch: Watch::default(),
        stop: Stop::default(),
    };
    let teacher = entries[0].kind.open(&context);
    teacher.expect("a teacher without a key opens")
}

fn case(kind: &str, num_requests: usize, keys: &str) -> Case {
    Case {
        teacher: teacher(kind, keys),
        requests: requests(num_requests),
    }
}

/// The first byte chooses the case, from the digit 0 on; the rest is the reply.
fn reply(cases: &[Case], data: &[u8]) {
    let Some((choice, reply)) = data.split_first() else {
        return;
    };
    let case = &cases[usize::from(choice.wrapping_sub(b'0')) % cases.len()];
    let answers = case.teacher.parse_reply(&case.requests, reply);
    match answers.expect("the teacher is one exchange") {
        Err(error) => check_error(&error),
        Ok(answers) => {
            assert_eq!(
                answers.replies.len(),
                case.requests.len(),
                "one outcome for each request"
            );
            for (request, outcome) in case.requests.iter().zip(&answers.replies) {
                match outcome {
                    Err(error) => check_error(error),
                    Ok(reply) => check_reply(case.teacher.describe(), request, reply),
                }
            }
        }
    }
}

/// Whether the input itself has a part of the key, which a fuzzer finds in comparisons: nobody can tell a part of a key
/// from other text unless it begins like one.
pub(super) fn has_key(data: &[u8]) -> bool {
    let parts = || SECRET.as_bytes().windows(8);
    data.windows(8)
        .any(|window| parts().any(|part| part == window))
}

/// What holds for every error, whatever a server said.
pub(super) fn check_error(error: &TeacherError) {
    let told = format!("{error} {error:?} {}", error.hint().unwrap_or_default());
    assert!(
        error.message.len() <= MAX_MESSAGE_BYTES,
        "a message of {} bytes",
        error.message.len()
    );
    assert!(!told.contains('\n'), "a message has one line: {told}");
    for part in SECRET.as_bytes().windows(8) {
        let part = std::str::from_utf8(part).expect("it is ASCII");
        assert!(!told.contains(part), "the key is repeated: {told}");
    }
}

/// What holds for every reply: each signal that is offered, of its kind and width, and what can be stored comes back.
pub(super) fn check_reply(description: &Description, request: &Request, reply: &Reply) {
    assert_eq!(reply.signals.len(), description.offers.len());
    for offer in &description.offers {
        match (&reply.signals[&offer.name], offer.kind) {
            (SignalValue::Vector(values), kind) => {
                assert!(!values.is_empty() && values.iter().all(|value| value.is_finite()));
                if let OfferKind::ClassLogits { width } = kind {
                    assert_eq!(values.len(), width as usize);
                }
            }
            (SignalValue::TokenTopK(top_k), OfferKind::TokenTopK { k }) => {
                let longest = top_k
                    .positions
                    .iter()
                    .map(|position| position.entries.len());
                assert!(longest.max().unwrap_or(0) <= k as usize);
            }
            (SignalValue::Text(_), OfferKind::Text) | (SignalValue::Image(_), OfferKind::Image) => {
            }
            (value, kind) => unreachable!("{value:?} was given for {kind:?}"),
        }
    }
    let specs = description
        .specs(reply, FloatType::F32)
        .expect("the signals are those that were offered");
    let record = TeacherRecord {
        id: request.id,
        draw: request.draw,
        signals: reply.signals.clone(),
        provenance: reply.provenance.clone(),
    };
    // What cannot be stored fails its row.
    if let Ok(record) = record.fit(&specs) {
        let json = serde_json::to_vec(&record).expect("a record has a JSON form");
        let read: TeacherRecord =
            serde_json::from_slice(&json).expect("what was journalled is read");
        assert_eq!(read, record);
    }
}

macro_rules! exchange {
    ($name:ident, $kind:literal, [$(($number:literal, $keys:literal)),* $(,)?]) => {
        pub(crate) fn $name(data: &[u8]) {
            static CASES: LazyLock<Vec<Case>> =
                LazyLock::new(|| vec![$(case($kind, $number, $keys)),*]);
            reply(&CASES, data);
        }
    };
}

exchange!(
    chat,
    "chat",
    [
        (1, "signals = [\"text\"]"),
        (1, "signals = [\"text\", \"logprobs\"]\ntop_logprobs = 3"),
        (1, "signals = [\"class_logits\"]"),
        (1, "signals = [\"class_logits\"]\nmissing_class = \"bound\""),
    ]
);

exchange!(
    completions,
    "completions",
    [
        (
            1,
            "dialect = \"vllm\"\nsignals = [\"text\", \"logprobs\", \"prompt_logprobs\"]\ntop_logprobs = 3"
        ),
        (1, "dialect = \"vllm\"\nsignals = [\"class_logits\"]"),
        (
            1,
            "dialect = \"openai\"\nsignals = [\"prompt_logprobs\"]\ntop_logprobs = 3"
        ),
        (
            1,
            "dialect = \"openai\"\nsignals = [\"text\", \"logprobs\"]\ntop_logprobs = 3"
        ),
        (1, "dialect = \"openai\"\nsignals = [\"class_logits\"]"),
        (
            1,
            "dialect = \"llamacpp\"\nsignals = [\"text\", \"logprobs\"]\ntop_logprobs = 3"
        ),
        (
            1,
            "dialect = \"llamacpp\"\nsignals = [\"class_logits\"]\nmissing_class = \"bound\""
        ),
    ]
);

exchange!(
    embeddings,
    "embeddings",
    [
        (1, ""),
        (3, "dimensions = 2"),
        (2, "pool = \"mean\""),
        (2, "pool = \"last\""),
    ]
);

exchange!(
    tei,
    "tei",
    [
        (1, ""),
        (3, ""),
        (2, "pool = \"mean\""),
        (2, "pool = \"first\"")
    ]
);

exchange!(
    gemini,
    "gemini",
    [
        (1, "signals = [\"text\"]"),
        (1, "signals = [\"text\", \"logprobs\"]\ntop_logprobs = 3"),
        (1, "use = \"embed\""),
        (3, "use = \"embed\"\ndimensions = 2"),
    ]
);

exchange!(
    ollama,
    "ollama",
    [
        (1, "signals = [\"text\"]"),
        (1, "signals = [\"text\", \"logprobs\"]\ntop_logprobs = 3"),
        (1, "use = \"embed\""),
        (3, "use = \"embed\"\ndimensions = 2"),
    ]
);

exchange!(anthropic, "anthropic", [(1, "")]);

/// A refusal as the wire has it: a line with the status, lines with headers, an empty line, the body. Where the body says
/// `@KEY@`, the server repeats the key.
pub(crate) fn refusal(data: &[u8]) {
    static ENDPOINT: LazyLock<http::Endpoint> = LazyLock::new(|| http::Endpoint::of_secret(SECRET));
    if has_key(data) {
        return;
    }
    let (head, body) = match data.windows(2).position(|pair| pair == b"\n\n") {
        Some(end) => (&data[..end], &data[end + 2..]),
        None => (data, &[][..]),
    };
    let mut lines = head.split(|byte| *byte == b'\n');
    let status = lines
        .next()
        .and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
    let mut headers = HeaderMap::new();
    for line in lines.take(32) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.insert(name, value);
        }
    }
    let body = String::from_utf8_lossy(body).replace("@KEY@", SECRET);
    let error = ENDPOINT.refusal(status.unwrap_or(500), &headers, body.as_bytes());
    check_error(&error);
    assert_eq!(error.sent, Sent::Refused);
    let _ = (
        error.hints.pause(),
        error.is_retryable(),
        error.may_be_of_one_row(),
    );
    let _ = super::RateHints::read(&headers).pause();
}

/// The media type of a picture by its content, and its feature.
pub(crate) fn picture(data: &[u8]) {
    if let Ok(picture) = super::media::Picture::new(data.to_vec(), "a.png") {
        let again = super::media::Picture::of_data_uri(&picture.data_uri());
        assert_eq!(again.as_ref(), Ok(&picture));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = super::media::Picture::of_data_uri(text);
    }
    images::encode(data);
}
