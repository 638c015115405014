//! Files and states of batches.

use std::sync::{Arc, LazyLock};

use futures::future::BoxFuture;

use super::api::{Api, Remote};
use super::results::Results;
use super::state::{Ended, Problem, Record, Row, parse_custom_id};
use crate::teacher::exchange::Exchange;
use crate::teacher::fuzz::{self, SECRET, check_error, check_reply, has_key, requests};
use crate::teacher::http::Endpoint;
use crate::teacher::{Answers, Description, Request, Teacher, TeacherError};

/// Bytes of the longest line that is read.
const MAX_LINE: usize = 4096;

static API: LazyLock<Api> = LazyLock::new(|| Api {
    endpoint: Endpoint::of_secret(SECRET),
    transfer: Endpoint::of_secret(SECRET),
    max_result_bytes: 1 << 20,
});

/// The exchange of a teacher of embeddings.
#[derive(Debug)]
struct Embeddings(Arc<dyn Teacher>);

impl Exchange for Embeddings {
    fn describe(&self) -> &Description {
        self.0.describe()
    }

    fn path(&self) -> Vec<String> {
        Vec::new()
    }

    fn body<'a>(&'a self, _: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        unreachable!("nothing is sent")
    }

    fn parse(&self, requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        let answers = self.0.parse_reply(requests, reply);
        answers.expect("the teacher is one exchange")
    }
}

static EXCHANGE: LazyLock<Embeddings> =
    LazyLock::new(|| Embeddings(fuzz::teacher("embeddings", "")));

/// A file of answers and one of errors, apart by a line `----`. Where they say `@KEY@`, the server repeats the key.
pub(crate) fn results(data: &[u8]) {
    if has_key(data) {
        return;
    }
    let data = String::from_utf8_lossy(data).replace("@KEY@", SECRET);
    let (answers, errors) = data.split_once("\n----\n").unwrap_or((&data, ""));
    let folder = tempfile::tempdir().expect("a folder can be made");
    let files = ["a", "b"].map(|name| folder.path().join(name));
    std::fs::write(&files[0], answers).expect("a file can be written");
    std::fs::write(&files[1], errors).expect("a file can be written");
    let requests = requests(3);
    let rows: Vec<Row> = requests.iter().map(Row::of).collect();
    let ended = Ended {
        status: "failed".into(),
        at: None,
        problems: vec![Problem {
            line: Some(usize::from(data.len() as u8 % 5)),
            ..Problem::default()
        }],
    };
    let results = Results::read(files, &rows, ended, MAX_LINE).expect("the files can be read");
    for (request, row) in requests.iter().zip(&rows) {
        assert_eq!(parse_custom_id(&row.custom_id()), Some(row.key));
        match results.outcome(request, &*EXCHANGE, &API) {
            Err(error) => check_error(&error),
            Ok(reply) => {
                assert!(
                    results.is_good(row.key),
                    "an answer was counted as an error"
                );
                check_reply(EXCHANGE.describe(), request, &reply);
            }
        }
    }
}

/// The state of a batch as its server writes it, or as it is kept on disk.
pub(crate) fn state(data: &[u8]) {
    if let Ok(remote) = serde_json::from_slice::<Remote>(data) {
        let _ = (remote.has_ended(), remote.ended_at());
        for problem in remote.problems() {
            check_error(&problem.of_the_whole());
        }
    }
    if let Ok(record) = serde_json::from_slice::<Record>(data) {
        let json = serde_json::to_vec(&record).expect("a record has a JSON form");
        let read: Record = serde_json::from_slice(&json).expect("what was written is read");
        assert_eq!(read, record);
    }
}
