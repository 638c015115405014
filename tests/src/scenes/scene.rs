//! Things and the facts that relate them.

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use harvest::sketch::{Colour, Description, Predicate, Relation, Sentence, Shape, Size, Subject};

use super::knowledge::{Fact, Knowledge, Slot, only_match};

/// Chance that a scene has three things rather than four.
const THREE_THINGS: f64 = 0.35;
/// Chance that one thing of the scene is inside another.
const CONTAINMENT: f64 = 0.35;
/// Chance that a fact that nothing else decides is about left and right rather than above and below.
const HORIZONTAL: f64 = 0.7;
/// Chance that a hypothesis names a thing by all of its attributes.
const FULL_NAME: f64 = 0.5;

/// The relations along the horizontal and along the vertical axis; the first one puts its subject before its landmark.
pub(super) const AXES: [[Relation; 2]; 2] = [
    [Relation::LeftOf, Relation::RightOf],
    [Relation::Above, Relation::Below],
];

/// What a premise tells: which things there are, and how each is related to the next one.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) things: Vec<Description>,
    pub(super) facts: Vec<Fact>,
}

impl Scene {
    /// A scene that is, but for `mixed_axes` of the scenes with no containment, a row or a column, where every pair of
    /// things is ordered along one axis and nothing is said of the other.
    pub(super) fn generate(mixed_axes: f64, random: &mut ChaCha8Rng) -> Self {
        loop {
            let num_things = if random.random_bool(THREE_THINGS) {
                3
            } else {
                4
            };
            let mut things = draw_things(num_things, random);
            let facts = draw_facts(&mut things, mixed_axes, random);
            let scene = Self { things, facts };
            if scene.fits(&scene.things) {
                return scene;
            }
        }
    }

    pub(super) fn knowledge(&self) -> Knowledge {
        Knowledge::new(self.things.len(), &self.facts)
    }

    /// Whether some fact is one of these relations.
    pub(super) fn mentions(&self, relations: &[Relation]) -> bool {
        self.facts
            .iter()
            .any(|fact| relations.contains(&fact.relation))
    }

    /// The facts as sentences, in random order, about these things in place of the own ones.
    pub(super) fn premise(&self, things: &[Description], random: &mut ChaCha8Rng) -> String {
        let sentence = |fact: &Fact| {
            let subject = Subject::Described(things[fact.subject]);
            let predicate = Predicate::Related(fact.relation, things[fact.landmark]);
            Sentence { subject, predicate }.to_string()
        };
        let mut sentences: Vec<String> = self.facts.iter().map(sentence).collect();
        sentences.shuffle(random);
        sentences.join(" ")
    }

    /// Whether every held thing is small and every holder is big and has an inside, with these things in the slots.
    pub(super) fn fits(&self, things: &[Description]) -> bool {
        self.facts
            .iter()
            .filter(|fact| fact.relation == Relation::Inside)
            .all(|fact| {
                things[fact.subject].size == Some(Size::Small)
                    && things[fact.landmark].size == Some(Size::Big)
                    && things[fact.landmark].shape != Some(Shape::Cross)
            })
    }
}

/// Things that differ in colour or form; about half of them have a size.
fn draw_things(num_things: usize, random: &mut ChaCha8Rng) -> Vec<Description> {
    let mut things: Vec<Description> = Vec::with_capacity(num_things);
    while things.len() < num_things {
        let thing = Description {
            size: [None, None, Some(Size::Small), Some(Size::Big)][random.random_range(0..4)],
            colour: Colour::ALL.choose(random).copied(),
            shape: Shape::ALL.choose(random).copied(),
        };
        let is_alike =
            |other: &Description| (other.colour, other.shape) == (thing.colour, thing.shape);
        if !things.iter().any(is_alike) {
            things.push(thing);
        }
    }
    things
}

/// Relates each thing to the next one, in either direction; a thing inside another is small and its holder big.
fn draw_facts(things: &mut [Description], mixed_axes: f64, random: &mut ChaCha8Rng) -> Vec<Fact> {
    let num_facts = things.len() - 1;
    let containment = random
        .random_bool(CONTAINMENT)
        .then(|| random.random_range(0..num_facts));
    let draw_axis = |random: &mut ChaCha8Rng| usize::from(!random.random_bool(HORIZONTAL));
    let is_mixed = containment.is_none() && random.random_bool(mixed_axes);
    let scene_axis = draw_axis(random);
    // Either every thing is before the next one or every thing is after it, along each axis.
    let is_before: [bool; 2] = random.random();
    (0..num_facts)
        .map(|slot| {
            let axis = if is_mixed {
                draw_axis(random)
            } else {
                scene_axis
            };
            let (subject, landmark) = if random.random() {
                (slot, slot + 1)
            } else {
                (slot + 1, slot)
            };
            if containment == Some(slot) {
                things[subject].size = Some(Size::Small);
                things[landmark].size = Some(Size::Big);
                return Fact {
                    subject,
                    relation: Relation::Inside,
                    landmark,
                };
            }
            let is_first = (subject == slot) == is_before[axis];
            Fact {
                subject,
                relation: AXES[axis][usize::from(!is_first)],
                landmark,
            }
        })
        .collect()
}

/// A noun phrase that fits this thing and no other.
pub(super) fn name(
    slot: Slot,
    things: &[Description],
    random: &mut ChaCha8Rng,
) -> Option<Description> {
    let full = things[slot];
    if random.random_bool(FULL_NAME) {
        return Some(full);
    }
    let shorter: Vec<Description> = [(true, false), (false, true), (false, false)]
        .into_iter()
        .flat_map(|(has_colour, has_shape)| {
            [full.size, None].map(|size| Description {
                size,
                colour: full.colour.filter(|_| has_colour),
                shape: full.shape.filter(|_| has_shape),
            })
        })
        .filter(|&description| only_match(description, things) == Some(slot))
        .collect();
    shorter.choose(random).copied()
}
