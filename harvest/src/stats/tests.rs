use schemas::record::{TokenTopK, TopKPosition};
use schemas::{
    DatasetIdentity, ExampleId, FloatType, Provenance, ShardWriter, SignalSpec, TeacherIdentity,
};

use schemas::record::{ScoredToken, Token};

use super::*;

fn scored(id: u32, logprob: f32) -> ScoredToken {
    let token = Token {
        id: Some(id),
        bytes: None,
    };
    ScoredToken { token, logprob }
}

fn manifest(signals: Vec<SignalSpec>) -> Manifest {
    Manifest::new(
        TeacherIdentity {
            kind: "import".into(),
            model: "hand-made".into(),
            settings: serde_json::json!({}),
        },
        DatasetIdentity {
            task: "scenes".into(),
            fields: vec!["text".into()],
            prompt: None,
        },
        1,
        signals,
    )
}

fn spec(name: &str, kind: SignalKind) -> SignalSpec {
    SignalSpec::new(name, kind, "for a test").unwrap()
}

fn record(number: usize, signals: Vec<(&str, SignalValue)>) -> TeacherRecord {
    let id: ExampleId = format!("{number:032x}").parse().unwrap();
    TeacherRecord {
        id,
        draw: 0,
        signals: signals
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        provenance: Provenance {
            tries: 1,
            ..Provenance::default()
        },
    }
}

fn feature(width: u32) -> Vec<SignalSpec> {
    let dtype = FloatType::F32;
    vec![spec("feature", SignalKind::Feature { width, dtype })]
}

fn collect(manifest: &Manifest, records: &[TeacherRecord]) -> CacheStats {
    let mut collector = Collector::new(manifest, records.len() as u64);
    for record in records {
        collector.add(record);
    }
    collector.finish()
}

fn vectors(rows: &[&[f32]]) -> (VectorStats, Vec<String>) {
    let records: Vec<TeacherRecord> = rows
        .iter()
        .enumerate()
        .map(|(number, row)| record(number, vec![("feature", SignalValue::Vector(row.to_vec()))]))
        .collect();
    let stats = collect(&manifest(feature(rows[0].len() as u32)), &records);
    let SignalStats::Feature(vectors) = &stats.signals["feature"] else {
        panic!("it is a feature")
    };
    (vectors.clone(), stats.warnings)
}

#[test]
fn vectors_by_hand() {
    let (found, warnings) = vectors(&[
        &[3.0, 4.0, 7.0],
        &[3.0, 4.0, 7.0],
        &[0.0, 0.0, 0.0],
        &[-3.0, 4.0, 0.0],
    ]);
    let norms = found.norms.unwrap();
    assert!((norms.max - 74.0_f64.sqrt()).abs() < 1e-9);
    assert_eq!((norms.count, norms.min, norms.p50), (4, 0.0, 5.0));
    assert_eq!(
        (found.num_nan, found.num_infinite, found.num_zero),
        (0, 0, 1)
    );
    assert_eq!((found.repeats.num_rows, found.repeats.num_distinct), (2, 3));
    assert_eq!(found.num_constant, 0);
    // Cosines of the three vectors that are not zero: 1, and twice (-9 + 16) / (5 sqrt 74).
    let other = 7.0 / (5.0 * 74.0_f64.sqrt());
    let expected = (1.0 + 2.0 * other) / 3.0;
    assert!((found.mean_cosine.unwrap() - expected).abs() < 1e-9);
    assert_eq!(warnings, ["`feature`: 1 vectors are all zeros"]);
}

#[test]
fn constant_dimensions_and_values_that_are_not_finite_are_read_not_assumed() {
    let (found, warnings) = vectors(&[
        &[1.0, 2.0, f32::NAN],
        &[1.0, 3.0, f32::INFINITY],
        &[1.0, 2.0, 0.5],
    ]);
    assert_eq!((found.num_nan, found.num_infinite), (1, 1));
    assert_eq!(
        (found.num_constant, &found.first_constant[..]),
        (1, &[0][..])
    );
    assert_eq!(
        found.norms.unwrap().count,
        1,
        "only finite rows have a norm"
    );
    assert_eq!(
        warnings,
        ["`feature`: 1 elements are not a number and 1 are infinite"]
    );
}

#[test]
fn logits_have_a_balance_and_an_entropy() {
    let kind = SignalKind::ClassLogits {
        width: 2,
        dtype: FloatType::F32,
    };
    let logits = |number, values: [f32; 2]| {
        record(
            number,
            vec![("logits", SignalValue::Vector(values.to_vec()))],
        )
    };
    let three = 3.0_f32.ln();
    let stats = collect(
        &manifest(vec![spec("logits", kind)]),
        &[
            logits(0, [0.0, 0.0]),
            logits(1, [0.0, three]),
            logits(2, [100.0, 100.0 + three]),
        ],
    );
    let SignalStats::ClassLogits { classes, .. } = &stats.signals["logits"] else {
        panic!("it is logits")
    };
    assert_eq!(
        classes.balance,
        [1, 2],
        "the first of equal ones is the largest"
    );
    let entropy = classes.entropy.unwrap();
    // ln 2, and for (1/4, 3/4): ln 4 - 3/4 ln 3.
    assert!((entropy.max - 2.0_f64.ln()).abs() < 1e-6);
    assert!((entropy.min - (4.0_f64.ln() - 0.75 * 3.0_f64.ln())).abs() < 1e-4);
}

