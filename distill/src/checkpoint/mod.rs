//! Checkpoints: a run at one moment, from which it goes on bit for bit.
//!
//! ```text
//! checkpoints/index.json            which checkpoint is the last and which the best
//! checkpoints/step-00000094-pass-2/ state.json and one safetensors file each for student, aligner and their optimisers
//! ```
//!
//! A checkpoint is written to a hidden folder and renamed; then `index.json` is replaced by another rename. Whatever
//! happens in between, the index names complete checkpoints.

mod error;
mod identity;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use schemas::Sha256Digest;
use serde::{Deserialize, Serialize};

pub use error::CheckpointError;
pub use identity::RunIdentity;

use crate::mapped::map;

/// Version of the checkpoint format.
const FORMAT_VERSION: u32 = 2;
const INDEX_FILE: &str = "index.json";
const STATE_FILE: &str = "state.json";

/// Where in a run the next step is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Index of the pass.
    pub pass: usize,
    /// Index of the batch within the pass.
    pub batch: usize,
    /// Steps done, all passes together.
    pub step: u64,
    /// Steps that the student's optimiser has done.
    pub student_step: u64,
    /// Steps that the aligner's optimiser has done.
    pub aligner_step: u64,
}

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Score on the validation split.
    pub score: Option<f64>,
    /// The epoch after which it was reached.
    pub epoch: usize,
    /// Steps done then.
    pub step: u64,
}

/// Everything about a moment of a run but its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    format_version: u32,
    /// Which run this is.
    pub run: RunIdentity,
    /// Where it stands.
    pub position: Position,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Digest of each tensor file.
    files: BTreeMap<String, Sha256Digest>,
}

/// A moment of a run, to be written.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Which, where, how good.
    pub state: State,
    /// Tensor files by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Checkpoint {
    /// A checkpoint of these files.
    pub fn new(
        run: RunIdentity,
        position: Position,
        best: Option<Best>,
        files: BTreeMap<String, Vec<u8>>,
    ) -> Self {
        let digests = files
            .iter()
            .map(|(name, bytes)| (name.clone(), Sha256Digest::of(bytes)))
            .collect();
        Self {
            state: State {
                format_version: FORMAT_VERSION,
                run,
                position,
                best,
                files: digests,
            },
            files,
        }
    }
}

/// A moment of a run, as it was written: whoever needs a tensor file reads it.
///
/// The files are open: a training that goes on may replace the checkpoint meanwhile.
#[derive(Debug)]
pub struct StoredCheckpoint {
    /// Which, where, how good.
    pub state: State,
    folder: PathBuf,
    files: BTreeMap<String, File>,
}

impl StoredCheckpoint {
    /// A tensor file, mapped into memory and checked against its digest.
    ///
    /// # Errors
    /// The checkpoint has no such file, or it is not what was written.
    pub fn file(&self, name: &str) -> Result<Mmap, CheckpointError> {
        let path = self.folder.join(name);
        let damaged = |problem: &str| CheckpointError::Damaged {
            path: path.clone(),
            problem: problem.to_owned(),
        };
        let known = self.files.get(name).zip(self.state.files.get(name));
        let (file, digest) = known.ok_or_else(|| damaged("state.json does not name it"))?;
        let bytes = map(file).map_err(CheckpointError::io(&path, "read"))?;
        if Sha256Digest::of(&bytes) == *digest {
            Ok(bytes)
        } else {
            Err(damaged("its digest is not that in state.json"))
        }
    }

    /// The names of all tensor files.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.state.files.keys().map(String::as_str)
    }
}

/// Which of a run's checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// The newest.
    Last,
    /// The one with the best score on the validation split.
    #[default]
    Best,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Index {
    last: String,
    best: Option<String>,
}

/// The checkpoints of one run folder.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    run_folder: PathBuf,
    folder: PathBuf,
}

impl Checkpoints {
    /// The checkpoints in a run folder, whether or not there are any.
    pub fn of(run_folder: &Path) -> Self {
        Self {
            run_folder: run_folder.to_owned(),
            folder: run_folder.join("checkpoints"),
        }
    }

    /// Whether there is one to go on from.
    pub fn exist(&self) -> bool {
        self.folder.join(INDEX_FILE).exists()
    }

    /// Writes a checkpoint as the last one, and as the best one if it is; older ones that are neither are removed.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; what the index named before is still there then.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let Position { step, pass, .. } = checkpoint.state.position;
        let name = format!("step-{step:08}-pass-{pass}");
        let previous = self.index()?;
        if previous.as_ref().is_some_and(|index| index.last == name) {
            // A run stopped before its first step: the same moment again, and the index must not lose it.
            return Ok(());
        }
        fs::create_dir_all(&self.folder).map_err(CheckpointError::io(&self.folder, "create"))?;
        let is_best = checkpoint.state.best.is_some_and(|best| best.step == step);
        let best = if is_best {
            Some(name.clone())
        } else {
            previous.and_then(|index| index.best)
        };

        let staging = self.folder.join(format!(".{name}"));
        remove(&staging)?;
        fs::create_dir(&staging).map_err(CheckpointError::io(&staging, "create"))?;
        for (file, bytes) in &checkpoint.files {
            write_synced(&staging.join(file), bytes)?;
        }
        write_synced(&staging.join(STATE_FILE), &pretty(&checkpoint.state))?;
        let target = self.folder.join(&name);
        remove(&target)?;
        fs::rename(&staging, &target).map_err(CheckpointError::io(&target, "rename to"))?;
        sync_folder(&self.folder)?;

