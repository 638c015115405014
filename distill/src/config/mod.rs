//! The configuration of a run: TOML, unknown keys refused, checked before anything is opened.
//!
//! Relative paths start at the folder of the configuration file. `docs/distill.md` has every key.

mod compare;
mod error;
mod generation;
mod number;
mod student;
mod training;

pub use compare::{CompareConfig, Control};
pub use error::ConfigError;
pub use generation::GenerationConfig;
pub use number::{NotNegative, Positive, Share};
pub use student::{StudentConfig, StudentSource};
pub use training::{Batching, Schedule, TrainingConfig};

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use schemas::dataset::DatasetConfig;
use schemas::{Sha256Digest, Split};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::number::check_size;
use crate::data::join::{DuplicatePolicy, ExtraPolicy, MissingPolicy};
use crate::heads::AlignerConfig;
use crate::objective::ObjectiveConfig;

/// A whole configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// All randomness of `train` follows from it; `compare` has seeds of its own.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The data set.
    pub dataset: DatasetConfig,
    /// Which of its splits are used for what.
    #[serde(default)]
    pub splits: SplitNames,
    /// The teacher's cache.
    pub cache: CacheConfig,
    /// The student.
    pub student: StudentConfig,
    /// The aligner.
    #[serde(default)]
    pub aligner: AlignerConfig,
    /// The losses.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// Schedule and optimisers.
    #[serde(default)]
    pub training: TrainingConfig,
    /// How answers in text are written and weighed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<GenerationConfig>,
    /// Where results go.
    pub output: OutputConfig,
    /// What `compare` compares.
    #[serde(default)]
    pub compare: CompareConfig,
}

/// Largest width, length or number of rows of a step.
const MAX_WIDTH: usize = 65_536;
const MAX_TOKENS: usize = 1 << 24;
const MAX_LAYERS: usize = 1_024;
const MAX_EPOCHS: usize = 100_000;

impl RunConfig {
    fn check_sizes(&self) -> Result<(), String> {
        let count = |size: Option<NonZeroUsize>| size.map_or(0, NonZeroUsize::get);
        let (aligner, training) = (&self.aligner, &self.training);
        check_size("aligner.hidden", count(aligner.hidden), MAX_WIDTH)?;
        check_size("aligner.projection", count(aligner.projection), MAX_WIDTH)?;
        check_size("training.epochs", training.epochs.get(), MAX_EPOCHS)?;
        if let Schedule::PretrainFreeze { aligner_epochs } = training.schedule {
            check_size("training.aligner_epochs", aligner_epochs.get(), MAX_EPOCHS)?;
        }
        let max_length = self.student.max_length.get();
        match training.batching {
            Batching::Rows(rows) => check_size("training.batch_size", rows.get(), MAX_WIDTH)?,
            Batching::Tokens(budget) => {
                check_size("training.tokens_per_batch", budget.get(), MAX_TOKENS)?;
                if budget.get() < max_length {
                    return Err(format!(
                        "`training.tokens_per_batch` is {budget}, and a row may have `student.max_length` = {max_length} tokens"
                    ));
                }
            }
        }
        check_size("student.max_length", max_length, MAX_WIDTH)?;
        if let Some(generation) = &self.generation {
            for (key, value) in [
                ("generation.max_new_tokens", generation.max_new_tokens),
                ("generation.batch_size", generation.batch_size),
            ] {
                check_size(key, value.get(), MAX_WIDTH)?;
            }
        }
        let rank = self.student.lora.as_ref().map(|lora| lora.rank);
        check_size("student.lora.rank", count(rank), MAX_WIDTH)?;
        let StudentSource::Fresh { sizes, .. } = &self.student.source else {
            return Ok(());
        };
        for (key, value, most) in [
            ("hidden_size", sizes.hidden_size, MAX_WIDTH),
            ("num_layers", sizes.num_layers, MAX_LAYERS),
            ("intermediate_size", sizes.intermediate_size, MAX_WIDTH),
            ("max_positions", sizes.max_positions, MAX_WIDTH),
        ] {
            check_size(&format!("student.fresh.{key}"), value, most)?;
        }
        Ok(())
    }
}

fn default_seed() -> u64 {
    1
}

/// The splits of a run by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitNames {
    /// Learned from.
    pub train: Split,
    /// Chooses the checkpoint.
    pub validation: Split,
    /// Read once, at the end; under its default name it may be absent from the data set.
    pub test: Split,
}

