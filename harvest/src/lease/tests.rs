use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Lease, LeaseError};
use crate::error::Error;
use crate::place::Place;
use crate::stop::Stop;
use crate::store::Store;
use crate::store::tests::server::{BUCKET, Server};
use crate::store::tests::{other_server, s3, s3_with_key};

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
    abandon_writing(store, name, lifetime_ms, None);
}

fn abandon_writing(store: &Store, name: &str, lifetime_ms: u64, writing: Option<&str>) {
    let holder = serde_json::json!({"host": "gone", "process": 7, "id": "0"});
    let note = serde_json::json!({
        "holder": holder, "lifetime_ms": lifetime_ms, "num_renewals": 4, "released": false, "writing": writing,
    });
    store.put(name, note.to_string().as_bytes()).unwrap();
}

/// The name of a shard.
const SHARD: &str = "part-000004-0123456789abcdef.parquet";
/// Size of a shard that is sent in parts.
const LARGE: usize = 9 << 20;
/// Variable with the address of the server that a worker in a process of its own writes to.
const ENDPOINT: &str = "ARMADA_TEST_ENDPOINT";

fn worker_at(endpoint: &str) -> (Store, Lease) {
    let location = format!("s3://{BUCKET}/cache");
    let store = s3_with_key(endpoint, &location, "armada-test-key");
    let lease = Lease::take(&store, None, LIFETIME, &Stop::default()).unwrap();
    (store, lease.unwrap())
}

fn put_shard(store: &Store, lease: Arc<Lease>, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shard");
    std::fs::write(&file, bytes).unwrap();
    let place = Place {
        store: store.clone(),
        lease: Some(lease),
        ..Place::local(folder.path())
    };
    let put = place.put_shard(name, &file);
    let came = store.shards().unwrap().iter().any(|shard| shard == name);
    assert_eq!(file.exists(), !came, "what did not arrive is kept");
    put
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

#[test]
#[expect(clippy::print_stderr, reason = "it is how it tells")]
fn a_worker_writes_a_shard() {
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        // In a process of its own, for the test below.
        let (store, lease) = worker_at(&endpoint);
        let put = put_shard(&store, Arc::new(lease), SHARD, b"of the first");
        eprintln!("{}", put.unwrap_err());
        return;
    }
    let server = Server::start();
    let (store, lease) = worker_at(&server.endpoint());
    put_shard(&store, Arc::new(lease), SHARD, b"whole").unwrap();
    assert_eq!(store.shards().unwrap(), [SHARD]);
}

#[cfg(unix)]
#[test]
fn a_worker_that_was_stopped_for_too_long_adds_no_shard() {
    let server = Server::start();
    server.objects().holds_shards = true;
    let worker = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "lease::tests::a_worker_writes_a_shard",
        ])
        .env(ENDPOINT, server.endpoint())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let is_sent = |request: &String| request.starts_with("PUT ") && request.contains(SHARD);
    wait_until(|| server.objects().requests.iter().any(is_sent));
    let signal = |name: &str| {
        let id = worker.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(sent.success());
    };
    signal("-STOP");
    // What is on its way arrives after another one has taken over.
    let (store, lease) = worker_at(&server.endpoint());
    assert_eq!(text(&store, SHARD), "");
    server.objects().holds_shards = false;
    signal("-CONT");
    let ended = worker.wait_with_output().unwrap();
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{told}");
    let of_us = format!("process {} of host", std::process::id());
    assert!(told.contains("was lost") && told.contains(&of_us), "{told}");
    assert!(store.shards().unwrap().is_empty());

    let another = "part-000005-0123456789abcdef.parquet";
    let lease = Arc::new(lease);
    put_shard(&store, Arc::clone(&lease), another, b"of the second").unwrap();
    Arc::into_inner(lease).unwrap().release().unwrap();
    assert_eq!(store.shards().unwrap(), [another]);
    assert!(
        !store.create(SHARD, b"later still").unwrap(),
        "shut out for good"
    );
}

