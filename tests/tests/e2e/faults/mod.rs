//! Whatever goes wrong: each example ends up once in the shards or among the failures, nothing that was answered is paid
//! for again, and no budget is exceeded.

mod batches;
mod bench;
mod disk;
mod judge;
mod lasting;
mod property;
mod secrets;
mod signals;
mod tls;
