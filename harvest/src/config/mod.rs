//! The TOML configuration, parsed into validated types before anything is opened.
//!
//! Every key is described in `docs/harvest.md`; a test compares the two.

mod document;
mod error;

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::dataset::DatasetConfig;
use schemas::{FloatType, Split};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::secret::SecretName;
use crate::teacher::{BaseUrl, TeacherKind};

pub use document::Section;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use document::parse;
pub use error::ConfigError;

/// A configuration file: what to ask about, where the replies come from, where they go.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of the file; relative paths start there.
    pub base: PathBuf,
    /// `[dataset]`
    pub dataset: DatasetConfig,
    /// `[teacher]` or `[teachers.<name>]`, and `[run]`; or `[import]`.
    pub source: Source,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[budget]`
    pub budget: BudgetConfig,
}

/// Where the replies come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Teachers that are asked, at least one, and how.
    Teachers(Vec<TeacherEntry>, RunConfig),
    /// Features that were made elsewhere.
    Import(ImportConfig),
}

/// One configured teacher.
#[derive(Clone, Debug)]
pub struct TeacherEntry {
    /// Its name where there are several; the names of its signals start with it.
    pub name: Option<String>,
    /// What every teacher has.
    pub common: CommonConfig,
    /// What its kind has.
    pub kind: Arc<dyn TeacherKind>,
}

impl TeacherEntry {
    /// This entry and the one that it hands pictures on to, each with the name of its section.
    pub fn sections(&self) -> impl Iterator<Item = (String, &Self)> {
        let own = match &self.name {
            None => "teacher".to_owned(),
            Some(name) => format!("teachers.{name}"),
        };
        let encoder = self.kind.encoder_entry();
        let encoder = encoder.map(|entry| (format!("{own}.encoder"), entry));
        [(own, self)].into_iter().chain(encoder)
    }
}

/// What every `[teacher]` may have, whatever its kind.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommonConfig {
    /// The kind, by name.
    pub kind: String,
    /// Template of the prompt; left out, the task's own.
    pub prompt: Option<String>,
    /// Field of the data set that holds the path or the address of a picture.
    pub image_field: Option<String>,
    /// Hosts that pictures may be fetched from; without any, only files of the data set's folder are read.
    #[serde(default)]
    pub image_hosts: Vec<String>,
    /// Whether a picture may be given as a data URI in place of its name; no key, but what a teacher sets that hands
    /// pictures on to another.
    #[serde(skip)]
    pub inline_images: bool,
    /// What replies cost; left out, nobody knows.
    pub price: Option<PriceConfig>,
    /// Licence of the teacher's replies, for the manifest and the card.
    pub license: Option<String>,
    /// Terms under which the replies may be used, in words or as an address.
    pub terms: Option<String>,
}

impl CommonConfig {
    /// The keys, for [`Section::part`].
    pub const KEYS: [&'static str; 7] = [
        "kind",
        "prompt",
        "image_field",
        "image_hosts",
        "price",
        "license",
        "terms",
    ];
}

/// `price` of a teacher, in any one currency.
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceConfig {
    /// Of a million tokens of prompts.
    #[serde(default, deserialize_with = "amount")]
    pub input_per_million: f64,
    /// Of a million tokens of replies.
    #[serde(default, deserialize_with = "amount")]
    pub output_per_million: f64,
    /// Of each request.
    #[serde(default, deserialize_with = "amount")]
    pub per_request: f64,
}

/// What every teacher that is asked over HTTP has.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Base address, up to and including the version: `https://api.openai.com/v1`.
    pub url: BaseUrl,
    /// Model by the server's name for it.
    pub model: String,
    /// Environment variable that holds the key; left out, none is sent.
    pub api_key_env: Option<SecretName>,
    /// Further headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Further headers whose values are secrets: the environment variable of each.
    #[serde(default)]
    pub secret_headers: BTreeMap<String, SecretName>,
    /// Seconds after which a request counts as lost.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: NonZeroU64,
    /// Largest reply that is read, in MiB.
    #[serde(default = "default_max_reply_mib")]
    pub max_reply_mib: NonZeroU32,
}

