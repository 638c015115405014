//! What is asked: the opened data set, the prompts, the draws.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::SystemTime;

use schemas::dataset::{Dataset, SkipBadRows};
use schemas::notes::{Notes, Rights, TeacherNotes};
use schemas::task::Template;
use schemas::{DatasetIdentity, Example, ExampleId, Split, Task};

use crate::cache::Key;
use crate::config::{Config, Source, TeacherEntry};
use crate::error::Error;
use crate::slice::Slice;
use crate::teacher::Request;

/// Rows that are listed where there may be very many.
pub const NUM_LISTED: usize = 20;

/// The opened data set with everything that decides what is asked.
#[derive(Debug)]
pub struct Plan {
    dataset: Dataset,
    identity: DatasetIdentity,
    notes: Notes,
    prompts: Vec<Prompt>,
    splits: Vec<Split>,
    draws: u32,
    slice: Option<Slice>,
    allowed_bad_rows: u64,
    files: Vec<FileState>,
}

/// What a teacher is asked about an example.
#[derive(Debug)]
struct Prompt {
    text: Template,
    image_field: Option<String>,
}

/// Path, bytes and time of change.
type FileState = (PathBuf, u64, Option<SystemTime>);

impl Prompt {
    fn of(entry: &TeacherEntry, task: &Task) -> Result<Self, Error> {
        let text = match entry.common.prompt.as_deref() {
            Some(source) => Template::parse(source, task.fields())
                .map_err(|problem| Error::InvalidPrompt { problem })?,
            None => task.prompt(),
        };
        let image_field = entry.common.image_field.clone();
        if let Some(field) = image_field
            .as_ref()
            .filter(|field| !task.fields().contains(field))
        {
            return Err(Error::NoSuchField {
                key: "teacher.image_field",
                field: field.clone(),
                present: task.fields().to_vec(),
            });
        }
        Ok(Self { text, image_field })
    }

    fn render(&self, example: &Example) -> (String, Option<String>) {
        let image = self
            .image_field
            .as_deref()
            .and_then(|field| example.field(field))
            .filter(|name| !name.is_empty());
        (self.text.render(example), image.map(str::to_owned))
    }
}

impl Plan {
    /// Opens the data set of `config`; up to `allowed_bad_rows` rows of it may be bad. With a slice, only its rows
    /// count.
    ///
    /// # Errors
    /// [`Error::Schemas`] where the data set cannot be opened, [`Error::NoSuchSplit`], [`Error::InvalidPrompt`],
    /// [`Error::NoSuchField`].
    pub fn open(
        config: &Config,
        allowed_bad_rows: u64,
        slice: Option<Slice>,
    ) -> Result<Self, Error> {
        let dataset = config.dataset.open(&config.base)?;
        let task = dataset.task();
        let mut notes = Vec::new();
        let (prompts, written) = match &config.source {
            Source::Teachers(teachers, _) => {
                let prompts = teachers
                    .iter()
                    .map(|entry| Prompt::of(entry, task))
                    .collect::<Result<Vec<_>, _>>()?;
                for (entry, prompt) in teachers.iter().zip(&prompts) {
                    let common = &entry.common;
                    let rights = Rights::of(common.license.as_deref(), common.terms.as_deref());
                    let template = Some(prompt.text.source());
                    notes.push(TeacherNotes::of(entry.name.as_deref(), rights, template));
                }
                let written = written(teachers, &prompts);
                (prompts, Some(written))
            }
            Source::Import(_) => {
                let text = task.prompt();
                let image_field = None;
                (vec![Prompt { text, image_field }], None)
            }
        };
        let identity = DatasetIdentity {
            task: task.name().to_owned(),
            fields: task.fields().to_vec(),
            prompt: written,
        };
        let present = dataset.splits();
        let splits = match config.splits() {
            None => present,
            Some(chosen) => match chosen.iter().find(|split| !present.contains(split)) {
                None => chosen.to_vec(),
                Some(split) => {
                    return Err(Error::NoSuchSplit {
                        split: split.to_string(),
                        present: present.iter().map(Split::to_string).collect(),
                    });
                }
            },
        };
        let files = file_states(&dataset);
        let rights = Rights::of(
            config.dataset.license.as_deref(),
            config.dataset.terms.as_deref(),
        );
        Ok(Self {
            dataset,
            identity,
            notes: Notes::of(rights, notes),
            prompts,
            splits,
            draws: config.draws(),
            slice,
            allowed_bad_rows,
            files,
        })
    }

    /// The data set as a manifest names it.
    pub fn identity(&self) -> &DatasetIdentity {
        &self.identity
    }

    /// Licences, terms and the digests of prompts, for manifests.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// What a row of the data set means.
    pub fn task(&self) -> &Task {
        self.dataset.task()
    }

    /// The folder that the data set's files lie in.
    pub fn data_folder(&self) -> PathBuf {
        self.dataset.folder().to_owned()
    }

