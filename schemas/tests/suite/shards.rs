//! Shards: any record comes back as it was stored, and damage of any kind is noticed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::f16;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use proptest::prelude::*;
use schemas::record::{ScoredToken, Token, TokenTopK, TopKPosition};
use schemas::shard::{VectorValues, list_shards};
use schemas::{
    DatasetIdentity, Error, ExampleId, FloatType, Manifest, Provenance, ShardEntry, ShardReader,
    ShardWriter, SignalKind, SignalSpec, SignalValue, TeacherIdentity, TeacherRecord,
};

fn feature(width: u32, dtype: FloatType) -> SignalKind {
    SignalKind::Feature { width, dtype }
}

fn manifest(signals: &[(&str, SignalKind)]) -> Manifest {
    let teacher = TeacherIdentity {
        kind: "test".into(),
        model: "test".into(),
        settings: serde_json::json!({"temperature": 0.5}),
    };
    let dataset = DatasetIdentity {
        task: "test".into(),
        fields: vec!["text".into()],
        prompt: None,
    };
    let signals = signals
        .iter()
        .map(|(name, kind)| SignalSpec::new(*name, kind.clone(), "a value").unwrap());
    Manifest::new(teacher, dataset, 1, signals.collect())
}

fn all_kinds() -> Manifest {
    manifest(&[
        ("half", feature(3, FloatType::F16)),
        ("single", feature(2, FloatType::F32)),
        (
            "logits",
            SignalKind::ClassLogits {
                width: 2,
                dtype: FloatType::F16,
            },
        ),
        ("tokens", SignalKind::TokenTopK { k: 3 }),
        ("text", SignalKind::Text),
        ("image", SignalKind::Image),
    ])
}

fn write(folder: &Path, manifest: &Manifest, records: &[TeacherRecord]) -> ShardEntry {
    let mut writer = ShardWriter::create(folder, "part", manifest).unwrap();
    writer.write(records).unwrap();
    assert_eq!(writer.num_rows(), records.len() as u64);
    writer.finish().unwrap()
}

fn read(folder: &Path, entry: &ShardEntry) -> Vec<TeacherRecord> {
    let reader = ShardReader::open_entry(folder, entry).unwrap();
    reader.records().unwrap().map(Result::unwrap).collect()
}

fn vector_record(row: u32, signals: &[(&str, Vec<f32>)]) -> TeacherRecord {
    let text = BTreeMap::from([("text".to_owned(), row.to_string())]);
    TeacherRecord {
        id: ExampleId::of(&text),
        draw: row,
        signals: signals
            .iter()
            .map(|(name, values)| ((*name).to_owned(), SignalValue::Vector(values.clone())))
            .collect(),
        provenance: Provenance::default(),
    }
}

/// Any finite value that half precision can hold.
fn half_value() -> impl Strategy<Value = f32> {
    any::<u16>()
        .prop_map(|bits| f16::from_bits(bits).to_f32())
        .prop_filter("finite", |value| value.is_finite())
}

fn single_value() -> impl Strategy<Value = f32> {
    any::<u32>()
        .prop_map(f32::from_bits)
        .prop_filter("finite", |value| value.is_finite())
}

fn any_token() -> impl Strategy<Value = ScoredToken> {
    let bytes = prop::collection::vec(any::<u8>(), 0..5);
    (0..u32::MAX, prop::option::of(bytes), -100_f32..=0.0).prop_map(|(id, bytes, logprob)| {
        ScoredToken {
            token: Token {
                id: Some(id),
                bytes,
            },
            logprob,
        }
    })
}

fn any_position() -> impl Strategy<Value = TopKPosition> {
    (
        prop::option::of(any_token()),
        0_f32..=1.0,
        prop::collection::vec(any_token(), 0..=3),
    )
        .prop_map(|(chosen, remaining_mass, entries)| TopKPosition {
            chosen,
            remaining_mass,
            entries,
        })
}

fn any_provenance() -> impl Strategy<Value = Provenance> {
    let text = || prop::option::of(".{0,8}");
    let count = || prop::option::of(any::<u32>());
    (
        text(),
        text(),
        text(),
        count(),
        count(),
        any::<u32>(),
        prop::option::of(0_f32..1e6),
        prop::option::of(0_f64..1e3),
        prop::option::of(0_i64..1 << 42),
    )
        .prop_map(
            |(
                served_model,
                fingerprint,
                finish_reason,
                tokens_in,
                tokens_out,
                tries,
                latency_ms,
                cost,
                answered_at,
            )| Provenance {
                served_model,
                fingerprint,
                finish_reason,
                tokens_in,
                tokens_out,
                tries,
                latency_ms,
                cost,
                answered_at,
            },
        )
}

