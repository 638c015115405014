//! Every reader of bytes that come from outside, as a function of bytes that panics where what it promises does not hold.
//!
//! The targets of `tests/fuzz` call these, and a test calls them with the seeds of the targets.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use schemas::dataset::{DatasetConfig, SkipBadRows};
use schemas::record::TokenTopK;
use schemas::shard::MANIFEST_METADATA_KEY;
use schemas::{Manifest, ReadAt, ShardReader, ShardSource, SignalKind, SignalSpec};

use crate::config::{self, BudgetConfig};
use crate::failures::{self, Failure, Failures};
use crate::journal::{Lines, Part, Replay, Segment};
use crate::parts::Parts;
use crate::place::Place;
use crate::sample;
use crate::teacher::{ErrorClass, Request, TeacherError, fuzz as teacher};

macro_rules! targets {
    ($($name:ident: $of:path, $what:literal;)*) => {
        /// All targets by name.
        pub const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name)),*];

        $(
            #[doc = $what]
            pub fn $name(data: &[u8]) {
                $of(data);
            }
        )*
    };
}

targets! {
    chat: teacher::chat, "Replies of `/chat/completions`; the first byte chooses the signals.";
    completions: teacher::completions, "Replies of servers that continue a text; the first byte chooses the dialect.";
    embeddings: teacher::embeddings, "Replies of `/embeddings`.";
    tei: teacher::tei, "Replies of text-embeddings-inference.";
    gemini: teacher::gemini, "Replies of Gemini.";
    ollama: teacher::ollama, "Replies of Ollama.";
    anthropic: teacher::anthropic, "Replies of Anthropic.";
    images: teacher::images::reply, "Replies of servers that make pictures.";
    picture: teacher::picture, "Pictures.";
    command: teacher::command::line, "Lines of a command.";
    batch_results: teacher::batch::results, "Files that a batch brought.";
    batch_state: teacher::batch::state, "States of batches.";
    refusal: teacher::refusal, "Status, headers and body of a refusal.";
    configuration: read_configuration, "Configurations.";
    journal: read_journal, "Segments of the journal.";
    work_files: read_work_files, "Parts, failures of an unfinished run, and the ledger; the first byte chooses.";
    failures_list: read_failures, "Lists of failures.";
    npy: crate::import::fuzz_npy, "Arrays of NumPy.";
    top_k: read_top_k, "Packed log-probabilities.";
    manifest: read_manifest, "Manifests.";
    shard: read_shard, "Shards.";
    dataset: read_dataset, "Files of data sets; the first byte chooses the format.";
}

/// What stands for a secret in a configuration.
const SECRET: &str = "sk-9Zq4TfWm7Xc2Lp8RvKd3";

/// `@KEY@` becomes a key that somebody wrote into the file.
fn read_configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // Names of keys and sections are repeated, values never.
    let named = text.lines().any(|line| {
        let before_value = line.split_once('=').map_or(line, |(key, _)| key);
        before_value.contains("@KEY@")
    });
    let text = text.replace("@KEY@", SECRET);
    match config::parse(Path::new("a.toml"), &text) {
        Ok(config) => {
            let _ = (config.draws(), config.splits());
        }
        Err(error) => {
            let told = format!("{error} {error:?}");
            assert!(
                named || !told.contains(SECRET),
                "the key is repeated: {told}"
            );
        }
    }
}

/// The lines of `data`, each as a line of a journal: whole, unless it starts with `!`.
fn lines(data: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        if let Some(torn) = line.strip_prefix(b"!") {
            file.extend(torn);
        } else {
            file.extend(format!("{:08x} ", crc32fast::hash(line)).as_bytes());
            file.extend(line);
            file.push(b'\n');
        }
    }
    file
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder can be made")
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a file can be written");
}

