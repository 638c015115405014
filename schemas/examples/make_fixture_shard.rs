//! Writes the shard that is committed in `tests/fixtures/shard` into the folder given.
//!
//! Its values are those of `expected.json` there, which is written by hand: the readers that check them share no
//! code with this writer.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use schemas::record::{ScoredToken, Token, TokenTopK, TopKPosition};
use schemas::{
    DatasetIdentity, FloatType, Manifest, Provenance, ShardWriter, SignalKind, SignalSpec,
    SignalValue, TeacherIdentity, TeacherRecord,
};

/// A PNG of one red pixel.
const RED_PIXEL: [u8; 69] = [
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52,
    0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x02, 0x00, 0x00, 0x00, 0x90, 0x77, 0x53,
    0xde, 0x00, 0x00, 0x00, 0x0c, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63, 0xf8, 0xcf, 0xc0, 0x00,
    0x00, 0x03, 0x01, 0x01, 0x00, 0xc9, 0xfe, 0x92, 0xef, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e,
    0x44, 0xae, 0x42, 0x60, 0x82,
];

fn manifest() -> Result<Manifest, schemas::Error> {
    let feature = SignalKind::Feature {
        width: 8,
        dtype: FloatType::F16,
    };
    let logits = SignalKind::ClassLogits {
        width: 3,
        dtype: FloatType::F32,
    };
    let teacher = TeacherIdentity {
        kind: "fixture".into(),
        model: "fixture-1".into(),
        settings: serde_json::json!({"temperature": 0}),
    };
    let dataset = DatasetIdentity {
        task: "fixture".into(),
        fields: vec!["sentence".into()],
        prompt: Some("{sentence}".into()),
    };
    let signals = vec![
        SignalSpec::new("feature", feature, "corner cases of half precision")?,
        SignalSpec::new("logits", logits, "one logit a class")?,
        SignalSpec::new(
            "top_tokens",
            SignalKind::TokenTopK { k: 2 },
            "two tokens a position",
        )?,
        SignalSpec::new("caption", SignalKind::Text, "a caption")?,
        SignalSpec::new("picture", SignalKind::Image, "a PNG")?,
    ];
    Ok(Manifest::new(teacher, dataset, 2, signals))
}

fn record(
    id: &str,
    draw: u32,
    vectors: ([f32; 8], [f32; 3]),
    positions: Vec<TopKPosition>,
    caption: &str,
    provenance: Provenance,
) -> Result<TeacherRecord, schemas::Error> {
    let signals = [
        ("feature", SignalValue::Vector(vectors.0.to_vec())),
        ("logits", SignalValue::Vector(vectors.1.to_vec())),
        (
            "top_tokens",
            SignalValue::TokenTopK(TokenTopK { positions }),
        ),
        ("caption", SignalValue::Text(caption.to_owned())),
        ("picture", SignalValue::Image(RED_PIXEL.to_vec())),
    ];
    Ok(TeacherRecord {
        id: id.parse()?,
        draw,
        signals: BTreeMap::from(signals.map(|(name, value)| (name.to_owned(), value))),
        provenance,
    })
}

fn records() -> Result<Vec<TeacherRecord>, schemas::Error> {
    let told = Provenance {
        served_model: Some("fixture-1-2026".into()),
        fingerprint: Some("fp_7".into()),
        finish_reason: Some("stop".into()),
        tokens_in: Some(5),
        tokens_out: Some(2),
        tries: 1,
        latency_ms: Some(12.5),
        cost: Some(0.0625),
        answered_at: Some(1_767_225_600_250),
    };
    let silent = Provenance {
        tries: 3,
        ..Provenance::default()
    };
    let scored = |id, bytes: Option<&[u8]>, logprob| ScoredToken {
        token: Token {
            id,
            bytes: bytes.map(<[u8]>::to_vec),
        },
        logprob,
    };
    let position =
        |chosen: Option<&ScoredToken>, remaining_mass, entries: &[&ScoredToken]| TopKPosition {
            chosen: chosen.cloned(),
            remaining_mass,
            entries: entries.iter().copied().cloned().collect(),
        };
    // Two tokens that print alike, and half a character.
    let seven = scored(Some(7), Some(b"a"), -0.5);
    let large = scored(Some(65_536), Some(b"a"), -1.5);
    let half = scored(Some(0), Some(b"\xe2\x80"), -0.75);
    let ids = [scored(Some(1), None, 0.0), scored(Some(2), None, -100.0)];
    Ok(vec![
        record(
            "00112233445566778899aabbccddeeff",
            0,
            (
                [
                    1.0,
                    -2.0,
                    0.5,
                    0.1,
                    65504.0,
                    2.0_f32.powi(-14),
                    2.0_f32.powi(-24),
                    -0.25,
                ],
                [0.1, -3.5, 1e-30],
            ),
            vec![
                position(None, 0.25, &[&seven, &large]),
                position(Some(&large), 0.5, &[&half]),
            ],
            "A red square – left of “it”.",
            told.clone(),
        )?,
        record(
            "00112233445566778899aabbccddeeff",
            1,
            ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0]),
            vec![],
            "",
            silent,
        )?,
        record(
            "ffeeddccbbaa99887766554433221100",
            0,
            (
                [-1.0, -1.5, -1.75, -2.0, 1000.0, 0.001, 3.140_625, 0.0],
                [-1.0, 0.0, 1e30],
            ),
            vec![position(None, 0.0, &[&ids[0], &ids[1]])],
            "two\nlines",
            told,
        )?,
    ])
}

#[expect(clippy::print_stdout, reason = "the name of the file is the output")]
fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("usage: make_fixture_shard FOLDER")?
        .into();
    let mut writer = ShardWriter::create(&folder, "fixture", &manifest()?)?;
    writer.write(&records()?)?;
    println!("{}", writer.finish()?.file);
    Ok(())
}
