//! What is answered while the rest of its batch waits is not lost with the process.

use std::time::Duration;

use tests::fault::{FaultServer, Poison, Schedule};

use super::bench::{Bench, kill, wait_until};
use super::judge::Judge;
use super::setup::Setup;

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
