//! Against a server in this process, over real sockets.

mod server;

use std::collections::HashMap;
use std::path::Path;

use schemas::{ExampleId, SignalValue, Task};
use serde_json::json;

use super::*;
use crate::budget::Budget;
use crate::config::{BudgetConfig, CommonConfig, PriceConfig, RunConfig};
use crate::reporter::Watch;
use crate::stop::Stop;
use crate::teacher::ErrorClass::{Deterministic, Quota, Rate, Transient};
use crate::teacher::{ErrorClass, Gate, embeddings};
use server::{Faults, Server};

fn requests(texts: &[&str]) -> Vec<Request> {
    let row = |(number, text): (usize, &&str)| {
        Request::text(ExampleId::from([number as u8; 16]), 0, *text)
    };
    texts.iter().enumerate().map(row).collect()
}

/// A teacher that never waits longer than a moment.
fn open_with(server: &Server, folder: &Path, keys: &str, stop: &Stop) -> Batched {
    let of_server: ServerConfig =
        toml::from_str(&format!("url = \"{}\"\nmodel = \"m\"", server.url)).unwrap();
    let configuration = format!(
        "[dataset]\npath = \".\"\n[cache]\npath = \"c\"\n[teacher]\nkind = \"batch\"\nurl = \"{}\"\nmodel = \"m\"\n{keys}\n\
         [teacher.of]\nkind = \"embeddings\"\n",
        server.url
    );
    let path = folder.join("harvest.toml");
    std::fs::write(&path, configuration).unwrap();
    crate::Config::read(&path).unwrap();
    let own = toml::from_str(keys).unwrap();
    let context = OpenContext {
        common: &CommonConfig::default(),
        run: &RunConfig::default(),
        task: &Task::builtin("sst2").unwrap(),
        data_folder: folder.to_owned(),
        state_folder: folder.to_owned(),
        watch: Watch::default(),
        stop: stop.clone(),
    };
    let configured = Configured {
        of: embeddings::exchange_of(of_server.clone()),
        server: of_server,
        own,
    };
    let mut teacher = configured.batched(&context).unwrap();
    teacher.driver.waits = Waits {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(2),
    };
    teacher
}

fn open(server: &Server, folder: &Path) -> Batched {
    open_with(server, folder, "direct_below = 0", &Stop::default())
}

async fn ask(teacher: &Batched, requests: &[Request]) -> Vec<Outcome> {
    let replies = teacher.query(requests, &NotKept).await.unwrap().replies;
    assert_eq!(replies.len(), requests.len());
    replies
}

fn is_answer(outcome: &Outcome, request: &Request) -> bool {
    let feature = vec![request.prompt.len() as f32, 1.5];
    outcome
        .as_ref()
        .is_ok_and(|reply| reply.signals["feature"] == SignalValue::Vector(feature))
}

fn all_answered(outcomes: &[Outcome], requests: &[Request]) -> bool {
    outcomes
        .iter()
        .zip(requests)
        .all(|(outcome, request)| is_answer(outcome, request))
}

fn class(outcome: &Outcome) -> Option<ErrorClass> {
    outcome.as_ref().err().map(|error| error.class)
}

/// Files of batches in the state folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let of_teacher = std::fs::read_dir(folder.join("batches"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let files = std::fs::read_dir(of_teacher.path()).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    paths.filter(|path| !path.ends_with(".lock")).collect()
}

fn num_files(folder: &Path) -> usize {
    files(folder).len()
}

fn record_of(folder: &Path) -> PathBuf {
    let is_record = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    };
    files(folder).into_iter().find(is_record).unwrap()
}

#[tokio::test]
async fn rows_come_back_in_order_with_what_the_server_said() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let teacher = open(&server, folder.path());
    let asked = requests(&["a", "four", "seventh"]);
    let outcomes = ask(&teacher, &asked).await;
    assert!(all_answered(&outcomes, &asked), "{outcomes:?}");
    let provenance = &outcomes[0].as_ref().unwrap().provenance;
    assert_eq!(provenance.served_model.as_deref(), Some("served"));
    assert_eq!((provenance.tokens_in, provenance.tries), (Some(7), 1));
    assert_eq!(provenance.answered_at, Some(1_700_000_000_000));
    assert_eq!(server.num_batches(), 1);
    let usage = teacher.most(&asked);
    let alone: u64 = asked
        .iter()
        .map(|row| Usage::of_prompts(std::slice::from_ref(row)).tokens_in)
        .sum();
    assert_eq!((usage.requests, usage.tokens_in), (3, alone));
    let first: serde_json::Value =
        serde_json::from_str(server.request_files()[0].lines().next().unwrap()).unwrap();
    assert_eq!(first["custom_id"], json!(format!("{}-0", asked[0].id)));
    assert_eq!(first["body"]["model"], json!("m"));
}

