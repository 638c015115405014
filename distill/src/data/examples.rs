//! Examples of a data set, tokenised once.

use std::borrow::Cow;

use schemas::dataset::{Dataset, SkipBadRows};
use schemas::{Example, ExampleId, Label, LabelKind, Split, Task};
use sha2::{Digest as _, Sha256};

use crate::config::SplitNames;
use crate::data::{JoinError, PromptEncoder, Writing};
use crate::error::Error;
use crate::student::{Encoding, TextTokenizer};

/// Labels of some rows, in their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// Class indices.
    Classes(Vec<u32>),
    /// Numbers.
    Values(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
    /// At least one row has none.
    Absent,
}

/// How rows become token ids.
#[derive(Clone, Copy, Debug)]
pub enum RowEncoder<'a> {
    /// One or two segments, for a student that reads.
    Segments(&'a TextTokenizer),
    /// A prompt and what follows it, for a student that writes.
    Prompts(&'a PromptEncoder),
}

impl RowEncoder<'_> {
    fn encode(self, task: &Task, example: &Example) -> Result<(Encoding, Option<Writing>), Error> {
        match self {
            Self::Segments(tokenizer) => {
                let (first, second) = task.render(example);
                Ok((tokenizer.encode_pair(&first, second.as_deref())?, None))
            }
            Self::Prompts(prompts) => {
                let writing = prompts.encode(task, example)?;
                Ok((writing.whole.encoding(), Some(writing)))
            }
        }
    }
}

/// Tokenised rows of one split, in file order.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The split's name.
    pub split: Split,
    /// Content-derived identity of each row.
    pub ids: Vec<ExampleId>,
    /// Token ids of each row.
    pub encodings: Vec<Encoding>,
    /// What a student that writes makes of each row; empty for any other.
    pub writings: Vec<Writing>,
    /// Their labels.
    pub labels: Labels,
}

