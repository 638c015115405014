//! Readers of data sets: JSONL, CSV, TSV and Parquet files with named columns, and the published layouts of GLUE and
//! SuperGLUE.
//!
//! A [`DatasetConfig`] names a folder and a task. [`open`](DatasetConfig::open) finds the files of every split and
//! reads nothing yet; [`Dataset::read`] streams a split row by row. A row that cannot be used is an
//! [`Error::BadRow`] that names file, line and column, and stops the run unless [`SkipBadRows`] allows it.

mod builtin;
mod delimited;
mod glue;
mod jsonl;
mod label;
mod layout;
mod lines;
mod locate;
mod parquet;
mod row;
mod skip;
mod superglue;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::skip::SkipBadRows;

use self::delimited::Dialect;
use self::glue::MrpcPart;
use self::layout::Layout;
use self::locate::{SplitFile, SplitFiles};
use crate::error::Error;
use crate::example::{Example, Split};
use crate::task::{Task, TaskConfig};

/// Name of the task description inside a data set's folder.
const TASK_FILE: &str = "task.toml";

/// A file format of data sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Comma separated with a header, quoted as RFC 4180 says.
    Csv,
    /// Tab separated with a header, never quoted.
    Tsv,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        [Self::Jsonl, Self::Csv, Self::Tsv, Self::Parquet]
            .into_iter()
            .find(|format| format.extension() == extension)
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Parquet => "parquet",
        }
    }
}

/// Where the description of a task is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Option<String>", into = "Option<String>")]
pub enum TaskSource {
    /// In `task.toml` inside the data set's folder.
    #[default]
    Folder,
    /// In this file, relative to the configuration file.
    File(PathBuf),
    /// Built in, by name.
    Builtin(String),
}

impl From<Option<String>> for TaskSource {
    fn from(text: Option<String>) -> Self {
        match text {
            None => Self::Folder,
            Some(text)
                if Path::new(&text)
                    .extension()
                    .is_some_and(|end| end == "toml") =>
            {
                Self::File(text.into())
            }
            Some(name) => Self::Builtin(name),
        }
    }
}

impl From<TaskSource> for Option<String> {
    fn from(source: TaskSource) -> Self {
        match source {
            TaskSource::Folder => None,
            TaskSource::File(path) => Some(path.to_string_lossy().into_owned()),
            TaskSource::Builtin(name) => Some(name),
        }
    }
}

impl TaskSource {
    fn is_folder(&self) -> bool {
        *self == Self::Folder
    }
}

/// The data set of a run, as configured.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// A file or a folder, relative to the configuration file.
    pub path: PathBuf,
    /// The format of the files; left out, their extensions say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The name of a built-in task, or the path of a description that ends in `.toml`; left out, `task.toml` inside
    /// the folder.
    #[serde(default, skip_serializing_if = "TaskSource::is_folder")]
    pub task: TaskSource,
    /// The file of each split, relative to `path`; left out, they are found by their published names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<Split, PathBuf>,
    /// Licence of the data set, for manifests and cards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Terms under which the data set may be used, in words or as an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<String>,
}

impl DatasetConfig {
    /// Reads the task and finds the files of every split; `base` is the folder of the configuration file.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], [`Error::InvalidTask`], [`Error::BadDataset`] where files are missing or ambiguous,
    /// [`Error::Io`].
    pub fn open(&self, base: &Path) -> Result<Dataset, Error> {
        let path = base.join(&self.path);
        let metadata =
            std::fs::metadata(&path).map_err(|source| Error::io(&path, "read", source))?;
        let folder = if metadata.is_dir() {
            path.clone()
        } else {
            path.parent().map_or_else(PathBuf::new, Path::to_owned)
        };
        let (task, layout) = self.task(base, &folder)?;
        let files = if metadata.is_file() {
            self.single_file(path)?
        } else if self.files.is_empty() {
            locate::find(&folder, task.name(), self.format)?
        } else {
            self.named_files(&folder)?
        };
        Ok(Dataset {
            folder,
            task,
            layout,
            files,
        })
    }

    fn task(&self, base: &Path, folder: &Path) -> Result<(Task, Layout), Error> {
        let path = match &self.task {
            TaskSource::Builtin(name) => {
                return builtin::find(name).ok_or_else(|| Error::UnknownTask {
                    name: name.clone(),
                    known: Task::builtin_names(),
                });
            }
            TaskSource::File(path) => base.join(path),
            TaskSource::Folder => folder.join(TASK_FILE),
        };
        if self.task.is_folder() && !path.exists() {
            return Err(Error::BadDataset {
                path: folder.to_owned(),
                problem: format!(
                    "there is no {TASK_FILE} in it, and the configuration names no task"
                ),
                hint: Some(format!(
                    "write one, or set task to one of {}",
                    Task::builtin_names().join(", ")
                )),
            });
        }
        let task = read_task(&path)?;
        let layout = Layout::named(&task);
        Ok((task, layout))
    }

    fn single_file(&self, path: PathBuf) -> Result<SplitFiles, Error> {
        if !self.files.is_empty() {
            return Err(Error::BadDataset {
                path,
                problem: "it is a file, so there is no place for `files`".into(),
                hint: Some("set path to the folder, or leave `files` out".into()),
            });
        }
        let format = self.format_of(&path)?;
        let split = locate::split_of(&path);
        Ok([(split, vec![SplitFile::whole(path, format)])].into())
    }

