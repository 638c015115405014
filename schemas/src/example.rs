//! One row of a data set, and an identity that follows its content.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{hex, parse_hex};
use crate::error::Error;

/// Domain separation of the id hash; a change of the canonical form changes it.
const ID_CONTEXT: &str = "Armada 2026 example id, canonical fields v1";

/// 128 bits of BLAKE3 over the canonical form of an example's fields.
///
/// The canonical form is, for every field in the byte order of its name: the length of the name (u64, little
/// endian), the name, the length of the value, the value, both in UTF-8 as read. Label, split, row number and the
/// order of fields in the file do not enter, so a cache survives reordering, splitting and re-export of the data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ExampleId([u8; 16]);

impl ExampleId {
    /// The id of an example with these fields.
    pub fn of(fields: &BTreeMap<String, String>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(ID_CONTEXT);
        for (name, value) in fields {
            for text in [name, value] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        Self(id)
    }

    /// The raw 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl From<[u8; 16]> for ExampleId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ExampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ExampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<ExampleId> for String {
    fn from(id: ExampleId) -> Self {
        id.to_string()
    }
}

impl FromStr for ExampleId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse_hex(text)
            .map(Self)
            .ok_or_else(|| Error::InvalidExampleId {
                text: text.to_owned(),
            })
    }
}

impl TryFrom<String> for ExampleId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

/// The part of a data set that a row belongs to: `train`, `validation`, `test`, or a published variant such as
/// `validation_mismatched`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Split(String);

impl Split {
    /// A split by name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The training split.
    pub fn train() -> Self {
        Self::new("train")
    }

    /// The split on which choices are made.
    pub fn validation() -> Self {
        Self::new("validation")
    }

    /// The split that is read once, at the end.
    pub fn test() -> Self {
        Self::new("test")
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an example is labelled with.
#[derive(Clone, PartialEq, Debug)]
pub enum Label {
    /// Index into the task's classes or the row's options.
    Class(u32),
    /// A number, for regression tasks.
    Value(f64),
    /// A text, for tasks that write one.
    Text(String),
}

/// One row of a data set: named text fields, a label where one is known, and the split it came from.
#[derive(Clone, PartialEq, Debug)]
pub struct Example {
    id: ExampleId,
    fields: BTreeMap<String, String>,
    label: Option<Label>,
    split: Split,
}

impl Example {
    /// An example of these fields; its id follows from them.
    pub fn new(fields: BTreeMap<String, String>, label: Option<Label>, split: Split) -> Self {
        Self {
            id: ExampleId::of(&fields),
            fields,
            label,
            split,
        }
    }

    /// The content-derived identity.
    pub fn id(&self) -> ExampleId {
        self.id
    }

    /// All fields by name.
    pub fn fields(&self) -> &BTreeMap<String, String> {
        &self.fields
    }

    /// The text of one field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// The label, absent in published test splits.
    pub fn label(&self) -> Option<&Label> {
        self.label.as_ref()
    }

    /// The split it was read from.
    pub fn split(&self) -> &Split {
        &self.split
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn id_is_pinned() {
        // A change of this value orphans every cache in existence.
        let id = ExampleId::of(&fields(&[
            ("premise", "A cat sleeps."),
            ("hypothesis", "It dreams."),
        ]));
        assert_eq!(id.to_string(), "5517b1865b8c27cac2d7b5025e59068b");
        assert_eq!(id.to_string().parse::<ExampleId>().unwrap(), id);
    }

    #[test]
    fn text_cannot_move_between_fields_unseen() {
        assert_ne!(
            ExampleId::of(&fields(&[("a", "xy"), ("b", "z")])),
            ExampleId::of(&fields(&[("a", "x"), ("b", "yz")]))
        );
    }

    proptest! {
        #[test]
        fn id_ignores_label_split_and_field_order(
            pairs in proptest::collection::vec((".{0,8}", ".{0,24}"), 0..6),
            class in 0_u32..5,
        ) {
            let forward: BTreeMap<String, String> = pairs.iter().cloned().collect();
            // Later duplicates win in a map, so the reverse order is taken from the map itself.
            let backward: BTreeMap<String, String> = forward.clone().into_iter().rev().collect();
            let one = Example::new(forward, Some(Label::Class(class)), Split::train());
            let two = Example::new(backward, None, Split::test());
            prop_assert_eq!(one.id(), two.id());
        }
    }
}
