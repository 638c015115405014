//! From a data set and a frozen cache to batches.
//!
//! Examples and teacher features are joined by [`ExampleId`](schemas::ExampleId). Nothing is ever filled in: a row that is missing, there
//! twice or unknown is counted, and refused unless the configuration says otherwise.

pub mod batch;
pub mod examples;
pub mod features;
pub mod join;

pub use batch::{Padding, token_batch};
pub use examples::{Corpus, Labels, Rows, read_corpus};
pub use features::{FeatureTransform, TeacherFeatures};
pub use join::{JoinError, JoinReport, TrainingData, check_manifest, join};