#[tokio::test]
async fn each_row_fails_as_if_it_had_been_asked_directly() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults {
        end: "expired",
        ..Faults::default()
    })
    .await;
    let teacher = open(&server, folder.path());
    let asked = requests(&[
        "good", "missing", "expired", "bad", "long", "busy", "broke", "twice", "late", "stranger",
        "wide",
    ]);
    let outcomes = ask(&teacher, &asked).await;
    let classes: Vec<_> = outcomes.iter().map(class).collect();
    let expected = [
        None,
        Some(Transient),
        Some(Transient),
        Some(Deterministic),
        Some(Deterministic),
        Some(Rate),
        Some(Quota),
        None,
        None,
        None,
        Some(Deterministic),
    ];
    assert_eq!(classes, expected, "{outcomes:?}");
    for good in [0, 7, 8, 9] {
        assert!(
            is_answer(&outcomes[good], &asked[good]),
            "{:?}",
            outcomes[good]
        );
    }
    let message = outcomes[3].as_ref().unwrap_err().to_string();
    assert_eq!(message, "the server answered 400 Bad Request: said so");

    // Asked again, what failed is submitted anew and nothing else.
    let again = vec![asked[1].clone(), asked[2].clone()];
    ask(&teacher, &again).await;
    assert_eq!(server.num_batches(), 2);
    let submissions = server.submissions();
    assert_eq!(submissions.values().sum::<usize>(), asked.len() + 2);
}

/// What is paid for stays within reach, whatever shape the server gives to what it says of it.
#[tokio::test]
async fn a_batch_is_fetched_whatever_stands_beside_its_state() {
    for over in [
        json!({"request_counts": {"total": null, "completed": null}, "errors": {"data": null}}),
        json!({"request_counts": {"total": 2.0, "completed": 2.0, "failed": "0"}, "errors": "none"}),
        json!({"request_counts": [], "errors": 1, "completed_at": {"seconds": 1}, "expired_at": "never"}),
        json!({"completed_at": 1_700_000_000.5, "metadata": "ours", "input_file_id": 7}),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(Faults {
            over: over.clone(),
            ..Faults::default()
        })
        .await;
        let asked = requests(&["a", "bb"]);
        let outcomes = ask(&open(&server, folder.path()), &asked).await;
        assert!(all_answered(&outcomes, &asked), "{over}: {outcomes:?}");
        assert_eq!(server.num_batches(), 1);
    }
}

#[tokio::test]
async fn a_batch_whose_files_cannot_be_told_is_looked_at_again_and_not_paid_for_again() {
    for (over, problem) in [
        (
            json!({"output_file_id": null, "error_file_id": null, "request_counts": null}),
            "names no file",
        ),
        (
            json!({"output_file_id": ["a"], "error_file_id": null, "request_counts": null}),
            "[\"a\"], which is no text",
        ),
        (
            json!({"status": "expired", "output_file_id": 7, "request_counts": null}),
            "7, which is no text",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(Faults {
            over,
            ..Faults::default()
        })
        .await;
        let teacher = open(&server, folder.path());
        let asked = requests(&["a", "bb"]);
        let error = ask(&teacher, &asked).await.remove(0).unwrap_err();
        assert!(error.message.contains(problem), "{error}");
        server.with(|inner| inner.faults.over = json!({}));
        assert!(all_answered(&ask(&teacher, &asked).await, &asked));
        assert_eq!(server.num_batches(), 1);
    }
}

/// What is in the list and cannot be read may be ours.
#[tokio::test]
async fn a_creation_that_was_hidden_is_found_whatever_stands_beside_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults {
        hidden_creations: 1,
        over: json!({"status": 7, "errors": 1}),
        ..Faults::default()
    })
    .await;
    let teacher = open(&server, folder.path());
    let asked = requests(&["a", "bb"]);
    assert_eq!(class(&ask(&teacher, &asked).await[0]), Some(Transient));
    assert_eq!(class(&ask(&teacher, &asked).await[0]), Some(Transient));
    server.with(|inner| inner.faults.over = json!({}));
    assert!(all_answered(&ask(&teacher, &asked).await, &asked));
    assert_eq!(server.num_batches(), 1);
}

