//! Runs over whole data sets: what is asked, kept, recovered and refused.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use harvest::events::Events;
use harvest::failures::Failures;
use harvest::journal::Segment;
use harvest::teacher::ErrorClass;
use harvest::{Cache, Ending, Error, Place, Stop};
use schemas::{Manifest, SignalValue};
use serde_json::json;

use crate::support::{Call, Project, Server, embedding, good, id, refusal, reply, vector_of};

const TEXTS: [&str; 7] = ["one", "two", "three", "four", "five", "six", "seven"];

#[tokio::test]
async fn every_row_is_asked_for_once_and_kept_in_order() {
    let server = Server::start(good).await;
    let mut texts = TEXTS.to_vec();
    texts.insert(3, "one");
    let project = Project::with_server(&texts, &server, "");
    let summary = project.run().await.unwrap();
    assert_eq!(
        (summary.ending, summary.num_committed, summary.num_failed),
        (Ending::Complete, 7, 0)
    );
    assert_eq!(summary.survey.num_duplicates, 1);
    assert!(server.calls().len() == 7 && server.counts().values().all(|&count| count == 1));
    let records = project.records();
    let ids: Vec<_> = records.iter().map(|record| record.id).collect();
    assert_eq!(ids, TEXTS.map(id));
    for (record, text) in records.iter().zip(TEXTS) {
        assert_eq!(
            record.signals["feature"],
            SignalValue::Vector(vector_of(text))
        );
        assert_eq!((record.draw, record.provenance.tries), (0, 1));
    }
    let files = project.files();
    assert_eq!(files.len(), 4, "{files:?}");
    assert!(files[1].starts_with("part-000000-") && files[3].starts_with("part-000002-"));

    let again = project.run().await.unwrap();
    assert_eq!(
        (again.num_committed, server.calls().len(), project.files()),
        (0, 7, files)
    );
}

#[tokio::test]
async fn a_grown_data_set_is_asked_for_what_is_new() {
    let server = Server::start(good).await;
    let project = Project::with_server(&TEXTS[..4], &server, "");
    project.run().await.unwrap();
    project.write_texts(&["new", "seven", "one", "two", "four", "three"]);
    assert_eq!(project.run().await.unwrap().num_committed, 2);
    assert_eq!(
        server.calls()[4..]
            .iter()
            .map(|call| call.text.as_str())
            .collect::<HashSet<_>>(),
        ["new", "seven"].into()
    );
}

#[tokio::test]
async fn several_draws_are_several_requests() {
    let server = Server::start(good).await;
    let project = Project::with_server(&TEXTS[..2], &server, "[run]\ndraws = 3\n");
    assert_eq!(project.run().await.unwrap().num_committed, 6);
    assert_eq!(
        server.counts(),
        [("one".to_owned(), 3), ("two".to_owned(), 3)].into()
    );
    let keys: Vec<_> = project
        .records()
        .iter()
        .map(|record| (record.id, record.draw))
        .collect();
    let (one, two) = (id("one"), id("two"));
    assert_eq!(
        keys,
        [(one, 0), (one, 1), (one, 2), (two, 0), (two, 1), (two, 2)]
    );
}

