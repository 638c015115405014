//! Trains text-only student language models from a teacher cache.
//!
//! ```text
//! data set --+
//!            +-- join by id -> batches -> aligner + student -> checkpoints -> scores, table, export
//! cache -----+
//! ```
//!
//! | module | what lives there |
//! |---|---|
//! | [`cli`], [`cmd`] | the command line; one verb per file |
//! | [`config`] | the TOML configuration, parsed into validated types |
//! | [`data`] | the join of examples and features, tokenised rows, batches |
//! | [`student`] | BERT: Hugging Face directories in and out, tokenizer, weights |
//! | [`model`] | the student with its heads |
//! | [`aligner`], [`orthogonal`], [`heads`] | the aligner and what sits on the student |
//! | [`loss`], [`objective`] | one loss per file, and the presets that weigh them |
//! | [`schedule`], [`learning_rate`], [`optimizer`], [`random`] | what a run does when, with which rate, update and random numbers |
//! | [`learner`], [`trainer`] | one step; the step loop |
//! | [`checkpoint`], [`run_log`] | what a run leaves behind |
//! | [`setup`] | everything that the runs of one configuration share |
//! | [`evaluate`], [`generation`], [`metrics`], [`statistics`] | predictions, written answers, scores, statistics over seeds |
//! | [`compare`] | the method beside its controls |
//! | [`device`], [`golden`] | CPU or GPU by name; expected losses from elsewhere |

// A training step never waits for its device: `clippy.toml` lists what does. Tests read as they like.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        clippy::float_cmp,
        reason = "a test fails by panicking"
    )
)]

pub mod aligner;
pub mod checkpoint;
pub mod cli;
pub mod cmd;
pub mod compare;
pub mod config;
pub mod data;
pub mod device;
pub mod dropout;
pub mod error;
pub mod evaluate;
pub mod generation;
mod generator;
pub mod golden;
mod gradients;
pub mod heads;
pub mod inference;
mod kernels;
pub mod learner;
pub mod learning_rate;
pub mod logging;
pub mod loss;
mod mapped;
pub mod measured;
pub mod metrics;
pub mod model;
pub mod objective;
pub mod optimizer;
pub mod orthogonal;
pub mod progress;
pub mod random;
pub mod run_log;
pub mod schedule;
pub mod setup;
pub mod statistics;
pub mod stop;
pub mod student;
pub mod trainer;
mod worker;

pub use config::Config;
pub use device::DeviceChoice;
pub use error::Error;
pub use setup::Setup;
