//! Whatever goes wrong: each example ends up once in the shards or among the failures, nothing that was answered is paid
//! for again, and no budget is exceeded.

mod batches;
mod bench;
mod disk;
mod judge;
mod lasting;
mod merge;
/// The S3 endpoint that harvest's own tests run on.
#[expect(dead_code, reason = "not every fault of it is wanted here")]
#[path = "../../../../harvest/src/store/tests/server.rs"]
mod objects;
mod property;
mod secrets;
mod setup;
mod signals;
mod tls;
