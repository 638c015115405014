use std::collections::BTreeMap;

use schemas::{
    DatasetIdentity, ExampleId, FloatType, Provenance, SignalKind, SignalSpec, SignalValue,
    TeacherIdentity, TeacherRecord,
};
use tempfile::TempDir;

use super::*;
use crate::store::tests::s3;
use crate::store::tests::server::Server;

fn manifest(model: &str, draws: u32) -> Manifest {
    let kind = SignalKind::Feature {
        width: 2,
        dtype: FloatType::F32,
    };
    Manifest::new(
        TeacherIdentity {
            kind: "import".into(),
            model: model.into(),
            settings: serde_json::json!({"pooling": "mean"}),
        },
        DatasetIdentity {
            task: "scenes".into(),
            fields: vec!["text".into()],
            prompt: None,
        },
        draws,
        vec![SignalSpec::new("feature", kind, "pooled").unwrap()],
    )
}

/// `(example, draw, value)`
type Row = (u32, u32, f32);

fn record((number, draw, value): Row) -> TeacherRecord {
    let id: ExampleId = format!("{number:032x}").parse().unwrap();
    TeacherRecord {
        id,
        draw,
        signals: BTreeMap::from([("feature".to_owned(), SignalValue::Vector(vec![value, 1.0]))]),
        provenance: Provenance {
            latency_ms: Some(value * 3.0),
            ..Provenance::default()
        },
    }
}

/// A cache with these shards.
fn cache_of(manifest: &Manifest, shards: &[&[Row]]) -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    manifest.write(folder.path()).unwrap();
    for (number, rows) in shards.iter().enumerate() {
        let stem = format!("part-{number:06}");
        let mut writer = ShardWriter::create(folder.path(), &stem, manifest).unwrap();
        let rows: Vec<TeacherRecord> = rows.iter().copied().map(record).collect();
        writer.write(&rows).unwrap();
        writer.finish().unwrap();
    }
    let store = Store::folder(folder.path());
    (folder, store)
}

fn freeze(store: &Store) {
    let entries = store.shards().unwrap().into_iter().map(|name| {
        let reader = store.open_shard_verified(&name).unwrap();
        reader.entry().unwrap()
    });
    let manifest = store.manifest().unwrap().frozen(entries.collect());
    store.write_manifest(&manifest).unwrap();
}

/// All rows, ordered; a row that is there twice is there twice.
fn rows(store: &Store) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in store.shards().unwrap() {
        let reader = store.open_shard_verified(&name).unwrap();
        for record in reader.records().unwrap() {
            let record = record.unwrap();
            let SignalValue::Vector(values) = &record.signals["feature"] else {
                panic!("a vector")
            };
            let number = u32::from_str_radix(&record.id.to_string(), 16).unwrap();
            rows.push((number, record.draw, values[0]));
        }
    }
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
    rows
}

fn files(store: &Store) -> Vec<(String, Vec<u8>)> {
    let names = store.list().unwrap().into_iter().map(|entry| entry.name);
    names
        .map(|name| (name.clone(), store.read(&name).unwrap().unwrap()))
        .collect()
}

fn new_store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(&folder.path().join("merged"));
    (folder, store)
}

fn merge_error(into: &Store, from: &[Store], prefer: Option<Prefer>) -> MergeError {
    match merge(into, from, prefer) {
        Err(Error::Merge(error)) => error,
        other => panic!("it is refused: {other:?}"),
    }
}

const ONE: &[&[Row]] = &[&[(1, 0, 1.0), (2, 0, 2.0)], &[(3, 0, 3.0)]];
const TWO: &[&[Row]] = &[&[(3, 0, 3.0), (4, 0, 4.0)], &[(5, 0, 5.0), (6, 0, 6.0)]];