/// What is replayed can be written and replayed again.
fn read_journal(data: &[u8]) {
    let folder = folder();
    let path = folder.path().join("part-000001.journal");
    for bytes in [data, &lines(data)] {
        write(&path, bytes);
        let Ok(replay) = Replay::read(&path) else {
            continue;
        };
        assert!(replay.num_torn_bytes + replay.num_damaged_bytes <= bytes.len() as u64);
        let Some(manifest) = &replay.manifest else {
            assert!(replay.records.is_empty() && replay.parts.is_empty());
            continue;
        };
        let again = folder.path().join("again");
        fs::create_dir_all(&again).expect("a folder can be made");
        let segment = Segment::create(&again, 2, manifest).expect("a segment can be made");
        let read = |path: &Path, replay: &Replay| -> Vec<String> {
            let mut lines = Lines::open(path).expect("the file is there");
            let mut texts: Vec<String> = Vec::new();
            for (_, line) in &replay.records {
                let record: schemas::TeacherRecord =
                    lines.parse(*line).expect("it was read before");
                texts.push(format!("{record:?}"));
            }
            for part in &replay.parts {
                let part: Part = lines.parse(part.line).expect("it was read before");
                texts.push(format!("{part:?}"));
            }
            texts
        };
        let mut lines = Lines::open(&path).expect("the file is there");
        for (_, line) in &replay.records {
            let record: schemas::TeacherRecord = lines.parse(*line).expect("it was read before");
            segment.append(&record).expect("a segment can be written");
        }
        for part in &replay.parts {
            let part: Part = lines.parse(part.line).expect("it was read before");
            segment
                .append_part(&part)
                .expect("a segment can be written");
        }
        let written = again.join("part-000002.journal");
        let second = Replay::read(&written).expect("what was written is read");
        assert_eq!(second.manifest.as_ref(), Some(manifest));
        // Compared as text, since a value that is not a number equals nothing.
        assert_eq!(read(&written, &second), read(&path, &replay));
        segment.remove().expect("a segment can be removed");
    }
}

fn read_work_files(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    let folder = folder();
    let of = sample::manifest("m");
    let (teacher, dataset) = (of.teacher, of.dataset);
    for raw in [false, true] {
        let mut bytes = if raw { data.to_vec() } else { lines(data) };
        match choice.wrapping_sub(b'0') % 3 {
            0 => {
                let source = serde_json::json!({"teacher": teacher, "dataset": dataset});
                let source = schemas::Sha256Digest::of(source.to_string().as_bytes());
                let mut file = crate::journal::line(&serde_json::json!({"source": source}));
                file.append(&mut bytes);
                write(&folder.path().join("parts.journal"), &file);
                if let Ok(parts) = Parts::open(folder.path(), &teacher, &dataset) {
                    parts.compact().expect("the file can be written");
                    let again = Parts::open(folder.path(), &teacher, &dataset);
                    let again = again.expect("what was written is read");
                    assert_eq!(again.is_empty(), parts.is_empty());
                }
            }
            1 => {
                write(&folder.path().join("failures.journal"), &bytes);
                let place = Place::local(folder.path());
                if let Ok(mut failures) = Failures::open(&place) {
                    let keys: Vec<_> = failures.keys().collect();
                    failures.write().expect("the list can be written");
                    let again = Failures::open(&place).expect("what was written is read");
                    assert_eq!(again.keys().collect::<Vec<_>>(), keys);
                    for key in &keys {
                        assert_eq!(again.find(key), failures.find(key));
                    }
                }
                let _ = fs::remove_file(folder.path().join(place.failures_file()));
            }
            _ => {
                write(&folder.path().join("budget.ledger"), &bytes);
                let limited = BudgetConfig {
                    requests: Some(10),
                    ..BudgetConfig::default()
                };
                let open = || crate::budget::Budget::open(&limited, folder.path(), None);
                if let Ok(budget) = open() {
                    let spent = budget.spent();
                    drop(budget);
                    let again = open().expect("what was written is read");
                    assert_eq!(again.spent(), spent);
                }
            }
        }
    }
}

