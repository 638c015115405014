use std::collections::BTreeMap;

use schemas::{
    DatasetIdentity, ExampleId, FloatType, Notes, Provenance, Rights, ShardWriter, SignalKind,
    SignalSpec, SignalValue, TeacherIdentity, TeacherNotes, TeacherRecord,
};
use tempfile::TempDir;

use super::*;

const SERVED: &str = "/srv/models/tiny.gguf";

fn manifest(notes: Notes) -> Manifest {
    let spec = |name, kind, meaning| SignalSpec::new(name, kind, meaning).unwrap();
    let dtype = FloatType::F16;
    Manifest::new(
        TeacherIdentity {
            kind: "embeddings".into(),
            model: "/srv/models/tiny.gguf".into(),
            settings: serde_json::json!({"encoding": "base64", "adapter": "/srv/someone/adapter.gguf"}),
        },
        DatasetIdentity {
            task: "scenes".into(),
            fields: vec!["premise".into()],
            prompt: Some("``` {premise}".into()),
        },
        1,
        vec![
            spec("feature", SignalKind::Feature { width: 4, dtype }, "pooled | of all tokens"),
            spec("text", SignalKind::Text, "an answer"),
            spec("tokens", SignalKind::TokenTopK { k: 2 }, "of the answer"),
        ],
    )
    .with_notes(notes)
}

fn record(number: usize) -> TeacherRecord {
    let id: ExampleId = format!("{number:032x}").parse().unwrap();
    TeacherRecord {
        id,
        draw: 0,
        signals: BTreeMap::from([
            (
                "feature".to_owned(),
                SignalValue::Vector(vec![number as f32, 1.0, 0.0, 2.0]),
            ),
            (
                "text".to_owned(),
                SignalValue::Text(format!("text {number}")),
            ),
            (
                "tokens".to_owned(),
                SignalValue::TokenTopK(schemas::record::TokenTopK::default()),
            ),
        ]),
        provenance: Provenance {
            served_model: Some(SERVED.into()),
            answered_at: Some(1_700_000_000_000),
            cost: Some(0.5),
            ..Provenance::default()
        },
    }
}

fn cache(notes: Notes) -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest(notes);
    for shard in 0..2 {
        let stem = format!("part-{shard:06}");
        let mut writer = ShardWriter::create(folder.path(), &stem, &manifest).unwrap();
        let rows: Vec<TeacherRecord> = (0..3).map(|row| record(3 * shard + row)).collect();
        writer.write(&rows).unwrap();
        writer.finish().unwrap();
    }
    manifest.write(folder.path()).unwrap();
    let store = Store::folder(folder.path());
    (folder, store)
}

fn notes(license: &str) -> Notes {
    Notes::of(
        Rights::of(Some("cc0-1.0"), None),
        [TeacherNotes::of(
            None,
            Rights::of(Some(license), Some("ask first")),
            Some("{premise}"),
        )],
    )
}

