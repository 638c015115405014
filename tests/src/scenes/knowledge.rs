//! What follows from the facts of a premise, by logic and without a layout.

use harvest::sketch::{Description, Extreme, Predicate, Relation, Sentence, Subject};

/// Position of a thing in its premise.
pub(super) type Slot = usize;

/// `subject` stands in `relation` to `landmark`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fact {
    pub(super) subject: Slot,
    pub(super) relation: Relation,
    pub(super) landmark: Slot,
}

/// Everything that a set of facts implies about the order of things.
#[derive(Debug)]
pub(super) struct Knowledge {
    num_things: usize,
    /// Pairs (a, b): a is left of b in every scene that the facts allow.
    left: Vec<(Slot, Slot)>,
    /// Pairs (a, b): a is above b in every such scene.
    above: Vec<(Slot, Slot)>,
    /// Pairs (inner, holder).
    inside: Vec<(Slot, Slot)>,
}

impl Knowledge {
    pub(super) fn new(num_things: usize, facts: &[Fact]) -> Self {
        let pairs = |relation: Relation, converse: Option<Relation>| -> Vec<(Slot, Slot)> {
            let direct = facts.iter().filter(|fact| fact.relation == relation);
            let turned = facts.iter().filter(|fact| Some(fact.relation) == converse);
            direct
                .map(|fact| (fact.subject, fact.landmark))
                .chain(turned.map(|fact| (fact.landmark, fact.subject)))
                .collect()
        };
        let inside = pairs(Relation::Inside, None);
        let left = closure(pairs(Relation::LeftOf, Some(Relation::RightOf)), &inside);
        let above = closure(pairs(Relation::Above, Some(Relation::Below)), &inside);
        Self {
            num_things,
            left,
            above,
            inside,
        }
    }

    /// Whether `fact` is true in every scene (`Some(true)`), in none (`Some(false)`), or depends.
    fn relation(&self, fact: Fact) -> Option<bool> {
        let Fact {
            subject,
            relation,
            landmark,
        } = fact;
        let pair = (subject, landmark);
        let turned = (landmark, subject);
        let is_nested = self.inside.contains(&pair) || self.inside.contains(&turned);
        let order = |order: &[(Slot, Slot)], pair, turned| match () {
            () if order.contains(&pair) => Some(true),
            () if order.contains(&turned) || is_nested => Some(false),
            () => None,
        };
        match relation {
            Relation::LeftOf => order(&self.left, pair, turned),
            Relation::RightOf => order(&self.left, turned, pair),
            Relation::Above => order(&self.above, pair, turned),
            Relation::Below => order(&self.above, turned, pair),
            Relation::Inside => {
                let is_apart = [pair, turned]
                    .iter()
                    .any(|pair| self.left.contains(pair) || self.above.contains(pair));
                match () {
                    () if self.inside.contains(&pair) => Some(true),
                    () if is_nested || is_apart => Some(false),
                    () => None,
                }
            }
        }
    }

    /// The thing that is outermost on one side in every scene.
    fn extreme(&self, extreme: Extreme) -> Option<Slot> {
        let is_beyond = |thing, other| match extreme {
            Extreme::Leftmost => self.left.contains(&(thing, other)),
            Extreme::Rightmost => self.left.contains(&(other, thing)),
            Extreme::Highest => self.above.contains(&(thing, other)),
            Extreme::Lowest => self.above.contains(&(other, thing)),
        };
        let is_outermost = |&thing: &Slot| {
            (0..self.num_things).all(|other| other == thing || is_beyond(thing, other))
        };
        (0..self.num_things).find(is_outermost)
    }

    /// Whether the claim is true in every scene that the facts allow (`Some(true)`), in none (`Some(false)`), or
    /// neither. `things` says which thing is in which slot. A claim is neither, too, when a noun phrase does not fit
    /// exactly one thing, or when it asks for a size that was not said.
    pub(super) fn truth(&self, claim: Sentence, things: &[Description]) -> Option<bool> {
        let subject = match claim.subject {
            Subject::Described(description) => only_match(description, things)?,
            Subject::Extreme(extreme) => self.extreme(extreme)?,
        };
        match claim.predicate {
            Predicate::Coloured(colour) => things[subject].colour.map(|own| own == colour),
            Predicate::Sized(size) => things[subject].size.map(|own| own == size),
            Predicate::Related(relation, description) => {
                let landmark = only_match(description, things)?;
                if subject == landmark {
                    return None;
                }
                self.relation(Fact {
                    subject,
                    relation,
                    landmark,
                })
            }
        }
    }
}

/// The slot of the one thing that has every attribute of the description.
pub(super) fn only_match(description: Description, things: &[Description]) -> Option<Slot> {
    let fits = |thing: &Description| {
        (description.size.is_none() || description.size == thing.size)
            && (description.colour.is_none() || description.colour == thing.colour)
            && (description.shape.is_none() || description.shape == thing.shape)
    };
    let mut matches = (0..things.len()).filter(|&slot| fits(&things[slot]));
    let only = matches.next()?;
    matches.next().is_none().then_some(only)
}

/// Adds every pair that follows by transitivity, where a thing inside another stands wherever its holder does.
fn closure(mut pairs: Vec<(Slot, Slot)>, inside: &[(Slot, Slot)]) -> Vec<(Slot, Slot)> {
    let same_place: Vec<(Slot, Slot)> = inside
        .iter()
        .flat_map(|&(inner, holder)| [(inner, holder), (holder, inner)])
        .collect();
    loop {
        let mut implied = Vec::new();
        for &(first, second) in &pairs {
            implied.extend(
                pairs
                    .iter()
                    .filter(|pair| pair.0 == second)
                    .map(|pair| (first, pair.1)),
            );
            implied.extend(
                same_place
                    .iter()
                    .filter(|pair| pair.0 == second)
                    .map(|pair| (first, pair.1)),
            );
            implied.extend(
                same_place
                    .iter()
                    .filter(|pair| pair.0 == first)
                    .map(|pair| (pair.1, second)),
            );
        }
        implied.retain(|pair| !pairs.contains(pair));
        let Some(&new) = implied.first() else {
            return pairs;
        };
        pairs.push(new);
    }
}
