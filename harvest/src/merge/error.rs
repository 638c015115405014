//! Why caches cannot be joined.

/// Why caches cannot be joined; nothing was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// No source was named.
    #[error("no cache to merge was named")]
    NoSource,
    /// A source is the target.
    #[error("`{location}` cannot be merged into itself")]
    IntoItself {
        /// The cache.
        location: String,
    },
    /// Two caches come from different teachers, data sets or prompts.
    #[error("`{one}` has {key} = {of_one}, and `{two}` has {of_two}")]
    DifferentSource {
        /// The cache named first.
        one: String,
        /// The other one.
        two: String,
        /// The first key that differs.
        key: String,
        /// Its value in the first.
        of_one: Box<str>,
        /// Its value in the second.
        of_two: Box<str>,
    },
    /// The target describes fewer draws than would be in it.
    #[error("`{location}` holds {present} draws an example, and the sources have {wanted}")]
    FewerDraws {
        /// The target.
        location: String,
        /// Its draws.
        present: u32,
        /// Those of the sources.
        wanted: u32,
    },
    /// Rows with the same key and other signals.
    #[error("{num} rows are there with other signals: {}{}", first.join(", "), if *num > first.len() as u64 { ", ..." } else { "" })]
    Conflicts {
        /// How many.
        num: u64,
        /// The first of them.
        first: Vec<String>,
        /// Whether rows of the target are among them.
        with_target: bool,
    },
}

impl MergeError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoSource => "name the caches after the one that they are merged into".to_owned(),
            Self::IntoItself { .. } => "name another cache first; it is made where there is none".to_owned(),
            Self::DifferentSource { .. } => {
                "only caches of one teacher, data set and prompt can be joined; keep these apart".to_owned()
            }
            Self::FewerDraws { location, .. } => {
                format!("name a new cache first, and `{location}` among those that are merged into it")
            }
            Self::Conflicts { with_target: true, .. } => {
                "--prefer first keeps the rows of the target; to replace them, name a new cache first and this one among its sources, with --prefer last".to_owned()
            }
            Self::Conflicts { .. } => {
                "--prefer first or --prefer last chooses by the order in which the caches are named".to_owned()
            }
        })
    }
}