#[tokio::test]
async fn a_final_state_is_known_however_it_is_written() {
    for (state, end) in [
        ("IN_PROGRESS", "COMPLETED"),
        ("queued", "Expired"),
        ("cancelling", "canceled"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(Faults {
            states: vec![state],
            end,
            ..Faults::default()
        })
        .await;
        let asked = requests(&["a", "bb"]);
        let asking = ask(&open(&server, folder.path()), &asked).await;
        assert!(all_answered(&asking, &asked), "{end}: {asking:?}");
    }
}

#[tokio::test]
async fn lines_that_come_twice_and_are_counted_twice_are_no_loss() {
    for (texts, completed) in [
        // Counted by lines, and more than there are rows.
        (["one", "twice", "three"], 4),
        // Counted by lines, and no more than there are rows.
        (["one", "twice", "bad"], 3),
        // Counted by nobody knows what, and every row is there.
        (["one", "twice", "three"], 18),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(Faults {
            over: json!({"request_counts": {"completed": completed, "failed": 0}}),
            ..Faults::default()
        })
        .await;
        let asked = requests(&texts);
        let outcomes = ask(&open(&server, folder.path()), &asked).await;
        assert!(all_answered(&outcomes[..2], &asked[..2]), "{outcomes:?}");
        assert_ne!(class(&outcomes[2]), Some(Transient), "{outcomes:?}");
    }
}

/// It was never sent, so it is no loss.
#[tokio::test]
async fn rows_of_a_request_file_that_somebody_removed_are_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let stop = Stop::default();
    stop.request();
    let asked = requests(&["a", "bb"]);
    let stopped = open_with(&server, folder.path(), "direct_below = 0", &stop);
    // Before anything is sent, and the record is there.
    let outcomes = ask(&stopped, &asked).await;
    assert_eq!(class(&outcomes[0]), Some(ErrorClass::Interrupted));
    drop(stopped);
    let file = record_of(folder.path()).with_extension("requests.jsonl");
    std::fs::remove_file(file).unwrap();
    let teacher = open(&server, folder.path());
    let error = ask(&teacher, &asked).await.remove(0).unwrap_err();
    assert!(error.message.contains("was removed"), "{error}");
    assert!(error.is_retryable());
    assert!(all_answered(&ask(&teacher, &asked).await, &asked));
    assert_eq!(server.num_batches(), 1);
}

#[tokio::test]
async fn a_budget_smaller_than_a_batch_buys_as_many_rows_as_it_allows() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let (teacher, budget) = gated(open(&server, folder.path()), folder.path(), 3);
    let asked = requests(&["a", "bb", "ccc", "dddd", "eeeee"]);
    let replies = teacher.query(&asked, &NotKept).await.unwrap().replies;
    assert!(all_answered(&replies[..3], &asked[..3]), "{replies:?}");
    let refused = replies[3..].iter().map(class);
    assert!(
        refused.eq([Some(ErrorClass::Budget); 2]) && replies.len() == 5,
        "{replies:?}"
    );
    assert_eq!((server.num_batches(), budget.spent().requests), (1, 3));
}

#[tokio::test]
async fn a_creation_that_the_server_hid_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults {
        hidden_creations: 1,
        listed: vec![
            json!({"id": "x", "status": "failed", "errors": {"data": null}, "metadata": 1}),
            json!("of another program"),
        ],
        ..Faults::default()
    })
    .await;
    let teacher = open(&server, folder.path());
    // A batch of others before and after ours: the list has pages.
    let others = requests(&["x"; 1]);
    let asked = requests(&["a", "b"]);
    assert_eq!(class(&ask(&teacher, &asked).await[0]), Some(Transient));
    let other_folder = tempfile::tempdir().unwrap();
    ask(&open(&server, other_folder.path()), &others).await;
    let outcomes = ask(&teacher, &asked).await;
    assert!(all_answered(&outcomes, &asked), "{outcomes:?}");
    assert_eq!(server.num_batches(), 2);
}

#[tokio::test]
async fn where_a_creation_cannot_be_looked_up_nothing_is_submitted_again() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults {
        hidden_creations: 1,
        lists: false,
        ..Faults::default()
    };
    let server = Server::start(faults).await;
    let teacher = open(&server, folder.path());
    let asked = requests(&["a"]);
    assert_eq!(class(&ask(&teacher, &asked).await[0]), Some(Transient));
    for _ in 0..2 {
        let outcome = ask(&teacher, &asked).await.remove(0);
        let error = outcome.unwrap_err();
        assert!(error.stops_the_run() && error.advice.is_some(), "{error:?}");
    }
    assert_eq!(server.num_batches(), 1);
}

