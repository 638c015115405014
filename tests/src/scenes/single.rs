//! One premise and one hypothesis: what a premise says, or something that it leaves out.

use rand::RngExt;
use rand::seq::{IndexedRandom, index};
use rand_chacha::ChaCha8Rng;

use harvest::sketch::{Predicate, Relation, Sentence, Subject};

use super::scene::{AXES, Scene, name};
use super::{Label, Row};

/// Chance that a hypothesis says that one thing is inside another; the same for both labels.
const INSIDE_CLAIM: f64 = 0.2;

/// Draws a hypothesis that follows, or one that speaks of what the premise never mentions: of the other axis than the
/// scene's, or of containment where there is none.
pub(super) fn generate(label: Label, random: &mut ChaCha8Rng) -> Row {
    let is_inside_claim = random.random_bool(INSIDE_CLAIM);
    loop {
        let scene = Scene::generate(0.0, random);
        if let Some(claim) = claim(&scene, is_inside_claim, label, random) {
            return Row {
                premise: scene.premise(&scene.things, random),
                hypothesis: claim.to_string(),
                label,
            };
        }
    }
}

/// A relation of two things; `None` when the one that was drawn does not have the label.
fn claim(
    scene: &Scene,
    is_inside_claim: bool,
    label: Label,
    random: &mut ChaCha8Rng,
) -> Option<Sentence> {
    const INSIDE: [Relation; 1] = [Relation::Inside];
    let kinds: Vec<&[Relation]> = if is_inside_claim {
        vec![&INSIDE]
    } else {
        AXES.iter().map(<[Relation; 2]>::as_slice).collect()
    };
    let wanted = label == Label::Entailment;
    let kind = kinds
        .into_iter()
        .find(|kind| scene.mentions(kind) == wanted)?;
    let relation = *kind.choose(random)?;
    let slots = index::sample(random, scene.things.len(), 2);
    let subject = name(slots.index(0), &scene.things, random)?;
    let landmark = name(slots.index(1), &scene.things, random)?;
    let claim = Sentence {
        subject: Subject::Described(subject),
        predicate: Predicate::Related(relation, landmark),
    };
    let follows = scene.knowledge().truth(claim, &scene.things) == Some(true);
    (follows == wanted).then_some(claim)
}
