//! What a teacher can give about an example, and how it is stored.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Elements of the widest vector: far above what models give, and far below what the format can count.
const MAX_WIDTH: u32 = 1 << 24;

/// Columns that every shard has besides its signals.
pub(crate) const RESERVED_COLUMNS: [&str; 11] = [
    "example_id",
    "draw",
    "served_model",
    "fingerprint",
    "finish_reason",
    "tokens_in",
    "tokens_out",
    "tries",
    "latency_ms",
    "cost",
    "answered_at",
];

/// How the elements of a vector are stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// IEEE 754 half precision: 11 significant bits, largest finite value 65,504.
    #[default]
    F16,
    /// IEEE 754 single precision.
    F32,
}

/// The kinds of signal a cache can hold.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SignalKind {
    /// One vector for the whole example, such as a pooled embedding or an image latent.
    Feature {
        /// Elements of the vector.
        width: u32,
        /// Stored element type.
        dtype: FloatType,
    },
    /// One logit for each class of the task.
    ClassLogits {
        /// Number of classes.
        width: u32,
        /// Stored element type.
        dtype: FloatType,
    },
    /// The `k` most probable tokens at each position, packed (see [`crate::record::TokenTopK`]).
    TokenTopK {
        /// The largest number of entries at a position.
        k: u32,
    },
    /// Generated text.
    Text,
    /// An encoded picture (PNG unless the meaning says otherwise).
    Image,
}

/// One signal of a cache: a column of its shards.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct SignalSpec {
    name: String,
    #[serde(flatten)]
    kind: SignalKind,
    meaning: String,
}

/// A signal as a manifest has it, unchecked.
#[derive(Deserialize)]
struct Written {
    name: String,
    #[serde(flatten)]
    kind: SignalKind,
    meaning: String,
}

impl TryFrom<Written> for SignalSpec {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self, Error> {
        Self::new(written.name, written.kind, written.meaning)
    }
}

impl SignalSpec {
    /// A signal stored in the column `name`; `meaning` says in words what the values are.
    ///
    /// # Errors
    /// [`Error::InvalidSignalSpec`] where the name is not lower-case letters, digits and `_`, is a column that every
    /// shard has, or the width is zero.
    pub fn new(
        name: impl Into<String>,
        kind: SignalKind,
        meaning: impl Into<String>,
    ) -> Result<Self, Error> {
        let spec = Self {
            name: name.into(),
            kind,
            meaning: meaning.into(),
        };
        match spec.problem() {
            None => Ok(spec),
            Some(problem) => Err(Error::InvalidSignalSpec {
                name: spec.name,
                problem,
            }),
        }
    }

    fn problem(&self) -> Option<String> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.name.is_empty() || !self.name.chars().all(valid) {
            return Some("a name is lower-case letters, digits and `_`".into());
        }
        if RESERVED_COLUMNS.contains(&self.name.as_str()) {
            return Some("every shard has a column of that name already".into());
        }
        match self.kind {
            SignalKind::Feature { width: 0, .. }
            | SignalKind::ClassLogits { width: 0, .. }
            | SignalKind::TokenTopK { k: 0 } => Some("a width of zero holds nothing".into()),
            SignalKind::Feature { width, .. } | SignalKind::ClassLogits { width, .. }
                if width > MAX_WIDTH =>
            {
                Some(format!("a width of {width}, more than {MAX_WIDTH}"))
            }
            _ => None,
        }
    }

    /// The column's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is stored.
    pub fn kind(&self) -> &SignalKind {
        &self.kind
    }

    /// What the values are, in words.
    pub fn meaning(&self) -> &str {
        &self.meaning
    }

    /// Width and element type of a vector signal; `None` for the others.
    pub fn vector(&self) -> Option<(usize, FloatType)> {
        match self.kind {
            SignalKind::Feature { width, dtype } | SignalKind::ClassLogits { width, dtype } => {
                Some((width as usize, dtype))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_one_flat_json_object() {
        let kind = SignalKind::Feature {
            width: 4,
            dtype: FloatType::F16,
        };
        let spec = SignalSpec::new("feature", kind, "pooled").unwrap();
        let json =
            r#"{"name":"feature","kind":"feature","width":4,"dtype":"f16","meaning":"pooled"}"#;
        assert_eq!(serde_json::to_string(&spec).unwrap(), json);
        assert_eq!(serde_json::from_str::<SignalSpec>(json).unwrap(), spec);
    }

    #[test]
    fn a_signal_that_cannot_be_stored_is_refused_in_a_manifest_too() {
        let read = |name: &str, width: u64| {
            let json = format!(
                r#"{{"name":"{name}","kind":"feature","width":{width},"dtype":"f16","meaning":""}}"#
            );
            serde_json::from_str::<SignalSpec>(&json)
        };
        assert!(read("feature", u64::from(MAX_WIDTH)).is_ok());
        for (name, width) in [
            ("feature", 0),
            ("feature", u64::from(MAX_WIDTH) + 1),
            ("draw", 4),
        ] {
            assert!(read(name, width).is_err(), "{name} {width}");
        }
    }

    #[test]
    fn names_that_cannot_be_columns_are_refused() {
        for name in ["", "Feature", "a.b", "draw"] {
            assert!(
                SignalSpec::new(name, SignalKind::Text, "").is_err(),
                "{name}"
            );
        }
    }
}
