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
//! | [`plan`] | which examples there are and which are still to be asked about |
//! | [`teacher`] | the trait, one file per teacher, retry as a decorator |
//! | [`journal`] | append-only record of every completed reply |
//! | [`cache`] | the folder: lock, recovery, committed shards |
//! | [`pipeline`] | source -> queue -> teacher -> journal -> shards |
//! | [`import`] | features made elsewhere: `.npy` folders and Parquet |
//! | [`audit`] | what `verify` and `freeze` check |
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
pub mod cache;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod error;
pub mod failures;
pub mod import;
pub mod journal;
pub mod logging;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod secret;
pub mod sketch;
pub mod stop;
pub mod teacher;

pub use cache::{Cache, Key};
pub use config::Config;
pub use error::Error;
pub use pipeline::{Ending, Summary};
pub use plan::Plan;
pub use secret::Secret;
pub use stop::Stop;
pub use teacher::{Reply, Request, Teacher, TeacherError};
