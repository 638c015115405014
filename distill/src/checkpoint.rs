//! Checkpoints: a run at one moment, from which it goes on bit for bit.
//!
//! ```text
//! checkpoints/index.json            which checkpoint is the last and which the best
//! checkpoints/step-00000094-pass-2/ state.json and one safetensors file each for student, aligner and their optimisers
//! ```
//!
//! A checkpoint is written to a hidden folder and renamed; then `index.json` is replaced by another rename. Whatever
//! happens in between, the index names complete checkpoints.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use schemas::Sha256Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::differences;

/// Version of the checkpoint format.
const FORMAT_VERSION: u32 = 2;
const INDEX_FILE: &str = "index.json";
const STATE_FILE: &str = "state.json";
const STUDENT_DIGEST: &str = "student digest";

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is none.
    #[error("`{}` holds no checkpoint", folder.display())]
    None {
        /// The run folder.
        folder: PathBuf,
    },
    /// A file is not what was written.
    #[error("checkpoint file `{}` is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Another version of the format.
    #[error("checkpoint `{}` has format version {found}, and this build reads version {FORMAT_VERSION}", path.display())]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The run folder holds a run of another configuration.
    #[error("run folder `{}` holds a run with {key} = {stored}, and the configuration says {configured}", folder.display())]
    OtherRun {
        /// The run folder.
        folder: PathBuf,
        /// The key that differs.
        key: String,
        /// Its value in the checkpoint.
        stored: Value,
        /// Its value now.
        configured: Value,
    },
}

impl CheckpointError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { .. } => return None,
            Self::None { .. } => "train first: `distill train`".to_owned(),
            Self::Damaged { .. } => "start over with --restart".to_owned(),
            Self::FormatVersion { .. } => {
                "go on with the version that wrote it, or start over with --restart".to_owned()
            }
            Self::OtherRun { .. } => {
                "change it back, name another folder in `output.path`, or train anew with --restart"
                    .to_owned()
            }
        })
    }

    fn io<'a>(
        path: &'a Path,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self + use<'a> {
        move |source| Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }
}

/// What a run is: equal identities are the same run and can continue each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The variant's name.
    pub variant: String,
    /// From which all randomness follows; with the position, this is the whole random state.
    pub seed: u64,
    /// Digest of the frozen cache.
    pub cache: String,
    /// Digest of the tokenised and joined data.
    pub data: String,
    /// The task's metric, which chooses the checkpoint.
    pub metric: String,
    /// The task's classes in the order of the outputs; null for a task of numbers.
    pub classes: Option<Vec<String>>,
    /// Digest of the pretrained student's `config.json` and weights; null for a fresh student.
    pub student: Option<String>,
    /// Devices that shared each step: other numbers of them compute other means and draw other dropout.
    #[serde(default = "one")]
    pub num_devices: usize,
    /// The resolved configuration.
    pub config: Value,
}

fn one() -> usize {
    1
}

impl RunIdentity {
    fn as_value(&self) -> Value {
        let mut value = self.config.clone();
        let fields = value.as_object_mut().expect("a configuration is a table");
        for (key, entry) in [
            ("variant", self.variant.clone().into()),
            ("seed", self.seed.into()),
            ("number of devices", self.num_devices.into()),
            ("cache digest", self.cache.clone().into()),
            ("data digest", self.data.clone().into()),
            ("metric", self.metric.clone().into()),
            ("classes", self.classes.clone().into()),
            (STUDENT_DIGEST, self.student.clone().into()),
        ] {
            fields.insert(key.to_owned(), entry);
        }
        value
    }

    /// Checks that this is the run that a folder holds.
    ///
    /// # Errors
    /// [`CheckpointError::OtherRun`] names the first key that differs.
    pub fn check_same(&self, stored: &Self, folder: &Path) -> Result<(), CheckpointError> {
        same(&stored.as_value(), &self.as_value(), folder)
    }

