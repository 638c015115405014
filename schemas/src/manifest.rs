//! The description of a cache: which teacher, which signals, which shards, and one digest over all of it.
//!
//! A cache is a folder with `manifest.json` and shards. While it is open, the manifest says who the teacher is and
//! what is being asked; the shards that count are those in the folder. Freezing lists every shard with its digest
//! and gives the cache a digest of its own. The frozen state is also kept as `manifest-<first 16 digits>.json`, so
//! that it still opens by its digest after the cache has grown and was frozen again.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::FORMAT_VERSION;
use crate::digest::Sha256Digest;
use crate::error::Error;
use crate::notes::Notes;
use crate::signal::SignalSpec;

/// Name of the manifest in a cache folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Who was asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TeacherIdentity {
    /// The kind of teacher: `sketch`, `embeddings`, `import` ...
    pub kind: String,
    /// The model by the name that was asked for.
    pub model: String,
    /// Every setting that changes what the teacher says, free of secrets and addresses.
    pub settings: Value,
}

/// What was asked about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatasetIdentity {
    /// Name of the task.
    pub task: String,
    /// The fields that make up an example's id.
    pub fields: Vec<String>,
    /// The template that turns an example into the teacher's prompt; absent for imported caches.
    pub prompt: Option<String>,
}

/// One committed shard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name inside the cache folder.
    pub file: String,
    /// Rows in it.
    pub num_rows: u64,
    /// Its size.
    pub num_bytes: u64,
    /// Digest of the whole file.
    pub sha256: Sha256Digest,
}

/// Whether a cache may still grow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CacheState {
    /// Rows may be added; what counts are the shards in the folder.
    Open,
    /// Nothing changes any more; what counts is this list.
    Frozen {
        /// Digest over everything in the manifest.
        digest: Sha256Digest,
        /// Rows in all shards.
        num_rows: u64,
        /// The shards, ordered by file name.
        shards: Vec<ShardEntry>,
    },
}

/// The description of a cache.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    format_version: u32,
    /// Who was asked.
    pub teacher: TeacherIdentity,
    /// What was asked about.
    pub dataset: DatasetIdentity,
    /// Replies kept for each example.
    pub draws: u32,
    /// What each row holds.
    pub signals: Vec<SignalSpec>,
    /// What a reader may want to know and no program decides by.
    #[serde(default, skip_serializing_if = "Notes::is_empty")]
    pub notes: Notes,
    #[serde(flatten)]
    state: CacheState,
}