#[tokio::test]
async fn a_drop_at_any_step_submits_no_row_twice() {
    let asked = requests(&["a", "bb", "ccc", "dddd", "eeeee"]);
    let mut num_cuts = 0;
    for silent_at in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let faults = Faults {
            silent_at: Some(silent_at),
            ..Faults::default()
        };
        let server = Server::start(faults).await;
        let keys = "direct_below = 0\nmax_requests = 3";
        let teacher = open_with(&server, folder.path(), keys, &Stop::default());
        let was_cut = tokio::select! {
            outcomes = ask(&teacher, &asked) => {
                assert!(all_answered(&outcomes, &asked), "{outcomes:?}");
                false
            }
            () = server.silence.notified() => true,
        };
        drop(teacher);
        if !was_cut {
            break;
        }
        num_cuts += 1;
        // The next process asks in other groups, two at a time.
        let teacher = open_with(&server, folder.path(), keys, &Stop::default());
        let (first, second) =
            futures::join!(ask(&teacher, &asked[..2]), ask(&teacher, &asked[2..]));
        assert!(all_answered(&first, &asked[..2]), "{silent_at}: {first:?}");
        assert!(
            all_answered(&second, &asked[2..]),
            "{silent_at}: {second:?}"
        );
        let submissions = server.submissions();
        assert_eq!(submissions.len(), asked.len(), "{silent_at}");
        assert!(
            submissions.values().all(|times| *times == 1),
            "{silent_at}: {submissions:?}"
        );
    }
    // Two batches: files sent, batches created, four looks, two files fetched, each an arrival and a reply.
    assert!(num_cuts >= 2 * 2 * 8, "{num_cuts}");
}

#[tokio::test]
async fn replies_that_were_collected_survive_until_they_are_committed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let asked = requests(&["a", "bad", "missing"]);
    let teacher = open(&server, folder.path());
    ask(&teacher, &asked).await;
    assert_eq!(num_files(folder.path()), 3);
    drop(teacher);

    // The process died before it could commit: what was answered is there, the rest is asked again.
    let teacher = open(&server, folder.path());
    let outcomes = ask(&teacher, &asked).await;
    assert!(is_answer(&outcomes[0], &asked[0]), "{outcomes:?}");
    assert_eq!(class(&outcomes[1]), Some(Deterministic));
    let submissions: Vec<usize> = server.submissions().into_values().collect();
    assert_eq!(submissions, [1, 2, 2]);

    // Asked something else, the same example is a new question.
    let changed = requests(&["changed"]);
    let outcomes = ask(&teacher, &changed).await;
    assert!(all_answered(&outcomes, &changed), "{outcomes:?}");

    teacher.finished(&HashSet::new()).await;
    assert_eq!(num_files(folder.path()), 0);
}

/// What a proxy or a connection that breaks makes of a file.
const SPOILED: [fn(String) -> String; 4] = [
    |_| "<html>Welcome</html>".to_owned(),
    |file| file[..file.len() - 5].to_owned(),
    |_| r#"{"error": {"message": "no upstream", "code": 502}}"#.to_owned(),
    |file| file[..=file.find('\n').unwrap()].to_owned(),
];

