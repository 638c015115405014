//! What does not fit between a data set and a cache is counted and refused.

use crate::support::{Row, World, record, rows};
use distill::config::Config;
use distill::device::DeviceChoice;
use distill::error::Error;
use distill::setup::Setup;
use schemas::Sha256Digest;
use schemas::dataset::SkipBadRows;

fn open(world: &World) -> Result<Setup, Error> {
    let config = Config::read(&world.config())?;
    Setup::open(
        config,
        world.digest,
        DeviceChoice::Cpu,
        &mut SkipBadRows::new(0),
    )
}

/// The refusal with ids and folders taken out, and its hint.
fn refused(world: &World) -> String {
    let error = open(world).unwrap_err();
    let text = format!("{error}\n{}", error.hint().unwrap_or_default());
    let text = text.replace(&world.path("").display().to_string(), "");
    let words = text.split_inclusive([' ', '\n', ',']).map(|word| {
        let bare = word.trim_end_matches([' ', '\n', ',']);
        let is_id = bare.len() == 32 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id {
            word.replace(bare, "<id>")
        } else {
            word.to_owned()
        }
    });
    words.collect()
}

fn world(train: Vec<Row>, cached: &[Row]) -> World {
    let splits = [
        ("train", train),
        ("validation", rows(20..28)),
        ("test", rows(28..36)),
    ];
    World::with(&splits, &cached.iter().map(record).collect::<Vec<_>>())
}

fn accept(world: &World, policy: &str) -> Setup {
    world.replace("path = \"cache\"", &format!("path = \"cache\"\n{policy}"));
    open(world).unwrap()
}

#[test]
fn a_whole_cache_joins() {
    let setup = open(&World::new()).unwrap();
    insta::assert_snapshot!(setup.join_report(), @"20 of 20 training rows joined; 0 missing, 0 duplicate examples, 0 duplicate cache rows, 0 extra cache rows");
}

#[test]
fn missing_rows_are_refused_or_dropped() {
    let world = world(rows(0..20), &rows(2..36));
    insta::assert_snapshot!(refused(&world), @r#"
    2 of 20 training rows have no feature in the cache: <id>, <id>
    run `harvest run` over this data set again, or train without these rows: cache.missing = "drop"
    "#);
    let setup = accept(&world, "missing = \"drop\"");
    assert_eq!(setup.data.corpus.train.len(), 18);
    assert_eq!(
        (
            setup.join_report().num_missing,
            setup.join_report().num_joined
        ),
        (2, 18)
    );
}

#[test]
fn validation_and_test_rows_need_no_feature() {
    assert_eq!(
        open(&world(rows(0..20), &rows(0..20)))
            .unwrap()
            .join_report()
            .num_joined,
        20
    );
}

#[test]
fn duplicate_cache_rows_are_refused_or_the_first_counts() {
    let mut cached = rows(0..36);
    cached.push(Row {
        class: 1 - cached[0].class,
        ..cached[0].clone()
    });
    let world = world(rows(0..20), &cached);
    insta::assert_snapshot!(refused(&world), @r#"
    1 rows of the cache have the same example and draw as an earlier row: <id>
    mend the data, or say cache.duplicate = "keep-first" or "keep-all"
    "#);
    let setup = accept(&world, "duplicate = \"keep-first\"");
    assert_eq!(setup.join_report().num_duplicate_rows, 1);
    let feature: Vec<f32> = setup
        .data
        .features
        .batch(&[0], &burn::tensor::Device::flex())
        .into_data()
        .try_to_vec()
        .unwrap();
    assert!(feature[0] >= 2.0, "row 0 has class 1: {feature:?}");
}

#[test]
fn duplicate_examples_are_refused_dropped_or_kept() {
    // A training row twice, and a training row that is in the test split.
    let train: Vec<Row> = rows(0..20)
        .into_iter()
        .chain(rows(3..4))
        .chain(rows(30..31))
        .collect();
    let world = world(train, &rows(0..36));
    insta::assert_snapshot!(refused(&world), @r#"
    2 rows of the data set have the same fields as an earlier row: <id>, <id>
    mend the data, or say cache.duplicate = "keep-first" or "keep-all"
    "#);
    let setup = accept(&world, "duplicate = \"keep-first\"");
    assert_eq!(
        (
            setup.data.corpus.train.len(),
            setup.join_report().num_duplicate_examples
        ),
        (20, 2)
    );
    assert_eq!(setup.data.corpus.test.as_ref().unwrap().len(), 8);
    world.replace("keep-first", "keep-all");
    assert_eq!(open(&world).unwrap().data.corpus.train.len(), 22);
}

#[test]
fn extra_cache_rows_are_refused_or_ignored() {
    let world = world(rows(0..20), &rows(0..38));
    insta::assert_snapshot!(refused(&world), @r#"
    2 rows of the cache belong to no example of the data set: <id>, <id>
    is this the cache of this data set? If it holds more on purpose: cache.extra = "ignore"
    "#);
    assert_eq!(
        accept(&world, "extra = \"ignore\"").join_report().num_extra,
        2
    );
}

#[test]
fn what_the_manifest_does_not_offer_is_refused_before_anything_is_read() {
    let world = World::new();
    // No data would be found here, and no device is asked for it.
    std::fs::write(world.path("data/train.jsonl"), "not JSON\n").unwrap();
    world.replace("path = \"cache\"", "path = \"cache\"\nsignal = \"pooled\"");
    insta::assert_snapshot!(refused(&world), @r#"
    cache `cache` holds no signal `pooled`
    it holds: feature
    "#);
    world.replace("signal = \"pooled\"", "draw = 1");
    insta::assert_snapshot!(refused(&world), @r#"
    `cache.draw` is 1, and the cache holds 1 draw(s), numbered from 0
    choose another `cache.draw`, or harvest more draws
    "#);
    let mut other = World::new();
    other.digest = Sha256Digest::of(b"other");
    let error = open(&other).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("holds no frozen state with digest sha256:"),
        "{error}"
    );
}

#[test]
fn a_flipped_byte_in_a_shard_is_refused() {
    let world = World::new();
    let mut files = std::fs::read_dir(world.path("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let shard = files
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "parquet")
        })
        .unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    assert!(open(&world).unwrap_err().to_string().contains("is corrupt"));
}

#[test]
fn labels_are_needed_to_learn_and_to_choose() {
    let world = World::new();
    let text = std::fs::read_to_string(world.path("data/validation.jsonl")).unwrap();
    let text = text.replacen("\"label\":\"no\"", "\"label\":null", 1);
    std::fs::write(world.path("data/validation.jsonl"), text).unwrap();
    insta::assert_snapshot!(refused(&world), @r#"
    split `validation` has rows without a label
    training and validation need labels; name labelled splits in `splits`
    "#);
}