#[tokio::test]
async fn failed_rows_are_listed_and_asked_for_again() {
    let bad = ["three", "five", "six"];
    let server = Server::start(move |call: &Call| match call.text.as_str() {
        "three" => reply(500, &[("retry-after-ms", "1")], "oops"),
        "five" => refusal(400, "context_length_exceeded", "too long"),
        "six" => embedding(&json!([1.0])),
        _ => good(call),
    })
    .await;
    let project = Project::with_server(&TEXTS, &server, "[run]\nmax_tries = 2\n");
    let summary = project.run().await.unwrap();
    assert_eq!(
        (summary.ending, summary.num_committed, summary.num_failed),
        (Ending::Complete, 4, 3)
    );
    assert_eq!(server.counts()["three"], 2);
    assert_eq!(server.counts()["five"], 1);

    let list = Failures::open(&Place::local(&project.cache())).unwrap();
    assert_eq!(list.num_listed(), 3);
    let failures = bad.map(|text| list.find(&(id(text), 0)).unwrap());
    assert!(failures.iter().all(|failure| failure.failed_at.is_some()));
    assert_eq!(
        (
            failures[0].class,
            failures[0].tries,
            failures[0].text.as_str()
        ),
        (ErrorClass::Transient, 2, "three")
    );
    assert_eq!(
        failures[0].message,
        "the server answered 500 Internal Server Error: oops"
    );
    assert_eq!(
        (failures[1].class, failures[1].tries),
        (ErrorClass::Deterministic, 1)
    );
    assert!(
        failures[2].message.contains("1 values, expected 3"),
        "{}",
        failures[2].message
    );

    // They are left alone until they are asked for.
    let num_before = server.calls().len();
    let again = project.run().await.unwrap();
    assert_eq!((again.num_failed, again.survey.num_failed), (0, 3));
    assert_eq!(server.calls().len(), num_before);

    let again = project.run_with(Stop::default(), true, None).await.unwrap();
    assert_eq!(again.num_failed, 3);
    let asked: HashSet<_> = server.calls()[num_before..]
        .iter()
        .map(|call| call.text.clone())
        .collect();
    assert_eq!(asked, bad.map(str::to_owned).into());
}

#[tokio::test]
async fn a_key_that_is_refused_on_the_way_stops_the_run_and_keeps_the_rest() {
    let server = Server::start(|call: &Call| match call.text.as_str() {
        "five" if call.num_before == 0 => refusal(401, "", "expired"),
        _ => good(call),
    })
    .await;
    let project = Project::with_server(&TEXTS, &server, "[run]\nconcurrency = 1\n");
    let summary = project.run().await.unwrap();
    assert!(
        matches!(&summary.ending, Ending::Refused(error) if error.class == ErrorClass::Credentials)
    );
    assert_eq!(
        (
            summary.num_committed,
            summary.num_failed,
            server.calls().len()
        ),
        (4, 0, 5)
    );
    assert_eq!(project.run().await.unwrap().num_committed, 3);
    assert_eq!(project.records().len(), 7);
    assert_eq!(server.calls().len(), 8);
}

/// Texts `row 0` ..
fn rows(num_rows: usize) -> Vec<String> {
    (0..num_rows)
        .map(|number| format!("row {number}"))
        .collect()
}

