//! Ctrl-C: once is a stop in order, twice is a stop at once.

use std::process::Command;
use std::time::{Duration, Instant};

use tests::fault::{FaultServer, Schedule};

use super::bench::{Bench, Worker, texts, wait, wait_until};
use super::judge::Judge;
use super::setup::Setup;

fn interrupt(child: &Worker) {
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

fn judge(server: &FaultServer, bench: &Bench) {
    let log = server.log();
    Judge {
        log: &log,
        kills: &[],
        setup: &bench.setup,
    }
    .check_nothing_is_repaid();
}

#[test]
fn once_keeps_what_is_in_flight() {
    let server = FaultServer::start(Schedule::CALM, Duration::from_millis(20)).unwrap();
    let bench = Bench::of_texts(&server, Setup::default(), texts(400));
    let mut child = bench.spawn(&[]);
    assert!(wait_until(&mut child, || server.num_requests() >= 8));
    interrupt(&child);
    let ended = wait(child);
    assert_eq!(ended.status, Some(3), "{}", ended.stderr);
    let left = ended.left().unwrap();
    assert!(left > 0, "it struck in the middle");
    let num_answered = bench.held().answered.len();
    assert_eq!(
        num_answered as u64,
        400 - left,
        "what was received is committed"
    );
    assert_eq!(
        server
            .log()
            .iter()
            .map(|sent| sent.texts.len())
            .sum::<usize>(),
        num_answered
    );

    assert_eq!(bench.run(&[]).status, Some(0));
    assert_eq!(bench.check_settled().answered.len(), 400);
    judge(&server, &bench);
}

#[test]
fn twice_does_not_wait() {
    let server = FaultServer::start(Schedule::CALM, Duration::ZERO).unwrap();
    let setup = Setup {
        concurrency: 3,
        batch: 2,
        timeout_seconds: 60,
        ..Setup::default()
    };
    let bench = Bench::of_texts(&server, setup, texts(60));
    let mut child = bench.spawn(&[]);
    assert!(wait_until(&mut child, || server.num_requests() >= 6));
    server.stall(true);
    // Every request in flight stalls.
    assert!(wait_until(&mut child, || server.num_stalled() >= 3));
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!child.has_ended(), "once waits for what is in flight");
    let started = Instant::now();
    interrupt(&child);
    let ended = wait(child);
    assert_eq!(ended.status, Some(3), "{}", ended.stderr);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "it waited for the server"
    );

    server.stall(false);
    assert_eq!(bench.run(&[]).status, Some(0));
    assert_eq!(bench.check_settled().answered.len(), 60);
    judge(&server, &bench);
}