#[test]
fn shards_without_a_repeated_key_are_copied_and_others_written_anew() {
    let (_a, one) = cache_of(&manifest("m", 1), ONE);
    let (_b, two) = cache_of(&manifest("m", 1), TWO);
    freeze(&one);
    let before = [files(&one), files(&two)];
    let (_c, into) = new_store();
    let summary = merge(&into, &[one.clone(), two.clone()], None).unwrap();
    assert_eq!(
        summary,
        Summary {
            num_source_rows: 7,
            num_added: 6,
            num_equal: 1,
            num_outvoted: 0,
            num_copied: 3,
            num_rewritten: 1,
        }
    );
    let expected: Vec<Row> = (1_u8..7).map(|i| (u32::from(i), 0, f32::from(i))).collect();
    assert_eq!(rows(&into), expected);
    assert_eq!(into.manifest().unwrap(), manifest("m", 1));
    assert_eq!([files(&one), files(&two)], before, "sources are only read");
    for (name, bytes) in &before[0] {
        if name.starts_with("part-") {
            assert_eq!(into.read(name).unwrap().as_ref(), Some(bytes));
        }
    }
    freeze(&into);
    let frozen = files(&into);
    let again = merge(&into, &[one, two], None).unwrap();
    assert_eq!((again.num_added, again.num_equal), (0, 7));
    assert_eq!(files(&into), frozen, "nothing new leaves it frozen");
}

#[test]
fn killed_after_any_put_and_repeated_it_completes() {
    let (_a, one) = cache_of(&manifest("m", 1), ONE);
    let (_b, two) = cache_of(&manifest("m", 1), TWO);
    let sources = [one, two];
    let (_c, whole) = new_store();
    merge(&whole, &sources, None).unwrap();
    let mut puts = files(&whole);
    puts.sort_by_key(|(name, _)| !name.starts_with("manifest"));
    for num_done in 0..=puts.len() {
        let (folder, into) = new_store();
        for (name, bytes) in &puts[..num_done] {
            into.put(name, bytes).unwrap();
        }
        std::fs::create_dir_all(folder.path().join("merged")).unwrap();
        std::fs::write(folder.path().join("merged/.shard-x.tmp"), b"half").unwrap();
        merge(&into, &sources, None).unwrap();
        assert_eq!(files(&into), files(&whole), "after {num_done} puts");
    }
}

#[test]
fn contradicting_rows_are_refused_unless_a_side_is_preferred() {
    let (_a, one) = cache_of(&manifest("m", 1), ONE);
    let (_b, two) = cache_of(&manifest("m", 1), &[&[(2, 0, -2.0), (9, 0, 9.0)]]);
    let from = [one.clone(), two.clone()];
    let (_c, into) = new_store();
    let error = merge_error(&into, &from, None);
    let MergeError::Conflicts {
        num: 1,
        first,
        with_target: false,
    } = &error
    else {
        panic!("{error}")
    };
    assert!(first[0].starts_with("00000000000000000000000000000002 draw 0"));
    assert_eq!(into.list().unwrap(), [], "nothing is written");

    let expected = |value| vec![(1, 0, 1.0), (2, 0, value), (3, 0, 3.0), (9, 0, 9.0)];
    for (prefer, value) in [(Prefer::First, 2.0), (Prefer::Last, -2.0)] {
        let (_d, into) = new_store();
        let summary = merge(&into, &from, Some(prefer)).unwrap();
        assert_eq!(summary.num_outvoted, 1);
        assert_eq!(rows(&into), expected(value));
        let again = merge(&into, &from, Some(prefer)).unwrap();
        assert_eq!(again.num_added, 0);
        assert_eq!(rows(&into), expected(value));
    }

    // A row of the target stays, or the merge is refused: shards are never taken away.
    let error = merge_error(&one, std::slice::from_ref(&two), Some(Prefer::Last));
    assert!(matches!(
        error,
        MergeError::Conflicts {
            with_target: true,
            ..
        }
    ));
    assert!(error.hint().unwrap().contains("a new cache"));
    merge(&one, &[two], Some(Prefer::First)).unwrap();
    assert_eq!(rows(&one), expected(2.0));
}

