use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

fn requests(number: u64) -> Amount {
    Amount {
        requests: number,
        ..Amount::ZERO
    }
}

fn config(requests: impl Into<Option<u64>>, tokens: impl Into<Option<u64>>) -> BudgetConfig {
    BudgetConfig {
        requests: requests.into(),
        tokens: tokens.into(),
        cost: None,
    }
}

fn open(config: &BudgetConfig, folder: &Path) -> Arc<Budget> {
    Arc::new(Budget::open(config, folder, None).unwrap())
}

/// What reading the lines says, without taking the file over as a new run does.
fn on_disk(folder: &Path) -> Amount {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(
        folder.join("budget.ledger"),
        copy.path().join("budget.ledger"),
    )
    .unwrap();
    open(&config(u64::MAX, None), copy.path()).spent()
}

#[test]
fn without_a_limit_nothing_is_written_and_spending_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let budget = open(&BudgetConfig::default(), folder.path());
    budget
        .try_reserve(requests(5))
        .unwrap()
        .unwrap()
        .settle(requests(3));
    assert_eq!(budget.spent(), requests(3));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_was_spent_or_left_open_counts_in_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let budget = open(&config(10, None), folder.path());
    assert!(budget.begins());
    budget
        .try_reserve(requests(4))
        .unwrap()
        .unwrap()
        .settle(requests(1));
    let in_flight = budget.try_reserve(requests(5)).unwrap().unwrap();
    // The process dies here: nothing that this one does later is of the next one's concern.
    assert_eq!(on_disk(folder.path()), requests(6));
    in_flight.settle(requests(2));
    assert_eq!(on_disk(folder.path()), requests(3));
    drop(budget);
    let next = open(&config(10, None), folder.path());
    assert!(!next.begins());
    assert_eq!(
        (next.spent(), next.spent_by_this_run()),
        (requests(3), Amount::ZERO)
    );
    let error = next.try_reserve(requests(8)).unwrap_err();
    assert_eq!(error.class, ErrorClass::Budget);
    assert_eq!(error.sent, Sent::Nothing);
    insta::assert_snapshot!(error, @"the budget is used up: `budget.requests` allows 10, 3 are spent, and the next request can take 8");
    assert!(next.try_reserve(requests(7)).unwrap().is_some());
}

#[test]
fn each_limit_stops_by_itself() {
    let amount = |requests, tokens, cost| Amount {
        requests,
        tokens,
        cost,
    };
    let folder = tempfile::tempdir().unwrap();
    let all = BudgetConfig {
        requests: Some(10),
        tokens: Some(100),
        cost: Some(0.000_5),
    };
    let budget = open(&all, folder.path());
    let at_most = amount(10, 100, 500_000_000);
    for too_much in [
        amount(11, 0, 0),
        amount(0, 101, 0),
        amount(0, 0, 500_000_001),
    ] {
        assert_eq!(
            budget.check(too_much).unwrap_err().class,
            ErrorClass::Budget
        );
    }
    budget
        .try_reserve(at_most)
        .unwrap()
        .unwrap()
        .settle(at_most);
    assert!(budget.check(amount(0, 1, 0)).is_err());
}

#[tokio::test]
async fn who_does_not_fit_yet_waits_until_it_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let budget = open(&config(10, None), folder.path());
    let first = budget.try_reserve(requests(8)).unwrap().unwrap();
    assert!(budget.try_reserve(requests(3)).unwrap().is_none());
    let waiting = tokio::spawn({
        let budget = Arc::clone(&budget);
        async move { budget.reserve(requests(3)).await }
    });
    tokio::task::yield_now().await;
    first.settle(requests(2));
    let second = waiting.await.unwrap().unwrap();
    // Whoever can no longer be served is told, however long the others take.
    let third = tokio::spawn({
        let budget = Arc::clone(&budget);
        async move { budget.reserve(requests(6)).await }
    });
    tokio::task::yield_now().await;
    drop(second);
    assert_eq!(third.await.unwrap().unwrap_err().class, ErrorClass::Budget);
    assert_eq!(budget.spent(), requests(5));
}

#[test]
fn slices_share_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let whole = open(&config(25, None), folder.path());
    whole
        .try_reserve(requests(4))
        .unwrap()
        .unwrap()
        .settle(requests(4));
    drop(whole);
    let slices: Vec<_> = (1..=4)
        .map(|index| {
            let slice = Slice::new(index, 4).unwrap();
            Arc::new(Budget::open(&config(25, None), folder.path(), Some(slice)).unwrap())
        })
        .collect();
    let parts: Vec<u64> = slices
        .iter()
        .map(|slice| slice.limits.requests.unwrap())
        .collect();
    assert_eq!(parts.iter().sum::<u64>(), 21);
    assert!(parts.iter().all(|part| (5..=6).contains(part)));
    for slice in &slices {
        slice
            .try_reserve(requests(5))
            .unwrap()
            .unwrap()
            .settle(requests(5));
    }
    // The others of the same division have parts of their own, and the whole has what they left.
    let again = Budget::open(
        &config(25, None),
        folder.path(),
        Some(Slice::new(2, 4).unwrap()),
    )
    .unwrap();
    assert_eq!(
        (again.limits.requests, again.spent()),
        (Some(parts[1]), requests(5))
    );
    let whole = open(&config(25, None), folder.path());
    assert_eq!(
        (whole.limits.requests, whole.spent()),
        (Some(5), requests(4))
    );
}