    /// The splits in the order in which they are asked about.
    pub fn splits(&self) -> &[Split] {
        &self.splits
    }

    /// Replies kept for each example.
    pub fn draws(&self) -> u32 {
        self.draws
    }

    /// The part of the data set that counts; `None` for all of it.
    pub fn slice(&self) -> Option<&Slice> {
        self.slice.as_ref()
    }

    /// The examples of one split, read as they are asked for; bad rows are skipped as allowed.
    ///
    /// # Errors
    /// [`schemas::Error::BadRow`] and the other errors of reading a data set, here or from the iterator.
    pub fn rows<'a>(
        &'a self,
        split: &'a Split,
        skip: &'a mut SkipBadRows,
    ) -> Result<impl Iterator<Item = Result<Example, schemas::Error>> + 'a, Error> {
        Ok(self.dataset.rows(split, skip)?)
    }

    /// The examples of one split in memory.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn read(&self, split: &Split, skip: &mut SkipBadRows) -> Result<Vec<Example>, Error> {
        Ok(self.dataset.read(split, skip)?)
    }

    /// An allowance for bad rows over the whole data set.
    pub fn allowance(&self) -> SkipBadRows {
        SkipBadRows::new(self.allowed_bad_rows)
    }

    /// What is asked about an example.
    pub fn request(&self, example: &Example, draw: u32) -> Request {
        let mut prompts = self.prompts.iter().map(|prompt| prompt.render(example));
        let (prompt, image) = prompts.next().expect("there is at least one teacher");
        Request {
            id: example.id(),
            draw,
            prompt,
            image,
            further: prompts.collect(),
        }
    }

    /// The requests of these rows, as far as the data set has them.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn requests_of(&self, keys: &HashSet<Key>) -> Result<Vec<Request>, Error> {
        let mut requests = Vec::new();
        let mut seen = HashSet::new();
        let mut skip = self.allowance();
        for split in &self.splits {
            for example in self.rows(split, &mut skip)? {
                let example = example?;
                for draw in 0..self.draws {
                    let key = (example.id(), draw);
                    if keys.contains(&key) && seen.insert(key) {
                        requests.push(self.request(&example, draw));
                    }
                }
            }
        }
        Ok(requests)
    }

    pub(crate) fn no_rows(&self) -> Error {
        Error::NoRows {
            path: self.first_file(),
        }
    }

    /// The error for a data set that is not what it was when it was surveyed.
    pub(crate) fn changed(&self) -> Error {
        let now = file_states(&self.dataset);
        let differs = self.files.iter().zip(&now).find(|(then, now)| then != now);
        Error::DatasetChanged {
            path: differs.map_or_else(|| self.first_file(), |((path, ..), _)| path.clone()),
        }
    }

    fn first_file(&self) -> PathBuf {
        self.files
            .first()
            .map(|(path, ..)| path.clone())
            .unwrap_or_default()
    }

    /// The ids of all examples by the value of `field`, which several can share; without a field, by the id itself.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Error::NoSuchField`].
    pub fn by_key(&self, field: Option<&str>) -> Result<BTreeMap<String, Vec<ExampleId>>, Error> {
        if let Some(field) =
            field.filter(|field| !self.identity.fields.iter().any(|name| name == field))
        {
            return Err(Error::NoSuchField {
                key: "import.id_field",
                field: field.to_owned(),
                present: self.identity.fields.clone(),
            });
        }
        let mut ids: BTreeMap<String, Vec<ExampleId>> = BTreeMap::new();
        let mut skip = self.allowance();
        for split in &self.splits {
            for example in self.rows(split, &mut skip)? {
                let example = example?;
                let key = match field {
                    None => example.id().to_string(),
                    Some(field) => example.field(field).unwrap_or_default().to_owned(),
                };
                let same = ids.entry(key).or_default();
                if !same.contains(&example.id()) {
                    same.push(example.id());
                }
            }
        }
        Ok(ids)
    }
}

/// The prompt as a manifest has it: the template, or for several teachers one line for each.
fn written(teachers: &[TeacherEntry], prompts: &[Prompt]) -> String {
    let lines = teachers.iter().zip(prompts).map(|(entry, prompt)| {
        let image = prompt
            .image_field
            .as_ref()
            .map(|field| format!(" [image: {field}]"))
            .unwrap_or_default();
        let name = entry
            .name
            .as_ref()
            .map(|name| format!("{name}: "))
            .unwrap_or_default();
        format!("{name}{}{image}", prompt.text.source())
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn file_states(dataset: &Dataset) -> Vec<FileState> {
    let state = |path: PathBuf| {
        let metadata = std::fs::metadata(&path).ok();
        let bytes = metadata.as_ref().map_or(0, std::fs::Metadata::len);
        (
            path,
            bytes,
            metadata.and_then(|metadata| metadata.modified().ok()),
        )
    };
    dataset.source_files().into_iter().map(state).collect()
}
