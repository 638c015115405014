//! The data card of a cache: `README.md` as the Hugging Face hub reads it, and `croissant.json`, Croissant 1.0.
//!
//! Both are made of the manifest and of what every row says ([`CacheStats`]); nothing in them comes from the
//! environment. Names of models that are paths of files lose their folders, and locations do not enter at all.

mod croissant;
mod error;
mod front_matter;
mod readme;

use std::collections::BTreeMap;

use schemas::{CacheState, Manifest, ShardEntry};
use serde_json::Value;

use crate::error::Error;
use crate::stats::CacheStats;
use crate::store::Store;

pub use error::CardError;

/// Name of the card.
pub const README_FILE: &str = "README.md";
/// Name of the Croissant metadata.
pub const CROISSANT_FILE: &str = "croissant.json";

/// Stands in every file that this module writes: one that lacks it belongs to somebody else.
const MARKER: &str = "armada-harvest-card";

/// What a card tells.
#[derive(Debug)]
pub struct Card {
    manifest: Manifest,
    shards: Vec<ShardEntry>,
    stats: CacheStats,
    /// Failed rows by class.
    failures: BTreeMap<String, u64>,
}

impl Card {
    /// Reads the whole cache in `store`.
    ///
    /// # Errors
    /// [`Error::Schemas`] where something cannot be read.
    pub fn of(store: &Store) -> Result<Self, Error> {
        let manifest = store.manifest()?;
        let stats = CacheStats::of(store, &manifest)?;
        let shards = match manifest.state() {
            CacheState::Frozen { shards, .. } => shards.clone(),
            CacheState::Open => entries(store)?,
        };
        Ok(Self {
            failures: failures_by_class(store)?,
            manifest,
            shards,
            stats,
        })
    }

    /// The text of `README.md`.
    pub fn readme(&self) -> String {
        self.without_folders(&format!("{}\n{}", front_matter::of(self), readme::of(self)))
    }

    /// The text of `croissant.json`.
    pub fn croissant(&self) -> String {
        let json = serde_json::to_string_pretty(&croissant::of(self))
            .expect("metadata has string keys only");
        self.without_folders(&json) + "\n"
    }

    /// Writes both files into `target`, replacing those of an earlier card.
    ///
    /// # Errors
    /// [`CardError::NotOurs`] where a file there was not written by this verb, in which case nothing is written.
    pub fn write(&self, target: &Store) -> Result<(), Error> {
        let files = [
            (README_FILE, self.readme()),
            (CROISSANT_FILE, self.croissant()),
        ];
        for (name, _) in &files {
            let present = target.read(name)?;
            if present.is_some_and(|text| !String::from_utf8_lossy(&text).contains(MARKER)) {
                return Err(CardError::NotOurs {
                    location: target.location(),
                    name: (*name).to_owned(),
                }
                .into());
            }
        }
        for (name, text) in files {
            target.put(name, text.as_bytes())?;
        }
        Ok(())
    }

    /// A glob that matches the shards, and nothing else that a cache may hold.
    fn shard_globs(&self) -> Vec<String> {
        if self
            .shards
            .iter()
            .all(|shard| shard.file.starts_with("part-"))
        {
            return vec!["part-*.parquet".to_owned()];
        }
        self.shards.iter().map(|shard| shard.file.clone()).collect()
    }

    fn title(&self) -> String {
        format!(
            "{} as seen by {}",
            self.manifest.dataset.task, self.manifest.teacher.model
        )
    }

    /// The licence of the replies, where all teachers that state one state the same.
    fn license(&self) -> Option<&str> {
        let mut licenses: Vec<&str> = self
            .manifest
            .notes
            .teachers
            .iter()
            .filter_map(|teacher| teacher.rights.license.as_deref())
            .collect();
        licenses.dedup();
        match licenses[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Servers often name a model by the path of its file; whoever reads a card has no use for the folders.
    fn without_folders(&self, text: &str) -> String {
        let mut names: Vec<&str> = vec![&self.manifest.teacher.model];
        names.extend(
            self.stats
                .provenance
                .served_models
                .keys()
                .map(String::as_str),
        );
        names.extend(
            self.stats
                .provenance
                .fingerprints
                .keys()
                .map(String::as_str),
        );
        strings_in(&self.manifest.teacher.settings, &mut names);
        names.retain(|name| is_path(name));
        // The longest first, so that one path inside another does not cut it short.
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        names.into_iter().fold(text.to_owned(), |text, name| {
            let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
            // In JSON and YAML a backslash is written twice.
            text.replace(&name.replace('\\', "\\\\"), last)
                .replace(name, last)
        })
    }
}

fn is_path(text: &str) -> bool {
    let starts = ["/", "~/", "./", "../", "file:", "\\\\"];
    let has_drive = text
        .get(1..3)
        .is_some_and(|drive| drive == ":\\" || drive == ":/");
    !text.ends_with(['/', '\\'])
        && text.len() > 1
        && (has_drive || starts.iter().any(|start| text.starts_with(start)))
}

fn strings_in<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(values) => values.iter().for_each(|value| strings_in(value, found)),
        Value::Object(map) => map.values().for_each(|value| strings_in(value, found)),
        _ => {}
    }
}

/// The shards of an open cache as a manifest would list them.
fn entries(store: &Store) -> Result<Vec<ShardEntry>, Error> {
    let mut entries = Vec::new();
    let shards = store.shards()?;
    for file in store.list()? {
        if !shards.contains(&file.name) {
            continue;
        }
        entries.push(ShardEntry {
            num_rows: store.open_shard(&file.name)?.num_rows(),
            sha256: store.sha256(&file.name)?,
            num_bytes: file.num_bytes,
            file: file.name,
        });
    }
    Ok(entries)
}

/// Failed rows by class, from the lists that runs keep beside the shards.
fn failures_by_class(store: &Store) -> Result<BTreeMap<String, u64>, Error> {
    let mut counts = BTreeMap::new();
    for entry in store.list()? {
        if entry.name.starts_with("failures") && entry.name.ends_with(".parquet") {
            for failure in crate::failures::read_list(store, &entry.name)? {
                *counts.entry(failure.class.to_string()).or_default() += 1;
            }
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests;
