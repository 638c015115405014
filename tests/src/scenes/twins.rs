//! One hypothesis and two premises of the same set of words: in one the hypothesis is true, in the other it is false.

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use harvest::sketch::{Description, Extreme, Predicate, Relation, Sentence, Subject};

use super::scene::{Scene, name};
use super::{Label, Row};

/// Chance that a scene with no containment mixes both axes.
const MIXED_AXES: f64 = 0.3;
/// Chance that a hypothesis is about the outermost thing.
const EXTREME_CLAIM: f64 = 0.2;

/// Draws a scene and a hypothesis; `None` when the hypothesis cannot be made both true and false.
pub(super) fn generate(random: &mut ChaCha8Rng) -> Option<[Row; 2]> {
    let scene = Scene::generate(MIXED_AXES, random);
    let things = &scene.things;
    let knowledge = scene.knowledge();
    let claim = claim(things, random)?;
    let truth = knowledge.truth(claim, things)?;
    let is_twin = |seats: &Vec<Description>| {
        scene.fits(seats) && knowledge.truth(claim, seats) == Some(!truth)
    };
    let twins: Vec<Vec<Description>> = orderings(things).into_iter().filter(is_twin).collect();
    let twin = twins.choose(random)?;
    let mut row = |things: &[Description], truth: bool| Row {
        premise: scene.premise(things, random),
        hypothesis: claim.to_string(),
        label: if truth {
            Label::Entailment
        } else {
            Label::NotEntailment
        },
    };
    Some([row(things, truth), row(twin, !truth)])
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
