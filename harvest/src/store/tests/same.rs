//! Folders and object stores give the same answers.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use schemas::manifest::MANIFEST_FILE;
use schemas::{
    CacheState, DatasetIdentity, Error, Manifest, Sha256Digest, SignalKind, SignalSpec,
    TeacherIdentity,
};

use super::{each_store, other_server, s3, server::Server};
use crate::store::{Store, StoreEntry};

/// One thing done to a store.
#[derive(Clone, Debug)]
enum Step {
    Put(&'static str, Vec<u8>),
    PutFile(&'static str, Vec<u8>),
    Create(&'static str, Vec<u8>),
    Remove(&'static str),
}

const NAMES: [&str; 5] = [
    "manifest.json",
    "a",
    "slice-1-of-2-x.parquet",
    "B_0.jsonl",
    "zz",
];

fn step() -> impl Strategy<Value = Step> {
    let name = || prop::sample::select(NAMES.as_slice());
    let bytes = || prop::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        (name(), bytes()).prop_map(|(name, bytes)| Step::Put(name, bytes)),
        (name(), bytes()).prop_map(|(name, bytes)| Step::PutFile(name, bytes)),
        (name(), bytes()).prop_map(|(name, bytes)| Step::Create(name, bytes)),
        name().prop_map(Step::Remove),
    ]
}

/// Does the steps, and compares the store with a map after each.
fn check(store: &Store, steps: &[Step]) {
    let work = tempfile::tempdir().unwrap();
    let mut expected: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Put(name, bytes) => {
                store.put(name, bytes).unwrap();
                expected.insert(name, bytes);
            }
            Step::PutFile(name, bytes) => {
                let file = work.path().join("file");
                std::fs::write(&file, bytes).unwrap();
                store.put_file(name, &file).unwrap();
                assert!(!file.exists(), "what has arrived is not kept");
                expected.insert(name, bytes);
            }
            Step::Create(name, bytes) => {
                let is_new = !expected.contains_key(name);
                assert_eq!(store.create(name, bytes).unwrap(), is_new, "{step:?}");
                if is_new {
                    expected.insert(name, bytes);
                }
            }
            Step::Remove(name) => {
                store.remove(name).unwrap();
                expected.remove(name);
            }
        }
        let entries = expected.iter().map(|(name, bytes)| StoreEntry {
            name: (*name).to_owned(),
            num_bytes: bytes.len() as u64,
        });
        assert_eq!(
            store.list().unwrap(),
            entries.collect::<Vec<_>>(),
            "{step:?}"
        );
        for name in NAMES {
            let content = store.read(name).unwrap();
            assert_eq!(content.as_deref(), expected.get(name).copied(), "{step:?}");
            if let Some(content) = content {
                assert_eq!(store.sha256(name).unwrap(), Sha256Digest::of(&content));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_done_every_store_holds_the_same(steps in prop::collection::vec(step(), 1..12)) {
        let folder = tempfile::tempdir().unwrap();
        check(&Store::folder(&folder.path().join("cache")), &steps);
        let server = Server::start();
        check(&s3(&server, "some/prefix"), &steps);
    }
}

#[test]
fn a_server_of_another_make_holds_the_same() {
    let Some(store) = other_server("steps") else {
        return;
    };
    let steps = [
        Step::Put("a", b"one".to_vec()),
        Step::Create("a", b"two".to_vec()),
        Step::Remove("a"),
        Step::Create("a", b"two".to_vec()),
        Step::PutFile("zz", b"three".to_vec()),
        Step::Put("manifest.json", vec![]),
        Step::Remove("B_0.jsonl"),
    ];
    check(&store, &steps);
}

#[test]
fn of_several_creators_one_succeeds() {
    each_store(|store| {
        let created = |content: u8| {
            let store = store.clone();
            std::thread::spawn(move || store.create("a", &[content]).unwrap())
        };
        let threads: Vec<_> = (0..8).map(created).collect();
        let outcomes: Vec<bool> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        let winner = outcomes.iter().position(|created| *created).unwrap();
        assert_eq!(
            outcomes.iter().filter(|created| **created).count(),
            1,
            "{store}"
        );
        assert_eq!(
            store.read("a").unwrap(),
            Some(vec![winner as u8]),
            "{store}"
        );
    });
}

#[test]
fn a_prefix_does_not_see_its_neighbours() {
    let server = Server::start();
    let (inner, outer) = (s3(&server, "a/b"), s3(&server, "a"));
    let neighbour = s3(&server, "a/bc");
    for store in [&inner, &outer, &neighbour] {
        store.put("x", store.location().as_bytes()).unwrap();
    }
    assert_eq!(server.objects().keys(), ["a/b/x", "a/bc/x", "a/x"]);
    for store in [&inner, &outer, &neighbour] {
        assert_eq!(store.list().unwrap().len(), 1, "{store}");
        assert_eq!(
            store.read("x").unwrap().unwrap(),
            store.location().into_bytes()
        );
    }
    let whole = s3(&server, "");
    assert_eq!(whole.list().unwrap(), []);
    whole.put("top", b"").unwrap();
    assert_eq!(whole.list().unwrap().len(), 1);
}

#[test]
fn names_do_not_lead_out_of_a_store() {
    each_store(|store| {
        for name in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a\\b",
            ".lock",
            "a b",
            "é",
        ] {
            let error = store.read(name).unwrap_err();
            assert!(
                error.to_string().contains("not the name of a file"),
                "{error}"
            );
            assert!(store.put(name, b"").is_err());
            assert!(store.remove(name).is_err());
            assert!(store.create(name, b"").is_err());
            assert!(store.put_file(name, Path::new("Cargo.toml")).is_err());
        }
        assert_eq!(store.list().unwrap(), []);
    });
}

#[test]
fn a_folder_lists_only_its_files() {
    let folder = tempfile::tempdir().unwrap();
    for name in [".lock", ".shard-1.tmp", "plain", "with space"] {
        std::fs::write(folder.path().join(name), "x").unwrap();
    }
    std::fs::create_dir(folder.path().join("nested")).unwrap();
    let listed = Store::folder(folder.path()).list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, "plain");
}

#[test]
fn a_file_that_cannot_be_stored_stays() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    std::fs::write(folder.path().join("cache"), "not a folder").unwrap();
    let store = Store::folder(&folder.path().join("cache"));
    assert!(store.put_file("a", &file).is_err());
    assert!(file.exists());
}

fn manifest() -> Manifest {
    Manifest::new(
        TeacherIdentity {
            kind: "sketch".into(),
            model: "sketch-1".into(),
            settings: serde_json::json!({}),
        },
        DatasetIdentity {
            task: "scenes".into(),
            fields: vec!["premise".into()],
            prompt: None,
        },
        1,
        vec![SignalSpec::new("text", SignalKind::Text, "a text").unwrap()],
    )
}

#[test]
fn manifests_open_by_digest_wherever_they_lie() {
    each_store(|store| {
        assert!(matches!(store.manifest(), Err(Error::NotACache { .. })));
        store.write_manifest(&manifest()).unwrap();
        assert_eq!(store.manifest().unwrap(), manifest());
        let digest = manifest().frozen(vec![]).digest().unwrap();
        assert!(matches!(
            store.frozen_manifest(&digest),
            Err(Error::NotFrozen { .. })
        ));
        store.write_manifest(&manifest().frozen(vec![])).unwrap();
        store.write_manifest(&manifest()).unwrap();
        let frozen = store.frozen_manifest(&digest).unwrap();
        assert!(matches!(frozen.state(), CacheState::Frozen { .. }));
        assert_eq!(store.list().unwrap().len(), 2);
        assert!(store.read(MANIFEST_FILE).unwrap().is_some());
        store.put(MANIFEST_FILE, b"{}").unwrap();
        let error = store.manifest().unwrap_err().to_string();
        assert!(error.contains(&format!("{store}/manifest.json")), "{error}");
    });
}
