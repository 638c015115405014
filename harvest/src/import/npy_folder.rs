//! A folder with one `.npy` file an example, named by split and row.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{ImportSummary, Missing, Sink, npy};
use crate::config::NpyConfig;
use crate::error::Error;
use crate::plan::Plan;

pub(super) fn import(
    folder: &Path,
    config: &NpyConfig,
    plan: &Plan,
    mut sink: Sink<'_>,
) -> Result<ImportSummary, Error> {
    let mut files = npy_files(folder)?;
    let mut summary = ImportSummary::default();
    let mut missing = Missing::default();
    let mut wanted = Vec::new();
    let mut seen = HashSet::new();
    let mut skip = plan.allowance();
    for split in plan.splits() {
        for (index, example) in plan.read(split, &mut skip)?.iter().enumerate() {
            let file = config.pattern.file(split, index);
            let is_there = files.remove(&file);
            if !seen.insert(example.id()) {
                continue;
            }
            if sink.known().contains(&(example.id(), 0)) {
                summary.num_known += 1;
            } else if is_there {
                wanted.push((example.id(), file));
            } else {
                missing.add(1, || file.display().to_string());
            }
        }
    }
    summary.num_examples = seen.len() as u64;
    summary.num_extra = files.len() as u64;
    missing.refuse(folder, summary.num_examples)?;
    for (id, file) in wanted {
        let path = folder.join(file);
        let bytes =
            std::fs::read(&path).map_err(|source| schemas::Error::io(&path, "read", source))?;
        let vector = npy::parse(&bytes).map_err(|problem| Error::BadFeature {
            path: path.clone(),
            problem,
        })?;
        sink.add(id, vector, &path)?;
    }
    summary.num_imported = sink.finish()?;
    Ok(summary)
}

/// Every `.npy` file below `folder`, by its path inside it.
fn npy_files(folder: &Path) -> Result<HashSet<PathBuf>, Error> {
    let mut files = HashSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        let list_error = |source| schemas::Error::io(&current, "list", source);
        for entry in std::fs::read_dir(&current).map_err(list_error)? {
            let path = entry.map_err(list_error)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "npy") {
                files.insert(path.strip_prefix(folder).expect("it lies below").to_owned());
            }
        }
    }
    Ok(files)
}