fn of(rows: &[String]) -> Vec<&str> {
    rows.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn a_run_without_any_success_gives_up() {
    let rows = rows(200);
    let texts = of(&rows);
    let server = Server::start(|call: &Call| match call.text.as_str() {
        "row 0" if call.num_before == 0 => good(call),
        _ => refusal(404, "", "gone"),
    })
    .await;
    let project = Project::with_server(&texts, &server, "");
    // One row that succeeds first, so that the cache knows its width; then it is lost, and every row fails.
    project.write_texts(&texts[..1]);
    project.run().await.unwrap();
    for shard in schemas::shard::list_shards(&project.cache()).unwrap() {
        std::fs::remove_file(shard).unwrap();
    }
    project.write_texts(&texts);
    let summary = project.run().await.unwrap();
    assert!(matches!(summary.ending, Ending::AllFailed(_)));
    assert!(
        (20..40).contains(&summary.num_failed),
        "{}",
        summary.num_failed
    );
    assert!(server.calls().len() < 45);
}

#[tokio::test]
async fn a_new_cache_without_any_success_gives_up() {
    let server = Server::start(|_: &Call| refusal(400, "", "no")).await;
    let project = Project::with_server(&of(&rows(200)), &server, "");
    let summary = project.run().await.unwrap();
    assert!(
        matches!(&summary.ending, Ending::AllFailed(error) if error.class == ErrorClass::Deterministic)
    );
    assert_eq!((summary.num_failed, server.calls().len()), (20, 20));
    assert_eq!(project.files(), ["failures.parquet"]);
}

#[tokio::test]
async fn a_model_that_is_not_there_is_asked_about_once_and_blames_no_row() {
    let server = Server::start(|_: &Call| refusal(404, "", "no such model")).await;
    let project = Project::with_server(&of(&rows(200)), &server, "");
    let summary = project.run().await.unwrap();
    assert!(matches!(summary.ending, Ending::Refused(error) if error.is_lacking));
    assert_eq!((summary.num_failed, server.calls().len()), (0, 1));
    assert_eq!(project.files(), Vec::<String>::new());
}

/// A refusal that is to be asked again in five minutes, and stops no other request.
fn in_five_minutes() -> axum::response::Response {
    reply(500, &[("retry-after", "300")], "later")
}

type Answer = fn(&Call) -> axum::response::Response;

#[tokio::test]
async fn a_run_that_ends_by_itself_waits_for_no_row_that_is_to_be_asked_again() {
    let refused = |call: &Call| refusal(401, "", &call.text);
    let failed = |call: &Call| refusal(400, "", &call.text);
    for (end, more) in [
        (refused as Answer, ""),
        (failed, "max_failure_share = 0.1\n"),
    ] {
        let server = Server::start(move |call: &Call| match &call.text[4..] {
            "0" => good(call),
            "1" => in_five_minutes(),
            number if number.parse::<usize>().unwrap() < 90 => good(call),
            _ => end(call),
        })
        .await;
        let rows = rows(300);
        let more = format!("[run]\nconcurrency = 64\n{more}");
        let project = Project::with_server(&of(&rows), &server, &more);
        let started = std::time::Instant::now();
        let summary = project.run().await.unwrap();
        assert!(started.elapsed() < Duration::from_mins(1));
        match &summary.ending {
            Ending::Refused(error) => assert_eq!(error.class, ErrorClass::Credentials),
            Ending::TooManyFailed(_) => assert!(summary.num_failed > 0),
            other => panic!("{other:?}"),
        }
        let kept = summary.num_committed;
        assert!(kept >= 80, "{kept} rows are kept");
        let num_settled = kept + summary.num_failed;
        assert!(num_settled < 300 && summary.num_left() == 300 - num_settled);
    }
}

#[tokio::test]
async fn a_stop_before_the_first_reply_is_told() {
    let stop = Stop::default();
    let raise = stop.clone();
    let server = Server::start(move |_: &Call| {
        raise.request();
        in_five_minutes()
    })
    .await;
    let project = Project::with_server(&TEXTS, &server, "");
    let events = project.path("events");
    let written = Events::to(std::fs::File::create(&events).unwrap());
    let summary = project.run_watched(stop, false, None, written).await;
    assert_eq!(summary.unwrap().ending, Ending::Stopped);
    let events = std::fs::read_to_string(&events).unwrap();
    let stopping = events.matches("\"event\":\"stopping\"").count();
    assert_eq!((stopping, server.calls().len()), (1, 1), "{events}");
}

#[tokio::test]
async fn nothing_waits_in_line_for_a_server_that_has_refused_the_key() {
    let server = Server::start(|call: &Call| match &call.text[4..] {
        "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" => good(call),
        _ => refusal(401, "", "expired"),
    })
    .await;
    let rows = rows(300);
    let project = Project::with_server(&of(&rows), &server, "[run]\nconcurrency = 64\n");
    let summary = project.run().await.unwrap();
    assert!(matches!(summary.ending, Ending::Refused(_)));
    assert_eq!((summary.num_committed, summary.num_failed), (8, 0));
    // Twelve are in flight after eight good answers, and the rest of the 64 wait for a place.
    let num_asked = server.calls().len();
    assert!(num_asked <= 8 + 12, "{num_asked}");
}

#[tokio::test]
async fn bad_rows_in_front_do_not_hold_up_a_cache_that_has_replies() {
    let rows = rows(40);
    let texts = of(&rows);
    let is_bad = |text: &str| (1..31).contains(&text[4..].parse::<usize>().unwrap());
    let server = Server::start(move |call: &Call| {
        if is_bad(&call.text) {
            refusal(400, "", "no")
        } else {
            good(call)
        }
    })
    .await;
    let project = Project::with_server(&texts[..1], &server, "");
    project.run().await.unwrap();
    project.write_texts(&texts);
    let summary = project.run().await.unwrap();
    assert_eq!(
        (summary.ending, summary.num_failed, summary.num_committed),
        (Ending::Complete, 30, 9)
    );
}

#[tokio::test]
async fn bad_rows_in_front_do_not_hold_up_a_new_cache() {
    let server = Server::start(|call: &Call| match call.text.as_str() {
        "one" => refusal(400, "", "no"),
        // Too large for the stored type.
        "two" => embedding(&json!([1.0, 1e6, 1.0])),
        _ => good(call),
    })
    .await;
    let project = Project::with_server(&TEXTS, &server, "");
    let config = std::fs::read_to_string(project.path("harvest.toml")).unwrap();
    std::fs::write(project.path("harvest.toml"), config.replace("f32", "f16")).unwrap();
    let summary = project.run().await.unwrap();
    assert_eq!(
        (summary.ending, summary.num_failed, summary.num_committed),
        (Ending::Complete, 2, 5)
    );
    assert!(server.calls().len() == 7 && server.counts().values().all(|&count| count == 1));
    let failed: Vec<&str> = summary
        .first_failures
        .iter()
        .map(|failure| failure.text.as_str())
        .collect();
    assert_eq!(failed, ["one", "two"]);
    let ids: Vec<_> = project.records().iter().map(|record| record.id).collect();
    assert_eq!(ids, [2, 3, 4, 5, 6].map(|index| id(TEXTS[index])));
}

/// A reply that comes after so many milliseconds.
fn late(milliseconds: u64, call: &Call) -> axum::response::Response {
    let value = json!({"data": [{"embedding": vector_of(&call.text)}]}).to_string();
    let body = async move {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        Ok::<_, std::io::Error>(value)
    };
    reply(200, &[], Body::from_stream(futures::stream::once(body)))
}

#[tokio::test]
async fn an_error_of_this_machine_keeps_what_is_in_flight() {
    let list: Arc<OnceLock<PathBuf>> = Arc::default();
    let blocked = Arc::clone(&list);
    let server = Server::start(move |call: &Call| match call.text.as_str() {
        "one" => good(call),
        // The list of failures cannot be written any more.
        "two" if call.num_before == 0 => {
            std::fs::create_dir(blocked.get().unwrap()).unwrap();
            embedding(&json!([1.0]))
        }
        _ => late(200, call),
    })
    .await;
    let project = Project::with_server(&TEXTS, &server, "[run]\nconcurrency = 6\n");
    list.set(project.cache().join("failures.journal")).unwrap();
    assert!(matches!(
        project.run().await,
        Err(Error::Schemas(schemas::Error::Io { .. }))
    ));
    std::fs::remove_dir(list.get().unwrap()).unwrap();
    let num_asked = server.calls().len();
    let summary = project.run().await.unwrap();
    assert_eq!(summary.ending, Ending::Complete);
    assert_eq!(project.records().len(), 7);
    // Only the row that failed, and those that had not been sent.
    assert_eq!(server.calls().len(), num_asked + 1 + (7 - num_asked));
}

#[tokio::test]
async fn a_first_request_that_fails_leaves_no_cache() {
    let server = Server::start(|_: &Call| refusal(401, "", "who are you")).await;
    let project = Project::with_server(&TEXTS, &server, "");
    let Ending::Refused(error) = project.run().await.unwrap().ending else {
        panic!("the key is refused")
    };
    assert_eq!(
        (error.class, project.files()),
        (ErrorClass::Credentials, vec![])
    );
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_the_next_run_goes_on() {
    let stop = Stop::default();
    let raise = stop.clone();
    let server = Server::start(move |call: &Call| {
        if call.text == "three" {
            raise.request();
        }
        good(call)
    })
    .await;
    let project = Project::with_server(&TEXTS, &server, "[run]\nconcurrency = 1\n");
    let summary = project.run_until(stop).await.unwrap();
    assert_eq!(
        (summary.ending, summary.num_committed),
        (Ending::Stopped, 3)
    );
    assert_eq!(project.records().len(), 3);
    let summary = project.run().await.unwrap();
    assert_eq!(
        (summary.ending, summary.num_committed),
        (Ending::Complete, 4)
    );
    assert!(server.counts().values().all(|&count| count == 1));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_rows_that_wait_to_be_asked_again() {
    let stop = Stop::default();
    let raise = stop.clone();
    let server = Server::start(move |call: &Call| {
        if call.text == "three" {
            raise.request();
            return reply(429, &[("retry-after", "300")], "");
        }
        good(call)
    })
    .await;
    let project = Project::with_server(&TEXTS, &server, "[run]\nconcurrency = 1\n");
    let summary = project.run_until(stop).await.unwrap();
    assert_eq!(
        (summary.ending, summary.num_committed, summary.num_failed),
        (Ending::Stopped, 2, 0)
    );
}

/// The manifest and records of a finished run, to build the leavings of a crash from.
async fn finished(server: &Server) -> (Project, Manifest, Vec<schemas::TeacherRecord>) {
    let project = Project::with_server(&TEXTS, server, "");
    project.run().await.unwrap();
    let manifest = Manifest::open(&project.cache()).unwrap();
    let records = project.records();
    (project, manifest, records)
}

#[tokio::test]
async fn replies_of_a_run_that_died_are_committed_before_anything_is_asked() {
    let server = Server::start(good).await;
    let (_finished, manifest, records) = finished(&server).await;
    let project = Project::with_server(&TEXTS, &server, "");
    std::fs::create_dir(project.cache()).unwrap();
    // It died before the manifest was written, in the middle of a line.
    let segment = Segment::create(&project.cache(), 0, &manifest).unwrap();
    segment.append(&records[2]).unwrap();
    segment.append(&records[4]).unwrap();
    drop(segment);
    let journal = project.cache().join("part-000000.journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes.extend(b"01234567 {\"id\"");
    std::fs::write(&journal, bytes).unwrap();
    std::fs::write(project.cache().join(".shard-abc.tmp"), "half a shard").unwrap();

    let num_before = server.calls().len();
    let summary = project.run().await.unwrap();
    assert_eq!((summary.num_recovered, summary.num_committed), (2, 5));
    let asked: HashSet<_> = server.calls()[num_before..]
        .iter()
        .map(|call| call.text.clone())
        .collect();
    assert_eq!(
        asked,
        ["one", "two", "four", "six", "seven"]
            .map(str::to_owned)
            .into()
    );
    let ids: HashSet<_> = project.records().iter().map(|record| record.id).collect();
    assert_eq!(ids, TEXTS.map(id).into());
    let is_committed = |name: &String| {
        name.starts_with("part-") && name.contains('-') && name.ends_with(".parquet")
    };
    assert!(
        project
            .files()
            .iter()
            .all(|name| name == "manifest.json" || is_committed(name)),
        "{:?}",
        project.files()
    );
}

#[tokio::test]
async fn a_damaged_journal_is_kept_and_what_can_be_read_is_committed() {
    let server = Server::start(good).await;
    let (_finished, manifest, records) = finished(&server).await;
    let project = Project::with_server(&TEXTS, &server, "");
    std::fs::create_dir(project.cache()).unwrap();
    let segment = Segment::create(&project.cache(), 4, &manifest).unwrap();
    let journal = project.cache().join("part-000004.journal");
    segment.append(&records[0]).unwrap();
    let end = std::fs::metadata(&journal).unwrap().len() as usize;
    segment.append(&records[1]).unwrap();
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[end - 3] ^= 1;
    std::fs::write(&journal, &bytes).unwrap();
    let foreign = project.cache().join(".tmpabcdef");
    std::fs::write(&foreign, "of another program").unwrap();
    let left = project.cache().join(".manifest-abcdef.tmp");
    std::fs::write(&left, "half a manifest").unwrap();

    let summary = project.run().await.unwrap();
    assert_eq!((summary.num_recovered, summary.num_committed), (1, 6));
    assert_eq!(project.records().len(), 7);
    let aside = project.cache().join("part-000004.journal.damaged");
    assert_eq!(std::fs::read(aside).unwrap(), bytes);
    assert!(!journal.exists() && foreign.exists() && !left.exists());
}

#[tokio::test]
async fn a_journal_that_another_version_wrote_stays_as_it_is() {
    let server = Server::start(good).await;
    let (project, manifest, _) = finished(&server).await;
    let json = serde_json::to_string(&manifest)
        .unwrap()
        .replace("\"format_version\":1", "\"format_version\":2");
    let journal = project.cache().join("part-000009.journal");
    let line = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
    std::fs::write(&journal, &line).unwrap();
    assert!(matches!(
        project.run().await,
        Err(Error::Schemas(schemas::Error::FormatVersion { found: 2, path, .. })) if path == journal
    ));
    assert_eq!(std::fs::read_to_string(&journal).unwrap(), line);
}

#[tokio::test]
async fn a_journal_whose_shard_was_committed_is_only_removed() {
    let server = Server::start(good).await;
    let (project, manifest, records) = finished(&server).await;
    let segment = Segment::create(&project.cache(), 2, &manifest).unwrap();
    segment.append(&records[6]).unwrap();
    let summary = project.run().await.unwrap();
    assert_eq!((summary.num_recovered, summary.num_committed), (0, 0));
    assert_eq!(project.records().len(), 7);
    assert!(!project.cache().join("part-000002.journal").exists());
}

#[tokio::test]
async fn a_cache_of_another_source_is_refused_by_key() {
    let server = Server::start(good).await;
    let (project, _, _) = finished(&server).await;
    let teacher = format!(
        "[teacher]\nkind = \"embeddings\"\nurl = \"{}\"\n",
        server.url
    );
    let cache = "[cache]\npath = \"cache\"\n";
    for (more, key, sides) in [
        (
            format!("{teacher}model = \"other\"\n"),
            "teacher.model",
            ["\"m\"", "\"other\""],
        ),
        (
            format!("{teacher}model = \"m\"\ndimensions = 3\n"),
            "teacher.settings.dimensions",
            ["null", "3"],
        ),
        (
            format!("{teacher}model = \"m\"\nprompt = \"Say {{text}}\"\n"),
            "dataset.prompt",
            ["\"{text}\"", "\"Say {text}\""],
        ),
        (
            format!("{teacher}model = \"m\"\n[run]\ndraws = 2\n"),
            "draws",
            ["1", "2"],
        ),
        (
            format!("{cache}{teacher}model = \"m\"\n"),
            "signals.0.dtype",
            ["\"f32\"", "\"f16\""],
        ),
        (
            "[teacher]\nkind = \"sketch\"\n".to_owned(),
            "signals.0.meaning",
            ["\"the embedding of the prompt\"", ""],
        ),
    ] {
        project.configure(&more);
        match project.run().await {
            Err(Error::DifferentSource {
                key: found,
                cached,
                configured,
                ..
            }) => {
                assert_eq!((found.as_str(), cached.as_str()), (key, sides[0]));
                assert!(sides[1].is_empty() || configured == sides[1]);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.calls().len(), 7);
}

#[tokio::test]
async fn one_cache_has_one_writer() {
    let server = Server::start(good).await;
    let project = Project::with_server(&TEXTS, &server, "");
    let lock = Cache::lock_or_create(Place::local(&project.cache()), &Stop::default()).unwrap();
    assert!(matches!(project.run().await, Err(Error::Locked { .. })));
    drop(lock);
    project.run().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undisturbed_run_writes_the_same_bytes_again() {
    let texts: Vec<String> = ["red", "blue", "green"]
        .iter()
        .flat_map(|one| {
            ["circle", "square", "cross"]
                .map(|form| format!("The {one} {form} is left of the big triangle."))
        })
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut files = Vec::new();
    for concurrency in [1, 8, 8] {
        let project = Project::new(
            &texts,
            &format!(
                "[teacher]\nkind = \"sketch\"\nimage = true\n[run]\nconcurrency = {concurrency}\n"
            ),
        );
        project.run().await.unwrap();
        assert!(matches!(
            project.records()[0].signals["image"],
            SignalValue::Image(_)
        ));
        // The names carry the digests.
        files.push(project.files());
    }
    assert!(
        files[0].len() == 4 && files[0] == files[1] && files[1] == files[2],
        "{files:?}"
    );
}

#[tokio::test]
async fn a_sentence_outside_the_grammar_is_quoted() {
    let texts = [
        "The red circle is left of the big square.",
        "Nobody can draw this.",
    ];
    let project = Project::new(&texts, "[teacher]\nkind = \"sketch\"\n");
    let summary = project.run().await.unwrap();
    assert_eq!((summary.num_committed, summary.num_failed), (1, 1));
    assert!(
        summary.first_failures[0]
            .message
            .contains("`Nobody can draw this.`"),
        "{:?}",
        summary.first_failures
    );
}