impl Manifest {
    /// The manifest of a cache that is being filled.
    pub fn new(
        teacher: TeacherIdentity,
        dataset: DatasetIdentity,
        draws: u32,
        signals: Vec<SignalSpec>,
    ) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            teacher,
            dataset,
            draws,
            signals,
            notes: Notes::default(),
            state: CacheState::Open,
        }
    }

    /// The same manifest with these notes.
    #[must_use]
    pub fn with_notes(mut self, notes: Notes) -> Self {
        self.notes = notes;
        self
    }

    /// The state with these shards, its digest computed.
    ///
    /// The digest is the SHA-256 of the compact JSON of this manifest with the keys of every object sorted, the
    /// shards ordered by name, and without the digest itself: equal content gives an equal digest on every machine.
    #[must_use]
    pub fn frozen(mut self, mut shards: Vec<ShardEntry>) -> Self {
        shards.sort_by(|a, b| a.file.cmp(&b.file));
        self.state = CacheState::Frozen {
            digest: self.content_digest(&shards),
            num_rows: shards.iter().map(|shard| shard.num_rows).sum(),
            shards,
        };
        self
    }

    /// The same description, open for more rows.
    #[must_use]
    pub fn reopened(mut self) -> Self {
        self.state = CacheState::Open;
        self
    }

    fn content_digest(&self, shards: &[ShardEntry]) -> Sha256Digest {
        let mut content = serde_json::json!({
            "format_version": self.format_version,
            "teacher": self.teacher,
            "dataset": self.dataset,
            "draws": self.draws,
            "signals": self.signals,
            "shards": shards,
        });
        // Caches that were frozen before there were notes keep their digests.
        if !self.notes.is_empty() {
            content["notes"] =
                serde_json::to_value(&self.notes).expect("notes have string keys only");
        }
        Sha256Digest::of(sorted(content).to_string().as_bytes())
    }

    /// Whether the cache may grow.
    pub fn state(&self) -> &CacheState {
        &self.state
    }

    /// The digest of a frozen cache.
    pub fn digest(&self) -> Option<Sha256Digest> {
        match &self.state {
            CacheState::Open => None,
            CacheState::Frozen { digest, .. } => Some(*digest),
        }
    }

    /// The signal of this name.
    pub fn signal(&self, name: &str) -> Option<&SignalSpec> {
        self.signals.iter().find(|signal| signal.name() == name)
    }

    /// Whether `other` asks the same teacher for the same things, so that its rows may join this cache. Notes are not
    /// compared: a licence that was added later makes no other replies.
    pub fn same_source(&self, other: &Self) -> bool {
        self.teacher == other.teacher
            && self.dataset == other.dataset
            && self.signals == other.signals
            && self.draws == other.draws
    }

    /// Reads the newest manifest of the cache in `folder`.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        Self::open_with(folder, |name| read_file(&folder.join(name)))
    }

    /// Reads the newest manifest of the cache at `location`, where `read` gives the content of the file of a name, or
    /// `None` where there is none.
    ///
    /// # Errors
    /// [`Error::NotACache`], those of [`parse`](Self::parse) and of `read`.
    pub fn open_with(
        location: &Path,
        read: impl Fn(&str) -> Result<Option<Vec<u8>>, Error>,
    ) -> Result<Self, Error> {
        match read(MANIFEST_FILE)? {
            Some(json) => Self::parse(&location.join(MANIFEST_FILE), &json),
            None => Err(Error::NotACache {
                path: location.to_owned(),
            }),
        }
    }

    /// Reads the frozen state of the cache in `folder` that has this digest.
    pub fn open_frozen(folder: &Path, digest: &Sha256Digest) -> Result<Self, Error> {
        Self::open_frozen_with(folder, digest, |name| read_file(&folder.join(name)))
    }

    /// Reads the frozen state with this digest of the cache at `location`; `read` as in [`open_with`](Self::open_with).
    ///
    /// # Errors
    /// [`Error::NotFrozen`], [`Error::UnknownCacheDigest`], and those of [`open_with`](Self::open_with).
    pub fn open_frozen_with(
        location: &Path,
        digest: &Sha256Digest,
        read: impl Fn(&str) -> Result<Option<Vec<u8>>, Error>,
    ) -> Result<Self, Error> {
        let newest = Self::open_with(location, &read)?;
        if newest.digest() == Some(*digest) {
            return Ok(newest);
        }
        let kept = frozen_file(digest);
        if let Some(json) = read(&kept)? {
            let manifest = Self::parse(&location.join(kept), &json)?;
            if manifest.digest() == Some(*digest) {
                return Ok(manifest);
            }
        }
        match newest.digest() {
            None => Err(Error::NotFrozen {
                path: location.to_owned(),
            }),
            found => Err(Error::UnknownCacheDigest {
                path: location.to_owned(),
                expected: *digest,
                found,
            }),
        }
    }

    /// Reads a manifest from the JSON that stands at `path`.
    ///
    /// # Errors
    /// [`Error::FormatVersion`]; [`Error::InvalidManifest`].
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let invalid = |problem: String| Error::InvalidManifest {
            path: path.to_owned(),
            problem,
        };
        let Version { format_version } =
            serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
        if format_version != FORMAT_VERSION {
            return Err(Error::FormatVersion {
                path: path.to_owned(),
                found: format_version,
                supported: FORMAT_VERSION,
            });
        }
        let manifest: Self =
            serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
        if let CacheState::Frozen { digest, shards, .. } = &manifest.state {
            let computed = manifest.content_digest(shards);
            if computed != *digest {
                return Err(invalid(format!(
                    "it was changed after freezing: its content has digest {computed}, it says {digest}"
                )));
            }
        }
        Ok(manifest)
    }

    /// Writes this manifest into `folder`, atomically and durably; a frozen one also under its own name.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        self.write_with(|name, json| write_atomically(&folder.join(name), json))
    }

    /// Writes this manifest with `write`, which is given names and contents and must be atomic and durable.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write_with(
        &self,
        mut write: impl FnMut(&str, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut json = serde_json::to_string_pretty(self).expect("a manifest has string keys only");
        json.push('\n');
        if let Some(digest) = self.digest() {
            write(&frozen_file(&digest), json.as_bytes())?;
        }
        write(MANIFEST_FILE, json.as_bytes())
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "read", error)),
    }
}

/// The same value with the keys of every object in byte order, whatever order the JSON library keeps.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let entries: BTreeMap<String, Value> = map
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(values) => values.into_iter().map(sorted).collect(),
        other => other,
    }
}

fn frozen_file(digest: &Sha256Digest) -> String {
    format!("manifest-{}.json", digest.short())
}

/// Writes a file so that a reader sees the old content or the new, never a part, even after a power cut.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder: PathBuf = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    let write = || -> std::io::Result<()> {
        // A name of its own, so that whoever holds the folder's lock can tell what a writer that died left behind.
        let mut file = tempfile::Builder::new()
            .prefix(".manifest-")
            .suffix(".tmp")
            .tempfile_in(&folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        make_readable(file.as_file())?;
        file.persist(path)?;
        sync_folder(&folder)
    };
    write().map_err(|source| Error::io(path, "write", source))
}

