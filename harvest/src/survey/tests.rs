use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::slice::Slice;

/// A data set with a field that the teacher is asked about and one that only makes examples differ.
fn project(rows: &[(u8, u8)]) -> (tempfile::TempDir, Config) {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = String::new();
    for (asked, other) in rows {
        writeln!(
            lines,
            r#"{{"asked": "a{asked}", "other": "{other}", "label": "yes"}}"#
        )
        .unwrap();
    }
    let task = "name = \"t\"\nfields = [\"asked\", \"other\"]\nlabel = \"label\"\nclasses = [\"no\", \"yes\"]\n\
                metric = \"accuracy\"\n[template]\nfirst = \"{asked} {other}\"\n";
    let config = "[dataset]\npath = \".\"\n[teacher]\nkind = \"sketch\"\nprompt = \"{asked}\"\n[cache]\npath = \"c\"\n\
                  [run]\ndraws = 2\n";
    for (name, text) in [
        ("train.jsonl", lines.as_str()),
        ("task.toml", task),
        ("h.toml", config),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let config = Config::read(&folder.path().join("h.toml")).unwrap();
    (folder, config)
}

fn id(asked: u8, other: u8) -> ExampleId {
    let fields = [("asked", format!("a{asked}")), ("other", other.to_string())];
    ExampleId::of(&fields.map(|(name, value)| (name.to_owned(), value)).into())
}

fn asked(plan: &Plan, survey: &Survey) -> Vec<Pending> {
    let mut asked = Vec::new();
    plan.each_pending(survey, &[], |pending| {
        asked.push(pending);
        true
    })
    .unwrap();
    asked
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a model with sets: what is asked, what is copied and what is left alone, for any data set and cache.
    #[test]
    fn the_join_agrees_with_sets(
        rows in proptest::collection::vec((0_u8..6, 0_u8..4), 1..40),
        committed in proptest::collection::vec((0_u8..7, 0_u8..4, 0_u32..2), 0..12),
        failed in proptest::collection::vec((0_u8..7, 0_u8..4, 0_u32..2), 0..6),
        total in 1_u32..4,
    ) {
        let (_folder, config) = project(&rows);
        let committed: BTreeSet<Key> = committed.iter().map(|(a, o, draw)| (id(*a, *o), *draw)).collect();
        let failed: BTreeSet<Key> = failed.iter().map(|(a, o, draw)| (id(*a, *o), *draw)).collect();
        let mut all_keys = BTreeSet::new();
        for slice in (1..=total).map(|index| Slice::new(index, total).unwrap()) {
            let plan = Plan::open(&config, 0, (total > 1).then_some(slice)).unwrap();
            let mut known = Known::default();
            for key in &committed { known.committed(*key).unwrap(); }
            for key in &failed { known.failed(*key).unwrap(); }
            let survey = plan.survey(&mut known).unwrap();
            let asked = asked(&plan, &survey);
            prop_assert_eq!(asked.len() as u64, survey.num_requests());
            prop_assert!(asked.windows(2).all(|pair| pair[0].position < pair[1].position));

            let prompt: HashMap<ExampleId, String> = rows.iter().map(|(a, o)| (id(*a, *o), format!("a{a}"))).collect();
            let mut requests = BTreeSet::new();
            let mut keys = BTreeSet::new();
            for Pending { request, .. } in &asked {
                let key = (request.id, request.draw);
                prop_assert!(!committed.contains(&key) && !failed.contains(&key));
                prop_assert!(keys.insert(key), "asked twice");
                prop_assert!(requests.insert((request.prompt.clone(), request.draw)), "the same request twice");
            }
            for ((source, draw), targets) in survey.copies() {
                prop_assert!(committed.contains(&(*source, *draw)) || keys.contains(&(*source, *draw)));
                for target in targets {
                    prop_assert_eq!(&prompt[source], &prompt[target]);
                    prop_assert!(all_keys.insert((*target, *draw)), "copied twice");
                }
            }
            prop_assert!(all_keys.is_disjoint(&keys));
            all_keys.extend(keys);
        }
        let wanted: BTreeSet<Key> = rows.iter().flat_map(|(a, o)| [(id(*a, *o), 0), (id(*a, *o), 1)]).collect();
        let missing: BTreeSet<Key> = wanted.iter().filter(|key| !committed.contains(key) && !failed.contains(key)).copied().collect();
        prop_assert_eq!(all_keys, missing);
    }
}

#[test]
fn a_survey_counts_what_there_is() {
    let (_folder, config) = project(&[(1, 1), (1, 1), (1, 2), (2, 1), (3, 1)]);
    let plan = Plan::open(&config, 0, None).unwrap();
    let mut known = Known::default();
    for key in [(id(3, 1), 0), (id(9, 9), 0)] {
        known.committed(key).unwrap();
    }
    known.failed((id(2, 1), 1)).unwrap();
    let survey = plan.survey(&mut known).unwrap();
    assert_eq!(survey.rows, [(Split::train(), 5)]);
    assert_eq!((survey.num_duplicates, survey.num_wanted), (1, 8));
    assert_eq!(
        (survey.num_missing, survey.num_copies, survey.num_failed),
        (6, 2, 1)
    );
    assert_eq!((survey.num_requests(), survey.num_extra), (4, 1));
    let copies: BTreeMap<Key, Vec<ExampleId>> = [
        ((id(1, 1), 0), vec![id(1, 2)]),
        ((id(1, 1), 1), vec![id(1, 2)]),
    ]
    .into();
    assert_eq!(survey.copies(), &copies);
    let sample = plan.sample(&survey, 2).unwrap();
    assert_eq!(sample.len(), 2);
    assert_eq!(sample, plan.sample(&survey, 2).unwrap());
}

#[test]
fn a_data_set_that_changes_meanwhile_is_told_from_the_one_surveyed() {
    let (folder, config) = project(&[(1, 1), (2, 1)]);
    let plan = Plan::open(&config, 0, None).unwrap();
    let survey = plan.survey(&mut Known::default()).unwrap();
    let path = folder.path().join("train.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    for changed in [
        text.replace("a1", "a7"),
        text.repeat(2),
        text.lines().next().unwrap().to_owned(),
    ] {
        std::fs::write(&path, changed).unwrap();
        let error = plan.each_pending(&survey, &[], |_| true).unwrap_err();
        assert!(matches!(error, Error::DatasetChanged { .. }), "{error}");
    }
}

#[test]
fn every_draw_is_copied_and_none_is_asked_twice() {
    let (folder, _) = project(&[(1, 1), (1, 2)]);
    let path = folder.path().join("h.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("draws = 2", "draws = 130")).unwrap();
    let plan = Plan::open(&Config::read(&path).unwrap(), 0, None).unwrap();
    let mut known = Known::default();
    for draw in 0..130 {
        known.committed((id(1, 2), draw)).unwrap();
    }
    let survey = plan.survey(&mut known).unwrap();
    assert_eq!((survey.num_missing, survey.num_requests()), (130, 0));
    assert_eq!(survey.copies()[&(id(1, 2), 129)], [id(1, 1)]);
}