        let index = Index { last: name, best };
        replace_file(&self.folder.join(INDEX_FILE), &pretty(&index))?;
        self.prune(&index)
    }

    /// Opens a checkpoint. Of its files the state alone is read.
    ///
    /// # Errors
    /// There is none, or its state is damaged.
    pub fn open(&self, which: Which) -> Result<StoredCheckpoint, CheckpointError> {
        let none = || CheckpointError::None {
            folder: self.run_folder.clone(),
        };
        let index = self.index()?.ok_or_else(none)?;
        let name = match which {
            Which::Last => index.last,
            Which::Best => index.best.ok_or_else(none)?,
        };
        let folder = self.folder.join(name);
        let state = Self::read_state(&folder)?;
        let open = |name: &String| {
            let path = folder.join(name);
            let file = File::open(&path).map_err(CheckpointError::io(&path, "open"))?;
            Ok((name.clone(), file))
        };
        let files = state.files.keys().map(open).collect::<Result<_, _>>()?;
        Ok(StoredCheckpoint {
            state,
            folder,
            files,
        })
    }

    /// Removes all checkpoints.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn clear(&self) -> Result<(), CheckpointError> {
        remove(&self.folder)
    }

    fn index(&self) -> Result<Option<Index>, CheckpointError> {
        let path = self.folder.join(INDEX_FILE);
        if path.exists() {
            read_json(&path).map(Some)
        } else {
            Ok(None)
        }
    }

    fn read_state(folder: &Path) -> Result<State, CheckpointError> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let path = folder.join(STATE_FILE);
        let Version { format_version } = read_json(&path)?;
        if format_version != FORMAT_VERSION {
            return Err(CheckpointError::FormatVersion {
                path,
                found: format_version,
            });
        }
        read_json(&path)
    }

    fn prune(&self, index: &Index) -> Result<(), CheckpointError> {
        let entries =
            fs::read_dir(&self.folder).map_err(CheckpointError::io(&self.folder, "list"))?;
        for entry in entries {
            let entry = entry.map_err(CheckpointError::io(&self.folder, "list"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_checkpoint = name.trim_start_matches('.').starts_with("step-");
            if is_checkpoint && name != index.last && Some(&name) != index.best.as_ref() {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn pretty<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data");
    bytes.push(b'\n');
    bytes
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let bytes = fs::read(path).map_err(CheckpointError::io(path, "read"))?;
    serde_json::from_slice(&bytes).map_err(|error| CheckpointError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// Writes JSON beside `path` and renames it.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), CheckpointError> {
    replace_file(path, &pretty(value))
}

fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let staging = path.with_extension("partial");
    write_synced(&staging, bytes)?;
    fs::rename(&staging, path).map_err(CheckpointError::io(path, "replace"))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut file = File::create(path).map_err(CheckpointError::io(path, "write"))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(CheckpointError::io(path, "write"))
}

/// A rename is durable once its folder is.
fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    if cfg!(unix) {
        let open = File::open(folder).and_then(|folder| folder.sync_all());
        open.map_err(CheckpointError::io(folder, "sync"))?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CheckpointError::io(folder, "remove")(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: u64, best: u64) -> Checkpoint {
        let files = [("student.safetensors".to_owned(), vec![step as u8; 3])].into();
        let position = Position {
            step,
            ..Position::default()
        };
        Checkpoint::new(
            identity::tests::identity(),
            position,
            Some(Best {
                score: Some(0.5),
                epoch: 1,
                step: best,
            }),
            files,
        )
    }

    #[test]
    fn last_and_best_are_kept_and_others_go() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        assert!(!checkpoints.exist());
        for (step, best) in [(1, 1), (2, 2), (3, 2), (4, 2)] {
            checkpoints.save(&checkpoint(step, best)).unwrap();
        }
        assert_eq!(
            checkpoints.open(Which::Last).unwrap().state.position.step,
            4
        );
        let best = checkpoints.open(Which::Best).unwrap();
        assert_eq!(best.state.position.step, 2);
        assert_eq!(best.file("student.safetensors").unwrap()[..], [2, 2, 2]);
        let mut names: Vec<String> = fs::read_dir(folder.path().join("checkpoints"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["index.json", "step-00000002-pass-0", "step-00000004-pass-0"]
        );
    }

    #[test]
    fn an_open_checkpoint_outlives_its_replacement() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        checkpoints.save(&checkpoint(1, 1)).unwrap();
        let open = checkpoints.open(Which::Last).unwrap();
        checkpoints.save(&checkpoint(2, 2)).unwrap();
        assert!(
            !folder
                .path()
                .join("checkpoints/step-00000001-pass-0")
                .exists()
        );
        assert_eq!(open.file("student.safetensors").unwrap()[..], [1, 1, 1]);
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        checkpoints.save(&checkpoint(1, 1)).unwrap();
        let file = folder
            .path()
            .join("checkpoints/step-00000001-pass-0/student.safetensors");
        fs::write(&file, [1, 1, 0]).unwrap();
        let stored = checkpoints.open(Which::Last).unwrap();
        for (name, problem) in [
            (
                "student.safetensors",
                "its digest is not that in state.json",
            ),
            ("aligner.safetensors", "state.json does not name it"),
        ] {
            let error = stored.file(name).unwrap_err().to_string();
            let expected = format!("{name}` is damaged: {problem}");
            assert!(error.ends_with(&expected), "{error}");
        }
    }
}
