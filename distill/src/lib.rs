//! placeholder
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::float_cmp, reason = "a test fails by panicking"))]
pub mod device;
pub mod student;
pub mod aligner;
pub mod golden;
pub mod heads;
pub mod loss;
pub mod metrics;
pub mod objective;
pub mod orthogonal;
pub mod statistics;
