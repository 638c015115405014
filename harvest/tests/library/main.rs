//! The library over real sockets and real folders.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod embeddings;
mod import;
mod pipeline;
mod support;
mod workers;
