//! What whoever is handed a cache wants to know: licences, terms and the digest of the prompt.
//!
//! Nothing here decides whether rows belong together, so a licence can be added to a cache that is there already.

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;

/// A licence and terms, as the configuration has them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rights {
    /// The licence, best by its SPDX name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Terms of use, in words or as an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<String>,
}

impl Rights {
    /// The two keys of a section.
    pub fn of(license: Option<&str>, terms: Option<&str>) -> Self {
        Self {
            license: license.map(str::to_owned),
            terms: terms.map(str::to_owned),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Notes about one teacher.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherNotes {
    /// Its name, where a cache has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Licence and terms of its replies.
    #[serde(default, skip_serializing_if = "Rights::is_empty")]
    pub rights: Rights,
    /// SHA-256 of the prompt's template, UTF-8 as written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<Sha256Digest>,
}

impl TeacherNotes {
    /// Notes about the teacher `name` that was asked with the template `prompt`.
    pub fn of(name: Option<&str>, rights: Rights, prompt: Option<&str>) -> Self {
        Self {
            name: name.map(str::to_owned),
            rights,
            prompt_sha256: prompt.map(|prompt| Sha256Digest::of(prompt.as_bytes())),
        }
    }

    fn is_empty(&self) -> bool {
        self.rights.is_empty() && self.prompt_sha256.is_none()
    }
}

/// The notes of a manifest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notes {
    /// Licence and terms of the data set.
    #[serde(default, skip_serializing_if = "Rights::is_empty")]
    pub dataset: Rights,
    /// Each teacher, in the order of the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teachers: Vec<TeacherNotes>,
}

impl Notes {
    /// The notes of a cache over a data set with these rights, filled by these teachers; teachers without any note
    /// are left out.
    pub fn of(dataset: Rights, teachers: impl IntoIterator<Item = TeacherNotes>) -> Self {
        Self {
            dataset,
            teachers: teachers
                .into_iter()
                .filter(|teacher| !teacher.is_empty())
                .collect(),
        }
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
