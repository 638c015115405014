use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;
use schemas::{ExampleId, Provenance, TeacherIdentity};
use tokio::time::Instant;

use super::*;
use crate::teacher::{BatchLimits, Bucket, Description, NotKept, RateHints, Usage};

type Behaviour = Box<dyn Fn(&[usize], usize) -> Result<Answers, TeacherError> + Send + Sync>;

/// Answers as told, given the rows of a request and the number of requests before it.
struct Server {
    description: Description,
    behaviour: Behaviour,
    asked: Mutex<Vec<Vec<usize>>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Teacher for Server {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn most(&self, requests: &[Request]) -> Usage {
        Usage::of_prompts(requests)
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        _paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        let rows: Vec<usize> = requests
            .iter()
            .map(|request| request.prompt.parse().unwrap())
            .collect();
        let mut asked = self.asked.lock().unwrap();
        let outcome = (self.behaviour)(&rows, asked.len());
        asked.push(rows);
        Box::pin(std::future::ready(outcome))
    }
}

fn retry(
    max_tries: u32,
    stop: &Stop,
    behaviour: impl Fn(&[usize], usize) -> Result<Answers, TeacherError> + Send + Sync + 'static,
) -> Retry<Server> {
    let server = Server {
        description: Description {
            identity: TeacherIdentity {
                kind: "test".into(),
                model: "m".into(),
                settings: serde_json::Value::Null,
            },
            offers: Vec::new(),
            batch: BatchLimits::SINGLE,
            max_in_flight: None,
        },
        behaviour: Box::new(behaviour),
        asked: Mutex::default(),
    };
    Retry::new(server, NonZeroU32::new(max_tries).unwrap(), stop.clone())
}

fn requests(num: usize) -> Vec<Request> {
    (0..num)
        .map(|row| Request::text(ExampleId::from([0; 16]), 0, row.to_string()))
        .collect()
}

#[expect(clippy::unnecessary_wraps, reason = "it is an outcome")]
fn good() -> Result<Reply, TeacherError> {
    Ok(Reply {
        signals: BTreeMap::new(),
        provenance: Provenance::default(),
    })
}

#[expect(clippy::unnecessary_wraps, reason = "it is an outcome")]
fn all_good(rows: &[usize]) -> Result<Answers, TeacherError> {
    Ok(rows.iter().map(|_| good()).collect::<Vec<_>>().into())
}

fn error(class: ErrorClass, sent: Sent) -> TeacherError {
    TeacherError::new(class, format!("{class}")).having(sent)
}

/// Tries of each row, those that failed as `Err`.
fn tries(answers: &Answers) -> Vec<Result<u32, u32>> {
    answers
        .replies
        .iter()
        .map(|reply| match reply {
            Ok(reply) => Ok(reply.provenance.tries),
            Err(error) => Err(error.tries),
        })
        .collect()
}

fn num_asked(retry: &Retry<Server>) -> usize {
    retry.inner.asked.lock().unwrap().len()
}

/// As a gate does whose budget reaches for three rows at a time, of which each takes less than was reserved.
#[tokio::test]
async fn rows_that_the_budget_did_not_reach_for_are_asked_about_once_the_others_are_answered() {
    let no_budget = || error(ErrorClass::Budget, Sent::Nothing);
    let reaching = |num_in_all: usize| {
        retry(3, &Stop::default(), move |rows, _| {
            let left = num_in_all.saturating_sub(rows[0]);
            if left == 0 {
                return Err(no_budget());
            }
            let replies = (0..rows.len()).map(|row| {
                if row < left.min(3) {
                    good()
                } else {
                    Err(no_budget())
                }
            });
            Ok(replies.collect::<Vec<_>>().into())
        })
    };
    let enough = reaching(8);
    let answers = enough.query(&requests(8), &NotKept).await.unwrap();
    assert_eq!(tries(&answers), [Ok(1); 8]);
    assert_eq!(num_asked(&enough), 3);
    let answers = reaching(7).query(&requests(8), &NotKept).await.unwrap();
    assert_eq!(tries(&answers)[..7], [Ok(1); 7]);
    assert_eq!(tries(&answers)[7], Err(0), "it was never sent");
}

#[tokio::test(start_paused = true)]
async fn rows_that_may_succeed_are_asked_again_together() {
    let retry = retry(5, &Stop::default(), |rows, before| {
        let replies = rows.iter().map(|row| match (row, before) {
            (1 | 3, 0) => Err(error(ErrorClass::Transient, Sent::Unusable)),
            (2, _) => Err(error(ErrorClass::Deterministic, Sent::Unusable)),
            _ => good(),
        });
        Ok(replies.collect::<Vec<_>>().into())
    });
    let answers = retry.query(&requests(5), &NotKept).await.unwrap();
    assert_eq!(tries(&answers), [Ok(1), Ok(2), Err(1), Ok(2), Ok(1)]);
    assert_eq!(
        *retry.inner.asked.lock().unwrap(),
        [vec![0, 1, 2, 3, 4], vec![1, 3]]
    );
}

#[tokio::test(start_paused = true)]
async fn waits_are_as_long_as_the_server_says() {
    let bucket = |seconds| Bucket {
        remaining: 0,
        reset: Some(Duration::from_secs(seconds)),
    };
    let hints = |requests, tokens| RateHints { requests, tokens };
    for (retry_after, hints, seconds) in [
        (Some(7), RateHints::default(), 7..=7),
        (Some(7), hints(Some(bucket(90)), None), 7..=7),
        (None, hints(Some(bucket(9)), Some(bucket(11))), 11..=11),
        (Some(86_400), RateHints::default(), 600..=600),
        (None, RateHints::default(), 0..=1),
        (Some(0), hints(None, Some(bucket(0))), 0..=1),
        (Some(0), hints(None, Some(bucket(5))), 5..=5),
    ] {
        let mut refusal = error(ErrorClass::Rate, Sent::Refused);
        refusal.retry_after = retry_after.map(Duration::from_secs);
        refusal.hints = hints;
        let retry = retry(2, &Stop::default(), move |rows, before| match before {
            0 => Err(refusal.clone()),
            _ => all_good(rows),
        });
        let start = Instant::now();
        let answers = retry.query(&requests(1), &NotKept).await.unwrap();
        assert_eq!(tries(&answers), [Ok(2)]);
        assert!(seconds.contains(&start.elapsed().as_secs()), "{seconds:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_wants_to_be_asked_again_at_once_is_not() {
    let storm = retry(3, &Stop::default(), |rows, before| match before {
        0..10 => {
            let mut refusal = error(ErrorClass::Rate, Sent::Refused);
            refusal.retry_after = Some(Duration::ZERO);
            Err(refusal)
        }
        _ => all_good(rows),
    });
    let start = Instant::now();
    let answers = storm.query(&requests(1), &NotKept).await.unwrap();
    assert_eq!(tries(&answers), [Ok(11)]);
    // 0.5 + 1 + 2 + 4 + 8 + 16 + 4 times 30, and jitter.
    assert!(start.elapsed().as_secs() >= 151, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn any_number_of_tries_can_be_asked_for() {
    let storm = retry(429_496_731, &Stop::default(), |rows, before| match before {
        0..40 => Err(error(ErrorClass::Rate, Sent::Refused)),
        _ => all_good(rows),
    });
    let answers = storm.query(&requests(1), &NotKept).await.unwrap();
    assert_eq!(tries(&answers), [Ok(41)]);
}

#[tokio::test(start_paused = true)]
async fn one_row_that_breaks_the_server_fails_alone() {
    let retry = retry(3, &Stop::default(), |rows, _| {
        if rows.contains(&5) {
            return Err(error(ErrorClass::Transient, Sent::Refused));
        }
        all_good(rows)
    });
    let answers = retry.query(&requests(8), &NotKept).await.unwrap();
    // Three tries of the whole, then halves of 4, 2 and 1.
    assert_eq!(
        tries(&answers),
        [Ok(4), Ok(4), Ok(4), Ok(4), Ok(6), Err(6), Ok(5), Ok(5)]
    );
    assert_eq!(num_asked(&retry), 3 + 2 * 3);
    assert_eq!(
        answers.replies[5].as_ref().unwrap_err().class,
        ErrorClass::Transient
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_takes_no_batch_apart() {
    for sent in [Sent::Unanswered, Sent::Unconnected] {
        let retry = retry(3, &Stop::default(), move |_, _| {
            Err(error(ErrorClass::Transient, sent))
        });
        let error = retry.query(&requests(8), &NotKept).await.unwrap_err();
        assert_eq!((error.tries, num_asked(&retry)), (3, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_waits_for_a_rate_limit_and_is_not_failed_by_it() {
    let retry = retry(3, &Stop::default(), |rows, before| match before {
        _ if rows.contains(&0) => Err(error(ErrorClass::Deterministic, Sent::Refused)),
        3..7 => Err(error(ErrorClass::Rate, Sent::Refused)),
        _ => all_good(rows),
    });
    let answers = retry.query(&requests(4), &NotKept).await.unwrap();
    let failed: Vec<bool> = answers.replies.iter().map(Result::is_err).collect();
    assert_eq!(failed, [true, false, false, false]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_too_many_requests_is_borne_with_for_long_and_not_for_ever() {
    for class in [ErrorClass::Rate, ErrorClass::Overload] {
        let storm = retry(3, &Stop::default(), move |rows, before| match before {
            0..20 => Err(error(class, Sent::Refused)),
            _ => all_good(rows),
        });
        let answers = storm.query(&requests(2), &NotKept).await.unwrap();
        assert_eq!(tries(&answers), [Ok(21), Ok(21)]);
        let endless = retry(3, &Stop::default(), move |_, _| {
            Err(error(class, Sent::Refused))
        });
        let error = endless.query(&requests(2), &NotKept).await.unwrap_err();
        assert_eq!((error.class, error.tries), (class, 21));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_no_try() {
    let retry = retry(3, &Stop::default(), |rows, _| {
        if rows.contains(&1) {
            return Err(error(ErrorClass::Deterministic, Sent::Nothing));
        }
        all_good(rows)
    });
    let answers = retry.query(&requests(2), &NotKept).await.unwrap();
    assert_eq!(tries(&answers), [Ok(1), Err(0)]);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_stops_the_run_stops_the_halves() {
    let retry = retry(3, &Stop::default(), |_, before| match before {
        0 => Err(error(ErrorClass::Deterministic, Sent::Refused)),
        _ => Err(error(ErrorClass::Credentials, Sent::Refused)),
    });
    let answers = retry.query(&requests(8), &NotKept).await.unwrap();
    let classes: BTreeSet<String> = answers
        .replies
        .iter()
        .map(|reply| reply.as_ref().unwrap_err().class.to_string())
        .collect();
    assert_eq!((classes.len(), num_asked(&retry)), (1, 2));
    assert!(classes.contains("credentials"));
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_wait_and_halves_that_were_not_sent() {
    let stop = Stop::default();
    let slow = retry(3, &stop, |_, _| {
        let mut refusal = error(ErrorClass::Rate, Sent::Refused);
        refusal.retry_after = Some(Duration::from_mins(5));
        Err(refusal)
    });
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.request();
    };
    let start = Instant::now();
    let rows = requests(2);
    let (answers, ()) = tokio::join!(slow.query(&rows, &NotKept), stopping);
    let interrupted = |answers: &Answers| {
        let errors = answers
            .replies
            .iter()
            .filter_map(|reply| reply.as_ref().err());
        errors
            .filter(|error| error.class == ErrorClass::Interrupted)
            .count()
    };
    assert_eq!(
        (interrupted(&answers.unwrap()), start.elapsed().as_secs()),
        (2, 1)
    );
    let raised = Stop::default();
    let raise = raised.clone();
    let halves = retry(3, &raised, move |_, _| {
        raise.request();
        Err(error(ErrorClass::Deterministic, Sent::Refused))
    });
    let answers = halves.query(&rows, &NotKept).await.unwrap();
    assert_eq!((interrupted(&answers), num_asked(&halves)), (2, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn bad_rows_cost_a_bounded_number_of_requests_and_no_neighbour(
        (num, bad) in (1..70_usize).prop_flat_map(|num| (Just(num), proptest::collection::btree_set(0..num, 0..6))),
        max_tries in 1..6_u32,
        is_deterministic in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let refused = bad.clone();
        let retry = retry(max_tries, &Stop::default(), move |rows, _| {
            let class = if is_deterministic { ErrorClass::Deterministic } else { ErrorClass::Transient };
            if rows.iter().any(|row| refused.contains(row)) {
                return Err(error(class, Sent::Refused));
            }
            all_good(rows)
        });
        let answers = match runtime.block_on(retry.query(&requests(num), &NotKept)) {
            Ok(answers) => answers,
            Err(error) => {
                prop_assert_eq!(num, 1);
                vec![Err(error)].into()
            }
        };
        let failed: BTreeSet<usize> = answers.replies.iter().enumerate().filter(|(_, reply)| reply.is_err()).map(|(row, _)| row).collect();
        prop_assert_eq!(&failed, &bad);
        let depth = num.next_power_of_two().ilog2() as usize;
        let most = max_tries as usize + 2 * bad.len() * depth;
        prop_assert!(num_asked(&retry) <= most, "{} of {most}", num_asked(&retry));
        let asked = retry.inner.asked.lock().unwrap();
        for (row, tries) in tries(&answers).into_iter().enumerate() {
            let sent = asked.iter().filter(|rows| rows.contains(&row)).count();
            prop_assert_eq!(tries.unwrap_or_else(|tries| tries) as usize, sent);
            prop_assert!(sent <= max_tries as usize + depth);
        }
    }
}
