//! One hypothesis and two premises of the same set of words: in one the hypothesis is true, in the other it is false.

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use harvest::sketch::{
    Colour, Description, Extreme, Predicate, Relation, Sentence, Shape, Size, Subject,
};

use super::knowledge::{Fact, Knowledge, Slot, only_match};
use super::{Label, Row};

/// Chance that a scene has three things rather than four.
const THREE_THINGS: f64 = 0.35;
/// Chance that one thing of the scene is inside another.
const CONTAINMENT: f64 = 0.35;
/// Chance that a scene with no containment is a row or a column, where every pair of things is ordered.
const ONE_AXIS: f64 = 0.7;
/// Chance that a hypothesis is about the outermost thing.
const EXTREME_CLAIM: f64 = 0.2;
/// Chance that a hypothesis names a thing by all of its attributes.
const FULL_NAME: f64 = 0.5;

/// Draws a scene and a hypothesis; `None` when the hypothesis cannot be made both true and false.
pub(super) fn generate(random: &mut ChaCha8Rng) -> Option<[Row; 2]> {
    let num_things = if random.random_bool(THREE_THINGS) {
        3
    } else {
        4
    };
    let mut things = things(num_things, random);
    let facts = facts(&mut things, random);
    let knowledge = Knowledge::new(num_things, &facts);
    let claim = claim(&things, random)?;
    let truth = knowledge.truth(claim, &things)?;
    let is_twin = |seats: &Vec<Description>| {
        fits_containments(&facts, seats) && knowledge.truth(claim, seats) == Some(!truth)
    };
    let twins: Vec<Vec<Description>> = orderings(&things).into_iter().filter(is_twin).collect();
    let twin = twins.choose(random)?;
    let mut row = |things: &[Description], truth: bool| Row {
        premise: premise(&facts, things, random),
        hypothesis: claim.to_string(),
        label: if truth {
            Label::Entailment
        } else {
            Label::NotEntailment
        },
    };
    Some([row(&things, truth), row(twin, !truth)])
}

/// Things that differ in colour or form; about half of them have a size.
fn things(num_things: usize, random: &mut ChaCha8Rng) -> Vec<Description> {
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
fn facts(things: &mut [Description], random: &mut ChaCha8Rng) -> Vec<Fact> {
    const AXES: [[Relation; 2]; 2] = [
        [Relation::LeftOf, Relation::RightOf],
        [Relation::Above, Relation::Below],
    ];
    let num_facts = things.len() - 1;
    let containment = random
        .random_bool(CONTAINMENT)
        .then(|| random.random_range(0..num_facts));
    let is_one_axis = containment.is_some() || random.random_bool(ONE_AXIS);
    let scene_axis = random.random_range(0..2);
    // Either every thing is before the next one or every thing is after it, along each axis.
    let is_before: [bool; 2] = random.random();
    (0..num_facts)
        .map(|slot| {
            let axis = if is_one_axis {
                scene_axis
            } else {
                random.random_range(0..2)
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

/// Whether every held thing is small and every holder is big and has an inside.
fn fits_containments(facts: &[Fact], things: &[Description]) -> bool {
    facts
        .iter()
        .filter(|fact| fact.relation == Relation::Inside)
        .all(|fact| {
            things[fact.subject].size == Some(Size::Small)
                && things[fact.landmark].size == Some(Size::Big)
                && things[fact.landmark].shape != Some(Shape::Cross)
        })
}

fn claim(things: &[Description], random: &mut ChaCha8Rng) -> Option<Sentence> {
    if random.random_bool(EXTREME_CLAIM) {
        let subject = Subject::Extreme(*Extreme::ALL.choose(random)?);
        let named = things.choose(random)?;
        let predicate = match named.size {
            Some(size) if random.random_bool(0.3) => Predicate::Sized(size),
            _ => Predicate::Coloured(named.colour?),
        };
        return Some(Sentence { subject, predicate });
    }
    let subject = random.random_range(0..things.len());
    let landmark = random.random_range(0..things.len());
    let relation = *Relation::ALL.choose(random)?;
    Some(Sentence {
        subject: Subject::Described(name(subject, things, random)?),
        predicate: Predicate::Related(relation, name(landmark, things, random)?),
    })
}

/// A noun phrase that fits this thing and no other.
fn name(slot: Slot, things: &[Description], random: &mut ChaCha8Rng) -> Option<Description> {
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

/// Every order of the things but the given one.
fn orderings(things: &[Description]) -> Vec<Vec<Description>> {
    let mut orderings = vec![Vec::new()];
    for _ in things {
        orderings = orderings
            .into_iter()
            .flat_map(|begun: Vec<Description>| {
                let unused = things
                    .iter()
                    .filter(|thing| !begun.contains(thing))
                    .copied();
                unused
                    .map(|thing| [begun.as_slice(), &[thing]].concat())
                    .collect::<Vec<_>>()
            })
            .collect();
    }
    orderings.retain(|ordering| ordering != things);
    orderings
}

/// The facts as sentences, in random order.
fn premise(facts: &[Fact], things: &[Description], random: &mut ChaCha8Rng) -> String {
    let sentence = |fact: &Fact| {
        let subject = Subject::Described(things[fact.subject]);
        let predicate = Predicate::Related(fact.relation, things[fact.landmark]);
        Sentence { subject, predicate }.to_string()
    };
    let mut sentences: Vec<String> = facts.iter().map(sentence).collect();
    sentences.shuffle(random);
    sentences.join(" ")
}
