//! The two binaries as their users run them, on real files, real sockets and real signals.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod architecture;
mod distill_kill;
mod faults;
mod harvest_kill;
mod hygiene;