/// Temporary files are private to their owner; what is committed is for everyone whom the folder admits.
///
/// # Errors
/// Those of the operating system.
#[cfg(unix)]
pub fn make_readable(file: &fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

/// Nothing to do on this platform.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn make_readable(_file: &fs::File) -> std::io::Result<()> {
    Ok(())
}

/// Makes a rename inside `folder` durable.
///
/// # Errors
/// Those of the operating system.
#[cfg(unix)]
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// Nothing to do on this platform.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn sync_folder(_folder: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notes::{Rights, TeacherNotes};
    use crate::signal::SignalKind;

    fn manifest() -> Manifest {
        Manifest::new(
            TeacherIdentity {
                kind: "sketch".into(),
                model: "sketch-1".into(),
                settings: serde_json::json!({"image": false}),
            },
            DatasetIdentity {
                task: "scenes".into(),
                fields: vec!["premise".into()],
                prompt: Some("{premise}".into()),
            },
            1,
            vec![SignalSpec::new("text", SignalKind::Text, "a text").unwrap()],
        )
    }

    fn entry(file: &str) -> ShardEntry {
        ShardEntry {
            file: file.into(),
            num_rows: 2,
            num_bytes: 9,
            sha256: Sha256Digest::of(file.as_bytes()),
        }
    }

    #[test]
    fn the_digest_does_not_depend_on_the_order_of_shards() {
        let one = manifest().frozen(vec![entry("a"), entry("b")]);
        let two = manifest().frozen(vec![entry("b"), entry("a")]);
        assert_eq!(one, two);
        assert_ne!(one.digest(), manifest().frozen(vec![entry("a")]).digest());
    }

    #[test]
    fn notes_are_part_of_the_digest_and_not_of_the_source() {
        let plain = manifest().frozen(vec![entry("a")]);
        let known = "sha256:c20906790be7b0d58771e050153d7c701ef1c89470e4b87b343ef379f6935b24";
        assert_eq!(
            plain.digest().unwrap().to_string(),
            known,
            "a cache without notes has the digest that it had before there were any"
        );
        let notes = Notes::of(
            Rights::of(Some("mit"), None),
            [TeacherNotes::of(None, Rights::default(), Some("{premise}"))],
        );
        let described = manifest().with_notes(notes.clone());
        assert!(described.same_source(&manifest()));
        let folder = tempfile::tempdir().unwrap();
        let described = described.frozen(vec![entry("a")]);
        assert_ne!(described.digest(), plain.digest());
        described.write(folder.path()).unwrap();
        assert_eq!(Manifest::open(folder.path()).unwrap().notes, notes);
        plain.write(folder.path()).unwrap();
        let json = fs::read_to_string(folder.path().join(MANIFEST_FILE)).unwrap();
        assert!(!json.contains("notes"), "{json}");
    }

    #[test]
    fn an_earlier_frozen_state_still_opens_after_growth() {
        let folder = tempfile::tempdir().unwrap();
        let first = manifest().frozen(vec![entry("a")]);
        first.write(folder.path()).unwrap();
        first.clone().reopened().write(folder.path()).unwrap();
        let second = manifest().frozen(vec![entry("a"), entry("b")]);
        second.write(folder.path()).unwrap();
        for state in [&first, &second] {
            let digest = state.digest().unwrap();
            assert_eq!(
                &Manifest::open_frozen(folder.path(), &digest).unwrap(),
                state
            );
        }
        assert!(matches!(
            Manifest::open_frozen(folder.path(), &Sha256Digest::of(b"other")),
            Err(Error::UnknownCacheDigest { found, .. }) if found == second.digest()
        ));
    }

    #[test]
    fn a_frozen_manifest_that_was_edited_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        manifest()
            .frozen(vec![entry("a")])
            .write(folder.path())
            .unwrap();
        let path = folder.path().join(MANIFEST_FILE);
        let edited = fs::read_to_string(&path)
            .unwrap()
            .replace("sketch-1", "sketch-2");
        fs::write(&path, edited).unwrap();
        assert!(matches!(
            Manifest::open(folder.path()),
            Err(Error::InvalidManifest { .. })
        ));
    }

    #[test]
    fn another_format_version_is_refused_by_number() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join(MANIFEST_FILE),
            r#"{"format_version": 0, "what": "ever"}"#,
        )
        .unwrap();
        assert!(matches!(
            Manifest::open(folder.path()),
            Err(Error::FormatVersion {
                found: 0,
                supported: 1,
                ..
            })
        ));
        assert!(matches!(
            Manifest::open(&folder.path().join("no")),
            Err(Error::NotACache { .. })
        ));
    }
}
