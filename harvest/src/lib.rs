//! Asks a teacher about every example of a data set, once, and keeps what it said.
//!
//! ```text
//! data set -> survey -> bounded queue -> teacher -> journal -> shards -> frozen cache
//! ```
//!
//! | module | what lives there |
//! |---|---|
//! | [`cli`], [`cmd`] | the command line; one verb per file |
//! | [`config`] | the TOML configuration, parsed into validated types |
//! | [`plan`] | what is asked: data set, prompts, draws |
//! | [`survey`] | which rows are still to be asked about |
//! | [`teacher`] | the trait, one file per teacher, retry as a decorator |
//! | [`journal`] | append-only record of every completed reply |
//! | [`store`] | where a cache lies: a folder or a prefix of an object store |
//! | [`mod@slice`], [`lease`] | a share of the requests for one worker, and its hold on it |
//! | [`budget`] | what a cache may take, over all its runs |
//! | [`metrics`], [`events`], [`observed`], [`reporter`] | what a run does, for those who watch it |
//! | [`cache`] | the folder: lock, recovery, committed shards |
//! | [`pipeline`] | source -> queue -> teacher -> journal -> shards |
//! | [`import`] | features made elsewhere: `.npy` folders and Parquet |
//! | [`audit`] | what `verify` and `freeze` check |
//! | [`stats`], [`card`] | the quality of a cache; its data card |
//! | [`merge`], [`replay`] | caches of one source joined; cached replies beside live ones |
//! | [`sketch`] | the drawing library of the built-in teacher |

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        reason = "a test fails by panicking"
    )
)]

pub mod audit;
pub mod budget;
pub mod cache;
pub mod card;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod error;
pub mod events;
pub mod failures;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod import;
pub mod journal;
pub mod lease;
pub mod logging;
pub mod merge;
pub mod metrics;
pub mod observed;
pub mod parts;
pub mod pipeline;
pub mod place;
pub mod plan;
pub mod progress;
pub mod replay;
pub mod reporter;
mod reserve;
#[cfg(any(test, feature = "fuzzing"))]
mod sample;
pub mod secret;
pub mod sketch;
pub mod slice;
mod spill;
pub mod stats;
pub mod stop;
pub mod store;
pub mod survey;
pub mod teacher;

pub use cache::{Cache, Key};
pub use config::Config;
pub use error::Error;
pub use pipeline::{Ending, Job, Summary};
pub use place::Place;
pub use plan::Plan;
pub use secret::Secret;
pub use slice::Slice;
pub use stop::Stop;
pub use store::Store;
pub use teacher::{Reply, Request, Teacher, TeacherError};
