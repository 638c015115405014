use std::time::{Duration, Instant};

use super::{Lease, LeaseError};
use crate::stop::Stop;
use crate::store::Store;
use crate::store::tests::server::Server;
use crate::store::tests::{other_server, s3};

/// Renewed every two seconds, which a loaded machine manages within six.
const LIFETIME: Duration = Duration::from_secs(6);

const WHOLE: &str = "lease-whole.json";

fn take_with(store: &Store, slice: Option<&str>, stop: &Stop) -> Result<Lease, LeaseError> {
    let slice = slice.map(|slice| slice.parse().unwrap());
    Lease::take(store, slice, LIFETIME, stop).map(|lease| lease.unwrap())
}

fn take(store: &Store, slice: Option<&str>) -> Result<Lease, LeaseError> {
    take_with(store, slice, &Stop::default())
}

/// The lease of a worker that is gone.
fn abandon(store: &Store, name: &str, lifetime_ms: u64) {
    let holder = serde_json::json!({"host": "gone", "process": 7, "id": "0"});
    let note = serde_json::json!({
        "holder": holder, "lifetime_ms": lifetime_ms, "num_renewals": 4, "released": false,
    });
    store.put(name, note.to_string().as_bytes()).unwrap();
}

fn text(store: &Store, name: &str) -> String {
    String::from_utf8(store.read(name).unwrap().unwrap()).unwrap()
}

#[track_caller]
fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_mins(1), "it never holds");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_held(result: &Result<Lease, LeaseError>, what: &str) -> bool {
    matches!(result, Err(LeaseError::Held { lease, holder, .. })
        if lease == what && holder.contains(&std::process::id().to_string()))
}

fn check_life(store: &Store) {
    let name = "lease-slice-03-of-16.json";
    let lease = take(store, Some("3/16")).unwrap();
    let first = text(store, name);
    let second = take(store, Some("3/16"));
    assert!(is_held(&second, "slice 3/16"), "{second:?}");
    wait_until(|| text(store, name) != first);
    lease.check().unwrap();
    lease.release().unwrap();
    let last = text(store, name);
    assert!(last.contains("\"released\": true"), "{last}");
    take(store, Some("3/16")).unwrap().release().unwrap();
}

#[test]
fn a_lease_is_renewed_while_held_and_refused_to_others() {
    let server = Server::start();
    check_life(&s3(&server, "cache"));
    if let Some(store) = other_server("lease") {
        check_life(&store);
    }
}

#[test]
fn a_folder_has_no_lease() {
    let store = Store::folder(std::path::Path::new("nowhere"));
    let lease = Lease::take(&store, None, LIFETIME, &Stop::default()).unwrap();
    assert!(lease.is_none());
}

#[test]
fn of_several_workers_one_takes_it() {
    let server = Server::start();
    let stores = [Some(s3(&server, "cache")), other_server("race")];
    for store in stores.into_iter().flatten() {
        let worker = |_| {
            let store = store.clone();
            std::thread::spawn(move || take(&store, None))
        };
        let workers: Vec<_> = (0..4).map(worker).collect();
        let outcomes: Vec<_> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect();
        let num_taken = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let num_held = outcomes
            .iter()
            .filter(|outcome| is_held(outcome, "the whole cache"));
        assert_eq!((num_taken, num_held.count()), (1, 3), "{outcomes:?}");
    }
}

#[test]
fn a_dead_worker_s_lease_ends_by_the_clock_of_the_store() {
    let server = Server::start();
    let store = s3(&server, "cache");
    // Were the clock of this machine asked, the lease would be from the future, or long over.
    server.objects().seconds_ahead = 1_000_000;
    abandon(&store, WHOLE, 60_000);
    let stop = Stop::default();
    stop.request();
    let early = take_with(&store, None, &stop);
    assert!(
        matches!(early, Err(LeaseError::Stopped { .. })),
        "{early:?}"
    );
    server.objects().seconds_ahead += 61;
    let early = take_with(&store, None, &stop);
    assert!(
        matches!(early, Err(LeaseError::Stopped { .. })),
        "{early:?}"
    );
    server.objects().seconds_ahead += 60;
    take_with(&store, None, &stop).unwrap().release().unwrap();
}

