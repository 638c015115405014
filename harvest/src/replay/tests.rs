use std::collections::BTreeSet;

use schemas::record::{TokenTopK, TopKPosition};
use schemas::{ExampleId, FloatType, Provenance, SignalKind, SignalValue};

use schemas::record::{ScoredToken, Token};

use super::*;
use crate::cache::Key;

fn scored(id: u32, logprob: f32) -> ScoredToken {
    let token = Token {
        id: Some(id),
        bytes: None,
    };
    ScoredToken { token, logprob }
}

fn id(number: usize) -> ExampleId {
    format!("{number:032x}").parse().unwrap()
}

fn record(number: usize, value: SignalValue) -> TeacherRecord {
    TeacherRecord {
        id: id(number),
        draw: 0,
        signals: BTreeMap::from([("s".to_owned(), value)]),
        provenance: Provenance::default(),
    }
}

fn replies(values: impl IntoIterator<Item = SignalValue>) -> Vec<Option<Reply>> {
    let reply = |value| Reply {
        signals: BTreeMap::from([("s".to_owned(), value)]),
        provenance: Provenance::default(),
    };
    values.into_iter().map(|value| Some(reply(value))).collect()
}

fn report(kind: SignalKind, sides: [Vec<SignalValue>; 3]) -> Report {
    let specs = [SignalSpec::new("s", kind, "").unwrap()];
    let [cached, first, second] = sides;
    let records: Vec<TeacherRecord> = cached
        .into_iter()
        .enumerate()
        .map(|(number, value)| record(number, value))
        .collect();
    compare(&specs, &records, [&replies(first), &replies(second)])
}

fn feature() -> SignalKind {
    SignalKind::Feature {
        width: 2,
        dtype: FloatType::F16,
    }
}

fn vectors(num: usize, of: impl Fn(usize) -> [f32; 2]) -> Vec<SignalValue> {
    (0..num)
        .map(|row| SignalValue::Vector(of(row).to_vec()))
        .collect()
}

#[test]
fn a_teacher_that_says_the_same_is_within() {
    let same = || vectors(20, |row| [row as f32 + 0.1, 1.0]);
    // The cache holds halves, and live replies come in full: they are rounded before they are compared.
    let cached = vectors(20, |row| {
        [half::f16::from_f32(row as f32 + 0.1).to_f32(), 1.0]
    });
    let found = report(feature(), [cached, same(), same()]);
    assert_eq!((found.verdict, found.num_compared), (Verdict::Within, 20));
    assert!(
        found.signals["s"]
            .iter()
            .all(|found| found.cached_live.max == 0.0)
    );
}

#[test]
fn another_model_is_outside_and_noise_is_not() {
    let turned = |degrees: f32| {
        let (sin, cos) = degrees.to_radians().sin_cos();
        [cos, sin]
    };
    let all = |degrees: f32| vectors(10, |_| turned(degrees));
    let found = report(feature(), [all(10.0), all(0.0), all(1.0)]);
    let cosine = &found.signals["s"][0];
    assert_eq!(
        (cosine.measure, cosine.num_farther),
        (Measure::CosineDistance, 10)
    );
    assert!((cosine.chance - 0.5_f64.powi(10)).abs() < 1e-12);
    assert!((cosine.cached_live.mean - (1.0 - 10.0_f64.to_radians().cos())).abs() < 1e-3);
    assert_eq!(found.verdict, Verdict::Outside);
    // As often nearer as farther: one more reply of the same noisy teacher.
    let cached = vectors(20, |row| turned(if row % 2 == 0 { 3.0 } else { 1.0 }));
    let first = vectors(20, |_| turned(0.0));
    let second = vectors(20, |_| turned(2.0));
    assert_eq!(
        report(feature(), [cached, first, second]).verdict,
        Verdict::Within
    );
    // A scale that the cosine does not see.
    let found = report(
        feature(),
        [
            all(0.0),
            vectors(10, |_| [2.0, 0.0]),
            vectors(10, |_| [2.0, 0.0]),
        ],
    );
    assert_eq!(found.signals["s"][0].verdict, Verdict::Within);
    assert_eq!(found.signals["s"][1].verdict, Verdict::Outside);
    assert_eq!(found.verdict, Verdict::Outside);
}

#[test]
fn six_rows_cannot_show_it_and_seven_can() {
    let texts = |num: usize, text: &str| vec![SignalValue::Text(text.to_owned()); num];
    let of = |num| {
        report(
            SignalKind::Text,
            [texts(num, "a"), texts(num, "b"), texts(num, "b")],
        )
        .verdict
    };
    assert_eq!((of(6), of(7)), (Verdict::TooFewRows, Verdict::Outside));
    let same = report(
        SignalKind::Text,
        [texts(2, "a"), texts(2, "a"), texts(2, "a")],
    );
    assert_eq!(same.verdict, Verdict::Within);
}

#[test]
fn tails_of_the_binomial_by_hand() {
    for (num, least, expected) in [
        (0, 0, 1.0),
        (4, 0, 1.0),
        (4, 3, 5.0 / 16.0),
        (7, 7, 1.0 / 128.0),
    ] {
        assert!(
            (upper_tail(num, least) - expected).abs() < 1e-12,
            "{num} {least}"
        );
    }
    let tail = upper_tail(5000, 2600);
    assert!(tail > 0.0 && tail < 0.01, "{tail}");
}

