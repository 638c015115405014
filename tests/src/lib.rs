//! What the end-to-end suite shares: where the repository and the binaries are, a server that keeps a log, and the
//! generator of the bundled data set.

#![forbid(unsafe_code)]

pub mod fault;
pub mod scenes;
pub mod server;

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the suite is a folder of the repository")
}

/// One of the workspace's binaries, from the profile that this suite was built with.
///
/// # Panics
/// Where it was not built: `cargo test --workspace` builds it, a run of this package alone does not.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test
        .ancestors()
        .nth(2)
        .expect("tests run from target/<profile>/deps");
    let path = profile
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --release --workspace` first",
        path.display()
    );
    path
}