#[test]
fn without_a_clock_a_lease_ends_after_it_was_watched() {
    let server = Server::start();
    let store = s3(&server, "cache");
    abandon(&store, WHOLE, 100);
    server.objects().hides_time = true;
    server.objects().seconds_ahead = 1_000_000;
    let start = Instant::now();
    take(&store, None).unwrap().release().unwrap();
    assert!(
        start.elapsed() >= Duration::from_millis(2100),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_lease_of_another_make_is_taken_over_too() {
    let Some(store) = other_server("dead") else {
        return;
    };
    abandon(&store, WHOLE, 100);
    take(&store, None).unwrap().release().unwrap();
    abandon(&store, WHOLE, 60_000);
    let stop = Stop::default();
    stop.request();
    let early = take_with(&store, None, &stop);
    assert!(
        matches!(early, Err(LeaseError::Stopped { .. })),
        "{early:?}"
    );
}

#[test]
fn a_holder_that_was_replaced_stops_and_says_by_whom() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let stop = Stop::default();
    let lease = take_with(&store, None, &stop).unwrap();
    abandon(&store, WHOLE, 60_000);
    wait_until(|| stop.is_requested());
    let told = lease.check().unwrap_err().to_string();
    assert!(
        told.contains("process 7 of host gone holds it now"),
        "{told}"
    );
    let told = lease.release().unwrap_err().to_string();
    assert!(told.contains("process 7"), "{told}");
    assert!(
        text(&store, WHOLE).contains("\"gone\""),
        "the other's lease is left alone"
    );
}

#[test]
fn a_lease_that_is_removed_is_lost() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let stop = Stop::default();
    let lease = take_with(&store, None, &stop).unwrap();
    store.remove(WHOLE).unwrap();
    wait_until(|| stop.is_requested());
    let told = lease.check().unwrap_err().to_string();
    assert!(told.contains("somebody removed it"), "{told}");
    drop(lease);
    assert_eq!(store.read(WHOLE).unwrap(), None);
}

#[test]
fn a_holder_that_cannot_renew_stops() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let stop = Stop::default();
    let lease = take_with(&store, None, &stop).unwrap();
    server.objects().faults.extend([403; 1000]);
    wait_until(|| stop.is_requested());
    let error = lease.check().unwrap_err();
    assert!(matches!(error, LeaseError::Silent { .. }), "{error}");
    server.objects().faults.clear();
}

#[test]
fn a_passing_failure_does_not_end_a_lease() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let lease = take(&store, None).unwrap();
    let first = text(&store, WHOLE);
    server.objects().faults.extend([403; 2]);
    wait_until(|| server.objects().faults.is_empty());
    wait_until(|| text(&store, WHOLE) != first);
    lease.release().unwrap();
}

#[test]
fn an_answer_that_is_lost_on_the_way_loses_no_lease() {
    let server = Server::start();
    let store = s3(&server, "cache");
    server.objects().loses_answer = true;
    let lease = take(&store, None).unwrap();
    let first = text(&store, WHOLE);
    server.objects().loses_answer = true;
    wait_until(|| text(&store, WHOLE) != first);
    lease.check().unwrap();
    server.objects().loses_answer = true;
    lease.release().unwrap();
}

#[test]
fn a_store_that_ignores_conditions_is_refused() {
    let server = Server::start();
    server.objects().ignores_conditions = true;
    let refused = take(&s3(&server, "cache"), None);
    assert!(
        matches!(refused, Err(LeaseError::Unconditional { .. })),
        "{refused:?}"
    );
}

#[test]
fn leases_with_rows_in_common_exclude_each_other() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let lease = take(&store, Some("1/2")).unwrap();
    take(&store, Some("2/2")).unwrap().release().unwrap();
    for other in [None, Some("1/3"), Some("4/4")] {
        let refused = take(&store, other);
        assert!(is_held(&refused, "slice 1/2"), "{other:?}: {refused:?}");
    }
    lease.release().unwrap();
    let whole = take(&store, None).unwrap();
    let refused = take(&store, Some("2/2"));
    assert!(is_held(&refused, "the whole cache"), "{refused:?}");
    drop(whole);
    take(&store, Some("2/2")).unwrap().release().unwrap();
}

#[test]
fn what_is_no_lease_is_left_alone() {
    let server = Server::start();
    let store = s3(&server, "cache");
    store.put(WHOLE, b"mine").unwrap();
    let refused = take(&store, None);
    assert!(
        matches!(refused, Err(LeaseError::NotALease { .. })),
        "{refused:?}"
    );
    assert_eq!(text(&store, WHOLE), "mine");
}

#[test]
fn a_lease_holds_no_credentials() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let lease = take(&store, None).unwrap();
    let told = format!("{lease:?} {}", text(&store, WHOLE));
    assert!(!told.contains("armada-test"), "{told}");
    let note: serde_json::Value = serde_json::from_str(&text(&store, WHOLE)).unwrap();
    let keys: Vec<&String> = note.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["holder", "lifetime_ms", "num_renewals", "released"]);
}
