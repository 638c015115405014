//! What is answered while the rest of its batch waits is not lost with the process.

use std::time::Duration;

use tests::fault::{FaultServer, Poison, Schedule};

use super::bench::{Bench, kill, wait_until};
use super::judge::Judge;
use super::setup::{Kind, Setup};

#[test]
fn a_kill_while_half_a_batch_waits_costs_nothing() {
    let server = FaultServer::start(Schedule::CALM, Duration::from_millis(5)).unwrap();
    let poison = format!("the last one {}", Poison::PayloadTooLarge.marker());
    let texts = super::bench::texts(16).chain([poison]);
    let setup = Setup {
        batch: 16,
        concurrency: 1,
        max_tries: 5,
        ..Setup::default()
    };
    let bench = Bench::of_texts(&server, setup, texts);

    // The first row alone, the batch of the others, its first half; then nothing more is answered.
    let mut child = bench.spawn(&[]);
    let half_is_answered = || {
        server
            .log()
            .iter()
            .any(|sent| sent.texts.len() == 8 && !sent.good.contains(&false))
    };
    assert!(wait_until(&mut child, half_is_answered));
    server.stall(true);
    assert!(wait_until(&mut child, || server.num_stalled() > 0));
    // Long after the half was answered.
    std::thread::sleep(Duration::from_millis(1_200));
    let kills = [kill(child)];

    server.stall(false);
    assert_eq!(bench.run_until_settled().status, Some(1), "a row failed");
    let held = bench.check_settled();
    assert_eq!((held.answered.len(), held.failed.len()), (16, 1));
    let log = server.log();
    Judge {
        log: &log,
        kills: &kills,
        setup: &bench.setup,
    }
    .check_nothing_is_repaid();
}

#[test]
fn results_that_end_between_two_lines_are_fetched_again_and_counted_once() {
    let server = FaultServer::start(Schedule::CALM, Duration::ZERO).unwrap();
    let setup = Setup {
        kind: Kind::Batch,
        batch: 8,
        concurrency: 1,
        max_tries: 5,
        // One is asked directly, and nothing is left over for a row that is counted twice.
        budget: "requests = 17".to_owned(),
        ..Setup::default()
    };
    let bench = Bench::of_texts(&server, setup, super::bench::texts(17));
    server.cut_results(3);
    let ended = bench.run(&[]);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert_eq!(bench.check_settled().answered.len(), 17);
    assert_eq!(server.num_requests(), 17);

    let grown = bench.run(&[]);
    assert_eq!(grown.status, Some(0), "{}", grown.stderr);
}

#[test]
fn results_that_stay_broken_are_fetched_by_a_later_run() {
    let server = FaultServer::start(Schedule::CALM, Duration::ZERO).unwrap();
    let setup = Setup {
        kind: Kind::Batch,
        batch: 16,
        concurrency: 1,
        max_tries: 2,
        budget: "requests = 17".to_owned(),
        ..Setup::default()
    };
    let bench = Bench::of_texts(&server, setup, super::bench::texts(17));
    server.cut_results(2);
    let ended = bench.run(&[]);
    assert_eq!(ended.status, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("of the 16 lines"), "{}", ended.stderr);

    let ended = bench.run(&["--retry-failures"]);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert_eq!(bench.check_settled().answered.len(), 17);
    assert_eq!(server.num_requests(), 17);
}
