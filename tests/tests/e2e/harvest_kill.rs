//! `kill -9` at random moments: every example ends up in the cache once and nothing that was answered is asked again.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use schemas::record::SignalValue;
use schemas::shard::{ShardReader, list_shards};
use schemas::{CacheState, Manifest};
use tests::binary;
use tests::server::{Answer, EmbeddingServer, embedding};

const NUM_ROWS: usize = 3_000;
const NUM_KILLS: usize = 20;
const CONCURRENCY: usize = 4;
/// An answer this much older than the kill has long been read by the client, however busy the machine.
const SURELY_RECEIVED: Duration = Duration::from_millis(250);

fn write_dataset(folder: &Path, url: &str) {
    let mut rows = String::new();
    for row in 0..NUM_ROWS {
        let label = ["no", "yes"][row % 2];
        writeln!(
            rows,
            r#"{{"text": "row number {row}", "label": "{label}"}}"#
        )
        .unwrap();
    }
    std::fs::write(folder.join("train.jsonl"), rows).unwrap();
    let task = r#"
        name = "rows"
        fields = ["text"]
        label = "label"
        classes = ["no", "yes"]
        metric = "accuracy"
        [template]
        first = "{text}"
    "#;
    std::fs::write(folder.join("task.toml"), task).unwrap();
    let config = format!(
        r#"
        [dataset]
        path = "."
        [teacher]
        kind = "embeddings"
        url = "{url}"
        model = "numbers"
        batch = 1
        [cache]
        path = "cache"
        dtype = "f32"
        rows_per_shard = 400
        [run]
        concurrency = {CONCURRENCY}
        "#
    );
    std::fs::write(folder.join("harvest.toml"), config).unwrap();
}

fn harvest(folder: &Path, verb: &str) -> Command {
    let mut command = Command::new(binary("harvest"));
    command
        .arg(verb)
        .arg(folder.join("harvest.toml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Repeats in the server's log whose earlier answer must have reached the client before it was killed.
fn repaid<'a>(log: &'a [Answer], kills: &[Instant]) -> Vec<&'a str> {
    let mut last: HashMap<&str, Instant> = HashMap::new();
    let mut repaid = Vec::new();
    for answer in log {
        if let Some(earlier) = last.insert(&answer.text, answer.at) {
            let excused = kills.iter().any(|kill| {
                earlier + SURELY_RECEIVED > *kill && earlier <= *kill + SURELY_RECEIVED
            });
            if !excused {
                repaid.push(answer.text.as_str());
            }
        }
    }
    repaid
}

#[test]
fn killed_twenty_times_it_pays_once_and_keeps_every_row() {
    let folder = tempfile::tempdir().unwrap();
    let server = EmbeddingServer::start(Duration::from_millis(2)).unwrap();
    write_dataset(folder.path(), &server.url());

    let mut random = ChaCha8Rng::seed_from_u64(20);
    let mut kills = Vec::new();
    let mut unfinished = 0;
    for _ in 0..NUM_KILLS {
        let before = server.log().len();
        let mut child = harvest(folder.path(), "run").spawn().unwrap();
        // The clock starts when the run is under way, so that no kill is spent on loading the program.
        let started = Instant::now();
        while server.log().len() == before
            && child.try_wait().unwrap().is_none()
            && started.elapsed() < Duration::from_secs(20)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..90)));
        unfinished += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        kills.push(Instant::now());
    }
    assert!(
        unfinished >= NUM_KILLS - 2,
        "only {unfinished} kills struck a run"
    );

    assert!(harvest(folder.path(), "run").status().unwrap().success());
    let log = server.log();
    assert_eq!(
        repaid(&log, &kills),
        Vec::<&str>::new(),
        "completed requests were sent again"
    );
    assert!(
        log.len() <= NUM_ROWS + NUM_KILLS * CONCURRENCY,
        "{} requests for {NUM_ROWS} rows: more than what was in flight was repeated",
        log.len()
    );

    assert!(harvest(folder.path(), "freeze").status().unwrap().success());
    let cache = folder.path().join("cache");
    let manifest = Manifest::open(&cache).unwrap();
    assert!(
        matches!(manifest.state(), CacheState::Frozen { num_rows, .. } if *num_rows == NUM_ROWS as u64)
    );
    let mut seen = HashMap::new();
    for shard in list_shards(&cache).unwrap() {
        for record in ShardReader::open(&shard).unwrap().records().unwrap() {
            let record = record.unwrap();
            let SignalValue::Vector(vector) = record.signals["feature"].clone() else {
                panic!("the feature is a vector");
            };
            assert!(
                seen.insert((record.id, record.draw), vector).is_none(),
                "{} is there twice",
                record.id
            );
        }
    }
    assert_eq!(seen.len(), NUM_ROWS);
    for row in 0..NUM_ROWS {
        let text = format!("row number {row}");
        let id = schemas::ExampleId::of(&[("text".to_owned(), text.clone())].into());
        assert_eq!(seen[&(id, 0)], embedding(&text));
    }
}
