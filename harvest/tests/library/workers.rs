//! Work that is divided, and what one worker leaves to another.

use std::collections::BTreeSet;

use harvest::journal::Segment;
use harvest::slice::Slice;
use harvest::teacher::{ErrorClass, Sent};
use harvest::{Cache, Ending, Error, Place, Stop};
use schemas::shard::{ShardReader, list_shards};
use schemas::{CacheState, ExampleId, Manifest};
use serde_json::json;

use crate::support::{Call, Project, Server, embedding, good, id, refusal, vector_of};

const TEXTS: [&str; 7] = ["one", "two", "three", "four", "five", "six", "seven"];

fn slice(text: &str) -> Slice {
    text.parse().unwrap()
}

fn ids(project: &Project) -> Vec<ExampleId> {
    let mut ids: Vec<_> = project.records().iter().map(|record| record.id).collect();
    ids.sort();
    ids
}

fn all(texts: &[&str]) -> Vec<ExampleId> {
    let ids: BTreeSet<_> = texts.iter().map(|text| id(text)).collect();
    ids.into_iter().collect()
}

#[tokio::test]
async fn slices_fill_one_cache_and_a_whole_run_finds_nothing_left() {
    let server = Server::start(good).await;
    let project = Project::with_server(&TEXTS, &server, "");
    let mut num_committed = 0;
    for part in ["1/3", "2/3", "3/3"] {
        let run = project.run_with(Stop::default(), false, Some(slice(part)));
        num_committed += run.await.unwrap().num_committed;
    }
    assert_eq!((num_committed, server.calls().len()), (7, 7));
    assert_eq!(ids(&project), all(&TEXTS));
    assert_eq!(project.run().await.unwrap().survey.num_missing, 0);
    assert_eq!(server.calls().len(), 7);
}

#[tokio::test]
async fn workers_that_overlap_are_refused() {
    let server = Server::start(good).await;
    let project = Project::with_server(&TEXTS, &server, "");
    let lock = |part: Option<&str>| {
        let place = Place::of(&project.config(), part.map(slice)).unwrap();
        Cache::lock_or_create(place, &Stop::default())
    };
    let first = lock(Some("1/2")).unwrap();
    let second = lock(Some("2/2")).unwrap();
    for overlapping in [Some("1/2"), Some("1/3"), None] {
        let refused = lock(overlapping).err();
        assert!(
            matches!(refused, Some(Error::Locked { .. })),
            "{overlapping:?}"
        );
    }
    drop((first, second));
    let whole = lock(None).unwrap();
    assert!(matches!(lock(Some("1/2")), Err(Error::Locked { .. })));
    drop(whole);
    lock(Some("1/3")).unwrap();
}

#[tokio::test]
async fn what_a_slice_left_in_its_journal_is_taken_over_and_not_asked_again() {
    let server = Server::start(good).await;
    let project = Project::with_server(&TEXTS, &server, "");
    project.run().await.unwrap();
    let shards = list_shards(&project.cache()).unwrap();
    let manifest = Manifest::open(&project.cache()).unwrap();
    // As a slice that was killed leaves it: replies in its journal that no shard has.
    let records = ShardReader::open(&shards[0]).unwrap();
    let records: Vec<_> = records.records().unwrap().map(Result::unwrap).collect();
    let folder = project.cache().join(".slice-1-of-2");
    std::fs::create_dir(&folder).unwrap();
    let segment = Segment::create(&folder, 0, &manifest).unwrap();
    for record in &records {
        segment.append(record).unwrap();
    }
    std::fs::remove_file(&shards[0]).unwrap();

    let other = project.run_with(Stop::default(), false, Some(slice("1/3")));
    assert!(matches!(other.await, Err(Error::JournalLeft { .. })));
    let summary = project.run().await.unwrap();
    assert_eq!(summary.num_recovered, records.len() as u64);
    assert_eq!(server.calls().len(), 7);
    assert_eq!(ids(&project), all(&TEXTS));
}

#[tokio::test]
async fn a_work_folder_that_is_the_cache_in_other_words_costs_no_shard() {
    let server = Server::start(good).await;
    let more = "[cache]\npath = \"cache\"\nwork = \"./cache/../cache\"\ndtype = \"f32\"\n";
    let project = Project::with_server(&TEXTS[..4], &server, more);
    project.run().await.unwrap();
    project.write_texts(&TEXTS);
    project.run().await.unwrap();
    assert_eq!(ids(&project), all(&TEXTS));
    assert_eq!(server.calls().len(), 7);
}

#[tokio::test]
async fn foreign_files_in_a_work_folder_stay() {
    let server = Server::start(good).await;
    let more = "[cache]\npath = \"cache\"\nwork = \"work\"\ndtype = \"f32\"\n";
    let project = Project::with_server(&TEXTS, &server, more);
    let foreign = project.path("work/part-000000-0123456789abcdef.parquet");
    std::fs::create_dir(project.path("work")).unwrap();
    std::fs::write(&foreign, "mine").unwrap();
    project.run().await.unwrap();
    project.run().await.unwrap();
    assert_eq!(std::fs::read(&foreign).unwrap(), b"mine");
    assert_eq!(ids(&project), all(&TEXTS));
}

