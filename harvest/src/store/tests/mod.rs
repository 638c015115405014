//! Folders and object stores, side by side: whatever holds of one holds of the other.

mod faults;
mod reading;
mod same;
pub(crate) mod server;

use std::path::Path;

use object_store::aws::AmazonS3Builder;

use super::connection::connect_s3;
use super::location::Location;
use super::{Kind, Remote, Store};
use std::sync::Arc;

/// A store at `location` on an S3 server; `key` is the secret access key.
pub(crate) fn s3_with_key(endpoint: &str, location: &str, key: &str) -> Store {
    let Location::Remote(address) = Location::parse(location).unwrap() else {
        panic!("{location} is a folder");
    };
    let builder = AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_access_key_id("armada-test")
        .with_secret_access_key(key);
    let objects = connect_s3(&address, builder).unwrap();
    let remote = Remote::over(&address, objects).unwrap();
    Store(Arc::new(Kind::Remote(remote)))
}

/// A store at `prefix` of the bucket of the server in this process.
pub(crate) fn s3(server: &server::Server, prefix: &str) -> Store {
    let location = format!("s3://{}/{prefix}", server::BUCKET);
    s3_with_key(&server.endpoint(), &location, "armada-test-key")
}

/// What a test runs on: a folder, the server in this process, and the server that the environment names, where
/// `scripts/store_check` has started one.
pub(crate) fn each_store(test: impl Fn(&Store)) {
    let folder = tempfile::tempdir().unwrap();
    test(&Store::folder(&folder.path().join("not/yet/there")));
    let server = server::Server::start();
    test(&s3(&server, "a/cache"));
    if let Some(store) = other_server("same") {
        test(&store);
    }
}

/// A fresh prefix on the server that `ARMADA_TEST_STORE` names (`s3://bucket/prefix`), with the variables of its provider.
pub(crate) fn other_server(name: &str) -> Option<Store> {
    let location = std::env::var("ARMADA_TEST_STORE").ok()?;
    let unique = format!("{location}/{name}-{:x}", rand::random::<u64>());
    Some(Store::open(&unique, Path::new("")).unwrap())
}