impl Rows {
    /// Tokenises examples.
    ///
    /// # Errors
    /// The tokenizer refuses a text.
    pub fn new(
        split: Split,
        task: &Task,
        examples: &[Example],
        encoder: RowEncoder<'_>,
    ) -> Result<Self, Error> {
        let (mut encodings, mut writings) = (Vec::new(), Vec::new());
        for example in examples {
            let (encoding, writing) = encoder.encode(task, example)?;
            encodings.push(encoding);
            writings.extend(writing);
        }
        Ok(Self {
            split,
            ids: examples.iter().map(Example::id).collect(),
            encodings,
            writings,
            labels: labels(task.label(), examples),
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The rows for which `keep` holds.
    #[must_use]
    pub fn retain(self, keep: &[bool]) -> Self {
        fn kept<T>(values: Vec<T>, keep: &[bool]) -> Vec<T> {
            values
                .into_iter()
                .zip(keep)
                .filter_map(|(value, keep)| keep.then_some(value))
                .collect()
        }
        Self {
            split: self.split,
            ids: kept(self.ids, keep),
            encodings: kept(self.encodings, keep),
            writings: kept(self.writings, keep),
            labels: match self.labels {
                Labels::Classes(classes) => Labels::Classes(kept(classes, keep)),
                Labels::Values(values) => Labels::Values(kept(values, keep)),
                Labels::Texts(texts) => Labels::Texts(kept(texts, keep)),
                Labels::Absent => Labels::Absent,
            },
        }
    }

    fn update(&self, hasher: &mut Sha256) {
        for ((id, encoding), row) in self.ids.iter().zip(&self.encodings).zip(0..) {
            hasher.update(id.as_bytes());
            hasher.update((encoding.ids.len() as u64).to_le_bytes());
            for (&token, &segment) in encoding.ids.iter().zip(&encoding.type_ids) {
                hasher.update(token.to_le_bytes());
                hasher.update(segment.to_le_bytes());
            }
            let label: Cow<'_, [u8]> = match &self.labels {
                Labels::Classes(classes) => u64::from(classes[row]).to_le_bytes().to_vec().into(),
                Labels::Values(values) => values[row].to_bits().to_le_bytes().to_vec().into(),
                Labels::Texts(texts) => {
                    hasher.update((texts[row].len() as u64).to_le_bytes());
                    texts[row].as_bytes().into()
                }
                Labels::Absent => u64::MAX.to_le_bytes().to_vec().into(),
            };
            hasher.update(&label);
            if let Some(writing) = self.writings.get(row) {
                hasher.update((writing.whole.response_start as u64).to_le_bytes());
            }
        }
    }
}

fn labels(kind: &LabelKind, examples: &[Example]) -> Labels {
    let labels = || examples.iter().map(Example::label);
    let found = match kind {
        LabelKind::Classes(_) | LabelKind::Choice(_) => labels()
            .map(|label| match label {
                Some(&Label::Class(class)) => Some(class),
                _ => None,
            })
            .collect::<Option<_>>()
            .map(Labels::Classes),
        LabelKind::Number => labels()
            .map(|label| match label {
                Some(&Label::Value(value)) => Some(value),
                _ => None,
            })
            .collect::<Option<_>>()
            .map(Labels::Values),
        LabelKind::Text => labels()
            .map(|label| match label {
                Some(Label::Text(text)) => Some(text.clone()),
                _ => None,
            })
            .collect::<Option<_>>()
            .map(Labels::Texts),
    };
    found.unwrap_or(Labels::Absent)
}

/// A task with the three splits of a run.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// What the rows mean.
    pub task: Task,
    /// Rows to learn from; labelled.
    pub train: Rows,
    /// Rows that choose the checkpoint; labelled.
    pub validation: Rows,
    /// Rows for the final score, where the data set has them; labels may be absent.
    pub test: Option<Rows>,
    /// Examples of the data set's other splits, which the run does not use: a cache may hold them.
    pub others: Vec<ExampleId>,
}

impl Corpus {
    /// SHA-256 over ids, tokens and labels of all rows in their order: runs over equal digests saw equal data.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for rows in [
            Some(&self.train),
            Some(&self.validation),
            self.test.as_ref(),
        ]
        .into_iter()
        .flatten()
        {
            hasher.update((rows.len() as u64).to_le_bytes());
            rows.update(&mut hasher);
        }
        let bytes: [u8; 32] = hasher.finalize().into();
        bytes.iter().fold("sha256:".to_owned(), |text, byte| {
            format!("{text}{byte:02x}")
        })
    }
}

/// Reads and tokenises the splits of a run.
///
/// # Errors
/// A split is missing, empty or, where labels are needed, not labelled throughout; a row cannot be used.
pub fn read_corpus(
    dataset: &Dataset,
    names: &SplitNames,
    encoder: RowEncoder<'_>,
    skip: &mut SkipBadRows,
) -> Result<Corpus, Error> {
    let mut read = |split: &Split| -> Result<Rows, Error> {
        let examples = dataset.read(split, skip)?;
        Rows::new(split.clone(), dataset.task(), &examples, encoder)
    };
    let train = read(&names.train)?;
    let validation = read(&names.validation)?;
    // Only the default name may be absent: another one was written down for a reason.
    let has_test = names.test != Split::test() || dataset.splits().contains(&names.test);
    let test = has_test.then(|| read(&names.test)).transpose()?;
    for rows in [&train, &validation] {
        if rows.is_empty() {
            return Err(JoinError::NoRows {
                split: rows.split.clone(),
            }
            .into());
        }
        if rows.labels == Labels::Absent {
            return Err(JoinError::Unlabelled {
                split: rows.split.clone(),
            }
            .into());
        }
    }
    let used = [&names.train, &names.validation, &names.test];
    let mut others = Vec::new();
    for split in dataset
        .splits()
        .iter()
        .filter(|split| !used.contains(split))
    {
        others.extend(dataset.read(split, skip)?.iter().map(Example::id));
    }
    Ok(Corpus {
        task: dataset.task().clone(),
        train,
        validation,
        test,
        others,
    })
}
