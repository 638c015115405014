//! The contract between the two stages of Armada: examples, tasks, teacher records, shards and the manifest.
//!
//! `harvest` writes what this crate describes and `distill` reads it; neither knows the other. There is no
//! asynchronous code and no tensor in here.
//!
//! | module | what lives there |
//! |---|---|
//! | [`example`] | one row of a data set and its content-derived [`ExampleId`] |
//! | [`task`] | what a row means: fields, label, metric, template |
//! | [`dataset`] | readers for JSONL, TSV/CSV, Parquet and the published GLUE and SuperGLUE layouts |
//! | [`signal`] | what a teacher can give: features, logits, token log-probabilities, text, images |
//! | [`record`] | one reply of a teacher about one example |
//! | [`columns`] | the one place that maps records to Arrow columns and back |
//! | [`parquet_file`] | the one place that reads Parquet: a damaged file is an error, never a panic |
//! | [`shard`] | Parquet shards: atomic writer, verifying reader |
//! | [`source`] | where a shard's bytes come from: a file or anything that is read at an offset |
//! | [`manifest`] | the description of a cache and the digest over all of it |
//! | [`notes`] | licences, terms and the digest of the prompt, for whoever is handed a cache |
//! | [`error`] | typed errors with a hint on what to do next |

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        reason = "a test fails by panicking"
    )
)]

mod choices;
pub mod columns;
pub mod dataset;
pub mod digest;
pub mod error;
pub mod example;
pub mod manifest;
pub mod notes;
pub mod parquet_file;
pub mod record;
pub mod shard;
pub mod signal;
pub mod source;
pub mod task;
mod template;
mod top_k;
mod vectors;

pub use digest::Sha256Digest;
pub use error::Error;
pub use example::{Example, ExampleId, Label, Split};
pub use manifest::{CacheState, DatasetIdentity, Manifest, ShardEntry, TeacherIdentity};
pub use notes::{Notes, Rights, TeacherNotes};
pub use record::{Provenance, SignalValue, TeacherRecord};
pub use shard::{ShardReader, ShardWriter};
pub use signal::{FloatType, SignalKind, SignalSpec};
pub use source::{ReadAt, ShardSource};
pub use task::{LabelKind, Metric, Task};

/// Version of the shard and manifest formats that this build writes and reads.
///
/// There has been no other version yet; a file that carries another one is refused by name.
pub const FORMAT_VERSION: u32 = 1;
