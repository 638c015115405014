//! The join of training examples and cached features by id.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use schemas::shard::VectorValues;
use schemas::{CacheState, ExampleId, Manifest, ShardReader, Split, Task};
use serde::{Deserialize, Serialize};

use crate::config::CacheConfig;
use crate::data::{Corpus, TeacherFeatures};
use crate::error::Error;

/// Ids that an error lists.
const MAX_LISTED: usize = 5;

/// What to do with training examples for which the cache has no feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissingPolicy {
    /// Refuse to train.
    #[default]
    Refuse,
    /// Train without them, in every variant.
    Drop,
}

/// What to do with rows that are there more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DuplicatePolicy {
    /// Refuse to train.
    #[default]
    Refuse,
    /// Drop a training row whose fields occurred in an earlier training row, or occur in the validation or test split;
    /// of two cache rows of one example the first counts. Validation and test rows are never dropped.
    KeepFirst,
    /// Train on all rows as they are; of two cache rows of one example the first counts.
    KeepAll,
}

/// What to do with cache rows that belong to no split of the data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExtraPolicy {
    /// Refuse to train.
    #[default]
    Refuse,
    /// Leave them unread.
    Ignore,
}

/// How data set and cache fit together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JoinReport {
    /// Training rows of the data set.
    pub num_train: u64,
    /// Training rows that are trained on.
    pub num_joined: u64,
    /// Training rows without a feature.
    pub num_missing: u64,
    /// Rows of the data set whose fields occurred before.
    pub num_duplicate_examples: u64,
    /// Cache rows whose example and draw occurred before.
    pub num_duplicate_rows: u64,
    /// Cache rows of examples in no split.
    pub num_extra: u64,
    /// Cache rows of other draws.
    pub num_other_draws: u64,
}

impl fmt::Display for JoinReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} of {} training rows joined; {} missing, {} duplicate examples, {} duplicate cache rows, {} extra cache rows",
            self.num_joined,
            self.num_train,
            self.num_missing,
            self.num_duplicate_examples,
            self.num_duplicate_rows,
            self.num_extra
        )
    }
}

/// Why examples and cache cannot be trained on together.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The data set has no row in a split.
    #[error("split `{split}` has no rows")]
    NoRows {
        /// The split.
        split: Split,
    },
    /// Rows without label where labels are needed.
    #[error("split `{split}` has rows without a label")]
    Unlabelled {
        /// The split.
        split: Split,
    },
    /// The signal is no vector.
    #[error("signal `{signal}` of the cache is no vector, and the aligner reads vectors")]
    NoVector {
        /// The signal.
        signal: String,
        /// The vector signals there are.
        vectors: Vec<String>,
    },
    /// The cache was harvested from rows of other fields.
    #[error("the cache was harvested from fields [{}], the task has [{}]", cached.join(", "), configured.join(", "))]
    OtherFields {
        /// Fields in the manifest.
        cached: Vec<String>,
        /// Fields of the task.
        configured: Vec<String>,
    },
    /// A draw that was not asked for.
    #[error("`cache.draw` is {draw}, and the cache holds {draws} draw(s), numbered from 0")]
    NoSuchDraw {
        /// The draw asked for.
        draw: u32,
        /// The draws there are.
        draws: u32,
    },
    /// Training rows without a feature.
    #[error("{count} of {total} training rows have no feature in the cache: {}", listed(first, *count))]
    Missing {
        /// How many.
        count: u64,
        /// Of how many.
        total: u64,
        /// The first of them.
        first: Vec<ExampleId>,
    },
    /// Rows of the data set with equal fields.
    #[error("{count} rows of the data set have the same fields as an earlier row: {}", listed(first, *count))]
    DuplicateExamples {
        /// How many.
        count: u64,
        /// The first of them.
        first: Vec<ExampleId>,
    },
    /// Cache rows of one example and draw.
    #[error("{count} rows of the cache have the same example and draw as an earlier row: {}", listed(first, *count))]
    DuplicateRows {
        /// How many.
        count: u64,
        /// The first of them.
        first: Vec<ExampleId>,
    },
    /// Cache rows of examples in no split.
    #[error("{count} rows of the cache belong to no example of the data set: {}", listed(first, *count))]
    Extra {
        /// How many.
        count: u64,
        /// The first of them.
        first: Vec<ExampleId>,
    },
}

fn listed(first: &[ExampleId], count: u64) -> String {
    let ids: Vec<String> = first.iter().map(ToString::to_string).collect();
    let more = if count > first.len() as u64 {
        ", ..."
    } else {
        ""
    };
    format!("{}{more}", ids.join(", "))
}

