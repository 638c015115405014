//! What can keep a text from being drawn.

/// A text that the sketch teacher cannot draw. Every variant but [`SketchError::Empty`] quotes the sentence at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SketchError {
    /// The text has no sentence.
    #[error("cannot draw an empty text: expected at least one sentence")]
    Empty,
    /// A sentence is outside the grammar.
    #[error("cannot draw the sentence `{sentence}`: expected {expected}, found {found}")]
    Grammar {
        /// The sentence, as it stands in the text.
        sentence: String,
        /// What the grammar allows at that place.
        expected: &'static str,
        /// The word that stands there, quoted, or `the end of the text`.
        found: String,
    },
    /// A noun phrase without a form refers to nothing that was described.
    #[error("cannot draw the sentence `{sentence}`: nothing described before it is `{phrase}`")]
    UnknownThing {
        /// The sentence.
        sentence: String,
        /// The noun phrase.
        phrase: String,
    },
    /// `the leftmost shape` and its kin describe no scene; they belong into a claim.
    #[error(
        "cannot draw the sentence `{sentence}`: `{phrase}` is known only once the scene is complete"
    )]
    ExtremeInScene {
        /// The sentence.
        sentence: String,
        /// The noun phrase.
        phrase: String,
    },
    /// The sentence cannot be true together with the sentences before it.
    #[error(
        "cannot draw the sentence `{sentence}`: it contradicts the sentences before it, or itself"
    )]
    Contradiction {
        /// The sentence.
        sentence: String,
    },
    /// The scene needs more room than the picture has.
    #[error("cannot draw the sentence `{sentence}`: {cause}")]
    NoRoom {
        /// The sentence with which the room ran out.
        sentence: String,
        /// Which limit was passed.
        cause: &'static str,
    },
}

impl SketchError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        let advice = match self {
            Self::Empty => {
                "give each example a text; check the fields that the task's template names"
            }
            Self::Grammar { .. } => {
                "sketch draws sentences such as `The red circle is left of the big square.`; \
                 docs/teachers/sketch.md has the whole grammar"
            }
            Self::UnknownThing { .. } => {
                "name a circle, square, triangle or cross, or describe the thing in an earlier sentence; \
                 see docs/teachers/sketch.md"
            }
            Self::ExtremeInScene { .. } => {
                "use it only in the last sentence of a text of two or more; see docs/teachers/sketch.md"
            }
            Self::Contradiction { .. } => {
                "only the last sentence, the claim, may contradict the others"
            }
            Self::NoRoom { .. } => {
                "describe fewer things; docs/teachers/sketch.md states the limits"
            }
        };
        Some(advice.to_owned())
    }
}