#[test]
fn a_damaged_ledger_is_refused_and_a_torn_tail_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budget.ledger");
    let budget = open(&config(100, None), folder.path());
    for _ in 0..3 {
        budget
            .try_reserve(requests(7))
            .unwrap()
            .unwrap()
            .settle(requests(2));
    }
    drop(budget);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert_eq!(on_disk(folder.path()), requests(2 + 2 + 7));
    let mut damaged = whole.clone();
    damaged[12] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let error = Budget::open(&config(100, None), folder.path(), None).unwrap_err();
    assert!(
        matches!(error, Error::BadLedger { line: 1, .. })
            && error.hint().unwrap().contains("from zero"),
        "{error}"
    );
}

#[test]
fn a_long_ledger_is_compacted_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let budget = open(&config(u64::MAX, None), folder.path());
    let in_flight = budget.try_reserve(requests(9)).unwrap().unwrap();
    let length = || {
        std::fs::metadata(folder.path().join("budget.ledger"))
            .unwrap()
            .len()
    };
    let mut longest = 0;
    let mut settled = 0;
    while length() >= longest {
        longest = length();
        for _ in 0..1_000 {
            budget
                .try_reserve(requests(2))
                .unwrap()
                .unwrap()
                .settle(requests(1));
            settled += 1;
        }
    }
    assert!(longest < 5 << 20);
    assert_eq!(on_disk(folder.path()), requests(settled + 9));
    in_flight.settle(requests(1));
    assert_eq!(on_disk(folder.path()), requests(settled + 1));
}

/// What can happen to a budget.
#[derive(Clone, Debug)]
enum Step {
    Reserve {
        requests: u64,
        tokens: u64,
    },
    /// One of those in flight takes this percentage of what it may.
    Settle(Index, u64),
    /// One of those in flight is given up.
    Drop(Index),
    /// The process dies, its last line torn off after this share, and another one starts.
    Kill(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u64, 0..40_u64).prop_map(|(requests, tokens)| Step::Reserve { requests, tokens }),
        3 => (any::<Index>(), 0..=100_u64).prop_map(|(index, share)| Step::Settle(index, share)),
        1 => any::<Index>().prop_map(Step::Drop),
        1 => any::<Index>().prop_map(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The provider's own count: what was sent and settled as told, and everything else at its most.
    #[test]
    fn no_order_of_things_exceeds_a_limit(
        steps in proptest::collection::vec(step(), 1..80),
        limit_requests in 0..40_u64,
        limit_tokens in 0..400_u64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let limits = config(limit_requests, limit_tokens);
        let mut budget = open(&limits, folder.path());
        let mut in_flight: Vec<(Reservation, Amount)> = Vec::new();
        let mut billed = Amount::ZERO;
        for step in steps {
            match step {
                Step::Reserve { requests, tokens } => {
                    let most = Amount { requests, tokens, cost: 0 };
                    if let Ok(Some(reservation)) = budget.try_reserve(most) {
                        in_flight.push((reservation, most));
                    }
                }
                Step::Settle(index, share) if !in_flight.is_empty() => {
                    let (reservation, most) = in_flight.swap_remove(index.index(in_flight.len()));
                    let part = |number: u64| number * share / 100;
                    let spent = Amount { requests: part(most.requests), tokens: part(most.tokens), cost: 0 };
                    reservation.settle(spent);
                    billed = billed.plus(spent);
                }
                Step::Drop(index) if !in_flight.is_empty() => {
                    let (_, most) = in_flight.swap_remove(index.index(in_flight.len()));
                    billed = billed.plus(most);
                }
                Step::Kill(cut) => {
                    // What the dead process had sent is billed, whatever its successor knows.
                    let bytes = std::fs::read(folder.path().join("budget.ledger")).unwrap();
                    for (_, most) in in_flight.drain(..) {
                        billed = billed.plus(most);
                    }
                    let mut torn = bytes.clone();
                    let next = line_of_a_request_that_was_not_sent();
                    torn.extend(&next[..cut.index(next.len())]);
                    std::fs::write(folder.path().join("budget.ledger"), torn).unwrap();
                    budget = open(&limits, folder.path());
                    prop_assert_eq!(budget.spent(), billed);
                }
                _ => {}
            }
            let most = in_flight.iter().fold(billed, |sum, (_, most)| sum.plus(*most));
            prop_assert!(most.requests <= limit_requests && most.tokens <= limit_tokens);
            prop_assert_eq!(budget.spent(), billed);
        }
    }
}

fn line_of_a_request_that_was_not_sent() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let budget = open(&config(10, None), folder.path());
    let length = || std::fs::read(folder.path().join("budget.ledger")).unwrap();
    let before = length().len();
    budget
        .try_reserve(requests(1))
        .unwrap()
        .unwrap()
        .settle(requests(1));
    length()[before..]
        .split_inclusive(|&byte| byte == b'\n')
        .next()
        .unwrap()
        .to_vec()
}
