//! The TOML configuration, parsed into validated types before anything is opened.
//!
//! Every key is described in `docs/harvest.md`; a test compares the two.

mod document;
mod error;

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use schemas::dataset::DatasetConfig;
use schemas::{FloatType, Split};
use serde::Deserialize;

use crate::secret::SecretName;
use crate::teacher::BaseUrl;

pub use error::ConfigError;

/// A configuration file: what to ask about, where the replies come from, where they go.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of the file; relative paths start there.
    pub base: PathBuf,
    /// `[dataset]`
    pub dataset: DatasetConfig,
    /// `[teacher]` and `[run]`, or `[import]`.
    pub source: Source,
    /// `[cache]`
    pub cache: CacheConfig,
}

/// Where the replies come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A teacher that is asked, and how.
    Teacher(TeacherConfig, RunConfig),
    /// Features that were made elsewhere.
    Import(ImportConfig),
}

/// `[teacher]`, by its `kind`.
#[derive(Clone, Debug)]
pub enum TeacherConfig {
    /// The built-in text-to-image teacher.
    Sketch(SketchConfig),
    /// An OpenAI-compatible embeddings endpoint.
    Embeddings(EmbeddingsConfig),
}

impl TeacherConfig {
    /// The prompt template, where one is configured.
    pub fn prompt(&self) -> Option<&str> {
        match self {
            Self::Sketch(config) => config.prompt.as_deref(),
            Self::Embeddings(config) => config.prompt.as_deref(),
        }
    }
}

/// `kind` of `[teacher]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeacherKind {
    /// See [`SketchConfig`].
    Sketch,
    /// See [`EmbeddingsConfig`].
    Embeddings,
}

/// `[teacher]` with `kind = "sketch"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SketchConfig {
    /// Always [`TeacherKind::Sketch`].
    pub kind: TeacherKind,
    /// Template of the text that is drawn; left out, the task's own.
    pub prompt: Option<String>,
    /// Whether the picture is kept as PNG besides the feature.
    #[serde(default)]
    pub image: bool,
}

/// `[teacher]` with `kind = "embeddings"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingsConfig {
    /// Always [`TeacherKind::Embeddings`].
    pub kind: TeacherKind,
    /// Template of the text that is embedded; left out, the task's own.
    pub prompt: Option<String>,
    /// Base address, up to and including the version: `https://api.openai.com/v1`.
    pub url: BaseUrl,
    /// Model by the server's name for it.
    pub model: String,
    /// Environment variable that holds the key; left out, none is sent.
    pub api_key_env: Option<SecretName>,
    /// How the server is asked to write vectors.
    #[serde(default)]
    pub encoding: Encoding,
    /// Width to ask for, of models that offer several.
    pub dimensions: Option<NonZeroU32>,
    /// Seconds after which a request counts as lost.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: NonZeroU64,
}

/// How a server writes vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// JSON numbers.
    #[default]
    Float,
    /// Little-endian f32 in base64: a quarter of the bytes.
    Base64,
}

/// `[cache]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// The folder.
    pub path: PathBuf,
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
    /// Replies kept for each example.
    #[serde(default = "default_draws")]
    pub draws: NonZeroU32,
    /// Requests sent for one row before it counts as failed.
    #[serde(default = "default_max_tries")]
    pub max_tries: NonZeroU32,
    /// Splits to ask about; left out, all.
    pub splits: Option<Vec<Split>>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            concurrency: default_concurrency(),
            draws: default_draws(),
            max_tries: default_max_tries(),
            splits: None,
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

fn default_rows_per_shard() -> NonZeroUsize {
    const { NonZeroUsize::new(10_000).expect("not zero") }
}

fn default_concurrency() -> NonZeroUsize {
    const { NonZeroUsize::new(8).expect("not zero") }
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

    /// Folder of the cache.
    pub fn cache_folder(&self) -> PathBuf {
        self.base.join(&self.cache.path)
    }

    /// Splits to use; `None` for all.
    pub fn splits(&self) -> Option<&[Split]> {
        match &self.source {
            Source::Teacher(_, run) => run.splits.as_deref(),
            Source::Import(import) => import.splits(),
        }
    }

    /// Replies kept for each example.
    pub fn draws(&self) -> u32 {
        match &self.source {
            Source::Teacher(_, run) => run.draws.get(),
            Source::Import(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests;
