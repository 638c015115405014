//! What happens when a server refuses, fails or is not there.

use std::path::Path;

use schemas::Error;

use super::{s3, s3_with_key, server::Server};
use crate::store::Store;

fn message(error: &Error) -> String {
    format!("{error} {error:?} {}", error.hint().unwrap_or_default())
}

#[test]
fn errors_name_the_object_and_the_next_step() {
    let server = Server::start();
    let store = s3(&server, "cache");
    server.objects().faults.push_back(403);
    let error = store.put("manifest.json", b"x").unwrap_err();
    let told = message(&error);
    assert!(told.contains("`s3://bucket/cache/manifest.json`"), "{told}");
    assert!(told.contains("credentials"), "{told}");

    server.objects().faults.push_back(403);
    let told = message(&store.list().unwrap_err());
    assert!(
        told.contains("`s3://bucket/cache`") && told.contains("credentials"),
        "{told}"
    );

    let elsewhere = s3_with_key(&server.endpoint(), "s3://no-such/cache", "armada-test-key");
    let told = message(&elsewhere.list().unwrap_err());
    assert!(told.contains("s3://no-such/cache"), "{told}");
    assert!(told.contains("bucket"), "{told}");
    assert!(elsewhere.put("a", b"").is_err());
    let told = message(&elsewhere.manifest().unwrap_err());
    assert!(
        told.contains("NoSuchBucket"),
        "a missing bucket is no empty cache: {told}"
    );
}

#[test]
fn a_passing_failure_is_survived() {
    let server = Server::start();
    let store = s3(&server, "cache");
    server.objects().faults.extend([503, 500]);
    store.put("a", b"x").unwrap();
    server.objects().faults.extend([500]);
    assert_eq!(store.read("a").unwrap().unwrap(), b"x");
    assert_eq!(server.objects().requests.len(), 5);
}

#[test]
fn credentials_are_not_printed() {
    let server = Server::start();
    let key = "hunter2-hunter2";
    let store = s3_with_key(&server.endpoint(), "s3://bucket/cache", key);
    server.objects().faults.extend([403, 404, 400]);
    let failures = (0..3).map(|_| message(&store.put("a", b"x").unwrap_err()));
    for told in failures.chain([format!("{store} {store:?}"), store.location()]) {
        assert!(!told.contains("hunter2"), "{told}");
    }
    assert_eq!(format!("{store:?}"), "Store(s3://bucket/cache)");
}

#[test]
fn what_a_server_repeats_of_a_credential_is_left_out() {
    // The test sets no variable; whatever this process has is looked for.
    let secret = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        (name == "AWS_SECRET_ACCESS_KEY" && value.len() >= 8).then_some(value)
    };
    let Some(value) = std::env::vars_os().find_map(secret) else {
        return;
    };
    let told = crate::store::connection::redacted(&format!("bad token {value}!"));
    assert_eq!(told, "bad token REDACTED!");
}

#[test]
fn an_upload_that_fails_leaves_the_file_and_no_object() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, vec![7; 20 << 20]).unwrap();
    // The upload begins; its first part is refused.
    server.objects().faults.extend([403]);
    assert!(store.put_file("large", &file).is_err());
    server.objects().refuses_parts = true;
    assert!(store.put_file("large", &file).is_err());
    assert!(file.exists());
    assert_eq!(server.objects().keys(), Vec::<String>::new());
    assert_eq!(
        server.objects().num_uploads(),
        0,
        "what was begun is given up"
    );
    server.objects().refuses_parts = false;
    store.put_file("large", &file).unwrap();
    assert!(!file.exists());
    assert_eq!(store.list().unwrap()[0].num_bytes, 20 << 20);
    assert_eq!(server.objects().bytes("cache/large"), vec![7; 20 << 20]);
}

#[test]
fn a_server_that_fails_while_a_shard_is_read_is_not_a_damaged_shard() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let bytes = vec![7; 3 << 20];
    store.put("shard-0123456789abcdef.parquet", &bytes).unwrap();
    server.objects().refuses_ranges = true;
    let error = store
        .open_shard("shard-0123456789abcdef.parquet")
        .unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}

#[test]
fn nothing_is_sent_before_it_is_needed() {
    assert!(Store::open("cache", Path::new("/no/such/folder")).is_ok());
    let store = Store::open("cache", Path::new("/base")).unwrap();
    assert_eq!(store.local(), Some(Path::new("/base/cache")));
    let store = Store::open("/cache", Path::new("/base")).unwrap();
    assert_eq!(store.local(), Some(Path::new("/cache")));
    assert_eq!(
        Store::open("s3://bucket/a/", Path::new(""))
            .unwrap()
            .location(),
        "s3://bucket/a"
    );
    assert!(Store::open("http://bucket", Path::new("")).is_err());
}