fn any_record() -> impl Strategy<Value = TeacherRecord> {
    let signals = (
        prop::collection::vec(half_value(), 3),
        prop::collection::vec(single_value(), 2),
        prop::collection::vec(half_value(), 2),
        prop::collection::vec(any_position(), 0..4),
        ".{0,20}",
        prop::collection::vec(any::<u8>(), 0..40),
    );
    (any::<[u8; 16]>(), any::<u32>(), signals, any_provenance()).prop_map(
        |(id, draw, values, provenance)| {
            let signals = [
                ("half", SignalValue::Vector(values.0)),
                ("single", SignalValue::Vector(values.1)),
                ("logits", SignalValue::Vector(values.2)),
                (
                    "tokens",
                    SignalValue::TokenTopK(TokenTopK {
                        positions: values.3,
                    }),
                ),
                ("text", SignalValue::Text(values.4)),
                ("image", SignalValue::Image(values.5)),
            ];
            TeacherRecord {
                id: ExampleId::from(id),
                draw,
                signals: signals.map(|(name, value)| (name.to_owned(), value)).into(),
                provenance,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_records_come_back_as_stored(records in prop::collection::vec(any_record(), 0..20)) {
        let folder = tempfile::tempdir().unwrap();
        let entry = write(folder.path(), &all_kinds(), &records);
        prop_assert_eq!(entry.num_rows, records.len() as u64);
        prop_assert_eq!(read(folder.path(), &entry), records.clone());

        let reader = ShardReader::open_entry(folder.path(), &entry).unwrap();
        prop_assert_eq!(reader.manifest(), &all_kinds());
        let keys: Vec<_> = records.iter().map(|record| (record.id, record.draw)).collect();
        prop_assert_eq!(reader.keys().unwrap(), keys);
    }

    #[test]
    fn any_record_comes_back_from_json(record in any_record()) {
        let json = serde_json::to_string(&record).unwrap();
        prop_assert_eq!(serde_json::from_str::<TeacherRecord>(&json).unwrap(), record);
    }

    #[test]
    fn vectors_are_the_values_of_the_records(
        rows in prop::collection::vec(
            (prop::collection::vec(half_value(), 5), prop::collection::vec(single_value(), 2)), 0..2500),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let manifest = manifest(&[("half", feature(5, FloatType::F16)), ("single", feature(2, FloatType::F32))]);
        let records: Vec<_> = rows
            .iter()
            .zip(0..)
            .map(|((half, single), row)| vector_record(row, &[("half", half.clone()), ("single", single.clone())]))
            .collect();
        let entry = write(folder.path(), &manifest, &records);
        let reader = ShardReader::open_entry(folder.path(), &entry).unwrap();
        for (name, width) in [("half", 5), ("single", 2)] {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for batch in reader.vectors(name).unwrap() {
                let batch = batch.unwrap();
                prop_assert_eq!(batch.width, width);
                prop_assert_eq!(matches!(batch.values, VectorValues::F16(_)), name == "half");
                values.extend(batch.values.to_f32());
                keys.extend(batch.keys);
            }
            let expected: Vec<f32> = rows
                .iter()
                .flat_map(|(half, single)| if name == "half" { half } else { single })
                .copied()
                .collect();
            prop_assert_eq!(values, expected);
            prop_assert_eq!(keys, reader.keys().unwrap());
        }
    }
}

#[test]
fn several_row_groups_are_read_in_order() {
    // Noise does not compress, so that three writes of 65 MiB fill three row groups.
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest(&[
        ("image", SignalKind::Image),
        ("half", feature(2, FloatType::F16)),
    ]);
    let mut writer = ShardWriter::create(folder.path(), "part", &manifest).unwrap();
    let mut state = 1_u64;
    let mut noise = || {
        let words = (0..(1 << 20) / 8).flat_map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state ^ (state >> 33)).to_le_bytes()
        });
        words.collect::<Vec<u8>>()
    };
    let mut first_bytes = Vec::new();
    for group in 0..3 {
        let records: Vec<_> = (0..65)
            .map(|row| {
                let number = group * 65 + row;
                let mut record = vector_record(number, &[("half", vec![number as f32, 0.5])]);
                let image = noise();
                first_bytes.push(image[..16].to_vec());
                record
                    .signals
                    .insert("image".into(), SignalValue::Image(image));
                record
            })
            .collect();
        writer.write(&records).unwrap();
    }
    let entry = writer.finish().unwrap();
    let path = folder.path().join(&entry.file);
    let file = SerializedFileReader::new(fs::File::open(&path).unwrap()).unwrap();
    assert_eq!(file.metadata().num_row_groups(), 3);

    let reader = ShardReader::open(&path).unwrap();
    let draws: Vec<u32> = reader
        .keys()
        .unwrap()
        .iter()
        .map(|(_, draw)| *draw)
        .collect();
    assert_eq!(draws, (0..195).collect::<Vec<_>>());
    let values: Vec<f32> = reader
        .vectors("half")
        .unwrap()
        .flat_map(|batch| batch.unwrap().values.to_f32())
        .collect();
    assert_eq!(
        values,
        (0..195)
            .flat_map(|row| [row as f32, 0.5])
            .collect::<Vec<_>>()
    );
    for (record, expected) in reader.records().unwrap().zip(&first_bytes) {
        let record = record.unwrap();
        let SignalValue::Image(image) = &record.signals["image"] else {
            panic!("an image was stored");
        };
        assert_eq!(&image[..16], expected);
    }
}