#[tokio::test]
async fn results_that_do_not_come_whole_are_fetched_again_and_not_paid_for_again() {
    let counted = [
        json!({}),
        json!({"request_counts": {"completed": 3.0, "failed": "0"}}),
    ];
    for (spoil, over) in SPOILED
        .iter()
        .flat_map(|spoil| counted.iter().map(move |over| (spoil, over)))
    {
        let server = Server::start(Faults {
            spoiled_answers: vec![*spoil],
            over: over.clone(),
            ..Faults::default()
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let teacher = open(&server, folder.path());
        let requests = requests(&["one", "three", "seventeen"]);
        let outcomes = ask(&teacher, &requests).await;
        let classes: Vec<_> = outcomes.iter().map(class).collect();
        assert_eq!(classes, [Some(Transient); 3]);
        assert!(all_answered(&ask(&teacher, &requests).await, &requests));
        assert_eq!(server.num_batches(), 1);
    }
}

#[tokio::test]
async fn of_two_files_only_the_one_that_broke_is_fetched_again() {
    for spoil in SPOILED {
        let server = Server::start(Faults {
            spoiled_errors: vec![spoil],
            ..Faults::default()
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let teacher = open(&server, folder.path());
        let requests = requests(&["one", "bad", "long"]);
        assert_eq!(class(&ask(&teacher, &requests).await[0]), Some(Transient));
        let outcomes = ask(&teacher, &requests).await;
        let classes: Vec<_> = outcomes.iter().map(class).collect();
        assert_eq!(classes, [None, Some(Deterministic), Some(Deterministic)]);
        assert_eq!(server.with(|inner| inner.num_fetched), [1, 2]);
        assert_eq!(server.num_batches(), 1);
    }
}

/// As an earlier version left it that was killed, or failed, before the batch was collected.
#[tokio::test]
async fn a_broken_file_of_results_that_lies_in_its_place_is_fetched_again() {
    for spoil in SPOILED {
        let server = Server::start(Faults {
            failed_contents: 1,
            ..Faults::default()
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let requests = requests(&["one", "three", "bad"]);
        let outcomes = ask(&open(&server, folder.path()), &requests).await;
        assert_eq!(class(&outcomes[0]), Some(Transient));
        let whole = server.with(|inner| inner.file(0, true));
        let path = record_of(folder.path()).with_extension("output.jsonl");
        std::fs::write(&path, spoil(whole.clone())).unwrap();
        let outcomes = ask(&open(&server, folder.path()), &requests).await;
        assert!(all_answered(&outcomes[..2], &requests), "{outcomes:?}");
        assert_eq!(class(&outcomes[2]), Some(Deterministic));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        assert_eq!(server.num_batches(), 1);
    }
}

#[tokio::test]
async fn a_server_that_counts_nothing_is_taken_at_its_files() {
    let server = Server::start(Faults {
        counts: false,
        ..Faults::default()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let requests = requests(&["one", "missing", "bad"]);
    let outcomes = ask(&open(&server, folder.path()), &requests).await;
    let classes: Vec<_> = outcomes.iter().map(class).collect();
    assert_eq!(classes, [None, Some(Transient), Some(Deterministic)]);
}

/// The teacher behind a budget of so many requests, kept in the folder.
fn gated(teacher: Batched, folder: &Path, num_requests: u64) -> (Gate<Batched>, Arc<Budget>) {
    let limits = BudgetConfig {
        requests: Some(num_requests),
        ..BudgetConfig::default()
    };
    let budget = Arc::new(Budget::open(&limits, folder, None).unwrap());
    let watch = Watch {
        budget: Arc::clone(&budget),
        ..Watch::default()
    };
    let price = PriceConfig::default();
    (Gate::new(teacher, 4, price, watch, Stop::default()), budget)
}

#[tokio::test]
async fn a_budget_counts_a_batch_once_however_often_its_results_are_fetched() {
    let requests = requests(&["one", "three", "seventeen"]);
    for is_restarted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(Faults {
            spoiled_answers: SPOILED.to_vec(),
            ..Faults::default()
        })
        .await;
        let (mut teacher, mut budget) = gated(open(&server, folder.path()), folder.path(), 3);
        let most = teacher.most(&requests);
        for _ in SPOILED {
            let replies = teacher.query(&requests, &NotKept).await.unwrap().replies;
            assert_eq!(class(&replies[0]), Some(Transient), "{replies:?}");
            let spent = budget.spent();
            assert_eq!((spent.requests, spent.tokens), (3, most.tokens_in));
            if is_restarted {
                drop(teacher);
                (teacher, budget) = gated(open(&server, folder.path()), folder.path(), 3);
            }
        }
        let replies = teacher.query(&requests, &NotKept).await.unwrap().replies;
        assert!(all_answered(&replies, &requests), "{replies:?}");
        assert_eq!(budget.spent().requests, 3);

        // Once more they are new questions, which the budget does not reach for; after a restart they are answered.
        if is_restarted {
            drop(teacher);
            (teacher, budget) = gated(open(&server, folder.path()), folder.path(), 3);
            let replies = teacher.query(&requests, &NotKept).await.unwrap().replies;
            assert!(all_answered(&replies, &requests), "{replies:?}");
            assert_eq!(budget.spent().requests, 3);
        }
        let refused = teacher.query(&requests, &NotKept).await.unwrap_err();
        assert_eq!(refused.class, ErrorClass::Budget);
        assert_eq!(server.num_batches(), 1);
    }
}

#[tokio::test]
async fn a_budget_counts_rows_at_their_most_however_a_call_about_their_batch_fails() {
    let requests = requests(&["one", "three", "seventeen"]);
    let faults: [fn(&mut Faults); 3] = [
        |faults| faults.refuse_creation = Some(503),
        |faults| faults.failed_looks = 1000,
        |faults| faults.failed_contents = 1,
    ];
    let cases = faults.map(|fault| [(fault, false), (fault, true)]);
    for (fault, is_restarted) in cases.into_iter().flatten() {
        let folder = tempfile::tempdir().unwrap();
        let mut faults = Faults::default();
        fault(&mut faults);
        let server = Server::start(faults).await;
        let (mut teacher, mut budget) = gated(open(&server, folder.path()), folder.path(), 3);
        let most = teacher.most(&requests).tokens_in;
        let replies = teacher.query(&requests, &NotKept).await.unwrap().replies;
        assert!(replies[0].is_err(), "{replies:?}");
        assert_eq!((budget.spent().requests, budget.spent().tokens), (3, most));

        if is_restarted {
            drop(teacher);
            (teacher, budget) = gated(open(&server, folder.path()), folder.path(), 3);
        }
        server.with(|inner| inner.faults = Faults::default());
        let replies = teacher.query(&requests, &NotKept).await.unwrap().replies;
        assert!(all_answered(&replies, &requests), "{replies:?}");
        assert_eq!((budget.spent().requests, budget.spent().tokens), (3, most));
        assert_eq!(server.num_batches(), 1);
    }
}

#[tokio::test]
async fn a_budget_counts_what_the_server_counted_and_no_batch_that_it_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults {
        refuse_creation: Some(429),
        ..Faults::default()
    })
    .await;
    let requests = requests(&["one", "bad", "seventeen"]);
    let (teacher, budget) = gated(open(&server, folder.path()), folder.path(), 3);
    for _ in 0..2 {
        teacher.query(&requests, &NotKept).await.unwrap();
        assert_eq!(budget.spent().requests, 0);
    }
    server.with(|inner| inner.faults.refuse_creation = None);
    teacher.query(&requests, &NotKept).await.unwrap();
    // Seven tokens for each answer, none for the refusal.
    let spent = budget.spent();
    assert_eq!((spent.requests, spent.tokens), (3, 14));

    // A batch that was taken, and refused for its file.
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults {
        end: "failed",
        ..Faults::default()
    })
    .await;
    let (teacher, budget) = gated(open(&server, folder.path()), folder.path(), 3);
    let replies = teacher.query(&requests, &NotKept).await.unwrap().replies;
    assert_eq!(class(&replies[0]), Some(Deterministic), "{replies:?}");
    let spent = budget.spent();
    assert_eq!((spent.requests, spent.tokens), (3, 0));
}

#[tokio::test]
async fn a_batch_that_nobody_asks_for_any_more_is_given_up() {
    for (cancels, ends) in [(true, false), (false, false), (false, true)] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(Faults {
            states: vec!["in_progress"; 1000],
            cancels,
            ..Faults::default()
        })
        .await;
        let stop = Stop::default();
        let teacher = open_with(&server, folder.path(), "direct_below = 0", &stop);
        let asked = requests(&["a", "b"]);
        let stopping = async {
            while server.with(|inner| inner.num_looks()) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            stop.request();
        };
        futures::join!(ask(&teacher, &asked), stopping);
        drop(teacher);
        if ends {
            server.with(|inner| inner.faults.states.clear());
        }
        // The next run finds nothing to ask; what failed can be asked for again.
        let failed = HashSet::from([(asked[0].id, 0)]);
        open(&server, folder.path()).finished(&failed).await;
        assert_eq!(num_files(folder.path()), 2);
        assert_eq!(server.with(|inner| inner.num_cancelled()), 0);
        open(&server, folder.path()).finished(&HashSet::new()).await;
        assert_eq!(
            server.with(|inner| inner.num_cancelled()),
            usize::from(cancels)
        );
        assert_eq!(num_files(folder.path()) == 0, cancels || ends);
        if !cancels && !ends {
            server.with(|inner| inner.faults.states.clear());
            open(&server, folder.path()).finished(&HashSet::new()).await;
            assert_eq!(num_files(folder.path()), 0);
        }
    }
}

/// Keeps parts in memory.
#[derive(Default)]
struct Kept(std::sync::Mutex<HashMap<String, Reply>>);

impl Paid for Kept {
    fn find(&self, part: &str, _request: &Request) -> Option<Reply> {
        self.0.lock().unwrap().get(part).cloned()
    }

    fn keep(&self, part: &str, _request: &Request, reply: &Reply) -> Result<(), TeacherError> {
        let mut kept = self.0.lock().unwrap();
        kept.insert(part.to_owned(), reply.clone());
        Ok(())
    }
}

#[tokio::test]
async fn what_is_asked_directly_is_kept_while_a_batch_is_awaited() {
    let server = Server::start(Faults {
        states: vec!["in_progress"; 1_000_000],
        ..Faults::default()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let requests = requests(&["one", "three", "seventeen"]);
    let (kept, stop) = (Kept::default(), Stop::default());
    let teacher = open_with(&server, folder.path(), "direct_below = 2", &stop);
    let outcomes = {
        let first = teacher.query(&requests[..2], &kept);
        let second = async {
            while server.num_batches() == 0 {
                tokio::task::yield_now().await;
            }
            // Two rows of the batch and one that is in none.
            let asked = teacher.query(&requests, &kept);
            let stopped = async {
                while kept.0.lock().unwrap().is_empty() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                stop.request();
            };
            futures::join!(asked, stopped).0
        };
        futures::join!(first, second).1.unwrap().replies
    };
    assert!(is_answer(&outcomes[2], &requests[2]));
    let again = open_with(
        &server,
        tempfile::tempdir().unwrap().path(),
        "",
        &Stop::default(),
    );
    let replies = again.query(&requests[2..], &kept).await.unwrap().replies;
    assert!(is_answer(&replies[0], &requests[2]));
    assert_eq!(server.with(|inner| inner.num_direct), 1);
}

#[tokio::test]
async fn batches_of_a_worker_that_is_gone_are_taken_over() {
    let server = Server::start(Faults::default()).await;
    let [gone, heir] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let requests = requests(&["one", "three", "seventeen"]);
    let teacher = open(&server, gone.path());
    assert!(all_answered(&ask(&teacher, &requests).await, &requests));
    drop(teacher);
    assert!(has_batches(gone.path()).unwrap() && !has_batches(heir.path()).unwrap());
    take_over(gone.path(), heir.path()).unwrap();
    assert!(!has_batches(gone.path()).unwrap());
    let teacher = open(&server, heir.path());
    assert!(all_answered(&ask(&teacher, &requests).await, &requests));
    assert_eq!(server.num_batches(), 1);
    // What is not there leaves nothing.
    take_over(&gone.path().join("none"), heir.path()).unwrap();
}

#[tokio::test]
async fn a_stop_ends_waiting_and_the_next_run_awaits_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults {
        states: vec!["in_progress"; 1000],
        ..Faults::default()
    })
    .await;
    let stop = Stop::default();
    let teacher = open_with(&server, folder.path(), "direct_below = 0", &stop);
    let asked = requests(&["a", "b"]);
    let outcomes = {
        let asking = ask(&teacher, &asked);
        let stopping = async {
            while server.num_batches() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            stop.request();
        };
        futures::join!(asking, stopping).0
    };
    assert_eq!(class(&outcomes[1]), Some(ErrorClass::Interrupted));
    drop(teacher);
    server.with(|inner| inner.faults.states.clear());
    let outcomes = ask(&open(&server, folder.path()), &asked).await;
    assert!(all_answered(&outcomes, &asked), "{outcomes:?}");
    assert_eq!(server.num_batches(), 1);
}

#[tokio::test]
async fn looks_that_fail_for_a_while_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults {
        failed_looks: 7,
        ..Faults::default()
    })
    .await;
    let asked = requests(&["a"]);
    let outcomes = ask(&open(&server, folder.path()), &asked).await;
    assert!(all_answered(&outcomes, &asked), "{outcomes:?}");
}

#[tokio::test]
async fn request_files_stay_within_rows_and_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let mut teacher = open_with(
        &server,
        folder.path(),
        "direct_below = 0\nmax_requests = 3",
        &Stop::default(),
    );
    let texts: Vec<String> = (0..7).map(|number| "t".repeat(number + 1)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    ask(&teacher, &requests(&texts)).await;
    let sizes: Vec<usize> = server
        .request_files()
        .iter()
        .map(|file| file.lines().count())
        .collect();
    assert_eq!(sizes.iter().sum::<usize>(), 7);
    assert_eq!(sizes.len(), 3);

    teacher.max_bytes = 400;
    let long = "l".repeat(400);
    let asked = requests(&["u", "v", "w", &long]);
    let outcomes = ask(&teacher, &asked).await;
    assert!(all_answered(&outcomes[..3], &asked[..3]), "{outcomes:?}");
    assert_eq!(class(&outcomes[3]), Some(Deterministic));
    assert!(
        server.request_files()[3..]
            .iter()
            .all(|file| file.len() <= 400)
    );
}

#[tokio::test]
async fn a_line_that_is_too_long_is_not_paid_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let mut teacher = open(&server, folder.path());
    teacher.driver.max_line = 1000;
    let asked = requests(&["a", "huge", "b"]);
    let outcomes = ask(&teacher, &asked).await;
    assert!(
        is_answer(&outcomes[0], &asked[0]) && is_answer(&outcomes[2], &asked[2]),
        "{outcomes:?}"
    );
    let error = outcomes[1].as_ref().unwrap_err();
    assert!(
        error.class == Deterministic && error.advice.is_some(),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_result_that_is_too_large_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let mut teacher = open(&server, folder.path());
    teacher.driver.api.max_result_bytes = 100;
    let asked = requests(&["a", "b"]);
    let error = ask(&teacher, &asked).await.remove(0).unwrap_err();
    assert!(error.stops_the_run(), "{error:?}");
    assert!(error.advice.unwrap().contains("max_result_mib"));
    // With a larger limit the batch is fetched, not submitted again.
    teacher.driver.api.max_result_bytes = 1 << 20;
    let outcomes = ask(&teacher, &asked).await;
    assert!(all_answered(&outcomes, &asked), "{outcomes:?}");
    assert_eq!(server.num_batches(), 1);
}

#[tokio::test]
async fn a_single_row_is_asked_directly() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let teacher = open_with(&server, folder.path(), "", &Stop::default());
    let asked = requests(&["alone"]);
    assert!(all_answered(&ask(&teacher, &asked).await, &asked));
    assert_eq!(
        (server.num_batches(), server.with(|inner| inner.num_direct)),
        (0, 1)
    );
}

