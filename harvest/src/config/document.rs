//! From TOML text to [`Config`], with refusals that name line and key.

use std::ops::Range;
use std::path::Path;

use schemas::dataset::DatasetConfig;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::{
    BudgetConfig, CacheConfig, Config, ConfigError, ImportConfig, NpyConfig, ParquetConfig,
    RunConfig, Source, TeacherEntry,
};
use crate::teacher::kinds;

/// A configuration file's path and text.
#[derive(Clone, Copy, Debug)]
struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

/// A table of a configuration that is taken apart key by key; every refusal knows its line.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    document: Document<'a>,
    name: String,
    span: Range<usize>,
    table: DeTable<'a>,
    /// Keys that were looked for already.
    taken: Vec<&'static str>,
}

pub(super) fn read(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

pub(crate) fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let document = Document { path, text };
    let table = DeTable::parse(text)
        .map_err(|error| document.refuse(error.span(), &without_value(error.message())))?;
    let mut root = Section {
        document,
        name: String::new(),
        span: 0..0,
        table: table.into_inner(),
        taken: Vec::new(),
    };
    let source = source(&mut root)?;
    let dataset: DatasetConfig = root.needed("dataset")?.rest()?;
    let cache: CacheConfig = root.needed("cache")?.rest()?;
    let budget = match (root.section("budget")?, &source) {
        (None, _) => BudgetConfig::default(),
        (Some(section), Source::Teachers(teachers, _)) => budget(section, teachers)?,
        (Some(section), Source::Import(_)) => {
            return Err(section.refuse("an import spends nothing"));
        }
    };
    root.end()?;
    Ok(Config {
        base: path.parent().unwrap_or(Path::new("")).to_owned(),
        dataset,
        source,
        cache,
        budget,
    })
}

fn source(root: &mut Section<'_>) -> Result<Source, ConfigError> {
    let sections = (
        root.section("teacher")?,
        root.section("teachers")?,
        root.section("import")?,
    );
    let teachers = match sections {
        (Some(teacher), None, None) => vec![kinds::read(None, teacher)?],
        (None, Some(teachers), None) => several(teachers)?,
        (None, None, Some(import)) => return Ok(Source::Import(import_of(import)?)),
        (None, None, None) => {
            return Err(root.refuse("it has none of [teacher], [teachers] and [import]"));
        }
        _ => {
            return Err(root.refuse(
                "it has more than one of [teacher], [teachers] and [import]; one cache has one source",
            ));
        }
    };
    let run: RunConfig = match root.section("run")? {
        Some(section) => section.rest()?,
        None => RunConfig::default(),
    };
    Ok(Source::Teachers(teachers, run))
}

/// `[budget]`. A limit of money holds for what has a price, so every server must have one.
fn budget(section: Section<'_>, teachers: &[TeacherEntry]) -> Result<BudgetConfig, ConfigError> {
    let whole = section.clone();
    let budget: BudgetConfig = section.rest()?;
    let mut sections = teachers.iter().flat_map(TeacherEntry::sections);
    let is_unpriced = |entry: &TeacherEntry| {
        kinds::asks_a_server(&entry.common.kind) && entry.common.price.is_none()
    };
    match sections.find(|(_, entry)| is_unpriced(entry)) {
        Some((name, _)) if budget.cost.is_some() => Err(whole.refuse_key(
            "cost",
            &format!(
                "[{name}] has no price, so that nothing limits what it costs: set its `price` \
                 (`price = {{ per_request = 0.0 }}` where it is free), or leave `budget.cost` out"
            ),
        )),
        _ => Ok(budget),
    }
}

/// `[teachers.<name>]`, in the order of their names.
fn several(teachers: Section<'_>) -> Result<Vec<TeacherEntry>, ConfigError> {
    let names: Vec<String> = teachers.table.keys().map(ToString::to_string).collect();
    let mut teachers = teachers;
    let mut entries = Vec::new();
    for name in names {
        let section = teachers.needed(&name)?;
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || !name.chars().all(valid) {
            return Err(section.refuse(
                "a teacher's name is lower-case letters, digits and `_`, since its columns carry it",
            ));
        }
        entries.push(kinds::read(Some(name), section)?);
    }
    if entries.is_empty() {
        return Err(teachers.refuse("it names no teacher"));
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn import_of(section: Section<'_>) -> Result<ImportConfig, ConfigError> {
    match section.kind()?.as_str() {
        "npy" => Ok(ImportConfig::Npy(section.rest::<NpyConfig>()?)),
        "parquet" => Ok(ImportConfig::Parquet(section.rest::<ParquetConfig>()?)),
        _ => Err(section.refuse_key("kind", "invalid value, expected `npy` or `parquet`")),
    }
}

impl Document<'_> {
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
            Some(
                bare(name.trim_matches('[').trim())
                    .unwrap_or("...")
                    .to_owned(),
            )
        };
        let (last, earlier) = lines.split_last()?;
        if let Some(section) = section(last) {
            return Some(section);
        }
        let (key, _) = last.split_once('=')?;
        let key = bare(key.trim())?;
        Some(match earlier.iter().rev().find_map(section) {
            Some(section) => format!("{section}.{key}"),
            None => key.to_owned(),
        })
    }
}

