//! The committed shard still reads, value for value. `scripts/check_readers` reads it with other programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemas::record::{ScoredToken, Token, TokenTopK, TopKPosition};
use schemas::shard::{VectorValues, list_shards};
use schemas::{Provenance, ShardReader, SignalValue};

use crate::fixtures;

fn path() -> PathBuf {
    let shards = list_shards(&fixtures("shard")).unwrap();
    let [path] = &shards[..] else {
        panic!("one shard is committed, not {shards:?}");
    };
    path.clone()
}

fn scored(id: u32, bytes: &[u8], logprob: f32) -> ScoredToken {
    ScoredToken {
        token: Token {
            id: Some(id),
            bytes: Some(bytes.to_vec()),
        },
        logprob,
    }
}

#[test]
fn the_committed_shard_describes_itself() {
    let reader = ShardReader::open(&path()).unwrap();
    let manifest = reader.manifest();
    assert_eq!((reader.num_rows(), manifest.draws), (3, 2));
    assert_eq!(manifest.teacher.model, "fixture-1");
    assert_eq!(manifest.dataset.prompt.as_deref(), Some("{sentence}"));
    let names: Vec<_> = manifest
        .signals
        .iter()
        .map(schemas::SignalSpec::name)
        .collect();
    assert_eq!(
        names,
        ["feature", "logits", "top_tokens", "caption", "picture"]
    );
}

#[test]
fn the_committed_records_read_back() {
    let reader = ShardReader::open(&path()).unwrap();
    let records: Vec<_> = reader.records().unwrap().map(Result::unwrap).collect();
    let keys: Vec<_> = records
        .iter()
        .map(|record| (record.id.to_string(), record.draw))
        .collect();
    let (one, two) = (
        "00112233445566778899aabbccddeeff",
        "ffeeddccbbaa99887766554433221100",
    );
    assert_eq!(keys, [(one.into(), 0), (one.into(), 1), (two.into(), 0)]);

    let first = &records[0];
    let SignalValue::Image(picture) = &first.signals["picture"] else {
        panic!("a picture was stored");
    };
    assert_eq!((&picture[..4], picture.len()), (b"\x89PNG".as_slice(), 69));
    let expected: BTreeMap<String, SignalValue> = [
        (
            "feature",
            SignalValue::Vector(vec![
                1.0,
                -2.0,
                0.5,
                0.099_975_586,
                65_504.0,
                0.000_061_035_156,
                5.960_464_5e-8,
                -0.25,
            ]),
        ),
        ("logits", SignalValue::Vector(vec![0.1, -3.5, 1e-30])),
        (
            "top_tokens",
            SignalValue::TokenTopK(TokenTopK {
                positions: vec![
                    TopKPosition {
                        chosen: None,
                        remaining_mass: 0.25,
                        entries: vec![scored(7, b"a", -0.5), scored(65_536, b"a", -1.5)],
                    },
                    TopKPosition {
                        chosen: Some(scored(65_536, b"a", -1.5)),
                        remaining_mass: 0.5,
                        entries: vec![scored(0, b"\xe2\x80", -0.75)],
                    },
                ],
            }),
        ),
        (
            "caption",
            SignalValue::Text("A red square – left of “it”.".into()),
        ),
        ("picture", SignalValue::Image(picture.clone())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    assert_eq!(first.signals, expected);
    assert_eq!(
        first.provenance,
        Provenance {
            served_model: Some("fixture-1-2026".into()),
            fingerprint: Some("fp_7".into()),
            finish_reason: Some("stop".into()),
            tokens_in: Some(5),
            tokens_out: Some(2),
            tries: 1,
            latency_ms: Some(12.5),
            cost: Some(0.0625),
            answered_at: Some(1_767_225_600_250),
        }
    );
    let silent = Provenance {
        tries: 3,
        ..Provenance::default()
    };
    assert_eq!(records[1].provenance, silent);
    assert_eq!(
        records[2].signals["caption"],
        SignalValue::Text("two\nlines".into())
    );
}

#[test]
fn the_committed_vectors_have_these_bits() {
    let reader = ShardReader::open(&path()).unwrap();
    let batches: Vec<_> = reader
        .vectors("feature")
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let bits: Vec<u16> = batches
        .iter()
        .flat_map(|batch| match &batch.values {
            VectorValues::F16(values) => values.iter().map(|value| value.to_bits()),
            VectorValues::F32(_) => panic!("the feature is stored in half precision"),
        })
        .collect();
    assert_eq!(
        bits,
        [
            0x3c00, 0xc000, 0x3800, 0x2e66, 0x7bff, 0x0400, 0x0001, 0xb400, // first draw
            0x0000, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, // second draw
            0xbc00, 0xbe00, 0xbf00, 0xc000, 0x63d0, 0x1419, 0x4248, 0x0000, // another example
        ]
    );
}
