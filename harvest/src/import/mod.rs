//! Features that were made elsewhere: `.npy` files and Parquet.
//!
//! Whether every example has a feature is known before the first one is written; none is ever filled in.

mod npy;
mod npy_folder;
mod parquet;
mod sink;

use std::path::Path;

use crate::cache::Cache;
use crate::config::{Config, ImportConfig};
use crate::error::Error;
use crate::plan::{NUM_LISTED, Plan};

use sink::Sink;

/// What an import did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ImportSummary {
    /// Different examples of the chosen splits.
    pub num_examples: u64,
    /// Examples that the cache had before.
    pub num_known: u64,
    /// Examples whose feature was written.
    pub num_imported: u64,
    /// Features that belong to no example.
    pub num_extra: u64,
}

/// Imports what `source` names into `cache`.
///
/// # Errors
/// [`Error::MissingFeatures`], before anything is written; [`Error::BadFeature`]; [`Error::DifferentSource`] where the
/// cache came from elsewhere.
pub fn run(
    config: &Config,
    source: &ImportConfig,
    plan: &Plan,
    mut cache: Cache,
) -> Result<ImportSummary, Error> {
    let replays = cache.replay()?;
    cache.recover(replays)?;
    match source {
        ImportConfig::Npy(npy) => {
            let settings = serde_json::json!({"source": "npy"});
            let sink = Sink::new(cache, plan, &config.cache, &npy.model, settings)?;
            npy_folder::import(&config.base.join(&npy.path), npy, plan, sink)
        }
        ImportConfig::Parquet(table) => {
            let settings =
                serde_json::json!({"source": "parquet", "feature_column": table.feature_column});
            let sink = Sink::new(cache, plan, &config.cache, &table.model, settings)?;
            parquet::import(&config.base.join(&table.path), table, plan, sink)
        }
    }
}

/// Collects examples without a feature, of which there may be very many.
#[derive(Default)]
struct Missing {
    num: u64,
    first: Vec<String>,
}

impl Missing {
    /// Adds `num` examples that share the feature `name`.
    fn add(&mut self, num: u64, name: impl FnOnce() -> String) {
        self.num += num;
        if self.first.len() < NUM_LISTED {
            self.first.push(name());
        }
    }

    fn refuse(self, path: &Path, num_examples: u64) -> Result<(), Error> {
        if self.num == 0 {
            return Ok(());
        }
        Err(Error::MissingFeatures {
            path: path.to_owned(),
            num_missing: self.num,
            num_examples,
            first: self.first,
        })
    }
}

/// Reads an array of NumPy.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_npy(data: &[u8]) {
    if let Ok(values) = npy::parse(data) {
        assert!(values.len() <= data.len() / 2);
    }
}