impl SplitNames {
    fn check(&self) -> Result<(), String> {
        let names = [
            ("train", &self.train),
            ("validation", &self.validation),
            ("test", &self.test),
        ];
        for (index, (key, name)) in names.iter().enumerate() {
            if let Some((other, _)) = names[..index].iter().find(|(_, other)| other == name) {
                return Err(format!(
                    "`splits.{other}` and `splits.{key}` are both `{name}`"
                ));
            }
        }
        Ok(())
    }
}

impl Default for SplitNames {
    fn default() -> Self {
        Self {
            train: Split::train(),
            validation: Split::validation(),
            test: Split::test(),
        }
    }
}

/// The cache, and what to do where it and the data set do not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Its folder.
    pub path: PathBuf,
    /// The digest that `harvest freeze` printed; may come from the command line instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Sha256Digest>,
    /// The vector signal that the aligner reads.
    #[serde(default = "default_signal")]
    pub signal: String,
    /// Which of the teacher's answers about an example, from 0.
    #[serde(default)]
    pub draw: u32,
    /// Training examples without a feature.
    #[serde(default)]
    pub missing: MissingPolicy,
    /// Examples or cache rows that are there twice.
    #[serde(default)]
    pub duplicate: DuplicatePolicy,
    /// Cache rows of no example.
    #[serde(default)]
    pub extra: ExtraPolicy,
}

fn default_signal() -> String {
    "feature".to_owned()
}

/// Where results go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputConfig {
    /// The folder.
    pub path: PathBuf,
    /// Steps between two checkpoints within an epoch; one is written after every epoch anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every_steps: Option<NonZeroU64>,
    /// Steps between two lines of the log. Losses and norms of the steps between stay on the device.
    #[serde(default = "every_step")]
    pub log_every_steps: NonZeroU64,
}

fn every_step() -> NonZeroU64 {
    NonZeroU64::MIN
}

/// A configuration with the folder that its relative paths start at.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the file says.
    pub run: RunConfig,
    base: PathBuf,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is refused.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let base = path.parent().map(Path::to_owned).unwrap_or_default();
        Self::parse(&text, base).map_err(|message| ConfigError::Refused {
            path: path.to_owned(),
            message,
        })
    }

    /// Checks the text of a configuration whose relative paths start at `base`.
    ///
    /// # Errors
    /// What is refused, with its place.
    pub fn parse(text: &str, base: PathBuf) -> Result<Self, String> {
        let run: RunConfig =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        run.splits.check()?;
        run.compare.check()?;
        run.check_sizes()?;
        Ok(Self { run, base })
    }

    /// The folder of the configuration file.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// A path of the configuration from where this process stands.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// The output folder.
    pub fn output(&self) -> PathBuf {
        self.resolve(&self.run.output.path)
    }

    /// The cache's folder.
    pub fn cache(&self) -> PathBuf {
        self.resolve(&self.run.cache.path)
    }

    /// The digest to open the cache by: from the command line, else from the file.
    ///
    /// # Errors
    /// [`ConfigError::NoCacheDigest`]: a run names what it learns from.
    pub fn cache_digest(&self, given: Option<Sha256Digest>) -> Result<Sha256Digest, ConfigError> {
        given
            .or(self.run.cache.digest)
            .ok_or_else(|| ConfigError::NoCacheDigest {
                cache: self.cache(),
            })
    }

    /// Everything that decides what a run computes, apart from its seed: without the places of data set, cache and
    /// output, whose contents are named by digests, and without what only `compare` reads.
    pub fn identity(&self) -> Value {
        let mut value = serde_json::to_value(&self.run).expect("a configuration is plain data");
        let fields = value.as_object_mut().expect("a configuration is a table");
        for section in ["seed", "dataset", "output", "compare"] {
            fields.remove(section);
        }
        for key in ["path", "digest"] {
            value["cache"]
                .as_object_mut()
                .expect("the cache is a table")
                .remove(key);
        }
        value
    }
}

/// Keys at which two configurations differ, as `training.epochs`, with both values.
pub fn differences(one: &Value, other: &Value) -> Vec<(String, Value, Value)> {
    fn walk(prefix: &str, one: &Value, other: &Value, found: &mut Vec<(String, Value, Value)>) {
        if one == other {
            return;
        }
        let (Value::Object(first), Value::Object(second)) = (one, other) else {
            found.push((prefix.to_owned(), one.clone(), other.clone()));
            return;
        };
        let keys: std::collections::BTreeSet<&String> = first.keys().chain(second.keys()).collect();
        for key in keys {
            let name = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            let get =
                |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
            walk(&name, &get(first), &get(second), found);
        }
    }
    let mut found = Vec::new();
    walk("", one, other, &mut found);
    found
}

#[cfg(test)]
mod tests;
