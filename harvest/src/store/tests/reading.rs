//! Shards are read from folders and object stores alike, and remote ones in few requests.

use std::path::Path;

use schemas::{
    DatasetIdentity, Error, FloatType, Manifest, ShardEntry, ShardWriter, SignalKind, SignalSpec,
    SignalValue, TeacherIdentity, TeacherRecord,
};

use super::{each_store, s3, server::Server};
use crate::store::Store;

const WIDTH: u32 = 256;

/// More than one part of an upload, more than one read-ahead: 12 KiB of noise for each of a thousand rows.
const NUM_ROWS: u64 = 12_000;

fn manifest() -> Manifest {
    let kind = SignalKind::Feature {
        width: WIDTH,
        dtype: FloatType::F32,
    };
    Manifest::new(
        TeacherIdentity {
            kind: "import".into(),
            model: "m".into(),
            settings: serde_json::json!({}),
        },
        DatasetIdentity {
            task: "t".into(),
            fields: vec!["text".into()],
            prompt: None,
        },
        1,
        vec![SignalSpec::new("feature", kind, "numbers").unwrap()],
    )
}

fn record(row: u64) -> TeacherRecord {
    use rand::{RngExt as _, SeedableRng as _};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(row);
    let vector = (0..WIDTH).map(|_| random.random::<f32>()).collect();
    TeacherRecord {
        id: (u128::from(row)).to_be_bytes().into(),
        draw: 0,
        signals: [("feature".to_owned(), SignalValue::Vector(vector))].into(),
        provenance: schemas::Provenance::default(),
    }
}

fn write_shard(folder: &Path, num_rows: u64) -> ShardEntry {
    let mut writer = ShardWriter::create(folder, "shard", &manifest()).unwrap();
    for row in 0..num_rows {
        writer.write(&[record(row)]).unwrap();
    }
    writer.finish().unwrap()
}

/// A store with one shard that was moved into it.
fn fill(store: &Store, num_rows: u64) -> ShardEntry {
    let work = tempfile::tempdir().unwrap();
    let entry = write_shard(work.path(), num_rows);
    store
        .put_file(&entry.file, &work.path().join(&entry.file))
        .unwrap();
    entry
}

fn check_rows(reader: &schemas::ShardReader, num_rows: u64) {
    let mut row = 0;
    for batch in reader.vectors("feature").unwrap() {
        let batch = batch.unwrap();
        let values = batch.values.to_f32();
        for (key, vector) in batch.keys.iter().zip(values.chunks(WIDTH as usize)) {
            let expected = record(row);
            assert_eq!(key.0, expected.id);
            assert_eq!(
                expected.signals["feature"],
                SignalValue::Vector(vector.to_vec())
            );
            row += 1;
        }
    }
    assert_eq!(row, num_rows);
}

#[test]
fn a_shard_is_the_same_wherever_it_lies() {
    each_store(|store| {
        let entry = fill(store, 300);
        store.put("notes.txt", b"not a shard").unwrap();
        assert_eq!(store.shards().unwrap(), std::slice::from_ref(&entry.file));
        assert_eq!(store.sha256(&entry.file).unwrap(), entry.sha256);
        for reader in [
            store.open_shard(&entry.file),
            store.open_shard_verified(&entry.file),
            store.open_entry(&entry),
        ] {
            let reader = reader.unwrap();
            assert_eq!(reader.entry().unwrap(), entry);
            assert_eq!(reader.keys().unwrap().len(), 300);
            let records: Result<Vec<_>, _> = reader.records().unwrap().collect();
            assert_eq!(records.unwrap()[299], record(299));
            check_rows(&reader, 300);
        }
    });
}

#[test]
fn a_shard_that_was_damaged_is_found_out_wherever_it_lies() {
    each_store(|store| {
        let entry = fill(store, 3);
        let mut bytes = store.read(&entry.file).unwrap().unwrap();
        bytes[100] ^= 1;
        store.put(&entry.file, &bytes).unwrap();
        for opened in [
            store.open_shard_verified(&entry.file),
            store.open_entry(&entry),
        ] {
            assert!(
                matches!(opened, Err(Error::CorruptShard { .. })),
                "{opened:?}"
            );
        }
        store.put(&entry.file, &bytes[..bytes.len() / 2]).unwrap();
        let opened = store.open_shard(&entry.file);
        assert!(
            matches!(opened, Err(Error::InvalidShard { .. })),
            "{opened:?}"
        );
        store.put(&entry.file, b"").unwrap();
        let opened = store.open_shard(&entry.file);
        assert!(
            matches!(opened, Err(Error::InvalidShard { .. })),
            "{opened:?}"
        );
        store.remove(&entry.file).unwrap();
        let opened = store.open_shard(&entry.file);
        let is_gone = |error: &Error| matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
        assert!(opened.as_ref().is_err_and(is_gone), "{opened:?}");
    });
}

#[test]
fn a_large_shard_goes_in_parts_and_is_read_in_few_requests() {
    let server = Server::start();
    let store = s3(&server, "cache");
    let entry = fill(&store, NUM_ROWS);
    let num_parts = entry.num_bytes.div_ceil(8 << 20);
    let sent = std::mem::take(&mut server.objects().requests);
    let parts = sent.iter().filter(|line| line.contains("partNumber"));
    assert_eq!(parts.count() as u64, num_parts, "{sent:?}");
    assert_eq!(server.objects().num_uploads(), 0);

    let reader = store.open_shard(&entry.file).unwrap();
    assert!(
        server.objects().requests.len() <= 3,
        "{:?}",
        server.objects().requests
    );
    check_rows(&reader, NUM_ROWS);
    let asked = server.objects().requests.len();
    // 12 blocks of 1 MiB: one by one it would be 12 requests and more.
    assert!(asked <= 8, "{:?}", server.objects().requests);

    server.objects().requests.clear();
    check_rows(&store.open_entry(&entry).unwrap(), NUM_ROWS);
    let asked = server.objects().requests.len() as u64;
    assert_eq!(asked, 1 + num_parts, "what is checked is fetched once");
}

#[test]
fn stores_may_be_used_and_dropped_in_tasks() {
    let server = Server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = s3(&server, "cache");
        store.put("a", b"x").unwrap();
        assert_eq!(store.clone().list().unwrap().len(), 1);
    });
}
