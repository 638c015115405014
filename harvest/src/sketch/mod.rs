//! The drawing part of the built-in teacher `sketch`: text about a simple scene in, a 32x32 grey picture out.
//!
//! Every sentence but the last tells what the scene is; it is laid out on a grid by solving what was said about
//! left, right, above, below and inside. The last sentence of a text of two or more is a *claim*: its subject and the
//! part of the picture where the claim would have it are drawn over the scene. Nothing here decides whether the claim
//! holds. The language, the drawing and its limits are stated in `docs/teachers/sketch.md`.
//!
//! | file | what lives there |
//! |---|---|
//! | `words` | the closed word classes |
//! | `grammar` | sentences: parsing and printing |
//! | `scene` | things, what was said about them, what a noun phrase refers to |
//! | `layout` | from "left of", "above", "inside" to grid cells |
//! | `picture` | shapes and light on a 32x32 canvas; the feature and the PNG |

mod error;
mod grammar;
mod layout;
mod picture;
mod scene;
mod words;

pub use error::SketchError;
pub use grammar::{Description, Predicate, Sentence, Subject, parse};
pub use picture::{FEATURE_WIDTH, PICTURE_SIDE, Picture};
pub use words::{Colour, Extreme, Relation, Shape, Size};

use layout::Layout;
use scene::{Claim, Extent, Scene};

/// Draws the scene that `text` describes.
///
/// # Errors
/// [`SketchError`] when a sentence is outside the grammar, refers to nothing, contradicts the sentences before it, or
/// asks for more room than the picture has. Each names the sentence.
pub fn draw(text: &str) -> Result<Picture, SketchError> {
    let sentences = parse(text)?;
    let (claim, described) = match sentences.split_last() {
        Some((&last, rest)) if !rest.is_empty() => (Some(last), rest),
        _ => (None, sentences.as_slice()),
    };
    let mut scene = Scene::default();
    let mut layout = Layout::default();
    for &sentence in described {
        scene.describe(sentence)?;
        layout = Layout::solve(&scene, sentence)?;
    }
    let Some(sentence) = claim else {
        return Ok(Picture::of_scene(&scene, &layout));
    };
    let subject = match sentence.subject {
        Subject::Described(description) => scene.find_or_add(description, sentence)?,
        Subject::Extreme(extreme) => layout.extreme(extreme),
    };
    let extent = match sentence.predicate {
        Predicate::Related(relation, landmark) => {
            Extent::Relative(relation, scene.find_or_add(landmark, sentence)?)
        }
        Predicate::Coloured(colour) => Extent::Coloured(colour),
        Predicate::Sized(size) => Extent::Sized(size),
    };
    let layout = Layout::solve(&scene, sentence)?;
    Ok(Picture::of_claim(
        &scene,
        &layout,
        Claim { subject, extent },
    ))
}

#[cfg(test)]
mod tests;