#[test]
fn retained_mass_grows_with_k() {
    let position = |masses: &[f32], remaining_mass| TopKPosition {
        chosen: None,
        remaining_mass,
        entries: masses
            .iter()
            .enumerate()
            .map(|(id, mass)| scored(id as u32, mass.ln()))
            .collect(),
    };
    let mut twice = position(&[0.5, 0.25], 0.25);
    twice.entries[1].token.id = Some(0);
    let tokens = TokenTopK {
        positions: vec![
            position(&[0.5, 0.25, 0.125], 0.125),
            position(&[0.75], 0.25),
            position(&[0.5, 0.25], 0.75),
            twice,
        ],
    };
    let empty = TokenTopK::default();
    let stats = collect(
        &manifest(vec![spec("tokens", SignalKind::TokenTopK { k: 3 })]),
        &[
            record(0, vec![("tokens", SignalValue::TokenTopK(tokens))]),
            record(1, vec![("tokens", SignalValue::TokenTopK(empty))]),
        ],
    );
    let SignalStats::TokenTopK(found) = &stats.signals["tokens"] else {
        panic!("it is token top-k")
    };
    assert_eq!((found.num_positions, found.num_empty), (4, 1));
    let cuts: Vec<u32> = found.retained_mass.keys().copied().collect();
    assert_eq!(cuts, [1, 2, 3]);
    for (cut, mass) in [(1, 0.5625), (2, 0.75), (3, 0.78125)] {
        assert!((found.retained_mass[&cut] - mass).abs() < 1e-6, "{cut}");
    }
    assert!((found.remaining_mass.unwrap() - 0.34375).abs() < 1e-6);
    assert_eq!((found.num_unbalanced, found.num_repeated_ids), (1, 1));
    assert_eq!(stats.warnings.len(), 3, "{:?}", stats.warnings);
}

#[test]
#[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
fn texts_and_pictures() {
    let mut png = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_luma8(3, 2)
        .write_to(&mut png, image::ImageFormat::Png)
        .unwrap();
    let row = |number, text: &str, bytes: &[u8]| {
        record(
            number,
            vec![
                ("text", SignalValue::Text(text.into())),
                ("image", SignalValue::Image(bytes.to_vec())),
            ],
        )
    };
    let stats = collect(
        &manifest(vec![
            spec("text", SignalKind::Text),
            spec("image", SignalKind::Image),
        ]),
        &[
            row(0, "äé", png.get_ref()),
            row(1, "äé", png.get_ref()),
            row(2, " \n", b"no picture"),
        ],
    );
    let (SignalStats::Text(texts), SignalStats::Image(images)) =
        (&stats.signals["text"], &stats.signals["image"])
    else {
        panic!("a text and an image")
    };
    assert_eq!(texts.lengths.unwrap().max, 2.0, "characters, not bytes");
    assert_eq!((texts.num_empty, texts.repeats.num_rows), (1, 2));
    assert_eq!(images.formats, BTreeMap::from([("png".to_owned(), 2)]));
    assert_eq!(images.sizes, BTreeMap::from([("3 x 2".to_owned(), 2)]));
    assert_eq!((images.num_unreadable, images.repeats.num_rows), (1, 2));
}

/// A router can serve one model name from several quantisations.
#[test]
#[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
fn two_fingerprints_are_a_warning_and_sums_are_exact() {
    let mut records: Vec<TeacherRecord> = (0..3)
        .map(|number| {
            record(
                number,
                vec![("feature", SignalValue::Vector(vec![number as f32]))],
            )
        })
        .collect();
    for (number, record) in records.iter_mut().enumerate() {
        record.provenance = Provenance {
            served_model: Some("m".into()),
            fingerprint: Some(if number == 2 { "fp8" } else { "bf16" }.into()),
            finish_reason: (number > 0).then(|| "stop".to_owned()),
            tokens_in: Some(u32::MAX),
            tokens_out: Some(1),
            cost: Some(0.25),
            answered_at: Some(1_700_000_000_000 + i64::try_from(number).unwrap()),
            tries: 1 + number as u32,
            latency_ms: Some(10.0),
        };
    }
    let stats = collect(&manifest(feature(1)), &records);
    assert_eq!(stats.provenance.total_tokens_in, 3 * u64::from(u32::MAX));
    assert_eq!(stats.provenance.total_cost, Some(0.75));
    assert_eq!(stats.provenance.finish_reasons["(not told)"], 1);
    assert_eq!(stats.provenance.tries.unwrap().max, 3.0);
    assert_eq!(
        stats.warnings[0],
        "more than one fingerprint answered: bf16 (2 rows), fp8 (1 rows)"
    );
    let lines = stats.lines();
    let value = |name: &str| &lines.iter().find(|line| line.0 == name).unwrap().1;
    assert_eq!(value("first_answer"), "2023-11-14T22:13:20Z");
    assert_eq!(
        value("feature.effective_rank"),
        "1 of at most 1, from 3 rows"
    );
}

#[test]
fn what_counts_of_a_frozen_cache_is_its_list() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest(feature(1));
    let write = |stem: &str, number| {
        let mut writer = ShardWriter::create(folder.path(), stem, &manifest).unwrap();
        let row = record(number, vec![("feature", SignalValue::Vector(vec![1.0]))]);
        writer.write(&[row]).unwrap();
        writer.finish().unwrap()
    };
    let first = write("part-000000", 0);
    let frozen = manifest.clone().frozen(vec![first]);
    frozen.write(folder.path()).unwrap();
    let second = write("part-000001", 1);
    let store = Store::folder(folder.path());
    let stats = CacheStats::of(&store, &frozen).unwrap();
    assert_eq!(
        (stats.num_rows, stats.num_shards, stats.digest),
        (1, 1, frozen.digest())
    );
    let stats = CacheStats::of(&store, &manifest).unwrap();
    assert_eq!((stats.num_rows, stats.num_shards), (2, 2));
    let path = folder.path().join(&second.file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(
        CacheStats::of(&store, &manifest),
        Err(Error::Schemas(schemas::Error::CorruptShard { .. }))
    ));
}
