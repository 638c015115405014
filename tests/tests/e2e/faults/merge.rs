//! A merge keeps away from a cache in an object store that a worker writes.

use std::time::Duration;

use tests::fault::{FaultServer, Schedule};

use super::bench::{Bench, kill, texts, wait_until};
use super::objects::BUCKET;
use super::setup::Setup;

#[test]
fn a_merge_is_refused_while_a_worker_holds_the_lease() {
    let server = FaultServer::start(Schedule::CALM, Duration::ZERO).unwrap();
    let source = Bench::of_texts(&server, Setup::default(), texts(4));
    assert_eq!(source.run(&[]).status, Some(0));
    let mut target = Bench::of_texts(&server, Setup::default(), texts(80));
    target.place_in_objects();
    let into = format!("s3://{BUCKET}/cache");
    let from = source.cache();
    let merge = || target.tool(&["merge", &into, from.to_str().unwrap()]);

    let before = server.num_requests();
    let mut child = target.spawn(&[]);
    assert!(wait_until(&mut child, || server.num_requests() > before + 4));
    server.stall(true);
    assert!(wait_until(&mut child, || server.num_stalled() > 0));
    let refused = merge();
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("is held by"), "{}", refused.stderr);

    kill(child);
    server.stall(false);
    assert_eq!(target.run(&[]).status, Some(0));
    let merged = merge();
    assert_eq!(merged.status, Some(0), "{}", merged.stderr);
    assert_eq!(target.check_settled().answered.len(), 80);
}
