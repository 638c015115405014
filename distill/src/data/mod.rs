//! From a data set and a frozen cache to batches.
//!
//! Examples and teacher features are joined by [`ExampleId`](schemas::ExampleId). Nothing is ever filled in: a row that is missing, there
//! twice or unknown is counted, and refused unless the configuration says otherwise.

pub mod batch;
pub mod examples;
pub mod features;
pub mod feed;
pub mod join;
pub mod order;
mod prompt_error;
pub mod prompts;
pub mod response;

pub use batch::{Padding, token_batch};
pub use examples::{Corpus, Labels, RowEncoder, Rows, read_corpus};
pub use features::{FeatureTransform, TeacherFeatures};
pub use feed::{Feed, Shard, Step};
pub use join::{JoinError, JoinReport, TrainingData, check_manifest, join};
pub use order::{LENGTH_BUCKET, RowOrder};
pub use prompt_error::PromptError;
pub use prompts::{PromptEncoder, Writing};
pub use response::{HostResponses, tokens_per_row};