impl JoinError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoRows { .. } => "check `dataset.path` and `splits`".to_owned(),
            Self::Unlabelled { .. } => {
                "training and validation need labels; name labelled splits in `splits`".to_owned()
            }
            Self::NoVector { vectors, .. } if vectors.is_empty() => {
                "harvest a feature: this cache holds no vector".to_owned()
            }
            Self::NoVector { vectors, .. } => format!("set `cache.signal` to one of {}", vectors.join(", ")),
            Self::OtherFields { .. } => "name the cache that was harvested from this data set".to_owned(),
            Self::NoSuchDraw { .. } => "choose another `cache.draw`, or harvest more draws".to_owned(),
            Self::Missing { .. } => {
                "run `harvest run` over this data set again, or train without these rows: cache.missing = \"drop\"".to_owned()
            }
            Self::DuplicateExamples { .. } | Self::DuplicateRows { .. } => {
                "mend the data, or say cache.duplicate = \"keep-first\" or \"keep-all\"".to_owned()
            }
            Self::Extra { .. } => {
                "is this the cache of this data set? If it holds more on purpose: cache.extra = \"ignore\"".to_owned()
            }
        })
    }
}

/// Compares what the cache says of itself with what the run wants of it. Reads nothing but the manifest.
///
/// # Errors
/// The signal is not there or no vector; the draw is not there; the fields are others.
pub fn check_manifest(
    folder: &Path,
    manifest: &Manifest,
    task: &Task,
    cache: &CacheConfig,
) -> Result<(), Error> {
    let names = || {
        manifest
            .signals
            .iter()
            .map(|signal| signal.name().to_owned())
    };
    let Some(signal) = manifest.signal(&cache.signal) else {
        let (path, signal) = (folder.to_owned(), cache.signal.clone());
        return Err(schemas::Error::NoSuchSignal {
            path,
            signal,
            present: names().collect(),
        }
        .into());
    };
    if signal.vector().is_none() {
        let vectors = manifest
            .signals
            .iter()
            .filter(|signal| signal.vector().is_some());
        let vectors = vectors.map(|signal| signal.name().to_owned()).collect();
        return Err(JoinError::NoVector {
            signal: cache.signal.clone(),
            vectors,
        }
        .into());
    }
    if cache.draw >= manifest.draws {
        return Err(JoinError::NoSuchDraw {
            draw: cache.draw,
            draws: manifest.draws,
        }
        .into());
    }
    let sorted = |fields: &[String]| {
        let mut fields = fields.to_vec();
        fields.sort();
        fields
    };
    if sorted(&manifest.dataset.fields) != sorted(task.fields()) {
        let (cached, configured) = (manifest.dataset.fields.clone(), task.fields().to_vec());
        return Err(JoinError::OtherFields { cached, configured }.into());
    }
    Ok(())
}

/// A corpus whose training rows all have a feature.
#[derive(Clone, Debug)]
pub struct TrainingData {
    /// Rows to learn from and to score.
    pub corpus: Corpus,
    /// The features of `corpus.train`, in its order.
    pub features: TeacherFeatures,
    /// What was found on the way.
    pub report: JoinReport,
}

/// Joins the training rows with their features under the policies of `cache`. Every shard's digest is verified.
///
/// Only training rows need a feature: validation and test read the text alone.
///
/// # Errors
/// [`JoinError`] for what the policies refuse; [`schemas::Error`] for shards that are not what the manifest says.
pub fn join(
    corpus: Corpus,
    folder: &Path,
    manifest: &Manifest,
    cache: &CacheConfig,
) -> Result<TrainingData, Error> {
    let mut report = JoinReport {
        num_train: corpus.train.len() as u64,
        ..JoinReport::default()
    };
    let corpus = drop_duplicates(corpus, cache.duplicate, &mut report)?;
    let found = read_features(&corpus, folder, manifest, cache, &mut report)?;

    let ids = &corpus.train.ids;
    let keep: Vec<bool> = ids.iter().map(|id| found.places.contains_key(id)).collect();
    let missing: Vec<ExampleId> = ids
        .iter()
        .zip(&keep)
        .filter(|(_, keep)| !**keep)
        .map(|(id, _)| *id)
        .collect();
    report.num_missing = missing.len() as u64;
    if !missing.is_empty() && cache.missing == MissingPolicy::Refuse {
        return Err(JoinError::Missing {
            count: report.num_missing,
            total: ids.len() as u64,
            first: head(&missing),
        }
        .into());
    }
    let train = corpus.train.retain(&keep);
    if train.is_empty() {
        return Err(JoinError::NoRows { split: train.split }.into());
    }
    report.num_joined = train.len() as u64;
    let rows = train.ids.iter().map(|id| found.places[id]).collect();
    let features = TeacherFeatures::new(found.width, found.values, rows, train.ids.clone());
    Ok(TrainingData {
        corpus: Corpus { train, ..corpus },
        features,
        report,
    })
}

