//! A server that is wrong in every way that servers are, on real sockets, and that keeps a log of what it completed.
//!
//! Its good answers are a pure function of what is asked. What goes wrong is decided by a [`Schedule`], and for texts
//! with a marker of a [`Poison`] by the text. The log judges a client: what was answered well must not be asked again.

mod answers;
mod batches;
mod certificate;
mod connection;
mod pictures;
mod schedule;
mod server;
mod spoil;
mod wire;

pub use answers::{Endpoint, Poison, REPLY_TOKENS, reply_text, reply_tokens, tokens, vector};
pub use certificate::{Authority, Identity};
pub use schedule::{Fault, LASTING, LimitHeader, Schedule};
pub use server::{FaultServer, Sent};