    fn named_files(&self, folder: &Path) -> Result<SplitFiles, Error> {
        self.files
            .iter()
            .map(|(split, file)| {
                let path = folder.join(file);
                std::fs::metadata(&path).map_err(|source| Error::io(&path, "read", source))?;
                let format = self.format_of(&path)?;
                Ok((split.clone(), vec![SplitFile::whole(path, format)]))
            })
            .collect()
    }

    fn format_of(&self, path: &Path) -> Result<Format, Error> {
        self.format
            .or_else(|| Format::of(path))
            .ok_or_else(|| Error::BadDataset {
                path: path.to_owned(),
                problem: "its extension is none of jsonl, csv, tsv, parquet".into(),
                hint: Some("say what it is with format = \"...\"".into()),
            })
    }
}

fn read_task(path: &Path) -> Result<Task, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, "read", source))?;
    let config: TaskConfig = toml::from_str(&text).map_err(|error| Error::InvalidTask {
        task: path.display().to_string(),
        problem: error.to_string().trim_end().to_owned(),
    })?;
    Task::try_from(config)
}

/// An opened data set: its task and the files of its splits.
#[derive(Debug)]
pub struct Dataset {
    folder: PathBuf,
    task: Task,
    layout: Layout,
    files: SplitFiles,
}

impl Dataset {
    /// What its rows mean.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The folder that its files lie in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The splits it has, ordered by name.
    pub fn splits(&self) -> Vec<Split> {
        self.files.keys().cloned().collect()
    }

    /// Every file that it is read from, each once.
    pub fn source_files(&self) -> Vec<PathBuf> {
        let files = self.files.values().flatten();
        let mut paths: Vec<PathBuf> = files
            .flat_map(|file| {
                let ids = file.part.iter().map(|part| &part.dev_ids);
                std::iter::once(&file.path).chain(ids)
            })
            .cloned()
            .collect();
        paths.sort();
        paths.dedup();
        paths
    }

    /// Reads one split in file order into memory.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn read(&self, split: &Split, skip: &mut SkipBadRows) -> Result<Vec<Example>, Error> {
        self.rows(split, skip)?.collect()
    }

    /// The examples of one split in file order, read as they are asked for; after an error there are no more.
    ///
    /// # Errors
    /// [`Error::BadDataset`] about a split that is not there. From the iterator: [`Error::BadRow`] once `skip` allows no
    /// more; [`Error::BadDataset`] about a file as a whole; [`Error::Io`].
    pub fn rows<'a>(
        &'a self,
        split: &'a Split,
        skip: &'a mut SkipBadRows,
    ) -> Result<impl Iterator<Item = Result<Example, Error>> + 'a, Error> {
        let files = self.files.get(split).ok_or_else(|| Error::BadDataset {
            path: self.source_files().first().cloned().unwrap_or_default(),
            problem: format!("there is no split `{split}`"),
            hint: Some(format!(
                "the splits are {}",
                self.splits()
                    .iter()
                    .map(Split::as_str)
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        })?;
        let mut files = files.iter();
        let mut open: Option<FileRows<'a>> = None;
        let mut ended = false;
        let next = move || -> Result<Option<Example>, Error> {
            loop {
                let Some(rows) = &mut open else {
                    let Some(file) = files.next() else {
                        return Ok(None);
                    };
                    open = Some(self.open_file(file, split)?);
                    continue;
                };
                match rows.next() {
                    None => open = None,
                    Some(Ok(None)) => {}
                    Some(Ok(Some(example))) => return Ok(Some(example)),
                    Some(Err(error)) => skip.pass_over(error)?,
                }
            }
        };
        let mut next = next;
        Ok(std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let row = next().transpose();
            ended = !matches!(row, Some(Ok(_)));
            row
        }))
    }

    /// The rows of one file; `None` for those that belong to another split.
    fn open_file<'a>(
        &'a self,
        file: &'a SplitFile,
        split: &'a Split,
    ) -> Result<FileRows<'a>, Error> {
        let path = &file.path;
        let mut columns = self.layout.columns();
        let num_columns = columns.len();
        let wanted = file.part.as_ref().map(MrpcPart::filter).transpose()?;
        if wanted.is_some() {
            columns.extend(MrpcPart::columns());
        }
        let delimited = |dialect| delimited::open(path, dialect, self.layout.headerless, &columns);
        let rows = match file.format {
            Format::Jsonl => jsonl::open(path, &columns),
            Format::Csv => delimited(Dialect::Csv),
            Format::Tsv => delimited(Dialect::Tsv),
            Format::Parquet => parquet::open(path, &columns),
        }?;
        Ok(Box::new(rows.map(move |row| {
            let mut row = row?;
            let pair = row.values.split_off(num_columns);
            match &wanted {
                Some(wanted) if !wanted(&pair) => Ok(None),
                _ => self.layout.example(&self.task, split, path, row).map(Some),
            }
        })))
    }
}

/// Rows of one file as examples.
type FileRows<'a> = Box<dyn Iterator<Item = Result<Option<Example>, Error>> + 'a>;
