//! Which run a checkpoint is of.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::CheckpointError;
use crate::config::differences;

const STUDENT_DIGEST: &str = "student digest";

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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn identity() -> RunIdentity {
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