fn small_shard(folder: &Path) -> (ShardEntry, Vec<u8>) {
    let manifest = manifest(&[
        ("half", feature(2, FloatType::F16)),
        ("text", SignalKind::Text),
    ]);
    let mut record = vector_record(1, &[("half", vec![1.5, -2.0])]);
    record
        .signals
        .insert("text".into(), SignalValue::Text("a word".into()));
    let entry = write(folder, &manifest, &[record]);
    let bytes = fs::read(folder.join(&entry.file)).unwrap();
    assert_eq!(bytes.len() as u64, entry.num_bytes);
    (entry, bytes)
}

fn assert_corrupt(folder: &Path, entry: &ShardEntry, what: &str) {
    let path = folder.join(&entry.file);
    let error = ShardReader::open(&path).unwrap_err();
    assert!(
        matches!(error, Error::CorruptShard { .. }),
        "{what}: {error}"
    );
    assert!(error.hint().is_some());
    let error = ShardReader::open_entry(folder, entry).unwrap_err();
    assert!(
        matches!(error, Error::CorruptShard { .. }),
        "{what}: {error}"
    );
}

#[test]
fn every_flipped_byte_of_a_small_shard_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (entry, bytes) = small_shard(folder.path());
    let path = folder.path().join(&entry.file);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&path, &damaged).unwrap();
        assert_corrupt(folder.path(), &entry, &format!("byte {at}"));
    }
    fs::write(&path, &bytes).unwrap();
    assert!(ShardReader::open(&path).is_ok());
}

#[test]
fn truncated_grown_and_foreign_files_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (entry, bytes) = small_shard(folder.path());
    let path = folder.path().join(&entry.file);
    for length in [0, 1, 4, bytes.len() / 2, bytes.len() - 8, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_corrupt(folder.path(), &entry, &format!("{length} bytes"));
        let error = ShardReader::open_unverified(&path).unwrap_err();
        assert!(matches!(error, Error::InvalidShard { .. }), "{error}");
    }
    fs::write(&path, [bytes.as_slice(), b"more"].concat()).unwrap();
    assert_corrupt(folder.path(), &entry, "grown");
    fs::write(&path, "garbage ".repeat(1000)).unwrap();
    assert_corrupt(folder.path(), &entry, "garbage");
    assert!(matches!(
        ShardReader::open_unverified(&path),
        Err(Error::InvalidShard { .. })
    ));

    let unnamed = folder.path().join("part.parquet");
    fs::write(&unnamed, &bytes).unwrap();
    assert!(matches!(
        ShardReader::open(&unnamed),
        Err(Error::InvalidShard { .. })
    ));
    assert!(matches!(
        ShardReader::open(&folder.path().join("part-0123456789abcdef.parquet")),
        Err(Error::Io { .. })
    ));
    // The list of shards holds committed names only.
    assert_eq!(list_shards(folder.path()).unwrap(), [path]);
}

