use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::future::BoxFuture;
use schemas::{
    DatasetIdentity, ExampleId, FloatType, Provenance, ShardWriter, SignalKind, SignalSpec,
    SignalValue, TeacherIdentity,
};

use super::*;
use crate::config::BudgetConfig;
use crate::replay::Verdict;
use crate::teacher::{Answers, BatchLimits, Description, Paid, Usage};

/// Says the number of the example, and something else from a given request on.
#[derive(Debug)]
struct Drifting {
    description: Description,
    asked: Mutex<Vec<ExampleId>>,
    offset: f32,
    refuses: Option<ErrorClass>,
}

fn manifest() -> Manifest {
    let dtype = FloatType::F32;
    let kind = SignalKind::Feature { width: 2, dtype };
    Manifest::new(
        TeacherIdentity {
            kind: "test".into(),
            model: "drifting".into(),
            settings: serde_json::json!({}),
        },
        DatasetIdentity {
            task: "scenes".into(),
            fields: vec!["text".into()],
            prompt: None,
        },
        1,
        vec![SignalSpec::new("feature", kind, "").unwrap()],
    )
}

fn value(id: ExampleId, offset: f32) -> SignalValue {
    let number = u32::from_str_radix(&id.to_string(), 16).unwrap();
    SignalValue::Vector(vec![number as f32 + offset, 1.0])
}

impl Teacher for Drifting {
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
        Box::pin(async move {
            let [request] = requests else {
                panic!("one at a time")
            };
            self.asked.lock().unwrap().push(request.id);
            let reply = match self.refuses {
                Some(class) => Err(TeacherError::new(class, "no")),
                None => Ok(Reply {
                    signals: BTreeMap::from([(
                        "feature".to_owned(),
                        value(request.id, self.offset),
                    )]),
                    provenance: Provenance::default(),
                }),
            };
            Ok(Answers::from(vec![reply]))
        })
    }
}

fn teacher(offset: f32, refuses: Option<ErrorClass>) -> Arc<Drifting> {
    Arc::new(Drifting {
        description: Description {
            identity: manifest().teacher,
            offers: Vec::new(),
            batch: BatchLimits::SINGLE,
            max_in_flight: None,
        },
        asked: Mutex::default(),
        offset,
        refuses,
    })
}

fn cache() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    manifest().write(folder.path()).unwrap();
    for shard in 0..3_u32 {
        let stem = format!("part-{shard:06}");
        let mut writer = ShardWriter::create(folder.path(), &stem, &manifest()).unwrap();
        let rows: Vec<TeacherRecord> = (0..10)
            .map(|row| {
                let id: ExampleId = format!("{:032x}", 10 * shard + row).parse().unwrap();
                TeacherRecord {
                    id,
                    draw: 0,
                    signals: BTreeMap::from([("feature".to_owned(), value(id, 0.0))]),
                    provenance: Provenance::default(),
                }
            })
            .collect();
        writer.write(&rows).unwrap();
        writer.finish().unwrap();
    }
    let store = Store::folder(folder.path());
    (folder, store)
}

const REPLAY: Replay = Replay {
    num_rows: 12,
    seed: 1,
    concurrency: 4,
};

async fn replay(teacher: Arc<Drifting>) -> Result<Report, Error> {
    replay_within(teacher, &Budget::default()).await
}

async fn replay_within(teacher: Arc<Drifting>, budget: &Budget) -> Result<Report, Error> {
    let (_folder, store) = cache();
    run(teacher, &store, &manifest(), REPLAY, budget, |keys| {
        Ok(keys
            .iter()
            .map(|(id, draw)| Request::text(*id, *draw, ""))
            .collect())
    })
    .await
}

#[tokio::test]
async fn it_costs_two_requests_a_row() {
    let asked_of = teacher(0.0, None);
    let report = replay(Arc::clone(&asked_of)).await.unwrap();
    assert_eq!((report.num_compared, report.verdict), (12, Verdict::Within));
    let asked = asked_of.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 24);
    let [mut first, mut second] = [asked[..12].to_vec(), asked[12..].to_vec()];
    first.sort();
    second.sort();
    first.dedup();
    assert_eq!(
        (first.len(), &first),
        (12, &second),
        "all rows once, then all again"
    );
    let report = replay(teacher(0.5, None)).await.unwrap();
    assert_eq!(report.verdict, Verdict::Outside);
}

#[tokio::test]
async fn an_empty_budget_ends_it_and_rows_that_all_fail_are_an_error() {
    for class in [ErrorClass::Budget, ErrorClass::Deterministic] {
        let asked_of = teacher(0.0, Some(class));
        let error = replay(Arc::clone(&asked_of)).await.unwrap_err();
        assert!(matches!(error, Error::Teacher(error) if error.class == class));
        assert!(
            asked_of.asked.lock().unwrap().len() <= 12,
            "nothing is asked a second time"
        );
    }
}

#[tokio::test]
async fn what_the_budget_does_not_reach_for_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    for (requests, is_enough) in [(23, false), (24, true)] {
        let config = BudgetConfig {
            requests: Some(requests),
            ..BudgetConfig::default()
        };
        let budget = Budget::open(&config, folder.path(), None).unwrap();
        let asked_of = teacher(0.0, None);
        let outcome = replay_within(Arc::clone(&asked_of), &budget).await;
        assert_eq!(outcome.is_ok(), is_enough);
        let num_asked = asked_of.asked.lock().unwrap().len();
        assert_eq!(num_asked, if is_enough { 24 } else { 0 });
        if let Err(error) = outcome {
            insta::assert_snapshot!(error, @"teacher: the budget does not reach: `budget.requests` allows 23, 0 are spent, and this takes 24");
            assert_eq!(
                error.hint().unwrap(),
                "ask about fewer rows, or raise [budget]"
            );
        }
    }
}