#[test]
fn three_sources_with_the_last_preferred_keep_one_row_a_key() {
    let caches: Vec<(TempDir, Store)> = [1.0, 2.0, 1.0]
        .map(|value| cache_of(&manifest("m", 1), &[&[(1, 0, value), (2, 0, 0.0)]]))
        .into();
    let from: Vec<Store> = caches.iter().map(|(_, store)| store.clone()).collect();
    let (_c, into) = new_store();
    merge(&into, &from, Some(Prefer::Last)).unwrap();
    assert_eq!(rows(&into), [(1, 0, 1.0), (2, 0, 0.0)]);
}

#[test]
fn another_source_is_refused_by_its_first_differing_key() {
    let (_a, one) = cache_of(&manifest("m", 1), ONE);
    let (_b, two) = cache_of(&manifest("n", 1), TWO);
    let (_c, into) = new_store();
    let error = merge_error(&into, &[one.clone(), two], None);
    assert!(
        matches!(&error, MergeError::DifferentSource { key, of_one, of_two, .. }
            if key == "teacher.model" && **of_one == *"\"m\"" && **of_two == *"\"n\""),
        "{error}"
    );
    let error = merge_error(&one, std::slice::from_ref(&one), None);
    assert!(matches!(error, MergeError::IntoItself { .. }));
}

#[test]
fn draws_are_joined() {
    let (_a, one) = cache_of(&manifest("m", 1), ONE);
    let (_b, two) = cache_of(&manifest("m", 2), &[&[(1, 1, 1.5), (2, 1, 2.5)]]);
    let (_c, into) = new_store();
    let summary = merge(&into, &[one.clone(), two.clone()], None).unwrap();
    assert_eq!(into.manifest().unwrap().draws, 2);
    assert_eq!((summary.num_copied, summary.num_rewritten), (1, 2));
    assert_eq!(rows(&into).len(), 5);
    for name in into.shards().unwrap() {
        let reader = into.open_shard(&name).unwrap();
        assert_eq!(
            reader.manifest().draws,
            2,
            "every shard says what its cache says"
        );
    }
    let error = merge_error(&one, &[two], None);
    assert!(matches!(
        error,
        MergeError::FewerDraws {
            present: 1,
            wanted: 2,
            ..
        }
    ));
}

#[test]
fn damaged_sources_never_get_into_the_target() {
    for frozen in [false, true] {
        let (folder, one) = cache_of(&manifest("m", 1), &[&[(1, 0, 1.0)]]);
        if frozen {
            freeze(&one);
        }
        let path = folder.path().join(&one.shards().unwrap()[0]);
        let whole = std::fs::read(&path).unwrap();
        let mut num_corrupt = 0;
        for at in (0..whole.len()).step_by(37) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let (_c, into) = new_store();
            let error = merge(&into, std::slice::from_ref(&one), None).unwrap_err();
            num_corrupt += usize::from(matches!(
                error,
                Error::Schemas(schemas::Error::CorruptShard { .. })
            ));
            assert_eq!(into.shards().unwrap(), Vec::<String>::new());
        }
        assert!(
            num_corrupt > 0,
            "damage beside keys and footer is found by the digest"
        );
    }
}

#[test]
fn up_to_an_object_store_and_down_again() {
    let server = Server::start();
    let (_a, one) = cache_of(&manifest("m", 1), ONE);
    let (_b, two) = cache_of(&manifest("m", 1), TWO);
    let remote = s3(&server, "merged");
    merge(&remote, &[one.clone(), two.clone()], None).unwrap();
    let (_c, direct) = new_store();
    merge(&direct, &[one, two], None).unwrap();
    assert_eq!(files(&remote), files(&direct));
    let (_d, down) = new_store();
    let summary = merge(&down, &[remote], None).unwrap();
    assert_eq!((summary.num_copied, summary.num_rewritten), (4, 0));
    assert_eq!(files(&down), files(&direct));
}
