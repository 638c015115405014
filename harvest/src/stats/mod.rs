//! The quality of a cache, computed from every row of it.
//!
//! | file | what lives there |
//! |---|---|
//! | vectors.rs | norms, duplicates, constant columns, effective rank, cosine; class balance and entropy |
//! | top_k.rs | positions, retained mass by k |
//! | content.rs | texts and images |
//! | provenance.rs | served models, tokens, cost, tries, latency |
//! | repeats.rs, spread.rs, rank.rs, eigen.rs | counting, percentiles and linear algebra below them |
//!
//! A cache is read once, a batch of rows at a time. What grows with it is one 64-bit digest a row and signal for
//! the duplicates, up to a bound ([`repeats`]).

mod content;
mod eigen;
mod lines;
mod provenance;
mod rank;
pub mod repeats;
mod spread;
mod top_k;
mod vectors;

use std::collections::BTreeMap;

use schemas::{CacheState, Manifest, Sha256Digest, SignalKind, SignalValue, TeacherRecord};
use serde::Serialize;

use crate::error::Error;
use crate::store::Store;

pub use content::{ImageStats, TextStats};
pub(crate) use lines::utc;
pub use provenance::ProvenanceStats;
pub use rank::EffectiveRank;
pub use repeats::Repeats;
pub use spread::{Spread, SpreadSummary, short};
pub use top_k::TopKStats;
pub(crate) use vectors::log_softmax;
pub use vectors::{ClassStats, VectorStats};

/// What is known of a cache after every row was read.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CacheStats {
    /// Rows.
    pub num_rows: u64,
    /// Shards.
    pub num_shards: u64,
    /// Bytes of all shards.
    pub num_bytes: u64,
    /// The digest of a frozen cache.
    pub digest: Option<Sha256Digest>,
    /// Each signal by its name.
    pub signals: BTreeMap<String, SignalStats>,
    /// How the replies came to be.
    pub provenance: ProvenanceStats,
    /// What a reader should know before relying on the cache, one sentence each.
    pub warnings: Vec<String>,
}

/// What is known of one signal.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SignalStats {
    /// Features.
    Feature(VectorStats),
    /// Logits, as vectors and as distributions over classes.
    ClassLogits {
        /// As vectors.
        vectors: VectorStats,
        /// As distributions.
        classes: ClassStats,
    },
    /// Token top-k.
    TokenTopK(TopKStats),
    /// Texts.
    Text(TextStats),
    /// Pictures.
    Image(ImageStats),
}

/// Collects the statistics of a cache, a record at a time.
#[derive(Debug)]
pub struct Collector {
    num_rows: u64,
    signals: Vec<(String, SignalCollector)>,
    provenance: provenance::Collector,
}

#[derive(Debug)]
enum SignalCollector {
    Feature(Box<vectors::Collector>),
    ClassLogits(Box<(vectors::Collector, vectors::ClassCollector)>),
    TokenTopK(Box<top_k::Collector>),
    Text(Box<content::TextCollector>),
    Image(Box<content::ImageCollector>),
}

impl Collector {
    /// Of the signals of `manifest`, of which about `num_expected` rows will come.
    pub fn new(manifest: &Manifest, num_expected: u64) -> Self {
        let signals = manifest.signals.iter().map(|spec| {
            let vectors = |width: u32| vectors::Collector::new(width as usize, num_expected);
            let collector = match spec.kind() {
                SignalKind::Feature { width, .. } => {
                    SignalCollector::Feature(Box::new(vectors(*width)))
                }
                SignalKind::ClassLogits { width, .. } => {
                    let classes = vectors::ClassCollector::new(*width as usize);
                    SignalCollector::ClassLogits(Box::new((vectors(*width), classes)))
                }
                SignalKind::TokenTopK { k } => {
                    SignalCollector::TokenTopK(Box::new(top_k::Collector::new(*k)))
                }
                SignalKind::Text => SignalCollector::Text(Box::default()),
                SignalKind::Image => SignalCollector::Image(Box::default()),
            };
            (spec.name().to_owned(), collector)
        });
        Self {
            num_rows: 0,
            signals: signals.collect(),
            provenance: provenance::Collector::default(),
        }
    }

