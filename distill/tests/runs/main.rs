//! Whole runs on a small data set: in this process and through the binary.

#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test fails by panicking"
)]

mod cli;
mod generation;
mod join;
mod lora;
mod refusals;
mod support;
mod training;