/// The first byte chooses what the rest is: `0` a list, `1` changes of a whole one.
fn read_failures(data: &[u8]) {
    static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let folder = folder();
        let place = Place::local(folder.path());
        let mut failures = Failures::open(&place).expect("there is no list yet");
        let error = TeacherError::new(ErrorClass::Deterministic, "it said no");
        for row in 0..3 {
            let request = Request::text([row; 16].into(), 0, "a text");
            let added = failures.add(Failure::new(&request, &error));
            added.expect("the journal can be written");
        }
        failures.write().expect("the list can be written");
        fs::read(folder.path().join(place.failures_file())).expect("the list can be read")
    });
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    let bytes = match choice.wrapping_sub(b'0') % 2 {
        0 => data.to_vec(),
        _ => changed(&WHOLE, data),
    };
    let _ = failures::from_parquet(bytes);
}

/// `bytes` with changes: in turns an offset of 3 bytes and the new byte.
fn changed(bytes: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes.chunks_exact(4) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        let at = at % bytes.len();
        bytes[at] = change[3];
    }
    bytes
}

/// Whatever is read keeps its bytes from the first writing on.
fn read_top_k(data: &[u8]) {
    let Some(read) = TokenTopK::from_bytes(data) else {
        return;
    };
    let bytes = read.to_bytes();
    let again = TokenTopK::from_bytes(&bytes).expect("what was written is read");
    assert_eq!(again.to_bytes(), bytes);
    let _ = (read.describe(), read.num_bytes());
    let spec = SignalSpec::new("tokens", SignalKind::TokenTopK { k: 3 }, "what it is");
    let value = schemas::SignalValue::TokenTopK(read.clone());
    if let Ok(fitted) = value.clone().fit(&spec.expect("the name is one")) {
        assert_eq!(fitted, value);
        assert_eq!(again, read);
    }
}

fn read_manifest(data: &[u8]) {
    let path = Path::new("manifest.json");
    let Ok(manifest) = Manifest::parse(path, data) else {
        return;
    };
    check_signals(&manifest);
    manifest
        .write_with(|_, json| {
            assert_eq!(
                Manifest::parse(path, json).expect("what was written is read"),
                manifest
            );
            Ok(())
        })
        .expect("nothing fails");
    assert!(manifest.same_source(&manifest.clone().reopened()));
    let frozen = manifest.clone().frozen(Vec::new());
    assert!(frozen.digest().is_some());
}

/// The signals of a manifest are such as one that was made here has, so that a schema can be made of them.
fn check_signals(manifest: &Manifest) {
    for spec in &manifest.signals {
        SignalSpec::new(spec.name(), spec.kind().clone(), spec.meaning())
            .expect("a manifest has signals that can be stored");
    }
    let schema = schemas::columns::arrow_schema(&manifest.signals);
    assert!(schema.fields().len() >= manifest.signals.len());
}

/// A shard in memory.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn num_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.0.get(offset..));
        let rest = rest.unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// The first byte chooses what the rest is: `0` a shard, `1` changes of a whole one, `2` what a shard says of itself.
fn read_shard(data: &[u8]) {
    static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| shard_of(None));
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    let bytes = match choice.wrapping_sub(b'0') % 3 {
        0 => data.to_vec(),
        1 => changed(&WHOLE, data),
        _ => shard_of(Some(&String::from_utf8_lossy(data))),
    };
    let source = ShardSource::new(Path::new("a.parquet"), Arc::new(Bytes(bytes)));
    let Ok(reader) = ShardReader::open_source_unverified(source) else {
        return;
    };
    check_signals(reader.manifest());
    let _ = reader.entry();
    let _ = reader.keys();
    if let Ok(records) = reader.records() {
        records.take(64).for_each(drop);
    }
    for spec in &reader.manifest().signals {
        if let (Some((width, _)), Ok(batches)) = (spec.vector(), reader.vectors(spec.name())) {
            for batch in batches.take(8).flatten() {
                assert_eq!(batch.values.to_f32().len(), batch.keys.len() * width);
            }
        }
    }
}

