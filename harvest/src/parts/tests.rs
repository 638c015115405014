use std::collections::BTreeMap;

use schemas::{ExampleId, Provenance, SignalValue};

use super::*;
use crate::sample::manifest;

fn open(folder: &Path, model: &str) -> Parts {
    let manifest = manifest(model);
    Parts::open(folder, &manifest.teacher, &manifest.dataset).unwrap()
}

fn reply(text: &str) -> Reply {
    Reply {
        signals: BTreeMap::from([("text".to_owned(), SignalValue::Text(text.to_owned()))]),
        provenance: Provenance::default(),
    }
}

#[test]
fn a_part_outlives_the_process_until_its_row_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let one = Request::text(ExampleId::from([1; 16]), 0, "one");
    let two = Request::text(ExampleId::from([2; 16]), 3, "two");
    let parts = open(folder.path(), "m");
    parts.keep("picture", &one, &reply("first")).unwrap();
    parts.keep("picture", &two, &reply("second")).unwrap();
    parts.keep("picture", &two, &reply("third")).unwrap();

    let again = open(folder.path(), "m");
    assert_eq!(again.find("picture", &one), Some(reply("first")));
    assert_eq!(again.find("picture", &two), Some(reply("third")));
    assert_eq!(again.find("feature", &two), None);
    again.forget_row(&(one.id, 0));
    again.compact().unwrap();

    let last = open(folder.path(), "m");
    assert_eq!(last.find("picture", &one), None);
    assert_eq!(last.find("picture", &two), Some(reply("third")));
    last.forget_row(&(two.id, 3));
    last.compact().unwrap();
    assert!(!folder.path().join(FILE).exists());
}

#[test]
fn a_part_is_found_by_who_asks_again_in_the_same_run() {
    let folder = tempfile::tempdir().unwrap();
    let one = Request::text(ExampleId::from([1; 16]), 0, "one");
    let two = Request::text(ExampleId::from([2; 16]), 0, "two");
    let carried = Arc::new(open(folder.path(), "m"));
    carried.keep("address", &one, &reply("old")).unwrap();
    let segment = Segment::create(folder.path(), 0, &manifest("m"));
    let segment = Arc::new(segment.unwrap());
    let parts = SegmentParts::new(segment, carried);
    assert_eq!(parts.find("address", &one), Some(reply("old")));
    parts.keep("address", &one, &reply("new")).unwrap();
    assert_eq!(parts.find("address", &one), Some(reply("new")));
    assert_eq!(parts.find("address", &two), None);
    assert_eq!(parts.find("picture", &one), None);
}

#[test]
fn a_part_that_is_of_no_use_is_forgotten_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let one = Request::text(ExampleId::from([1; 16]), 0, "one");
    let parts = open(folder.path(), "m");
    for part in ["a picture", "a", "b"] {
        parts.keep(part, &one, &reply("old")).unwrap();
    }
    // The signal `text` of the teacher `a`; its picture holds the same one here.
    parts.forget_signal(&one, "a_text").unwrap();
    parts.forget("b", &one).unwrap();
    parts.keep("a picture", &one, &reply("new")).unwrap();
    for parts in [parts, open(folder.path(), "m")] {
        assert_eq!(parts.names(&(one.id, 0)), ["a picture"]);
        assert_eq!(parts.find("a picture", &one), Some(reply("new")));
    }

    // So it is within a shard, whose segment outlives its process.
    let carried = Arc::new(open(folder.path(), "m"));
    let segment = Arc::new(Segment::create(folder.path(), 0, &manifest("m")).unwrap());
    let parts = SegmentParts::new(Arc::clone(&segment), Arc::clone(&carried));
    parts.keep("b", &one, &reply("new")).unwrap();
    parts.forget_signal(&one, "b_text").unwrap();
    parts.forget("a picture", &one).unwrap();
    assert_eq!(parts.find("a picture", &one), None);
    assert_eq!(parts.find("b", &one), None);
    carried
        .carry(segment.path(), segment.parts().unwrap())
        .unwrap();
    assert!(carried.is_empty() && open(folder.path(), "m").is_empty());
}

#[test]
fn a_torn_line_costs_itself_and_another_teacher_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let one = Request::text(ExampleId::from([1; 16]), 0, "one");
    let two = Request::text(ExampleId::from([2; 16]), 0, "two");
    let parts = open(folder.path(), "m");
    parts.keep("a", &one, &reply("first")).unwrap();
    parts.keep("a", &two, &reply("second")).unwrap();
    let path = folder.path().join(FILE);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    let torn = open(folder.path(), "m");
    assert_eq!(torn.find("a", &one), Some(reply("first")));
    assert_eq!(torn.find("a", &two), None);
    assert_eq!(open(folder.path(), "other").find("a", &one), None);
    let aside = |name| std::fs::read(folder.path().join(name)).unwrap();
    let first = aside("parts.journal.other");
    assert!(bytes.starts_with(&first));

    // The next one that is set aside overwrites nothing.
    open(folder.path(), "other")
        .keep("a", &one, &reply("third"))
        .unwrap();
    open(folder.path(), "m");
    assert_eq!(aside("parts.journal.other"), first);
    assert!(!aside("parts.journal.other-2").is_empty());
}