    /// Checks that the student of the run that a folder holds is this run's, however the two are trained: equal
    /// weights answer alike under both.
    ///
    /// # Errors
    /// [`CheckpointError::OtherRun`] names the first key that differs.
    pub fn check_same_student(&self, stored: &Self, folder: &Path) -> Result<(), CheckpointError> {
        let student = |identity: &Self| {
            let all = identity.as_value();
            json!({
                "student": all["student"],
                STUDENT_DIGEST: all[STUDENT_DIGEST],
                "aligner": all["aligner"],
                "objective": {"preset": all["objective"]["preset"]},
                "classes": all["classes"],
            })
        };
        same(&student(stored), &student(self), folder)
    }
}

fn same(stored: &Value, configured: &Value, folder: &Path) -> Result<(), CheckpointError> {
    match differences(stored, configured).into_iter().next() {
        None => Ok(()),
        Some((key, stored, configured)) => Err(CheckpointError::OtherRun {
            folder: folder.to_owned(),
            key,
            stored,
            configured,
        }),
    }
}

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

/// A moment of a run.
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

    /// Reads a checkpoint and checks every file against its digest.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn load(&self, which: Which) -> Result<Checkpoint, CheckpointError> {
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
        let mut files = BTreeMap::new();
        for (name, digest) in &state.files {
            let path = folder.join(name);
            let bytes = fs::read(&path).map_err(CheckpointError::io(&path, "read"))?;
            if Sha256Digest::of(&bytes) != *digest {
                return Err(CheckpointError::Damaged {
                    path,
                    problem: "its digest is not that in state.json".to_owned(),
                });
            }
            files.insert(name.clone(), bytes);
        }
        Ok(Checkpoint { state, files })
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

    fn identity() -> RunIdentity {
        RunIdentity {
            variant: "method".into(),
            seed: 1,
            cache: "sha256:00".into(),
            data: "sha256:01".into(),
            metric: "accuracy".into(),
            classes: Some(vec!["no".into(), "yes".into()]),
            student: None,
            num_devices: 1,
            config: json!({"training": {"epochs": 2, "batch_size": 8}}),
        }
    }

    fn checkpoint(step: u64, best: u64) -> Checkpoint {
        let files = [("student.safetensors".to_owned(), vec![step as u8; 3])].into();
        let position = Position {
            step,
            ..Position::default()
        };
        Checkpoint::new(
            identity(),
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
            checkpoints.load(Which::Last).unwrap().state.position.step,
            4
        );
        let best = checkpoints.load(Which::Best).unwrap();
        assert_eq!(
            (best.state.position.step, &best.files["student.safetensors"]),
            (2, &vec![2, 2, 2])
        );
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
    fn a_damaged_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        checkpoints.save(&checkpoint(1, 1)).unwrap();
        let file = folder
            .path()
            .join("checkpoints/step-00000001-pass-0/student.safetensors");
        fs::write(&file, [1, 1, 0]).unwrap();
        let error = checkpoints.load(Which::Last).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("is damaged: its digest is not that in state.json"),
            "{error}"
        );
    }

    #[test]
    fn another_run_is_refused_by_the_key_that_differs() {
        let other = RunIdentity {
            config: json!({"training": {"epochs": 3, "batch_size": 8}}),
            ..identity()
        };
        let error = other.check_same(&identity(), Path::new("out")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "run folder `out` holds a run with training.epochs = 2, and the configuration says 3"
        );
        let other = RunIdentity {
            cache: "sha256:11".into(),
            ..identity()
        };
        let error = other.check_same(&identity(), Path::new("out")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "run folder `out` holds a run with cache digest = \"sha256:00\", and the configuration says \"sha256:11\""
        );
        other
            .check_same_student(&identity(), Path::new("out"))
            .unwrap();
        let other = RunIdentity {
            classes: Some(vec!["yes".into(), "no".into()]),
            ..identity()
        };
        for check in [RunIdentity::check_same, RunIdentity::check_same_student] {
            let error = check(&other, &identity(), Path::new("out")).unwrap_err();
            assert_eq!(
                error.to_string(),
                r#"run folder `out` holds a run with classes = ["no","yes"], and the configuration says ["yes","no"]"#
            );
            check(&identity(), &identity(), Path::new("out")).unwrap();
        }
    }
}