#[tokio::test]
async fn a_refused_file_names_the_rows_to_blame() {
    let folder = tempfile::tempdir().unwrap();
    let problems =
        json!([{"code": "invalid_json", "message": "bad body", "line": 2, "param": null}]);
    let server = Server::start(Faults {
        end: "failed",
        problems,
        ..Faults::default()
    })
    .await;
    let teacher = open(&server, folder.path());
    let outcomes = ask(&teacher, &requests(&["a", "b", "c"])).await;
    let classes: Vec<_> = outcomes
        .iter()
        .map(|outcome| class(outcome).unwrap())
        .collect();
    assert_eq!(
        classes,
        [Transient, Deterministic, Transient],
        "{outcomes:?}"
    );

    let enqueued = json!([{"code": "token_limit_exceeded", "message": "too much", "line": null}]);
    server.with(|inner| inner.faults.problems = enqueued);
    let error = ask(&teacher, &requests(&["a"]))
        .await
        .remove(0)
        .unwrap_err();
    assert!(
        error.class == Rate && error.retry_after.is_some(),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_refused_creation_leaves_nothing_behind_that_could_be_found() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults {
        refuse_creation: Some(400),
        ..Faults::default()
    })
    .await;
    let teacher = open(&server, folder.path());
    let asked = requests(&["a"]);
    assert_eq!(class(&ask(&teacher, &asked).await[0]), Some(Deterministic));
    assert_eq!(num_files(folder.path()), 0);
    server.with(|inner| inner.faults.refuse_creation = Some(401));
    assert_eq!(
        class(&ask(&teacher, &asked).await[0]),
        Some(ErrorClass::Credentials)
    );
    server.with(|inner| inner.faults.refuse_creation = None);
    assert!(all_answered(&ask(&teacher, &asked).await, &asked));
    assert_eq!(server.num_batches(), 1);
}