#[tokio::test]
async fn requests_that_say_the_same_are_sent_once_and_a_frozen_cache_opens_for_copies() {
    let server = Server::start(good).await;
    let project = Project::with_server(&TEXTS, &server, "prompt = \"always the same\"\n");
    let summary = project.run().await.unwrap();
    assert_eq!((summary.num_committed, summary.num_copied), (7, 6));
    let tries: u32 = project
        .records()
        .iter()
        .map(|record| record.provenance.tries)
        .sum();
    assert_eq!((server.calls().len(), tries), (1, 1));

    let entries = list_shards(&project.cache()).unwrap();
    let entries = entries
        .iter()
        .map(|path| ShardReader::open(path).unwrap().entry().unwrap());
    let manifest = Manifest::open(&project.cache())
        .unwrap()
        .frozen(entries.collect());
    manifest.write(&project.cache()).unwrap();
    let texts = [&TEXTS[..], &["eight"]].concat();
    project.write_texts(&texts);
    assert_eq!(project.run().await.unwrap().num_copied, 1);
    assert_eq!(server.calls().len(), 1);
    assert_eq!(ids(&project), all(&texts));
    let manifest = Manifest::open(&project.cache()).unwrap();
    assert_eq!(*manifest.state(), CacheState::Open);
}

#[tokio::test]
async fn copies_of_a_row_that_failed_fail_with_it() {
    let server = Server::start(|call: &Call| match call.num_before {
        0 => good(call),
        _ => refusal(400, "", "no"),
    })
    .await;
    let more = "prompt = \"always the same\"\n[run]\ndraws = 2\nconcurrency = 1\n";
    let project = Project::with_server(&TEXTS[..3], &server, more);
    let summary = project.run().await.unwrap();
    assert_eq!((summary.num_committed, summary.num_copied), (3, 2));
    assert_eq!((summary.num_failed, server.calls().len()), (3, 2));
    assert!(
        summary
            .first_failures
            .iter()
            .all(|failure| failure.draw == 1)
    );
}

#[tokio::test]
async fn no_row_is_blamed_for_a_server_that_is_not_there() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let section = format!(
        "[teacher]\nkind = \"embeddings\"\nurl = \"{url}\"\nmodel = \"m\"\n[run]\nmax_tries = 1\n"
    );
    let project = Project::new(&TEXTS, &section);
    let Ending::Refused(error) = project.run().await.unwrap().ending else {
        panic!("nobody answers")
    };
    assert_eq!(
        (error.class, error.sent),
        (ErrorClass::Transient, Sent::Unconnected)
    );
    assert_eq!(project.files(), Vec::<String>::new());
}

#[tokio::test]
async fn a_part_that_does_not_fit_is_asked_for_again() {
    let server = Server::start(|call: &Call| {
        if call.body["model"] == "b" && call.text == "two" && call.num_before <= 1 {
            return embedding(&json!([1.0]));
        }
        embedding(&json!(vector_of(&call.text)))
    })
    .await;
    let teacher = |name: &str| {
        format!(
            "[teachers.{name}]\nkind = \"embeddings\"\nurl = \"{}\"\nmodel = \"{name}\"\nbatch = 1\n",
            server.url
        )
    };
    let project = Project::new(&TEXTS[..3], &format!("{}{}", teacher("a"), teacher("b")));
    let summary = project.run().await.unwrap();
    assert_eq!((summary.num_committed, summary.num_failed), (2, 1));
    let again = project.run_with(Stop::default(), true, None).await.unwrap();
    assert_eq!((again.ending, again.num_committed), (Ending::Complete, 1));
    let names: Vec<_> = project.records()[0].signals.keys().cloned().collect();
    assert_eq!(names, ["a_feature", "b_feature"]);
    assert_eq!(num_asked(&server, "a", "two"), 1, "its part did fit");
    assert_eq!(ids(&project), all(&TEXTS[..3]));
}

/// How often a model was asked about a text.
fn num_asked(server: &Server, model: &str, text: &str) -> usize {
    let calls = server.calls();
    let of = calls
        .iter()
        .filter(|call| call.body["model"] == model && call.text == text);
    of.count()
}

#[tokio::test]
async fn a_row_without_its_picture_keeps_what_another_teacher_said() {
    let server = Server::start(|call: &Call| {
        let sum: u32 = call.text.bytes().map(u32::from).sum();
        embedding(&json!([sum]))
    })
    .await;
    let teacher = |name: &str, more: &str| {
        format!(
            "[teachers.{name}]\nkind = \"embeddings\"\nurl = \"{}\"\nmodel = \"{name}\"\nbatch = 1\n{more}\n",
            server.url
        )
    };
    let sees = teacher("sees", "input = \"data-uri\"\nimage_field = \"text\"");
    let project = Project::new(&TEXTS[..3], &format!("{}{sees}", teacher("plain", "")));
    let draw = |name: &str| {
        let picture = image::RgbImage::new(1, 1);
        picture
            .save_with_format(project.path(name), image::ImageFormat::Png)
            .unwrap();
    };
    draw(TEXTS[0]);
    draw(TEXTS[2]);
    let summary = project.run().await.unwrap();
    assert_eq!((summary.num_committed, summary.num_failed), (2, 1));
    draw(TEXTS[1]);
    let again = project.run_with(Stop::default(), true, None).await.unwrap();
    assert_eq!((again.ending, again.num_committed), (Ending::Complete, 1));
    assert_eq!(num_asked(&server, "plain", TEXTS[1]), 1);
}
