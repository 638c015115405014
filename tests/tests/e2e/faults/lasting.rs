//! Faults that never pass cost their row a bounded number of tries, and no other row anything.

use std::collections::HashMap;
use std::time::Duration;

use harvest::teacher::ErrorClass;
use tests::fault::{Fault, FaultServer, LASTING, LimitHeader, Poison, Schedule};

use super::bench::{Bench, texts};
use super::setup::{Kind, Setup};

/// The class and a part of the message under which a row of this poison fails.
fn expected(poison: Poison) -> (ErrorClass, &'static str) {
    use ErrorClass::{Deterministic, Overload, Rate, Transient};
    let Poison::Lasting(place) = poison else {
        return match poison {
            Poison::ServerError => (Transient, "500"),
            Poison::ContextLength | Poison::ContextSize => (Deterministic, "400"),
            Poison::PayloadTooLarge => (Deterministic, "413"),
            Poison::Detail => (Deterministic, "422"),
            Poison::NotImplemented => (Deterministic, "501"),
            Poison::ContentFilter => (Deterministic, "filter"),
            Poison::Width => (Deterministic, "9 values"),
            Poison::Null | Poison::NotANumber => (Deterministic, ""),
            Poison::NoLogprobs => (Deterministic, "logprobs"),
            Poison::Lasting(_) => unreachable!("it was matched above"),
        };
    };
    match LASTING[place] {
        Fault::ResetBeforeHeaders | Fault::ResetInHeaders => (Transient, ""),
        Fault::ResetInBody | Fault::TruncatedBody | Fault::Hang => (Transient, "broke off"),
        Fault::BrokenJson | Fault::Html200 => (Transient, "not whole JSON"),
        Fault::Html502 => (Transient, "502"),
        Fault::Status500 => (Transient, "500"),
        Fault::Limited(LimitHeader::Milliseconds) => (Rate, "429"),
        Fault::Unavailable => (Overload, "503"),
        Fault::Overloaded => (Overload, "529"),
        Fault::WrappedError => (Transient, "no upstream"),
        Fault::DuplicateIndex => (Deterministic, "index 0"),
        Fault::TooLarge | Fault::TooLargeInChunks => (Deterministic, "larger than 1 MiB"),
        other => panic!("{other:?} does not last"),
    }
}

fn check(setup: Setup, poisons: &[Poison]) {
    let server = FaultServer::start(Schedule::CALM, Duration::ZERO).unwrap();
    let text = |poison: &Poison| format!("it is {}", poison.marker());
    let rows = texts(20).chain(poisons.iter().map(text));
    let (batch, max_tries) = (setup.batch, setup.max_tries);
    let bench = Bench::of_texts(&server, setup, rows);
    let ended = bench.run(&[]);
    assert_eq!(
        (ended.status, ended.left()),
        (Some(1), Some(0)),
        "{}",
        ended.stderr
    );

    let held = bench.check_settled();
    assert_eq!(held.answered.len(), 20, "no good row fails");
    let keys = bench.keys();
    let failures: HashMap<&str, _> = held
        .failed
        .iter()
        .map(|(key, failure)| (keys[key].as_str(), failure))
        .collect();
    let log = server.log();
    for poison in poisons {
        let text = text(poison);
        let failure = failures[text.as_str()];
        let (class, part) = expected(*poison);
        assert_eq!(failure.class, class, "{poison:?}: {}", failure.message);
        assert!(
            failure.message.contains(part),
            "{poison:?}: {}",
            failure.message
        );
        let asked: Vec<_> = log
            .iter()
            .filter(|sent| sent.texts.contains(&text))
            .collect();
        assert_eq!(
            failure.tries as usize,
            asked.len(),
            "{poison:?}: {}",
            failure.message
        );
        let num_alone = asked.iter().filter(|sent| sent.texts.len() == 1).count();
        if poison.is_deterministic() {
            assert!(num_alone <= 1, "{poison:?} was sent {num_alone} times");
        }
        // A server that turns a request away has not looked at it, which a client bears ten times as often.
        let is_turned_away = matches!(class, ErrorClass::Rate | ErrorClass::Overload);
        let num_tries = if is_turned_away {
            10 * (max_tries - 1) + 1
        } else {
            max_tries
        } as usize;
        let depth = (usize::BITS - (batch - 1).leading_zeros()) as usize;
        assert!(
            asked.len() <= num_tries + depth,
            "{poison:?}: {} requests",
            asked.len()
        );
        if batch == 1 && !poison.is_deterministic() {
            assert_eq!(asked.len(), num_tries, "{poison:?}");
        }
    }
}

fn lasting() -> impl Iterator<Item = Poison> {
    (0..LASTING.len()).map(Poison::Lasting)
}

#[test]
fn each_fault_of_single_requests_has_its_class() {
    let poisons: Vec<Poison> = Poison::COMMON
        .into_iter()
        .chain([Poison::Width])
        .chain(lasting())
        .collect();
    let setup = Setup {
        batch: 1,
        concurrency: 32,
        timeout_seconds: 2,
        ..Setup::default()
    };
    check(setup, &poisons);
}

#[test]
fn each_fault_of_chats_has_its_class() {
    let poisons: Vec<Poison> = Poison::COMMON
        .into_iter()
        .chain([Poison::NoLogprobs])
        .chain(lasting().filter(|poison| !matches!(poison, Poison::Lasting(place) if LASTING[*place] == Fault::DuplicateIndex)))
        .collect();
    let setup = Setup {
        kind: Kind::Chat,
        batch: 1,
        concurrency: 32,
        timeout_seconds: 2,
        ..Setup::default()
    };
    check(setup, &poisons);
}

#[test]
fn a_bad_row_of_a_batch_fails_alone() {
    let poisons: Vec<Poison> = Poison::COMMON.into_iter().chain([Poison::Width]).collect();
    let setup = Setup {
        batch: 8,
        ..Setup::default()
    };
    check(setup, &poisons);
}

/// What a run says when the server refuses the account.
fn refuse_account(fault: Fault) -> String {
    let server = FaultServer::start(Schedule::CALM, Duration::ZERO).unwrap();
    let setup = Setup {
        concurrency: 64,
        ..Setup::default()
    };
    let bench = Bench::of_texts(&server, setup, texts(400));
    server.end_account_after(5, fault);
    let ended = bench.run(&[]);
    assert_eq!(ended.status, Some(3), "{fault:?}: {}", ended.stderr);
    // So many are in flight after five answers; of the 64, the others wait for a place.
    let in_flight = 4 + 5;
    assert!(
        server.num_requests() <= 5 + in_flight,
        "{fault:?} does not end the run at once: {} requests",
        server.num_requests()
    );
    let held = bench.held();
    assert!(
        !held.answered.is_empty() && held.failed.is_empty(),
        "{fault:?}: what was received is kept"
    );

    server.end_account_after(usize::MAX, fault);
    assert_eq!(bench.run(&[]).status, Some(0));
    assert_eq!(bench.check_settled().answered.len(), 400);
    let log = server.log();
    super::judge::Judge {
        log: &log,
        kills: &[],
        setup: &bench.setup,
    }
    .check_nothing_is_repaid();
    ended.stderr
}

#[test]
fn a_refused_account_ends_the_run_at_once_and_keeps_what_was_received() {
    assert!(refuse_account(Fault::Unauthorized).contains("api_key_env"));
    for fault in [Fault::PaymentRequired, Fault::InsufficientQuota] {
        assert!(refuse_account(fault).contains("top up the account"));
    }
    assert!(refuse_account(Fault::Redirect).contains("redirects to another host"));
}
