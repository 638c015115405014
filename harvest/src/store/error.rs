//! Why a location is refused.

/// A location that cannot be opened. It repeats the location only where nothing secret can be in it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{location}` is not a place for a cache: {problem}")]
pub struct StoreError {
    /// The location.
    pub location: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub hint: String,
}