fn head(ids: &[ExampleId]) -> Vec<ExampleId> {
    ids.iter().take(MAX_LISTED).copied().collect()
}

/// Evaluation splits come first: where a training row is equal to one of theirs, the training row is the duplicate.
fn drop_duplicates(
    corpus: Corpus,
    policy: DuplicatePolicy,
    report: &mut JoinReport,
) -> Result<Corpus, Error> {
    let mut seen = HashSet::new();
    let mut duplicates = Vec::new();
    let mut is_new = |id: &ExampleId| {
        let new = seen.insert(*id);
        if !new {
            duplicates.push(*id);
        }
        new
    };
    let evaluation = corpus.test.iter().chain([&corpus.validation]);
    for id in evaluation.flat_map(|rows| &rows.ids) {
        is_new(id);
    }
    let keep: Vec<bool> = corpus.train.ids.iter().map(&mut is_new).collect();
    report.num_duplicate_examples = duplicates.len() as u64;
    match policy {
        DuplicatePolicy::Refuse if !duplicates.is_empty() => Err(JoinError::DuplicateExamples {
            count: report.num_duplicate_examples,
            first: head(&duplicates),
        }
        .into()),
        DuplicatePolicy::KeepFirst => Ok(Corpus {
            train: corpus.train.retain(&keep),
            ..corpus
        }),
        DuplicatePolicy::Refuse | DuplicatePolicy::KeepAll => Ok(corpus),
    }
}

struct Found {
    width: usize,
    values: VectorValues,
    places: HashMap<ExampleId, usize>,
}

fn read_features(
    corpus: &Corpus,
    folder: &Path,
    manifest: &Manifest,
    cache: &CacheConfig,
    report: &mut JoinReport,
) -> Result<Found, Error> {
    let CacheState::Frozen { shards, .. } = manifest.state() else {
        return Err(schemas::Error::NotFrozen {
            path: folder.to_owned(),
        }
        .into());
    };
    let wanted: HashSet<ExampleId> = corpus.train.ids.iter().copied().collect();
    let evaluation = corpus
        .test
        .iter()
        .chain([&corpus.validation])
        .flat_map(|rows| &rows.ids);
    let known: HashSet<ExampleId> = evaluation.chain(&corpus.others).copied().collect();
    let width = manifest
        .signal(&cache.signal)
        .and_then(schemas::SignalSpec::vector)
        .map_or(0, |(width, _)| width);
    let mut found = Found {
        width,
        values: VectorValues::F32(Vec::new()),
        places: HashMap::new(),
    };
    let mut seen = HashSet::new();
    let (mut duplicates, mut extra) = (Vec::new(), Vec::new());
    for entry in shards {
        let reader = ShardReader::open_entry(folder, entry)?;
        for batch in reader.vectors(&cache.signal)? {
            let batch = batch?;
            for (row, &(id, draw)) in batch.keys.iter().enumerate() {
                if draw != cache.draw {
                    report.num_other_draws += 1;
                } else if !seen.insert(id) {
                    duplicates.push(id);
                } else if wanted.contains(&id) {
                    found.places.insert(id, found.places.len());
                    append(
                        &mut found.values,
                        &batch.values,
                        row * width..(row + 1) * width,
                    );
                } else if !known.contains(&id) {
                    extra.push(id);
                }
            }
        }
    }
    report.num_duplicate_rows = duplicates.len() as u64;
    report.num_extra = extra.len() as u64;
    if !duplicates.is_empty() && cache.duplicate == DuplicatePolicy::Refuse {
        return Err(JoinError::DuplicateRows {
            count: report.num_duplicate_rows,
            first: head(&duplicates),
        }
        .into());
    }
    if !extra.is_empty() && cache.extra == ExtraPolicy::Refuse {
        return Err(JoinError::Extra {
            count: report.num_extra,
            first: head(&extra),
        }
        .into());
    }
    Ok(found)
}

fn append(to: &mut VectorValues, from: &VectorValues, range: std::ops::Range<usize>) {
    match (&mut *to, from) {
        (VectorValues::F16(to), VectorValues::F16(from)) => to.extend_from_slice(&from[range]),
        (VectorValues::F32(to), VectorValues::F32(from)) => to.extend_from_slice(&from[range]),
        // The table starts empty in one type and takes that of the cache, which all shards share.
        (_, VectorValues::F16(from)) => *to = VectorValues::F16(from[range].to_vec()),
        (_, VectorValues::F32(from)) => *to = VectorValues::F32(from[range].to_vec()),
    }
}