fn check_takeover(store: &Store) {
    // What came before the lease was taken over counts.
    store.put(SHARD, b"whole").unwrap();
    abandon_writing(store, WHOLE, 100, Some(SHARD));
    take(store, None).unwrap().release().unwrap();
    assert_eq!(store.shards().unwrap(), [SHARD]);
    store.remove(SHARD).unwrap();

    // Of two workers that find it gone, the one that ends first leaves it shut out for the other.
    abandon_writing(store, WHOLE, 100, Some(SHARD));
    take(store, Some("1/2")).unwrap().release().unwrap();
    let other = take(store, Some("2/2")).unwrap();
    let note = text(store, WHOLE);
    assert!(note.contains("\"released\": true"), "{note}");
    assert!(
        !note.contains("barred"),
        "it is done, and not again each night: {note}"
    );
    assert!(!store.create(SHARD, b"late").unwrap());
    assert!(store.shards().unwrap().is_empty());
    other.release().unwrap();
    assert_eq!(text(store, WHOLE), note);
    store.remove(SHARD).unwrap();

    // What a successor died before it could shut out is shut out by the next one.
    for name in [WHOLE, "lease-slice-2-of-2.json"] {
        abandon_writing(store, name, 100, None);
        let note = text(store, name);
        let note = note.replacen('{', &format!("{{\"barred\": [\"{SHARD}\"],"), 1);
        let note = note.replace("\"released\":false", "\"released\":true");
        store.put(name, note.as_bytes()).unwrap();
        take(store, None).unwrap().release().unwrap();
        assert_eq!(text(store, SHARD), "");
        let note = text(store, name);
        assert!(!note.contains("barred"), "{note}");
        store.remove(SHARD).unwrap();
    }
}

#[test]
fn a_shard_of_a_worker_that_is_gone_counts_or_is_shut_out() {
    let server = Server::start();
    check_takeover(&s3(&server, "cache"));
    if let Some(store) = other_server("fence") {
        check_takeover(&store);
    }
}

#[test]
fn a_shard_whose_answer_was_lost_counts() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let lease = Arc::new(take(&store, None).unwrap());
    let put = || put_shard(&store, Arc::clone(&lease), SHARD, b"whole");
    put().unwrap();
    put().unwrap();
    assert_eq!(store.shards().unwrap(), [SHARD]);
}

#[test]
fn a_large_shard_is_refused_where_it_is_barred() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let lease = Arc::new(take(&store, None).unwrap());
    store.put(SHARD, b"").unwrap();
    put_shard(&store, lease, SHARD, &vec![7; LARGE]).unwrap_err();
    assert_eq!(text(&store, SHARD), "");
    assert_eq!(server.objects().num_uploads(), 0, "the upload is given up");
}

#[test]
fn a_large_shard_that_comes_too_late_does_not_count_as_committed() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let lease = Arc::new(take(&store, None).unwrap());
    server.objects().holds_shards = true;
    let worker = std::thread::spawn({
        let store = store.clone();
        move || put_shard(&store, lease, SHARD, &vec![7; LARGE])
    });
    let is_last = |request: &String| request.starts_with("POST ") && request.contains("uploadId=");
    wait_until(|| server.objects().requests.iter().any(is_last));
    abandon(&store, WHOLE, 60_000);
    store.put(SHARD, b"").unwrap();
    server.objects().holds_shards = false;
    let told = worker.join().unwrap().unwrap_err().to_string();
    assert!(told.contains("process 7 of host gone holds it"), "{told}");
    assert_eq!(store.shards().unwrap(), [SHARD]);
}

#[test]
fn what_is_refused_and_is_not_there_did_not_come() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shard");
    std::fs::write(&file, b"whole").unwrap();
    // What barred it was removed by hand in between.
    server.objects().faults.push_back(412);
    assert!(!store.put_new_file(SHARD, &file).unwrap());
    assert!(file.exists());
    assert!(store.put_new_file(SHARD, &file).unwrap());
}

#[test]
fn a_holder_whose_last_renewal_seemed_to_fail_goes_on() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let lease = take(&store, None).unwrap();
    // A renewal that was done, and of which neither the answer nor a look told.
    let done = text(&store, WHOLE).replace("\"num_renewals\": ", "\"num_renewals\": 7");
    store.put(WHOLE, done.as_bytes()).unwrap();
    lease.announce(SHARD).unwrap();
    assert!(text(&store, WHOLE).contains(SHARD));
    lease.release().unwrap();
}

#[test]
fn a_holder_that_was_replaced_announces_nothing() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let lease = Arc::new(take(&store, None).unwrap());
    abandon(&store, WHOLE, 60_000);
    let refused = put_shard(&store, Arc::clone(&lease), SHARD, b"late").unwrap_err();
    let told = refused.to_string();
    assert!(
        told.contains("process 7 of host gone holds it now"),
        "{told}"
    );
    assert_eq!(store.read(SHARD).unwrap(), None);
    lease.confirm().unwrap_err();
}
