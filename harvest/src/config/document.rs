//! From TOML text to [`Config`], with refusals that name line and key.

use std::ops::Range;
use std::path::Path;

use schemas::dataset::DatasetConfig;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{
    CacheConfig, Config, ConfigError, EmbeddingsConfig, ImportConfig, ImportKind, NpyConfig,
    ParquetConfig, RunConfig, SketchConfig, Source, TeacherConfig, TeacherKind,
};

/// First reading: only what decides the types of the second, which knows every key and where it stands.
#[derive(Deserialize)]
struct Outline {
    teacher: Option<Kind<TeacherKind>>,
    import: Option<Kind<ImportKind>>,
}

#[derive(Deserialize)]
struct Kind<K> {
    kind: K,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RunDocument<T> {
    dataset: DatasetConfig,
    teacher: T,
    cache: CacheConfig,
    #[serde(default)]
    run: RunConfig,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportDocument<I> {
    dataset: DatasetConfig,
    import: I,
    cache: CacheConfig,
}

/// A configuration file's path and text.
struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

pub(super) fn read(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    Document { path, text: &text }.parse()
}

impl Document<'_> {
    fn parse(&self) -> Result<Config, ConfigError> {
        let outline: Outline = self.deserialize()?;
        match (outline.teacher, outline.import) {
            (Some(teacher), None) => match teacher.kind {
                TeacherKind::Sketch => self.run::<SketchConfig>(TeacherConfig::Sketch),
                TeacherKind::Embeddings => self.run::<EmbeddingsConfig>(TeacherConfig::Embeddings),
            },
            (None, Some(import)) => match import.kind {
                ImportKind::Npy => self.import::<NpyConfig>(ImportConfig::Npy),
                ImportKind::Parquet => self.import::<ParquetConfig>(ImportConfig::Parquet),
            },
            (Some(_), Some(_)) => Err(self.refuse(
                None,
                "it has both [teacher] and [import]; one cache has one source",
            )),
            (None, None) => Err(self.refuse(None, "it has neither [teacher] nor [import]")),
        }
    }

    fn run<T: DeserializeOwned>(
        &self,
        wrap: fn(T) -> TeacherConfig,
    ) -> Result<Config, ConfigError> {
        let document: RunDocument<T> = self.deserialize()?;
        let source = Source::Teacher(wrap(document.teacher), document.run);
        Ok(self.config(document.dataset, source, document.cache))
    }

    fn import<I: DeserializeOwned>(
        &self,
        wrap: fn(I) -> ImportConfig,
    ) -> Result<Config, ConfigError> {
        let document: ImportDocument<I> = self.deserialize()?;
        Ok(self.config(
            document.dataset,
            Source::Import(wrap(document.import)),
            document.cache,
        ))
    }

    fn config(&self, dataset: DatasetConfig, source: Source, cache: CacheConfig) -> Config {
        let base = self.path.parent().unwrap_or(Path::new("")).to_owned();
        Config {
            base,
            dataset,
            source,
            cache,
        }
    }

    fn deserialize<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(self.text)
            .map_err(|error| self.refuse(error.span(), &without_value(error.message())))
    }

    fn refuse(&self, span: Option<Range<usize>>, problem: &str) -> ConfigError {
        let at = span.map_or(0, |span| span.start);
        let before = &self.text[..at.min(self.text.len())];
        let line = before.matches('\n').count();
        ConfigError::Refused {
            path: self.path.to_owned(),
            line: line + 1,
            key: self.key(line),
            problem: problem.lines().collect::<Vec<_>>().join("; "),
        }
    }

    /// The key on a line, counted from 0, with its section; `None` where the line assigns nothing.
    fn key(&self, line: usize) -> Option<String> {
        let lines: Vec<&str> = self.text.lines().take(line + 1).collect();
        let section = |line: &&str| -> Option<String> {
            let name = line.trim().strip_prefix('[')?.split(']').next()?;
            Some(name.trim_matches('[').trim().to_owned())
        };
        let (last, earlier) = lines.split_last()?;
        if let Some(section) = section(last) {
            return Some(section);
        }
        let (key, _) = last.split_once('=')?;
        let key = key.trim();
        Some(match earlier.iter().rev().find_map(section) {
            Some(section) => format!("{section}.{key}"),
            None => key.to_owned(),
        })
    }
}

/// Serde repeats a value that it refuses; it could be a secret in the wrong place.
fn without_value(message: &str) -> String {
    for start in ["invalid type", "invalid value", "unknown variant"] {
        if message.starts_with(start)
            && let Some((_, expected)) = message.rsplit_once(", expected ")
        {
            return format!("{start}, expected {expected}");
        }
    }
    message.to_owned()
}
