//! Why a card cannot be written.

/// Why a card cannot be written; nothing was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// A file of that name is there, and this program did not write it.
    #[error("`{location}` has a {name} that was not written by `harvest card`")]
    NotOurs {
        /// Where.
        location: String,
        /// The file.
        name: String,
    },
}

impl CardError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        let Self::NotOurs { name, .. } = self;
        Some(format!(
            "rename that {name}, or write the card elsewhere with --into DIR"
        ))
    }
}
