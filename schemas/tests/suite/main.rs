//! Readers of data sets against files of every published layout, and shards against damage and other readers.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod bad_rows;
mod fixture_shard;
mod formats;
mod generation;
mod published;
mod shards;

use std::path::PathBuf;

/// A folder of committed test files.
fn fixtures(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}