impl<'a> Section<'a> {
    /// The table under `key`, taken out; `None` where there is none.
    ///
    /// # Errors
    /// [`ConfigError::Refused`] where it is no table.
    pub fn section(&mut self, key: &str) -> Result<Option<Section<'a>>, ConfigError> {
        let Some((written, value)) = self.take(key) else {
            return Ok(None);
        };
        let span = written.span();
        match value.into_inner() {
            DeValue::Table(table) => Ok(Some(Section {
                document: self.document,
                name: self.path_of(key),
                span,
                table,
                taken: Vec::new(),
            })),
            _ => Err(self
                .document
                .refuse(Some(span), "invalid type, expected a table")),
        }
    }

    fn needed(&mut self, key: &str) -> Result<Section<'a>, ConfigError> {
        self.section(key)?
            .ok_or_else(|| self.refuse(&format!("the section [{}] is missing", self.path_of(key))))
    }

    /// The text under `kind`, which stays.
    ///
    /// # Errors
    /// [`ConfigError::Refused`] where there is none.
    pub fn kind(&self) -> Result<String, ConfigError> {
        let entry = self
            .table
            .iter()
            .find(|(key, _)| key.get_ref().as_ref() == "kind");
        match entry {
            None => Err(self.refuse("missing field `kind`")),
            Some((_, value)) => match value.get_ref().as_str() {
                Some(kind) => Ok(kind.to_owned()),
                None => Err(self.refuse_key("kind", "invalid type, expected a string")),
            },
        }
    }

    /// Reads the keys in `keys` as a `T` and takes them out.
    ///
    /// # Errors
    /// [`ConfigError::Refused`].
    pub fn part<T: DeserializeOwned>(&mut self, keys: &[&'static str]) -> Result<T, ConfigError> {
        let mut table = DeTable::new();
        for key in keys {
            if let Some((written, value)) = self.take(key) {
                table.insert(written, value);
            }
        }
        let part = self.deserialize(table)?;
        self.taken.extend(keys);
        Ok(part)
    }

    /// Reads what is left as a `T`.
    ///
    /// # Errors
    /// [`ConfigError::Refused`].
    pub fn rest<T: DeserializeOwned>(self) -> Result<T, ConfigError> {
        let table = self.table.clone();
        self.deserialize(table)
    }

    fn end(self) -> Result<(), ConfigError> {
        match self.table.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.document.refuse(
                Some(key.span()),
                &format!("unknown section or key `{}`", key.get_ref()),
            )),
        }
    }

    /// A refusal of the section as a whole.
    pub fn refuse(&self, problem: &str) -> ConfigError {
        self.document.refuse(Some(self.span.clone()), problem)
    }

    /// A refusal of the value under `key`.
    pub fn refuse_key(&self, key: &str, problem: &str) -> ConfigError {
        let span = self
            .table
            .keys()
            .find(|written| written.get_ref().as_ref() == key)
            .map_or_else(|| self.span.clone(), Spanned::span);
        self.document.refuse(Some(span), problem)
    }

    fn take(
        &mut self,
        key: &str,
    ) -> Option<(Spanned<toml::de::DeString<'a>>, Spanned<DeValue<'a>>)> {
        let written = self
            .table
            .keys()
            .find(|written| written.get_ref().as_ref() == key)?
            .clone();
        let value = self.table.remove(&written)?;
        Some((written, value))
    }

    fn path_of(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    fn deserialize<T: DeserializeOwned>(&self, table: DeTable<'a>) -> Result<T, ConfigError> {
        let value = Spanned::new(self.span.clone(), DeValue::Table(table));
        T::deserialize(ValueDeserializer::from(value)).map_err(|error| {
            let message = without_value(error.message());
            self.document
                .refuse(error.span(), &self.with_taken(message))
        })
    }

    /// The keys that a refusal lists are those of the last part alone.
    fn with_taken(&self, message: String) -> String {
        if self.taken.is_empty() || !message.starts_with("unknown field ") {
            return message;
        }
        let mut names = message.split('`').skip(1).step_by(2);
        let unknown = names.next().unwrap_or_default();
        let known = self.taken.iter().copied().chain(names);
        let known: Vec<String> = known.map(|name| format!("`{name}`")).collect();
        format!(
            "unknown field `{unknown}`, expected one of {}",
            known.join(", ")
        )
    }
}

/// A name as TOML has it without quotation marks. Anything else before a `=` or after a `[` may be a part of a value that
/// goes over several lines.
fn bare(name: &str) -> Option<&str> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!name.is_empty() && name.chars().all(valid)).then_some(name)
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
