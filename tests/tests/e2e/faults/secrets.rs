//! The key is sent to the server, and is nowhere else.

use std::path::Path;
use std::time::Duration;

use tests::fault::{Fault, FaultServer, LASTING, Poison, Schedule};

use super::bench::{Bench, Ended, kill, texts, wait, wait_until};
use super::setup::{Kind, Setup};

const KEY: &str = "sk-TOPSECRET+key/0123456789==";
const ORGANISATION: &str = "org-HIDDEN.9876543210";
/// What a secret can look like after somebody has escaped it.
const TRACES: [&str; 2] = ["TOPSECRET", "HIDDEN.98"];

/// Every file below `folder` that holds a secret, the configuration's own left out.
fn traces_in(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(traces_in(&path));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        if TRACES.iter().any(|trace| text.contains(trace)) {
            found.push(path.display().to_string());
        }
    }
    found
}

fn check_output(ended: &Ended) {
    for (name, text) in [("output", &ended.stdout), ("log", &ended.stderr)] {
        let lines = text
            .lines()
            .filter(|line| TRACES.iter().any(|trace| line.contains(trace)));
        assert_eq!(
            lines.collect::<Vec<_>>(),
            Vec::<&str>::new(),
            "the {name} holds a secret"
        );
    }
}

fn check(kind: Kind) {
    let server = FaultServer::start(Schedule::CALM, Duration::from_millis(1)).unwrap();
    server.repeat_headers();
    let lasting = (0..LASTING.len()).map(Poison::Lasting);
    let poisons = Poison::COMMON.into_iter().chain(lasting);
    let rows = texts(20).chain(poisons.map(|poison| format!("it is {}", poison.marker())));
    let setup = Setup {
        kind,
        batch: 1,
        concurrency: 32,
        timeout_seconds: 2,
        rows_per_shard: 5,
        teacher: "api_key_env = \"HARVEST_FAULT_KEY\"\nsecret_headers = { x-organisation = \"HARVEST_FAULT_ORG\" }".into(),
        ..Setup::default()
    };
    let mut bench = Bench::of_texts(&server, setup, rows);
    bench.set_environment("HARVEST_FAULT_KEY", KEY);
    bench.set_environment("HARVEST_FAULT_ORG", ORGANISATION);
    bench.set_environment("RUST_LOG", "trace");
    bench.set_environment("RUST_BACKTRACE", "full");

    check_output(&bench.verb("check", &[]));
    let metrics = bench.folder.join("metrics.txt");
    let arguments = ["--json", "--metrics-file", metrics.to_str().unwrap()];
    let mut child = bench.spawn(&arguments);
    let before = server.num_requests();
    wait_until(&mut child, || server.num_requests() >= before + 10);
    kill(child);
    // Journals as a kill leaves them.
    assert_eq!(traces_in(&bench.folder), Vec::<String>::new());

    server.end_account_after(server.num_requests() + 1, Fault::Unauthorized);
    let refused = bench.run(&arguments);
    check_output(&refused);
    assert!(refused.stderr.contains("401"), "{}", refused.stderr);
    server.end_account_after(usize::MAX, Fault::Unauthorized);
    let ended = wait(bench.spawn(&arguments));
    check_output(&ended);
    assert_eq!(ended.status, Some(1), "some rows failed");
    assert!(ended.stderr.contains("TRACE"), "everything is logged");
    check_output(&bench.run(&["--retry-failures"]));
    for verb in ["status", "verify", "freeze", "card", "stats"] {
        check_output(&bench.verb(verb, &[]));
    }
    assert_eq!(traces_in(&bench.folder), Vec::<String>::new());
    let log = server.log();
    assert!(
        log.iter()
            .all(|sent| sent.head.contains(KEY) && sent.head.contains(ORGANISATION))
    );
}

#[test]
fn an_embeddings_run_leaves_no_trace_of_them() {
    check(Kind::Embeddings);
}

#[test]
fn a_chat_run_leaves_no_trace_of_them() {
    check(Kind::Chat);
}
