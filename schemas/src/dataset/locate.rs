//! Which files of a folder make up which split, by the names under which data sets are published.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Format;
use super::glue::{MSR_DEV_IDS, MSR_TEST, MSR_TRAIN, MrpcPart, find_dev_ids};
use crate::error::Error;
use crate::example::Split;

/// Splits and the file stems under which they are published.
const STEMS: [(&str, &[&str]); 7] = [
    ("train", &["train"]),
    ("validation", &["validation", "dev", "val"]),
    ("test", &["test"]),
    ("validation_matched", &["validation_matched", "dev_matched"]),
    (
        "validation_mismatched",
        &["validation_mismatched", "dev_mismatched"],
    ),
    ("test_matched", &["test_matched"]),
    ("test_mismatched", &["test_mismatched"]),
];

/// One file of a split.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SplitFile {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    /// Set where a split is a part of the file.
    pub(super) part: Option<MrpcPart>,
}

impl SplitFile {
    pub(super) fn whole(path: PathBuf, format: Format) -> Self {
        Self {
            path,
            format,
            part: None,
        }
    }
}

/// The files of each split, in reading order.
pub(super) type SplitFiles = BTreeMap<Split, Vec<SplitFile>>;

/// The split that a file is by its name: `train` where the name says nothing.
pub(super) fn split_of(path: &Path) -> Split {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let stem = shard_of(&stem).map_or(&*stem, |shard| shard.stem);
    let known = STEMS.iter().find(|(_, stems)| stems.contains(&stem));
    Split::new(known.map_or("train", |(split, _)| split))
}

/// Looks through a folder for the splits of a task.
///
/// # Errors
/// [`Error::BadDataset`] where there are none, where a split is there twice, or where one of a set of numbered files
/// is missing; [`Error::Io`].
pub(super) fn find(folder: &Path, task: &str, format: Option<Format>) -> Result<SplitFiles, Error> {
    let mut candidates: BTreeMap<&str, Vec<PathBuf>> = BTreeMap::new();
    for path in list(folder)? {
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let stem = shard_of(&name).map_or(name.as_str(), |shard| shard.stem);
        let found = Format::of(&path).filter(|found| format.is_none_or(|wanted| wanted == *found));
        let split = STEMS.iter().find(|(_, stems)| stems.contains(&stem));
        if let (Some(_), Some((split, _))) = (found, split) {
            candidates.entry(split).or_default().push(path);
        }
    }
    let mut splits = SplitFiles::new();
    for (split, paths) in candidates {
        splits.insert(Split::new(split), one_set(folder, split, paths)?);
    }
    if task == "mrpc" {
        add_msr_files(folder, &mut splits);
    }
    if splits.is_empty() {
        return Err(nothing_found(folder, task, format));
    }
    Ok(splits)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut paths = std::fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()?;
        paths.retain(|path| path.is_file());
        paths.sort();
        Ok(paths)
    };
    list().map_err(|source| Error::io(folder, "list", source))
}

/// A stem such as `train-00000-of-00002`.
struct Shard<'a> {
    stem: &'a str,
    index: usize,
    count: usize,
}

fn shard_of(stem: &str) -> Option<Shard<'_>> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (stem, index) = rest.rsplit_once('-')?;
    let number = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    Some(Shard {
        stem,
        index: number(index)?,
        count: number(count)?,
    })
}

/// The files of one split: a single file, or every one of a set of numbered ones.
fn one_set(folder: &Path, split: &str, paths: Vec<PathBuf>) -> Result<Vec<SplitFile>, Error> {
    let bad = |problem: String, hint: &str| Error::BadDataset {
        path: folder.to_owned(),
        problem,
        hint: Some(hint.to_owned()),
    };
    let names: Vec<String> = paths
        .iter()
        .map(|path| {
            path.file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    let shards: Vec<_> = names.iter().map(|name| shard_of(name)).collect();
    let first = shards[0].as_ref();
    let extension = paths[0].extension();
    let same_set = shards.iter().zip(&paths).all(|(shard, path)| {
        shard.as_ref().map(|shard| (shard.stem, shard.count))
            == first.map(|shard| (shard.stem, shard.count))
            && path.extension() == extension
    });
    if !same_set || (first.is_none() && paths.len() > 1) {
        let list: Vec<_> = paths
            .iter()
            .map(|path| format!("`{}`", path.file_name().unwrap_or_default().display()))
            .collect();
        return Err(bad(
            format!(
                "split `{split}` is there more than once: {}",
                list.join(", ")
            ),
            "say which with files = { ... }, or with format = \"...\"",
        ));
    }
    if let Some(Shard { stem, count, .. }) = first {
        let present = |index: &usize| shards.iter().flatten().any(|shard| shard.index == *index);
        if let Some(missing) = (0..*count).find(|index| !present(index)) {
            return Err(bad(
                format!("`{stem}-{missing:05}-of-{count:05}` is missing"),
                "download the data set again",
            ));
        }
    }
    Ok(paths
        .into_iter()
        .map(|path| {
            let format = Format::of(&path).expect("candidates have a known extension");
            SplitFile::whole(path, format)
        })
        .collect())
}

/// MRPC as it was first distributed, for the splits that GLUE's own files do not give.
fn add_msr_files(folder: &Path, splits: &mut SplitFiles) {
    let train = folder.join(MSR_TRAIN);
    if train.is_file() && !splits.contains_key(&Split::train()) {
        let part = |dev_ids: &PathBuf, listed| SplitFile {
            part: Some(MrpcPart {
                dev_ids: dev_ids.clone(),
                listed,
            }),
            ..SplitFile::whole(train.clone(), Format::Tsv)
        };
        match find_dev_ids(folder) {
            Some(ids) if !splits.contains_key(&Split::validation()) => {
                splits.insert(Split::train(), vec![part(&ids, false)]);
                splits.insert(Split::validation(), vec![part(&ids, true)]);
            }
            _ => {
                splits.insert(Split::train(), vec![SplitFile::whole(train, Format::Tsv)]);
            }
        }
    }
    let test = folder.join(MSR_TEST);
    if test.is_file() {
        let whole = || vec![SplitFile::whole(test, Format::Tsv)];
        splits.entry(Split::test()).or_insert_with(whole);
    }
}

fn nothing_found(folder: &Path, task: &str, format: Option<Format>) -> Error {
    let extensions = match format {
        None => "jsonl, csv, tsv, parquet".to_owned(),
        Some(format) => format.extension().to_owned(),
    };
    let stems: Vec<&str> = STEMS
        .iter()
        .flat_map(|(_, stems)| *stems)
        .copied()
        .collect();
    let msr = match task {
        "mrpc" => format!("; {MSR_TRAIN} (with {}), {MSR_TEST}", MSR_DEV_IDS[0]),
        _ => String::new(),
    };
    Error::BadDataset {
        path: folder.to_owned(),
        problem: format!("it has no file of task `{task}`"),
        hint: Some(format!(
            "looked for {} with extension {extensions}, also numbered as in train-00000-of-00001.parquet{msr}; \
             name other files with files = {{ train = \"...\" }}",
            stems.join(", ")
        )),
    }
}
