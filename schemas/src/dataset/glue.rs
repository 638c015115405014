//! The tasks of GLUE, as published in TSV and in the Parquet export on Hugging Face.
//!
//! Fields, classes and their order are those of the export (`nyu-mll/glue`); the second names are those of the TSV
//! files. The TSV files are not quoted, and CoLA's train and dev files have no header.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::builtin::Builtin;
use super::delimited::{self, Dialect, Headerless};
use super::row::{Column, Value};
use crate::error::Error;
use crate::task::Metric;

pub(super) const COLA: Builtin = Builtin {
    classes: &["unacceptable", "acceptable"],
    metric: Metric::Matthews,
    headerless: Some(Headerless {
        names: &["source", "label", "mark", "sentence"],
        // The header of the test file is `index sentence`, and a label is a digit.
        is_row: |cells| cells.len() == 4 && matches!(cells[1].as_str(), "0" | "1"),
    }),
    ..Builtin::new("cola", &[("sentence", &[])], "{sentence}")
};

pub(super) const SST2: Builtin = Builtin {
    classes: &["negative", "positive"],
    ..Builtin::new("sst2", &[("sentence", &[])], "{sentence}")
};

pub(super) const MRPC: Builtin = Builtin {
    label: &["Quality"],
    classes: &["not_equivalent", "equivalent"],
    second: Some("{sentence2}"),
    ..Builtin::new(
        "mrpc",
        &[("sentence1", &["#1 String"]), ("sentence2", &["#2 String"])],
        "{sentence1}",
    )
};

pub(super) const QQP: Builtin = Builtin {
    label: &["is_duplicate"],
    classes: &["not_duplicate", "duplicate"],
    second: Some("{question2}"),
    ..Builtin::new(
        "qqp",
        &[("question1", &[]), ("question2", &[])],
        "{question1}",
    )
};

pub(super) const STSB: Builtin = Builtin {
    label: &["score"],
    metric: Metric::Pearson,
    second: Some("{sentence2}"),
    ..Builtin::new(
        "stsb",
        &[("sentence1", &[]), ("sentence2", &[])],
        "{sentence1}",
    )
};

pub(super) const MNLI: Builtin = Builtin {
    label: &["gold_label"],
    classes: &["entailment", "neutral", "contradiction"],
    second: Some("{hypothesis}"),
    ..Builtin::new(
        "mnli",
        &[("premise", &["sentence1"]), ("hypothesis", &["sentence2"])],
        "{premise}",
    )
};

pub(super) const QNLI: Builtin = Builtin {
    classes: &["entailment", "not_entailment"],
    second: Some("{sentence}"),
    ..Builtin::new(
        "qnli",
        &[("question", &[]), ("sentence", &[])],
        "{question}",
    )
};

pub(super) const RTE: Builtin = Builtin {
    classes: &["entailment", "not_entailment"],
    second: Some("{sentence2}"),
    ..Builtin::new(
        "rte",
        &[("sentence1", &[]), ("sentence2", &[])],
        "{sentence1}",
    )
};

/// The files of the Microsoft Research Paraphrase Corpus as it was first distributed.
pub(super) const MSR_TRAIN: &str = "msr_paraphrase_train.txt";
pub(super) const MSR_TEST: &str = "msr_paraphrase_test.txt";
/// GLUE's list of the training pairs that make up its dev split: two ids a line.
pub(super) const MSR_DEV_IDS: [&str; 2] = ["dev_ids.tsv", "mrpc_dev_ids.tsv"];

/// Picks the rows of GLUE's train or dev split out of MRPC's first distribution.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MrpcPart {
    /// The file with the ids of the dev pairs.
    pub(super) dev_ids: PathBuf,
    /// Whether the listed pairs are wanted, or the others.
    pub(super) listed: bool,
}

impl MrpcPart {
    /// The columns that hold a pair's ids.
    pub(super) fn columns() -> [Column; 2] {
        ["#1 ID", "#2 ID"].map(|name| Column::new(name, &[name], true))
    }

    /// A test of the values of [`columns`](Self::columns).
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::BadRow`] about the list of ids.
    pub(super) fn filter(&self) -> Result<impl Fn(&[Option<Value>]) -> bool + use<>, Error> {
        let headerless = Headerless {
            names: &["#1 ID", "#2 ID"],
            is_row: |_| true,
        };
        let rows = delimited::open(
            &self.dev_ids,
            Dialect::Tsv,
            Some(headerless),
            &Self::columns(),
        )?;
        let ids = rows
            .map(|row| row.map(|row| row.values))
            .collect::<Result<HashSet<_>, _>>()?;
        let listed = self.listed;
        Ok(move |pair: &[Option<Value>]| ids.contains(pair) == listed)
    }
}

/// The first of the id lists that `folder` has.
pub(super) fn find_dev_ids(folder: &Path) -> Option<PathBuf> {
    let mut candidates = MSR_DEV_IDS.iter().map(|name| folder.join(name));
    candidates.find(|path| path.is_file())
}
