//! What tests of the teachers that generate text share, on top of [`test_server`](super::test_server).

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::test_server::{TestServer, open_in, request};
use super::{Request, TeacherError, ask_alone};
use crate::config::Config;
use crate::teacher::Reply;

/// A server that answers every request in the same way.
pub(super) struct Server(TestServer);

impl Server {
    /// Answers with this status and body.
    pub(super) async fn answering(status: u16, body: impl ToString) -> Self {
        Self(TestServer::saying(status, body).await)
    }

    pub(super) fn url(&self) -> String {
        format!("{}/v1", self.0.url)
    }

    /// Path and body of every request so far.
    pub(super) fn seen(&self) -> Vec<(String, Value)> {
        let calls = self.0.calls().into_iter();
        calls.map(|call| (call.path, call.body)).collect()
    }

    /// Asks a teacher with these keys, to which `url` and `model` are added, about `request`.
    pub(super) async fn ask(&self, keys: &str, request: &Request) -> Result<Reply, TeacherError> {
        let folder = tempfile::tempdir().unwrap();
        let keys = format!("url = \"{}\"\nmodel = \"m\"\n{keys}", self.url());
        let teacher = open_in(folder.path(), &keys)?;
        ask_alone(teacher.as_ref(), request).await
    }
}

/// A question about a text.
pub(super) fn question(prompt: &str) -> Request {
    request(1, prompt)
}

fn read(folder: &Path, text: &str) -> Result<Config, String> {
    let path = folder.join("harvest.toml");
    std::fs::write(&path, text).unwrap();
    Config::read(&path).map_err(|error| error.to_string())
}

/// Checks a page of the documentation: each of its configurations is read, and its table of keys has these.
pub(super) fn check_page(page: &str, keys: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let blocks = page.split("```toml\n").skip(1);
    let examples: Vec<&str> = blocks
        .map(|block| block.split("```").next().unwrap())
        .filter(|block| block.contains("[dataset]"))
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        read(folder.path(), example).unwrap_or_else(|error| panic!("{error}\n{example}"));
    }
    let table = page
        .split_once("\n## Keys\n")
        .unwrap()
        .1
        .split("\n## ")
        .next()
        .unwrap();
    let documented: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(documented, keys.iter().copied().collect());
}

/// The keys of a configuration, as serde lists them when it refuses an unknown one.
pub(super) fn keys_of<T: serde::de::DeserializeOwned>() -> Vec<String> {
    let error = toml::from_str::<T>("no_such_key = 1").err().unwrap();
    let (_, expected) = error.message().split_once("expected ").unwrap();
    expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}