#[test]
fn a_parquet_file_of_another_program_is_refused() {
    let path = crate::fixtures("datasets/glue_parquet/cola/train-00000-of-00001.parquet");
    let error = ShardReader::open_unverified(&path).unwrap_err().to_string();
    assert!(error.contains("so Armada did not write it"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_flipped_bit_of_a_larger_shard_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let folder = tempfile::tempdir().unwrap();
        let manifest = manifest(&[("half", feature(64, FloatType::F16))]);
        let records: Vec<_> = (0..1500)
            .map(|row| vector_record(row, &[("half", (0..64).map(|column| ((row * 64 + column) % 2039) as f32).collect())]))
            .collect();
        let entry = write(folder.path(), &manifest, &records);
        let path = folder.path().join(&entry.file);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, &bytes).unwrap();
        assert_corrupt(folder.path(), &entry, "flipped");
    }
}

#[test]
fn a_shard_of_another_format_version_is_refused_by_number() {
    for version in [0, 2] {
        let folder = tempfile::tempdir().unwrap();
        let manifest = manifest(&[("half", feature(2, FloatType::F16))]);
        let mut json = serde_json::to_value(&manifest).unwrap();
        json["format_version"] = version.into();
        let other: Manifest = serde_json::from_value(json).unwrap();
        let entry = write(folder.path(), &other, &[]);
        let path = folder.path().join(&entry.file);
        let error = ShardReader::open(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "`{}` has format version {version}, and this build reads version 1",
                path.display()
            )
        );
        let age = if version == 0 { "an older" } else { "a newer" };
        assert!(error.hint().unwrap().starts_with(age));
    }
}

#[test]
fn values_that_cannot_be_stored_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[f32], FloatType, &str); 6] = [
        (&[1.0, f32::NAN], FloatType::F16, "value 1 is NaN"),
        (&[f32::INFINITY, 0.0], FloatType::F32, "value 0 is inf"),
        (&[0.0, f32::NEG_INFINITY], FloatType::F32, "value 1 is -inf"),
        (
            &[0.0, 65_520.0],
            FloatType::F16,
            "value 1 is 65520, outside the range of f16: store f32",
        ),
        (&[1.0], FloatType::F16, "1 values, expected 2"),
        (&[1.0, 2.0, 3.0], FloatType::F32, "3 values, expected 2"),
    ];
    for (values, dtype, problem) in cases {
        let manifest = manifest(&[("v", feature(2, dtype))]);
        let mut writer = ShardWriter::create(folder.path(), "part", &manifest).unwrap();
        let good = vector_record(0, &[("v", vec![0.0, 0.0])]);
        let error = writer
            .write(&[good, vector_record(1, &[("v", values.to_vec())])])
            .unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with(&format!("signal `v`: {problem}")),
            "{error}"
        );
        assert_eq!(writer.num_rows(), 0);
    }
    // Writers that were given up leave nothing behind.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // 65,519 rounds to 65,504, the largest half.
    let fitted = SignalValue::Vector(vec![65_519.0, 0.1])
        .fit(&SignalSpec::new("v", feature(2, FloatType::F16), "").unwrap());
    assert_eq!(
        fitted,
        Ok(SignalValue::Vector(vec![65_504.0, 0.099_975_586]))
    );
}

#[test]
fn missing_unknown_and_other_signals_are_refused() {
    let specs = manifest(&[("v", feature(1, FloatType::F32))]).signals;
    let fit = |signals: &[(&str, Vec<f32>)]| {
        vector_record(0, signals)
            .fit(&specs)
            .unwrap_err()
            .to_string()
    };
    assert!(fit(&[]).ends_with("signal `v`: the reply lacks it"));
    assert!(
        fit(&[("v", vec![1.0]), ("w", vec![1.0])])
            .ends_with("signal `w`: the cache has no such signal")
    );
    let text = SignalValue::Text("x".into()).fit(&specs[0]).unwrap_err();
    assert!(text.starts_with("a text was given for Feature"), "{text}");
}

#[test]
fn a_signal_that_is_not_there_lists_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    let (entry, _) = small_shard(folder.path());
    let reader = ShardReader::open_entry(folder.path(), &entry).unwrap();
    for name in ["no", "text"] {
        let Err(error) = reader.vectors(name) else {
            panic!("`{name}` is no vector");
        };
        assert_eq!(error.hint().unwrap(), "it holds: half, text");
    }
}