#[test]
fn divergences_by_hand() {
    let logits = |values: [f32; 2]| SignalValue::Vector(values.to_vec());
    let three = 3.0_f32.ln();
    // KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3.
    let found = Measure::Kl.between(&logits([0.0, 0.0]), &logits([0.0, three]));
    assert!((found - 0.5 * (4.0_f64 / 3.0).ln()).abs() < 1e-6);

    let position = |entries: &[(u32, f32)]| TopKPosition {
        chosen: None,
        remaining_mass: 0.0,
        entries: entries
            .iter()
            .map(|(id, mass)| scored(*id, mass.ln()))
            .collect(),
    };
    let tokens = |positions: Vec<TopKPosition>| SignalValue::TokenTopK(TokenTopK { positions });
    // Token 1 is shared, with 1/2 and 1/4; tokens 2 and 3 and the rest are one event.
    let one = tokens(vec![position(&[(1, 0.5), (2, 0.3)])]);
    let two = tokens(vec![position(&[(1, 0.25), (3, 0.3)])]);
    let found = Measure::Kl.between(&one, &two);
    assert!((found - 0.5 * (4.0_f64 / 3.0).ln()).abs() < 1e-6, "{found}");
    let found = Measure::MaxLogprob.between(&one, &two);
    assert!((found - 2.0_f64.ln()).abs() < 1e-6);
    // A second position that only one has counts as ln 2, halved by the mean.
    let longer = tokens(vec![position(&[(1, 0.5), (2, 0.3)]), position(&[(7, 1.0)])]);
    let found = Measure::Kl.between(&one, &longer);
    assert!((found - 0.5 * 2.0_f64.ln()).abs() < 1e-6, "{found}");
    assert!(Measure::Kl.between(&longer, &longer).abs() < 1e-12);
}

/// A cold and a cached run of one server differ by about 1e-6.
#[test]
fn logprobs_of_a_warm_server_are_within() {
    let tokens = |shift: f32| {
        let entries = vec![scored(1, -0.5 + shift), scored(2, -1.5 - shift)];
        let positions = vec![TopKPosition {
            chosen: None,
            remaining_mass: 0.17,
            entries,
        }];
        vec![SignalValue::TokenTopK(TokenTopK { positions }); 30]
    };
    let kind = || SignalKind::TokenTopK { k: 2 };
    let found = report(kind(), [tokens(1e-6), tokens(0.0), tokens(0.0)]);
    assert_eq!(found.verdict, Verdict::Within);
    let found = report(kind(), [tokens(1e-2), tokens(0.0), tokens(0.0)]);
    assert_eq!(found.verdict, Verdict::Outside);
}

#[test]
fn rows_without_two_replies_are_left_out_and_unfitting_ones_are_outside() {
    let specs = [SignalSpec::new("s", feature(), "").unwrap()];
    let vector = |values: &[f32]| SignalValue::Vector(values.to_vec());
    let records: Vec<TeacherRecord> = (0..3).map(|row| record(row, vector(&[1.0, 2.0]))).collect();
    let mut first = replies(vec![vector(&[1.0, 2.0]); 3]);
    first[1] = None;
    let second = replies([vector(&[1.0, 2.0]), vector(&[1.0, 2.0]), vector(&[1.0])]);
    first[0].as_mut().unwrap().provenance.served_model = Some("new".into());
    let found = compare(&specs, &records, [&first, &second]);
    assert_eq!(
        (found.num_rows, found.num_compared, found.num_unfit),
        (3, 1, 1)
    );
    assert_eq!(found.changed_models, ["- - -> new - (1 rows)"]);
    assert_eq!(found.lines().last().unwrap().1, "outside the noise floor");
    let [first, second] = [&first[..2], &second[..2]];
    let found = compare(&specs, &records[..2], [first, second]);
    assert_eq!((found.num_compared, found.num_unfit), (1, 0));
    assert_eq!(found.verdict, Verdict::Within);
    let other = replies(vec![vector(&[1.0; 4]); 3]);
    let found = compare(&specs, &records, [&other, &other]);
    assert_eq!((found.num_compared, found.num_unfit), (0, 3));
    assert_eq!(found.verdict, Verdict::Outside);
}

#[test]
fn the_choice_depends_on_seed_and_rows_alone() {
    let keys: Vec<Key> = (0..200).map(|number| (id(number), 0)).collect();
    let chosen = choose(keys.clone(), 10, 7);
    assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), 10);
    assert_eq!(choose(keys.iter().rev().copied(), 10, 7), chosen);
    // In parts, as shard by shard.
    let half = choose(keys[..100].to_vec(), 10, 7);
    assert_eq!(
        choose(half.into_iter().chain(keys[100..].to_vec()), 10, 7),
        chosen
    );
    assert_ne!(choose(keys.clone(), 10, 8), chosen);
    assert_eq!(choose(keys, 500, 7).len(), 200);
}