impl ServerConfig {
    /// The keys, for [`Section::part`].
    pub const KEYS: [&'static str; 7] = [
        "url",
        "model",
        "api_key_env",
        "headers",
        "secret_headers",
        "timeout_seconds",
        "max_reply_mib",
    ];
}

/// `[budget]`: what a cache may take, over all its runs; no limit where a key is left out.
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetConfig {
    /// Requests sent, repeated ones included.
    pub requests: Option<u64>,
    /// Tokens of prompts and replies.
    pub tokens: Option<u64>,
    /// Money, in the currency of `price`.
    #[serde(default, deserialize_with = "some_amount")]
    pub cost: Option<f64>,
}

/// An amount of money: finite and not negative.
fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let amount = f64::deserialize(deserializer)?;
    if amount.is_finite() && amount >= 0.0 {
        return Ok(amount);
    }
    Err(D::Error::custom(
        "expected an amount that is finite and not negative",
    ))
}

fn some_amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    amount(deserializer).map(Some)
}

/// A number from 1 to `MOST`.
fn up_to<'de, D: Deserializer<'de>, const MOST: u32>(
    deserializer: D,
) -> Result<NonZeroU32, D::Error> {
    let number = NonZeroU32::deserialize(deserializer)?;
    if number.get() <= MOST {
        return Ok(number);
    }
    Err(D::Error::custom(format!(
        "expected a number from 1 to {MOST}"
    )))
}

/// A share above 0 and up to 1.
fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let share = f64::deserialize(deserializer)?;
    if share > 0.0 && share <= 1.0 {
        return Ok(share);
    }
    Err(D::Error::custom("expected a share above 0 and up to 1"))
}

/// `[cache]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// The folder, or an address such as `s3://bucket/prefix`.
    pub path: String,
    /// Local folder of the journal and the lock; left out, the cache's own, or one beside the configuration.
    pub work: Option<PathBuf>,
    /// Stored element type of vectors.
    #[serde(default)]
    pub dtype: FloatType,
    /// Rows of a full shard; up to twice as many are held in memory.
    #[serde(default = "default_rows_per_shard")]
    pub rows_per_shard: NonZeroUsize,
}

/// `[run]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Requests in flight.
    #[serde(default = "default_concurrency")]
    pub concurrency: NonZeroUsize,
    /// Replies kept for each example, up to 10,000.
    #[serde(default = "default_draws", deserialize_with = "up_to::<_, 10_000>")]
    pub draws: NonZeroU32,
    /// Requests sent for one row before it counts as failed, up to 1,000.
    #[serde(default = "default_max_tries", deserialize_with = "up_to::<_, 1_000>")]
    pub max_tries: NonZeroU32,
    /// Splits to ask about; left out, all.
    pub splits: Option<Vec<Split>>,
    /// Share of failed rows, in (0, 1], above which a run stops; counted from the hundredth settled row on.
    #[serde(default = "default_max_failure_share", deserialize_with = "share")]
    pub max_failure_share: f64,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            concurrency: default_concurrency(),
            draws: default_draws(),
            max_tries: default_max_tries(),
            splits: None,
            max_failure_share: default_max_failure_share(),
        }
    }
}

/// `kind` of `[import]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImportKind {
    /// See [`NpyConfig`].
    Npy,
    /// See [`ParquetConfig`].
    Parquet,
}

/// `[import]`, by its `kind`.
#[derive(Clone, Debug)]
pub enum ImportConfig {
    /// A folder of `.npy` files.
    Npy(NpyConfig),
    /// Parquet with an id column.
    Parquet(ParquetConfig),
}