#[tokio::test]
async fn a_batch_that_is_gone_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults {
        states: vec!["in_progress"; 1000],
        ..Faults::default()
    })
    .await;
    let asked = requests(&["a"]);
    let teacher = open(&server, folder.path());
    {
        let asking = ask(&teacher, &asked);
        let created = async {
            while server.num_batches() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // Until the record says so; a look follows it.
            while server.with(|inner| inner.num_looks()) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! { _ = asking => panic!("the batch never ends"), () = created => {} }
    }
    drop(teacher);
    let another = Server::start(Faults::default()).await;
    let error = ask(&open(&another, folder.path()), &asked)
        .await
        .remove(0)
        .unwrap_err();
    assert!(error.stops_the_run() && error.advice.is_some(), "{error:?}");
    assert_eq!(another.num_batches(), 0);
}

#[tokio::test]
async fn two_processes_do_not_share_batches() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let (one, two) = (open(&server, folder.path()), open(&server, folder.path()));
    let asked = requests(&["a"]);
    ask(&one, &asked).await;
    let error = ask(&two, &asked).await.remove(0).unwrap_err();
    assert!(
        error.stops_the_run() && error.message.contains("another process"),
        "{error}"
    );
}

#[tokio::test]
async fn a_record_that_cannot_be_read_submits_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Faults::default()).await;
    let asked = requests(&["a"]);
    ask(&open(&server, folder.path()), &asked).await;
    std::fs::write(record_of(folder.path()), b"{\"version\": 1, \"na").unwrap();
    let error = ask(&open(&server, folder.path()), &asked)
        .await
        .remove(0)
        .unwrap_err();
    assert!(error.stops_the_run(), "{error:?}");
    assert_eq!(server.num_batches(), 1);
}

