use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use schemas::{ExampleId, Provenance, TeacherIdentity};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;
use crate::budget::Budget;
use crate::config::BudgetConfig;
use crate::events::Events;
use crate::events::tests::Written;
use crate::teacher::{BatchLimits, Bucket, Description, NotKept, RateHints, Reply};

type Outcome = Result<Answers, TeacherError>;

/// A server in this process: each request takes a time, and ends as the next line of the script says, or well.
#[derive(Clone, Debug)]
struct Server(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    description: Description,
    latency: Duration,
    /// Answers at most so many at a time, and refuses the others.
    capacity: usize,
    script: Mutex<VecDeque<Outcome>>,
    /// Prompts in the order of arrival, with the time.
    asked: Mutex<Vec<(String, Instant)>>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

impl Server {
    fn new(latency_ms: u64, script: impl IntoIterator<Item = Outcome>) -> Self {
        Self::with_capacity(latency_ms, usize::MAX, script)
    }

    fn with_capacity(
        latency_ms: u64,
        capacity: usize,
        script: impl IntoIterator<Item = Outcome>,
    ) -> Self {
        Self(Arc::new(Inside {
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
            latency: Duration::from_millis(latency_ms),
            capacity,
            script: Mutex::new(script.into_iter().collect()),
            asked: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
        }))
    }

    fn prompts(&self) -> Vec<String> {
        let asked = self.0.asked.lock().unwrap();
        asked.iter().map(|(prompt, _)| prompt.clone()).collect()
    }

    /// When each request arrived, in milliseconds after `start`.
    fn times(&self, start: Instant) -> Vec<u64> {
        let asked = self.0.asked.lock().unwrap();
        asked
            .iter()
            .map(|(_, at)| (*at - start).as_millis() as u64)
            .collect()
    }
}

struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn reply(tokens_in: Option<u32>, tokens_out: Option<u32>) -> Reply {
    Reply {
        signals: std::collections::BTreeMap::new(),
        provenance: Provenance {
            tokens_in,
            tokens_out,
            ..Provenance::default()
        },
    }
}

impl Teacher for Server {
    fn describe(&self) -> &Description {
        &self.0.description
    }

    fn most(&self, requests: &[Request]) -> Usage {
        Usage {
            requests: 1,
            tokens_in: 100 * requests.len() as u64,
            tokens_out: 10 * requests.len() as u64,
        }
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        _paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        Box::pin(async move {
            let inside = &*self.0;
            let asked = (requests[0].prompt.clone(), Instant::now());
            inside.asked.lock().unwrap().push(asked);
            let before = inside.in_flight.fetch_add(1, Ordering::Relaxed);
            let _in_flight = InFlight(&inside.in_flight);
            inside
                .most_in_flight
                .fetch_max(before + 1, Ordering::Relaxed);
            if before >= inside.capacity {
                return Err(error(ErrorClass::Rate, Sent::Refused));
            }
            tokio::time::sleep(inside.latency).await;
            let scripted = inside.script.lock().unwrap().pop_front();
            scripted.unwrap_or_else(|| {
                let replies = requests.iter().map(|_| Ok(reply(Some(20), Some(2))));
                Ok(replies.collect::<Vec<_>>().into())
            })
        })
    }
}

fn error(class: ErrorClass, sent: Sent) -> TeacherError {
    TeacherError::new(class, "no").having(sent)
}

fn request(number: usize) -> Request {
    Request::text(ExampleId::from([0; 16]), 0, number.to_string())
}

fn gate(server: &Server, concurrency: usize, watch: &Watch, stop: &Stop) -> Arc<Gate<Server>> {
    let price = PriceConfig::default();
    Arc::new(Gate::new(
        server.clone(),
        concurrency,
        price,
        watch.clone(),
        stop.clone(),
    ))
}

fn free(server: &Server, concurrency: usize) -> Arc<Gate<Server>> {
    gate(server, concurrency, &Watch::default(), &Stop::default())
}

/// Asks so many questions at once, in their order, and returns the outcomes in that order.
async fn ask_all(gate: &Arc<Gate<Server>>, num: usize) -> Vec<Outcome> {
    let mut tasks = JoinSet::new();
    for number in 0..num {
        let gate = Arc::clone(gate);
        tasks.spawn(async move { (number, gate.query(&[request(number)], &NotKept).await) });
        tokio::task::yield_now().await;
    }
    let mut outcomes = tasks.join_all().await;
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

#[tokio::test(start_paused = true)]
async fn the_limit_grows_to_the_ceiling_and_requests_keep_their_order() {
    let server = Server::new(100, []);
    let gate = free(&server, 16);
    let start = Instant::now();
    assert!(ask_all(&gate, 60).await.iter().all(Result::is_ok));
    let prompts: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    assert_eq!(server.prompts(), prompts);
    assert_eq!(server.0.most_in_flight.load(Ordering::Relaxed), 16);
    let at = |ms| {
        server
            .times(start)
            .iter()
            .filter(|time| **time == ms)
            .count()
    };
    assert_eq!(
        [at(0), at(100), at(200), at(300), at(400)],
        [4, 8, 16, 16, 16]
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_of_use_to_the_teacher_is_a_ceiling_too() {
    let mut server = Server::new(10, []);
    Arc::get_mut(&mut server.0)
        .unwrap()
        .description
        .max_in_flight = Some(1);
    ask_all(&free(&server, 16), 5).await;
    assert_eq!(server.0.most_in_flight.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_more_than_it_can_is_asked_for_about_that() {
    let server = Server::with_capacity(100, 10, []);
    let gate = free(&server, 256);
    let outcomes = ask_all(&gate, 5_000).await;
    let num_refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    // About one refusal for every climb from three quarters of the capacity, which takes some 30 answers.
    assert!(num_refused < 5_000 / 20, "{num_refused}");
    let (in_flight, limit) = gate.watch.metrics.in_flight_and_limit();
    assert!(
        in_flight == 0 && (6..=11).contains(&limit),
        "{in_flight} of {limit}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_server_asks_for_holds_for_everybody() {
    for class in [ErrorClass::Rate, ErrorClass::Overload] {
        let mut refusal = error(class, Sent::Refused);
        refusal.retry_after = Some(Duration::from_secs(7));
        let server = Server::new(100, [Err(refusal)]);
        let written = Written::default();
        let watch = Watch {
            events: Events::to(written.clone()),
            ..Watch::default()
        };
        let gate = gate(&server, 4, &watch, &Stop::default());
        let start = Instant::now();
        ask_all(&gate, 10).await;
        let times = server.times(start);
        assert_eq!(times[..4], [0; 4]);
        assert!(times[4..].iter().all(|time| *time >= 7_100), "{times:?}");
        let events = written.events();
        assert_eq!(events.len(), 1);
        assert_eq!(
            (&events[0]["event"], &events[0]["reason"]),
            (&"paused".into(), &"retry_after".into())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn no_server_makes_everybody_wait_for_hours() {
    let mut refusal = error(ErrorClass::Rate, Sent::Refused);
    refusal.retry_after = Some(Duration::from_hours(24));
    let server = Server::new(0, [Err(refusal)]);
    let gate = free(&server, 4);
    let start = Instant::now();
    ask_all(&gate, 1).await;
    ask_all(&gate, 1).await;
    assert_eq!(server.times(start)[1], 600_000);
}

#[expect(clippy::unnecessary_wraps, reason = "it is an outcome")]
fn hinted(requests: Option<(u64, u64)>, tokens: Option<(u64, u64)>) -> Outcome {
    let bucket = |bucket: Option<(u64, u64)>| {
        bucket.map(|(remaining, reset_ms)| Bucket {
            remaining,
            reset: Some(Duration::from_millis(reset_ms)),
        })
    };
    Ok(Answers {
        replies: vec![Ok(reply(Some(100), Some(10)))],
        hints: RateHints {
            requests: bucket(requests),
            tokens: bucket(tokens),
        },
        taken: None,
    })
}

#[tokio::test(start_paused = true)]
async fn an_empty_allowance_is_waited_for() {
    for empty in [
        hinted(Some((0, 5_000)), None),
        hinted(None, Some((0, 5_000))),
    ] {
        let server = Server::new(10, [empty]);
        let gate = free(&server, 1);
        let start = Instant::now();
        ask_all(&gate, 3).await;
        assert_eq!(server.times(start), [0, 5_010, 5_020]);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_sent_than_an_allowance_has_left() {
    // Each request takes 110 tokens, as many as it can.
    let server = Server::new(10, [hinted(None, Some((230, 5_000)))]);
    let gate = free(&server, 1);
    let start = Instant::now();
    ask_all(&gate, 1).await;
    *server.0.script.lock().unwrap() = vec![hinted(None, None); 5].into();
    ask_all(&gate, 5).await;
    assert_eq!(server.times(start), [0, 10, 20, 5_010, 5_020, 5_030]);
    // What was sent while the reply was on its way is not in the server's count.
    let server = Server::new(10, [hinted(Some((5, 5_000)), None)]);
    let gate = free(&server, 4);
    let start = Instant::now();
    ask_all(&gate, 8).await;
    assert_eq!(server.times(start), [0, 0, 0, 0, 10, 10, 5_010, 5_010]);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_estimated_from_what_requests_took() {
    let server = Server::new(10, []);
    let gate = free(&server, 1);
    // 22 of 110 tokens each.
    ask_all(&gate, 100).await;
    server
        .0
        .script
        .lock()
        .unwrap()
        .push_back(hinted(None, Some((120, 5_000))));
    ask_all(&gate, 1).await;
    let start = Instant::now();
    ask_all(&gate, 6).await;
    let num_before = server.times(start)[101..]
        .iter()
        .filter(|time| **time < 5_000)
        .count();
    assert!((3..=5).contains(&num_before), "{num_before}");
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_leaves_no_trace() {
    let server = Server::new(1_000, []);
    let gate = free(&server, 1);
    let ask = |number| {
        let gate = Arc::clone(&gate);
        tokio::spawn(async move { gate.query(&[request(number)], &NotKept).await })
    };
    let tasks: Vec<_> = (0..5).map(ask).collect();
    tokio::time::sleep(Duration::from_millis(10)).await;
    // The one in flight, the one whose turn it is, and one that waits behind it.
    for number in [0, 1, 3] {
        tasks[number].abort();
    }
    for (number, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.is_ok(), [2, 4].contains(&number));
    }
    assert_eq!(server.prompts(), ["0", "2", "4"]);
    assert_eq!(gate.watch.metrics.in_flight_and_limit(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_every_wait_and_nothing_in_flight() {
    let stop = Stop::default();
    let server = Server::new(1_000, []);
    let gate = gate(&server, 1, &Watch::default(), &stop);
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        stop.request();
    };
    let start = Instant::now();
    let (outcomes, ()) = tokio::join!(ask_all(&gate, 4), stopping);
    assert!(outcomes[0].is_ok());
    for outcome in &outcomes[1..] {
        let error = outcome.as_ref().unwrap_err();
        assert_eq!(
            (error.class, error.sent),
            (ErrorClass::Interrupted, Sent::Nothing)
        );
    }
    assert_eq!(
        (server.prompts().len(), start.elapsed()),
        (1, Duration::from_secs(1))
    );
}

fn watch_with(config: &BudgetConfig, folder: &std::path::Path) -> Watch {
    Watch {
        budget: Arc::new(Budget::open(config, folder, None).unwrap()),
        ..Watch::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_requests_is_met_to_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let limits = BudgetConfig {
        requests: Some(10),
        ..BudgetConfig::default()
    };
    let watch = watch_with(&limits, folder.path());
    let server = Server::new(10, [Err(error(ErrorClass::Transient, Sent::Unanswered))]);
    let gate = gate(&server, 4, &watch, &Stop::default());
    let outcomes = ask_all(&gate, 30).await;
    let classes = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().err().map(|error| error.class));
    assert_eq!(
        classes.filter(|class| *class == ErrorClass::Budget).count(),
        20
    );
    assert_eq!(
        (server.prompts().len(), watch.budget.spent().requests),
        (10, 10)
    );
    assert_eq!(
        watch.metrics.num_requests(),
        10,
        "what was not sent is no request"
    );
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_tokens_is_used_though_reservations_are_far_larger() {
    let folder = tempfile::tempdir().unwrap();
    let limits = BudgetConfig {
        tokens: Some(1_000),
        ..BudgetConfig::default()
    };
    let watch = watch_with(&limits, folder.path());
    let server = Server::new(10, []);
    let gate = gate(&server, 64, &watch, &Stop::default());
    let outcomes = ask_all(&gate, 200).await;
    // 22 tokens each, and 110 must be left to send one.
    let num_answered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!((num_answered, watch.budget.spent().tokens), (41, 41 * 22));
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_billed_is_charged() {
    let price = PriceConfig {
        input_per_million: 1.0,
        output_per_million: 10.0,
        per_request: 0.5,
    };
    let most = 0.5 + 200e-6 + 200e-6;
    let two = |first, second| Ok(Answers::from(vec![first, second]));
    let failed = || Err(error(ErrorClass::Deterministic, Sent::Unusable));
    let cases = [
        (
            two(Ok(reply(Some(20), Some(2))), Ok(reply(Some(30), Some(3)))),
            0.5 + 50e-6 + 50e-6,
        ),
        (
            two(Ok(reply(Some(20), Some(2))), failed()),
            0.5 + 20e-6 + 20e-6 + most / 2.0 - 0.25,
        ),
        (
            two(Ok(reply(None, None)), Ok(reply(None, Some(0)))),
            0.5 + 200e-6 + 100e-6,
        ),
        (Err(error(ErrorClass::Transient, Sent::Unanswered)), most),
        (Err(error(ErrorClass::Transient, Sent::Unusable)), most),
        (Err(error(ErrorClass::Transient, Sent::Refused)), 0.5),
        (Err(error(ErrorClass::Transient, Sent::Unconnected)), 0.5),
        (Err(error(ErrorClass::Deterministic, Sent::Nothing)), 0.0),
    ];
    for (number, (outcome, expected)) in cases.into_iter().enumerate() {
        let server = Server::new(10, [outcome]);
        let watch = Watch::default();
        let gate = Gate::new(server, 4, price, watch.clone(), Stop::default());
        let _ = gate.query(&[request(0), request(1)], &NotKept).await;
        let spent = watch.budget.spent().cost();
        assert!(
            (spent - expected).abs() < 1e-9,
            "case {number}: {spent} for {expected}"
        );
    }
    let server = Server::new(10, []);
    let watch = Watch::default();
    let gate = Gate::new(server, 4, price, watch.clone(), Stop::default());
    drop(
        tokio::time::timeout(
            Duration::from_millis(1),
            gate.query(&[request(0)], &NotKept),
        )
        .await,
    );
    assert!(
        (watch.budget.spent().cost() - 0.5 - 200e-6).abs() < 1e-9,
        "given up in flight"
    );
}

#[tokio::test(start_paused = true)]
async fn costs_of_rows_add_up_to_what_was_charged() {
    let price = PriceConfig {
        input_per_million: 1.0,
        output_per_million: 10.0,
        per_request: 0.3,
    };
    let replies = vec![
        Ok(reply(Some(20), Some(2))),
        Ok(reply(Some(3), Some(0))),
        Ok(reply(Some(7), Some(1))),
    ];
    let server = Server::new(10, [Ok(replies.into())]);
    let watch = Watch::default();
    let gate = Gate::new(server.clone(), 4, price, watch.clone(), Stop::default());
    let answers = gate
        .query(&[request(0), request(1), request(2)], &NotKept)
        .await
        .unwrap();
    let costs: Vec<f64> = answers
        .replies
        .iter()
        .flatten()
        .filter_map(|reply| reply.provenance.cost)
        .collect();
    assert_eq!(costs.len(), 3);
    assert!((costs[0] - 0.100_04).abs() < 1e-12);
    assert!((costs.iter().sum::<f64>() - watch.budget.spent().cost()).abs() < 1e-9);
    // Where the server did not count, nobody knows; where nothing has a price, there is none.
    server
        .0
        .script
        .lock()
        .unwrap()
        .push_back(Ok(vec![Ok(reply(None, Some(1)))].into()));
    let answers = gate.query(&[request(0)], &NotKept).await.unwrap();
    assert_eq!(answers.replies[0].as_ref().unwrap().provenance.cost, None);
    let answers = free(&server, 1)
        .query(&[request(0)], &NotKept)
        .await
        .unwrap();
    assert_eq!(answers.replies[0].as_ref().unwrap().provenance.cost, None);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// A provider that counts for itself: rows are asked and asked again, the process dies at any time, another goes on.
    #[test]
    fn a_provider_never_sees_more_than_the_budget(
        limit in 0..60_u64,
        faults in proptest::collection::vec(0..4_u8, 0..60),
        lives_ms in proptest::collection::vec(1..2_000_u64, 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let limits = BudgetConfig { requests: Some(limit), ..BudgetConfig::default() };
        let script = faults.into_iter().map(|fault| match fault {
            0 => Err(error(ErrorClass::Rate, Sent::Refused)),
            1 => Err(error(ErrorClass::Transient, Sent::Unanswered)),
            2 => Err(error(ErrorClass::Deterministic, Sent::Unusable)),
            _ => Ok(vec![Ok(reply(None, None))].into()),
        });
        let server = Server::new(100, script);
        for life_ms in lives_ms {
            let watch = watch_with(&limits, folder.path());
            runtime.block_on(async {
                let gate = Gate::new(server.clone(), 8, PriceConfig::default(), watch.clone(), Stop::default());
                let tries = std::num::NonZeroU32::new(3).unwrap();
                let teacher = crate::teacher::Retry::new(gate, tries, Stop::default());
                let rows: Vec<Request> = (0..20).map(request).collect();
                let asking = rows.chunks(1).map(|row| teacher.query(row, &NotKept));
                let life = Duration::from_millis(life_ms);
                let _ = tokio::time::timeout(life, futures::future::join_all(asking)).await;
            });
            let seen = server.prompts().len() as u64;
            proptest::prop_assert!(seen <= limit, "{seen} of {limit}");
            proptest::prop_assert_eq!(watch.budget.spent().requests, seen);
        }
    }
}