#[test]
fn the_front_matter_is_what_the_hub_reads() {
    let (_folder, store) = cache(notes("Apache-2.0"));
    let readme = Card::of(&store).unwrap().readme();
    let (front_matter, _) = readme.split_once("\n---\n").unwrap();
    insta::assert_snapshot!(front_matter, @r#"
    ---
    license: apache-2.0
    pretty_name: "scenes as seen by tiny.gguf"
    task_categories:
    - feature-extraction
    - text-generation
    tags:
    - knowledge-distillation
    - teacher-cache
    - armada
    size_categories:
    - n<1K
    configs:
    - config_name: default
      data_files:
      - split: train
        path:
        - "part-*.parquet"
    dataset_info:
      config_name: default
      features:
      - name: example_id
        dtype: string
      - name: draw
        dtype: uint32
      - name: feature
        list: float16
        length: 4
      - name: text
        dtype: string
      - name: tokens
        dtype: binary
      - name: served_model
        dtype: string
      - name: fingerprint
        dtype: string
      - name: finish_reason
        dtype: string
      - name: tokens_in
        dtype: uint32
      - name: tokens_out
        dtype: uint32
      - name: tries
        dtype: uint32
      - name: latency_ms
        dtype: float32
      - name: cost
        dtype: float64
      - name: answered_at
        dtype: timestamp[ms, tz=UTC]
    "#);
}

#[test]
fn what_must_be_told_is_told() {
    let (_folder, store) = cache(notes("my own licence"));
    let readme = Card::of(&store).unwrap().readme();
    for told in [
        "license: other\nlicense_name: \"my own licence\"\n",
        "| data set | cc0-1.0 | not told |",
        "| replies of the teacher | my own licence | ask first |",
        "| rows | 6 |",
        "| failed rows, by class | none listed |",
        "| `feature` | 4 x Float16 | pooled \\| of all tokens |",
        "````text\n``` {premise}\n````",
        "state | open",
        "feature.effective_rank",
        "part-*.parquet",
    ] {
        assert!(readme.contains(told), "{told} is not in:\n{readme}");
    }
    let digest = schemas::Sha256Digest::of(b"``` {premise}").to_string();
    assert!(readme.contains(&digest));
}

#[test]
fn what_is_loaded_and_distilled_is_what_the_cache_has() {
    let folder = tempfile::tempdir().unwrap();
    let text = SignalSpec::new("answer", SignalKind::Text, "").unwrap();
    let manifest = {
        let mut manifest = manifest(Notes::default());
        manifest.signals = vec![text];
        manifest
    };
    let mut writer =
        ShardWriter::create(folder.path(), "slice-03-of-16-000000", &manifest).unwrap();
    let answer = SignalValue::Text("so".into());
    writer
        .write(&[TeacherRecord {
            signals: BTreeMap::from([("answer".to_owned(), answer)]),
            ..record(0)
        }])
        .unwrap();
    writer.finish().unwrap();
    manifest.write(folder.path()).unwrap();
    let readme = Card::of(&Store::folder(folder.path())).unwrap().readme();
    assert!(readme.contains("signal = \"answer\""), "{readme}");
    // A pattern that takes lists of failures along would mix their rows with the replies.
    let (_, loading) = readme.split_once("## Loading").unwrap();
    assert!(loading.contains("FOLDER/[ps]*-*.parquet"), "{loading}");
    assert!(!loading.contains("FOLDER/*.parquet"), "{loading}");
}

#[test]
fn no_folder_of_a_machine_is_told() {
    let (folder, store) = cache(Notes::default());
    let card = Card::of(&store).unwrap();
    for text in [card.readme(), card.croissant()] {
        for secret in ["/srv", "/home", &folder.path().to_string_lossy()] {
            assert!(!text.contains(secret), "{secret} is in:\n{text}");
        }
        assert!(text.contains("tiny.gguf"));
    }
    assert!(card.readme().contains("license: unknown"));
}

#[test]
fn croissant_lists_every_shard_with_its_digest_and_every_column() {
    let (_folder, store) = cache(notes("mit"));
    let text = Card::of(&store).unwrap().croissant();
    let metadata: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(metadata["conformsTo"], "http://mlcommons.org/croissant/1.0");
    assert_eq!(metadata["license"], "mit");
    assert_eq!(metadata["dateModified"], "2023-11-14");
    let files = metadata["distribution"].as_array().unwrap();
    let shards = store.shards().unwrap();
    assert_eq!(files.len(), shards.len() + 1);
    for (file, name) in files.iter().zip(&shards) {
        assert_eq!(file["contentUrl"], name.as_str());
        assert_eq!(file["sha256"], store.sha256(name).unwrap().hex());
    }
    let columns: Vec<&str> = metadata["recordSet"][0]["field"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| field["source"]["extract"]["column"].as_str().unwrap())
        .collect();
    let expected = schemas::columns::arrow_schema(&manifest(Notes::default()).signals);
    let expected: Vec<&String> = expected.fields().iter().map(|field| field.name()).collect();
    assert_eq!(columns, expected);
}

#[test]
fn only_a_card_of_our_own_is_replaced() {
    let (folder, store) = cache(notes("mit"));
    let card = Card::of(&store).unwrap();
    let readme = folder.path().join(README_FILE);
    std::fs::write(&readme, "mine").unwrap();
    let error = card.write(&store).unwrap_err();
    assert!(
        matches!(error, Error::Card(CardError::NotOurs { .. })),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--into"));
    assert_eq!(std::fs::read_to_string(&readme).unwrap(), "mine");
    assert!(
        !folder.path().join(CROISSANT_FILE).exists(),
        "nothing is written"
    );
    std::fs::remove_file(&readme).unwrap();
    card.write(&store).unwrap();
    let first = std::fs::read_to_string(&readme).unwrap();
    card.write(&store).unwrap();
    assert_eq!(std::fs::read_to_string(&readme).unwrap(), first);
    std::fs::write(folder.path().join(CROISSANT_FILE), "{}").unwrap();
    assert!(card.write(&store).is_err());
}