impl ImportConfig {
    /// Splits whose examples must have a feature; `None` for all.
    pub fn splits(&self) -> Option<&[Split]> {
        match self {
            Self::Npy(config) => config.splits.as_deref(),
            Self::Parquet(config) => config.splits.as_deref(),
        }
    }
}

/// `[import]` with `kind = "npy"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NpyConfig {
    /// Always [`ImportKind::Npy`].
    pub kind: ImportKind,
    /// The folder.
    pub path: PathBuf,
    /// The model that made the features, as it shall stand in the manifest.
    pub model: String,
    /// Where a row's file lies inside the folder: `{split}` is the split's name, `{index}` the row's index in it,
    /// from 0.
    #[serde(default = "default_pattern")]
    pub pattern: FilePattern,
    /// Splits whose examples must have a feature; left out, all.
    pub splits: Option<Vec<Split>>,
}

/// `[import]` with `kind = "parquet"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParquetConfig {
    /// Always [`ImportKind::Parquet`].
    pub kind: ImportKind,
    /// The file.
    pub path: PathBuf,
    /// The model that made the features, as it shall stand in the manifest.
    pub model: String,
    /// Column that says whose feature a row is.
    #[serde(default = "default_id_column")]
    pub id_column: String,
    /// Field of the data set whose value the id column holds; left out, it holds example ids.
    pub id_field: Option<String>,
    /// Column of lists of floats.
    #[serde(default = "default_feature_column")]
    pub feature_column: String,
    /// Splits whose examples must have a feature; left out, all.
    pub splits: Option<Vec<Split>>,
}

/// Where the file of a row lies.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct FilePattern(String);

impl TryFrom<String> for FilePattern {
    type Error = &'static str;

    fn try_from(pattern: String) -> Result<Self, Self::Error> {
        if !pattern.contains("{index}") {
            return Err("the pattern lacks `{index}`, so that every row would have the same file");
        }
        let inside = |part| matches!(part, std::path::Component::Normal(_));
        if !Path::new(&pattern).components().all(inside) {
            return Err("the pattern leads out of the folder");
        }
        Ok(Self(pattern))
    }
}

impl FilePattern {
    /// The path of a row's file, relative to the folder.
    pub fn file(&self, split: &Split, index: usize) -> PathBuf {
        self.0
            .replace("{split}", split.as_str())
            .replace("{index}", &index.to_string())
            .into()
    }
}

fn default_timeout_seconds() -> NonZeroU64 {
    const { NonZeroU64::new(60).expect("not zero") }
}

fn default_max_reply_mib() -> NonZeroU32 {
    const { NonZeroU32::new(64).expect("not zero") }
}

fn default_rows_per_shard() -> NonZeroUsize {
    const { NonZeroUsize::new(10_000).expect("not zero") }
}

fn default_concurrency() -> NonZeroUsize {
    const { NonZeroUsize::new(8).expect("not zero") }
}

fn default_max_failure_share() -> f64 {
    0.1
}

fn default_draws() -> NonZeroU32 {
    const { NonZeroU32::new(1).expect("not zero") }
}

fn default_max_tries() -> NonZeroU32 {
    const { NonZeroU32::new(5).expect("not zero") }
}

fn default_pattern() -> FilePattern {
    FilePattern("{split}/{index}.npy".to_owned())
}

fn default_id_column() -> String {
    "example_id".to_owned()
}

fn default_feature_column() -> String {
    "feature".to_owned()
}

impl Config {
    /// Reads and checks the configuration at `path`; opens nothing else.
    ///
    /// # Errors
    /// [`ConfigError`], which names file, line and key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        document::read(path)
    }

    /// Splits to use; `None` for all.
    pub fn splits(&self) -> Option<&[Split]> {
        match &self.source {
            Source::Teachers(_, run) => run.splits.as_deref(),
            Source::Import(import) => import.splits(),
        }
    }

    /// Replies kept for each example.
    pub fn draws(&self) -> u32 {
        match &self.source {
            Source::Teachers(_, run) => run.draws.get(),
            Source::Import(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests;