#[test]
fn the_page_has_an_example_that_is_read() {
    let page = include_str!("../../../../../docs/teachers/batch.md");
    let (_, example) = page.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("harvest.toml");
    std::fs::write(&path, example).unwrap();
    crate::Config::read(&path).unwrap();
    let error = toml::from_str::<BatchConfig>("no_such_key = 1")
        .unwrap_err()
        .to_string();
    let keys: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
    assert!(keys.len() > 5, "{error}");
    for key in keys {
        assert!(
            page.contains(&format!("| `{key}` |")),
            "the page lacks `{key}`"
        );
    }
}

#[test]
fn what_is_asked_is_configured_without_a_server() {
    let read = |of: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        let text = format!(
            "[dataset]\npath = \".\"\n[cache]\npath = \"c\"\n[teacher]\nkind = \"batch\"\nurl = \"http://a/v1\"\n\
             model = \"m\"\n{of}"
        );
        std::fs::write(&path, text).unwrap();
        crate::Config::read(&path).map_err(|error| error.to_string())
    };
    for (of, problem) in [
        ("", "[teacher.of] is missing"),
        (
            "[teacher.of]\nkind = \"sketch\"\n",
            "expected one of `chat`, `completions`, `embeddings`",
        ),
        (
            "[teacher.of]\nkind = \"embeddings\"\nurl = \"http://b\"\n",
            "unknown field `url`",
        ),
        ("of = 1\n", "expected a table"),
    ] {
        let refusal = read(of).unwrap_err();
        assert!(refusal.contains(problem), "{refusal}");
    }
    read("[teacher.of]\nkind = \"embeddings\"\ndimensions = 8\n").unwrap();
}
