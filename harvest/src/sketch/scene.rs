//! The things of a scene and what was said about them.

use super::error::SketchError;
use super::grammar::{Description, Predicate, Sentence, Subject};
use super::words::{Colour, Relation, Shape, Size};

/// Index of a thing in [`Scene::things`], which is the order of first mention.
pub(super) type ThingIndex = usize;

/// One thing of the scene.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thing {
    pub(super) size: Option<Size>,
    pub(super) colour: Option<Colour>,
    pub(super) shape: Shape,
}

impl Thing {
    /// Whether the thing has every attribute that the description names.
    fn is(self, description: Description) -> bool {
        description.size.is_none_or(|size| self.size == Some(size))
            && description
                .colour
                .is_none_or(|colour| self.colour == Some(colour))
            && description.shape.is_none_or(|shape| self.shape == shape)
    }
}

/// The two directions of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    Horizontal,
    Vertical,
}

/// `first` is left of (or above) `second`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) axis: Axis,
    pub(super) first: ThingIndex,
    pub(super) second: ThingIndex,
}

/// `inner` is inside `holder`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Containment {
    pub(super) inner: ThingIndex,
    pub(super) holder: ThingIndex,
}

/// Everything that the describing sentences said.
#[derive(Debug, Clone, Default)]
pub(super) struct Scene {
    pub(super) things: Vec<Thing>,
    pub(super) orders: Vec<Order>,
    pub(super) containments: Vec<Containment>,
}

impl Scene {
    /// Takes in one describing sentence. Whether its relation can be true is for the layout to find out.
    pub(super) fn describe(&mut self, sentence: Sentence) -> Result<(), SketchError> {
        let Subject::Described(description) = sentence.subject else {
            return Err(SketchError::ExtremeInScene {
                sentence: sentence.to_string(),
                phrase: sentence.subject.to_string(),
            });
        };
        let subject = self.find_or_add(description, sentence)?;
        let contradiction = || SketchError::Contradiction {
            sentence: sentence.to_string(),
        };
        match sentence.predicate {
            Predicate::Coloured(colour) => {
                let said = self.things[subject].colour.get_or_insert(colour);
                if *said == colour {
                    Ok(())
                } else {
                    Err(contradiction())
                }
            }
            Predicate::Sized(size) => {
                let said = self.things[subject].size.get_or_insert(size);
                if *said == size {
                    Ok(())
                } else {
                    Err(contradiction())
                }
            }
            Predicate::Related(relation, landmark) => {
                let landmark = self.find_or_add(landmark, sentence)?;
                self.relate(subject, relation, landmark);
                Ok(())
            }
        }
    }

    fn relate(&mut self, subject: ThingIndex, relation: Relation, landmark: ThingIndex) {
        let (axis, first, second) = match relation {
            Relation::LeftOf => (Axis::Horizontal, subject, landmark),
            Relation::RightOf => (Axis::Horizontal, landmark, subject),
            Relation::Above => (Axis::Vertical, subject, landmark),
            Relation::Below => (Axis::Vertical, landmark, subject),
            Relation::Inside => {
                self.containments.push(Containment {
                    inner: subject,
                    holder: landmark,
                });
                return;
            }
        };
        self.orders.push(Order {
            axis,
            first,
            second,
        });
    }

    /// The first mentioned thing that the description fits; if there is none, a new thing of that description.
    pub(super) fn find_or_add(
        &mut self,
        description: Description,
        sentence: Sentence,
    ) -> Result<ThingIndex, SketchError> {
        if let Some(found) = self.things.iter().position(|thing| thing.is(description)) {
            return Ok(found);
        }
        let Description {
            size,
            colour,
            shape: Some(shape),
        } = description
        else {
            return Err(SketchError::UnknownThing {
                sentence: sentence.to_string(),
                phrase: description.to_string(),
            });
        };
        self.things.push(Thing {
            size,
            colour,
            shape,
        });
        Ok(self.things.len() - 1)
    }
}

/// Where a claim would have its subject.
#[derive(Debug, Clone, Copy)]
pub(super) enum Extent {
    /// On one side of, or inside, the landmark.
    Relative(Relation, ThingIndex),
    /// Among the things of a colour.
    Coloured(Colour),
    /// Among the things of a size.
    Sized(Size),
}

/// A claim whose noun phrases are resolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) subject: ThingIndex,
    pub(super) extent: Extent,
}
