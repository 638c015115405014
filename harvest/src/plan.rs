//! Which examples there are, and which are still to be asked about.

use std::collections::{BTreeMap, HashSet};

use schemas::dataset::{Dataset, SkipBadRows};
use schemas::task::Template;
use schemas::{DatasetIdentity, Example, ExampleId, Split};

use crate::cache::Key;
use crate::config::{Config, Source};
use crate::error::Error;
use crate::teacher::Request;

/// Rows that are listed where there may be very many.
pub const NUM_LISTED: usize = 20;

/// The opened data set with everything that decides what is asked.
#[derive(Debug)]
pub struct Plan {
    dataset: Dataset,
    identity: DatasetIdentity,
    prompt: Template,
    splits: Vec<Split>,
    draws: u32,
    allowed_bad_rows: u64,
}

/// A request and its place in the data set, which orders the rows of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Counts requests in the order of the data set.
    pub position: u64,
    /// The request.
    pub request: Request,
}

/// What a data set has and what of it a cache has.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Rows of each split.
    pub rows: Vec<(Split, u64)>,
    /// Rows with the same fields as an earlier one; they are asked about once.
    pub num_duplicates: u64,
    /// Replies that a complete cache has.
    pub num_wanted: u64,
    /// How many of them are missing.
    pub num_missing: u64,
    /// The first missing ones.
    pub first_missing: Vec<Request>,
    /// The first request of all.
    pub first: Option<Request>,
    /// Rows of the cache that the data set does not ask for.
    pub num_extra: u64,
    /// Rows that were skipped as bad.
    pub num_skipped: u64,
    /// The first of them, one sentence each.
    pub skipped: Vec<String>,
}

impl Plan {
    /// Opens the data set of `config`; up to `allowed_bad_rows` rows of it may be bad.
    ///
    /// # Errors
    /// [`Error::Schemas`] where the data set cannot be opened, [`Error::NoSuchSplit`], [`Error::InvalidPrompt`].
    pub fn open(config: &Config, allowed_bad_rows: u64) -> Result<Self, Error> {
        let dataset = config.dataset.open(&config.base)?;
        let task = dataset.task();
        let (prompt, written) = match &config.source {
            Source::Teacher(teacher, _) => {
                let prompt = match teacher.prompt() {
                    Some(source) => Template::parse(source, task.fields())
                        .map_err(|problem| Error::InvalidPrompt { problem })?,
                    None => task.prompt(),
                };
                let written = prompt.source().to_owned();
                (prompt, Some(written))
            }
            Source::Import(_) => (task.prompt(), None),
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
        Ok(Self {
            dataset,
            identity,
            prompt,
            splits,
            draws: config.draws(),
            allowed_bad_rows,
        })
    }

    /// The data set as a manifest names it.
    pub fn identity(&self) -> &DatasetIdentity {
        &self.identity
    }

    /// The splits in the order in which they are asked about.
    pub fn splits(&self) -> &[Split] {
        &self.splits
    }

    /// Replies kept for each example.
    pub fn draws(&self) -> u32 {
        self.draws
    }

    /// The examples of one split; bad rows are skipped as allowed.
    ///
    /// # Errors
    /// [`schemas::Error::BadRow`] and the other errors of reading a data set.
    pub fn read(&self, split: &Split, skip: &mut SkipBadRows) -> Result<Vec<Example>, Error> {
        Ok(self.dataset.read(split, skip)?)
    }

    /// An allowance for bad rows over the whole data set.
    pub fn allowance(&self) -> SkipBadRows {
        SkipBadRows::new(self.allowed_bad_rows)
    }

    fn request(&self, example: &Example, draw: u32) -> Request {
        Request {
            id: example.id(),
            draw,
            prompt: self.prompt.render(example),
        }
    }

    /// Reads the whole data set once, before anything is paid for, and compares it with the rows a cache has.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Error::NoRows`] where there is no row at all.
    pub fn survey(&self, known: &HashSet<Key>) -> Result<Survey, Error> {
        let mut survey = Survey::default();
        let mut seen: HashSet<ExampleId> = HashSet::new();
        let mut skip = self.allowance();
        let mut num_present = 0;
        for split in &self.splits {
            let examples = self.read(split, &mut skip)?;
            survey.rows.push((split.clone(), examples.len() as u64));
            for example in &examples {
                if !seen.insert(example.id()) {
                    survey.num_duplicates += 1;
                    continue;
                }
                for draw in 0..self.draws {
                    survey
                        .first
                        .get_or_insert_with(|| self.request(example, draw));
                    survey.num_wanted += 1;
                    if known.contains(&(example.id(), draw)) {
                        num_present += 1;
                        continue;
                    }
                    survey.num_missing += 1;
                    if survey.first_missing.len() < NUM_LISTED {
                        survey.first_missing.push(self.request(example, draw));
                    }
                }
            }
        }
        if survey.num_wanted == 0 {
            return Err(Error::NoRows {
                path: self
                    .dataset
                    .source_files()
                    .into_iter()
                    .next()
                    .unwrap_or_default(),
            });
        }
        survey.num_extra = known.len() as u64 - num_present;
        survey.num_skipped = skip.num_skipped();
        survey.skipped = skip.skipped().iter().map(ToString::to_string).collect();
        Ok(survey)
    }

    /// Hands every request whose reply is not `known` to `send`, in the order of the data set, each once, until `send`
    /// answers `false`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn each_pending(
        &self,
        mut known: HashSet<Key>,
        mut send: impl FnMut(Pending) -> bool,
    ) -> Result<(), Error> {
        let mut skip = self.allowance();
        let mut position = 0;
        for split in &self.splits {
            for example in self.read(split, &mut skip)? {
                for draw in 0..self.draws {
                    if !known.insert((example.id(), draw)) {
                        continue;
                    }
                    if !send(Pending {
                        position,
                        request: self.request(&example, draw),
                    }) {
                        return Ok(());
                    }
                    position += 1;
                }
            }
        }
        Ok(())
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
                field: field.to_owned(),
                present: self.identity.fields.clone(),
            });
        }
        let mut ids: BTreeMap<String, Vec<ExampleId>> = BTreeMap::new();
        let mut skip = self.allowance();
        for split in &self.splits {
            for example in self.read(split, &mut skip)? {
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