/// The rows of the shard of the fixtures, which has every kind of signal, stored plainly, so that changed bytes reach the
/// columns; it says `manifest` of itself.
fn shard_of(manifest: Option<&str>) -> Vec<u8> {
    static ROWS: LazyLock<(String, RecordBatch)> = LazyLock::new(|| {
        let fixture = include_bytes!("../../tests/fixtures/shard/fixture-5536190634a9cc88.parquet");
        let fixture = bytes::Bytes::from_static(fixture);
        let builder = ParquetRecordBatchReaderBuilder::try_new(fixture).expect("it is a shard");
        let pairs = builder.metadata().file_metadata().key_value_metadata();
        let manifest = pairs.into_iter().flatten();
        let manifest = manifest
            .into_iter()
            .find(|pair| pair.key == MANIFEST_METADATA_KEY);
        let manifest = manifest.and_then(|pair| pair.value.clone());
        let mut batches = builder.build().expect("it is a shard");
        let batch = batches.next().expect("it has rows").expect("it is whole");
        (manifest.expect("it describes itself"), batch)
    });
    let (of_fixture, batch) = &*ROWS;
    let manifest = manifest.unwrap_or(of_fixture).to_owned();
    let pair = KeyValue::new(MANIFEST_METADATA_KEY.to_owned(), manifest);
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_key_value_metadata(Some(vec![pair]))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties))
        .expect("memory takes all that is written");
    writer
        .write(batch)
        .expect("memory takes all that is written");
    writer.close().expect("memory takes all that is written");
    bytes
}

/// The first byte chooses the format of the file, or, as `4`, that the rest describes the task.
fn read_dataset(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    let folder = folder();
    let extension = ["jsonl", "csv", "tsv", "parquet", "toml"];
    let extension = extension[usize::from(choice.wrapping_sub(b'0')) % extension.len()];
    let task = r#"
        name = "t"
        fields = ["a", "b"]
        label = "label"
        classes = ["no", "yes"]
        metric = "accuracy"
        template = {first = "{a}", second = "{b}"}
    "#;
    let file = folder.path().join(format!("train.{extension}"));
    if extension == "toml" {
        write(&folder.path().join("task.toml"), data);
        write(&folder.path().join("train.jsonl"), b"{\"a\": \"x\"}\n");
    } else {
        write(&folder.path().join("task.toml"), task.as_bytes());
        write(&file, data);
    }
    let config = DatasetConfig {
        path: folder.path().to_owned(),
        format: None,
        task: schemas::dataset::TaskSource::Folder,
        files: BTreeMap::new(),
        license: None,
        terms: None,
    };
    let Ok(dataset) = config.open(folder.path()) else {
        return;
    };
    let mut skip = SkipBadRows::new(1_000_000);
    for split in dataset.splits() {
        let Ok(rows) = dataset.rows(&split, &mut skip) else {
            continue;
        };
        for example in rows.flatten() {
            let fields: Vec<_> = example.fields().keys().map(String::as_str).collect();
            if extension != "toml" {
                assert_eq!(fields, ["a", "b"]);
            }
        }
    }
    for error in skip.skipped() {
        assert!(error.to_string().len() < 8 << 10, "a long message");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs that once failed, and one of every form.
    #[test]
    fn every_seed_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds");
        let mut failed = Vec::new();
        for (name, target) in TARGETS {
            for entry in fs::read_dir(corpus.join(name)).unwrap() {
                let path = entry.unwrap().path();
                let seed = fs::read(&path).unwrap();
                if std::panic::catch_unwind(|| target(&seed)).is_err() {
                    failed.push(path);
                }
            }
        }
        assert!(failed.is_empty(), "{failed:#?}");
    }
}
