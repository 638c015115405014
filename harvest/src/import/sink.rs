//! Where imported features go: checked one by one, committed shard by shard.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use schemas::{
    ExampleId, Manifest, Provenance, SignalKind, SignalSpec, SignalValue, TeacherIdentity,
    TeacherRecord,
};

use crate::cache::{Cache, Key, check_same_source, commit, each_key, publish};
use crate::config::CacheConfig;
use crate::error::Error;
use crate::plan::Plan;

const SIGNAL: &str = "feature";

/// A cache that takes features.
pub(super) struct Sink<'a> {
    cache: Cache,
    known: HashSet<Key>,
    plan: &'a Plan,
    config: &'a CacheConfig,
    teacher: TeacherIdentity,
    /// Known once the first feature is there, which has the width.
    manifest: Option<Manifest>,
    rows: Vec<TeacherRecord>,
    num_imported: u64,
}

impl<'a> Sink<'a> {
    /// A sink into `cache`.
    ///
    /// # Errors
    /// [`Error::DifferentSource`] where the cache came from elsewhere, even if there is nothing to add.
    pub(super) fn new(
        cache: Cache,
        plan: &'a Plan,
        config: &'a CacheConfig,
        model: &str,
        settings: serde_json::Value,
    ) -> Result<Self, Error> {
        let teacher = TeacherIdentity {
            kind: "import".into(),
            model: model.to_owned(),
            settings,
        };
        let mut known = HashSet::new();
        each_key(cache.place(), |key| {
            known.insert(key);
            Ok(())
        })?;
        let sink = Self {
            cache,
            known,
            plan,
            config,
            teacher,
            manifest: None,
            rows: Vec::new(),
            num_imported: 0,
        };
        if let Some(cached) = sink.cache.manifest() {
            let signal = cached.signal(SIGNAL).and_then(SignalSpec::vector);
            // The width is compared once a feature shows it.
            let origin = sink.cache.place().store.location();
            sink.begin(signal.map_or(1, |(width, _)| width), origin.as_ref())?;
        }
        Ok(sink)
    }

    /// Rows that the cache had before this import.
    pub(super) fn known(&self) -> &HashSet<Key> {
        &self.known
    }

    /// Adds the feature of an example; `origin` is the file it came from.
    pub(super) fn add(
        &mut self,
        id: ExampleId,
        vector: Vec<f32>,
        origin: &Path,
    ) -> Result<(), Error> {
        if self.manifest.is_none() {
            self.manifest = Some(self.begin(vector.len(), origin)?);
        }
        let manifest = self.manifest.as_ref().expect("it was just made");
        let record = TeacherRecord {
            id,
            draw: 0,
            signals: BTreeMap::from([(SIGNAL.to_owned(), SignalValue::Vector(vector))]),
            provenance: Provenance::default(),
        };
        let record = record.fit(&manifest.signals);
        let record = record.map_err(|error| Error::BadFeature {
            path: origin.to_owned(),
            problem: error.to_string(),
        })?;
        self.rows.push(record);
        self.num_imported += 1;
        if self.rows.len() >= self.config.rows_per_shard.get() {
            self.commit()?;
        }
        Ok(())
    }

    fn begin(&self, width: usize, origin: &Path) -> Result<Manifest, Error> {
        let bad = |problem: String| Error::BadFeature {
            path: origin.to_owned(),
            problem,
        };
        let width =
            u32::try_from(width).map_err(|_| bad(format!("{width} values are too many")))?;
        let kind = SignalKind::Feature {
            width,
            dtype: self.config.dtype,
        };
        let signal = SignalSpec::new(SIGNAL, kind, "a feature made elsewhere")
            .map_err(|error| bad(error.to_string()))?;
        let dataset = self.plan.identity().clone();
        let manifest = Manifest::new(
            self.teacher.clone(),
            dataset,
            self.plan.draws(),
            vec![signal],
        )
        .with_notes(self.plan.notes().clone());
        if let Some(cached) = self.cache.manifest() {
            check_same_source(&self.cache.place().store.location(), cached, &manifest)?;
        }
        Ok(manifest)
    }

    fn commit(&mut self) -> Result<(), Error> {
        if let Some(manifest) = self.manifest.as_ref().filter(|_| !self.rows.is_empty()) {
            publish(self.cache.place(), manifest)?;
            let number = self.cache.take_number();
            commit(
                self.cache.place(),
                number,
                manifest,
                self.rows.drain(..).map(Ok),
            )?;
        }
        Ok(())
    }

    /// Commits the rest; returns the number of features added.
    pub(super) fn finish(mut self) -> Result<u64, Error> {
        self.commit()?;
        Ok(self.num_imported)
    }
}