    /// Adds a record that has the signals of the manifest.
    pub fn add(&mut self, record: &TeacherRecord) {
        self.num_rows += 1;
        self.provenance.add(&record.provenance);
        for (name, collector) in &mut self.signals {
            match (collector, record.signals.get(name)) {
                (SignalCollector::Feature(vectors), Some(SignalValue::Vector(values))) => {
                    vectors.add(values);
                }
                (SignalCollector::ClassLogits(both), Some(SignalValue::Vector(values))) => {
                    both.0.add(values);
                    both.1.add(values);
                }
                (SignalCollector::TokenTopK(tokens), Some(SignalValue::TokenTopK(value))) => {
                    tokens.add(value);
                }
                (SignalCollector::Text(texts), Some(SignalValue::Text(text))) => texts.add(text),
                (SignalCollector::Image(images), Some(SignalValue::Image(bytes))) => {
                    images.add(bytes);
                }
                (_, value) => unreachable!("a shard gives `{name}` as its signal says: {value:?}"),
            }
        }
    }

    /// The statistics of what was added; the cache's size and digest are left empty.
    pub fn finish(self) -> CacheStats {
        let mut stats = CacheStats {
            num_rows: self.num_rows,
            num_shards: 0,
            num_bytes: 0,
            digest: None,
            signals: BTreeMap::new(),
            provenance: self.provenance.finish(),
            warnings: Vec::new(),
        };
        for (name, collector) in self.signals {
            let signal = match collector {
                SignalCollector::Feature(vectors) => SignalStats::Feature(vectors.finish()),
                SignalCollector::ClassLogits(both) => SignalStats::ClassLogits {
                    vectors: both.0.finish(),
                    classes: both.1.finish(),
                },
                SignalCollector::TokenTopK(tokens) => SignalStats::TokenTopK(tokens.finish()),
                SignalCollector::Text(texts) => SignalStats::Text(texts.finish()),
                SignalCollector::Image(images) => SignalStats::Image(images.finish()),
            };
            stats.signals.insert(name, signal);
        }
        stats.warnings = stats.find_warnings();
        stats
    }
}

impl CacheStats {
    /// Reads every row of a cache: of a frozen one the shards that its manifest lists, of an open one those that are
    /// there.
    ///
    /// # Errors
    /// [`Error::Schemas`] where something cannot be read; a shard whose bytes are not those that were committed is
    /// among them.
    pub fn of(store: &Store, manifest: &Manifest) -> Result<Self, Error> {
        let names = shard_names(store, manifest)?;
        let mut num_expected = 0;
        for name in &names {
            num_expected += store.open_shard(name)?.num_rows();
        }
        let mut collector = Collector::new(manifest, num_expected);
        for name in &names {
            let reader = store.open_shard_verified(name)?;
            crate::cache::check_same_source(name, reader.manifest(), manifest)?;
            for record in reader.records()? {
                collector.add(&record?);
            }
        }
        let sizes = store.list()?;
        Ok(Self {
            num_shards: names.len() as u64,
            num_bytes: sizes
                .iter()
                .filter(|entry| names.contains(&entry.name))
                .map(|entry| entry.num_bytes)
                .sum(),
            digest: manifest.digest(),
            ..collector.finish()
        })
    }

    fn find_warnings(&self) -> Vec<String> {
        let mut warnings = self.provenance.warnings();
        for (name, signal) in &self.signals {
            let found = match signal {
                SignalStats::Feature(vectors) | SignalStats::ClassLogits { vectors, .. } => {
                    vectors.warnings()
                }
                SignalStats::TokenTopK(tokens) => tokens.warnings(),
                SignalStats::Text(texts) => texts.warnings(),
                SignalStats::Image(images) => images.warnings(),
            };
            warnings.extend(found.into_iter().map(|text| format!("`{name}`: {text}")));
        }
        warnings
    }
}

/// The shards that count: those of the manifest where it is frozen, those of the store where it is open.
///
/// # Errors
/// [`schemas::Error::Io`].
pub fn shard_names(store: &Store, manifest: &Manifest) -> Result<Vec<String>, schemas::Error> {
    match manifest.state() {
        CacheState::Open => store.shards(),
        CacheState::Frozen { shards, .. } => {
            Ok(shards.iter().map(|shard| shard.file.clone()).collect())
        }
    }
}

/// Adds one to what `key` counts, where `counts` has fewer than 64 keys or has this one; else to `(others)`.
fn count(counts: &mut BTreeMap<String, u64>, key: &str) {
    const MAX_KEYS: usize = 64;
    if let Some(num) = counts.get_mut(key) {
        *num += 1;
        return;
    }
    let key = if counts.len() < MAX_KEYS {
        key
    } else {
        "(others)"
    };
    *counts.entry(key.to_owned()).or_default() += 1;
}

#[cfg(test)]
mod tests;
