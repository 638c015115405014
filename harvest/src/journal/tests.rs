use std::collections::BTreeMap;

use proptest::prelude::*;
use schemas::{ExampleId, Provenance, SignalValue};

use super::*;
use crate::sample::manifest;

fn record(number: u8, text: &str) -> TeacherRecord {
    TeacherRecord {
        id: ExampleId::from([number; 16]),
        draw: 0,
        signals: BTreeMap::from([("said".to_owned(), SignalValue::Text(text.to_owned()))]),
        provenance: Provenance::default(),
    }
}

/// The replies of a segment.
fn records_of(replay: &Replay) -> Vec<TeacherRecord> {
    let lines = replay.records.iter().map(|(_, line)| *line);
    let records: Vec<TeacherRecord> = replies(&replay.path, lines)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for (record, (key, _)) in records.iter().zip(&replay.records) {
        assert_eq!((record.id, record.draw), *key);
    }
    records
}

/// A segment with these records, its bytes, and where each line ends.
fn written(records: &[TeacherRecord]) -> (tempfile::TempDir, PathBuf, Vec<usize>) {
    let folder = tempfile::tempdir().unwrap();
    let segment = Segment::create(folder.path(), 0, &manifest("m")).unwrap();
    let length = || std::fs::metadata(&segment.path).unwrap().len() as usize;
    let mut ends = vec![length()];
    for record in records {
        segment.append(record).unwrap();
        ends.push(length());
    }
    segment.sync().unwrap();
    let path = segment.path.clone();
    (folder, path, ends)
}

#[test]
fn what_was_appended_is_replayed() {
    let records = [record(1, "one\ntwo"), record(2, "")];
    let (_folder, path, _) = written(&records);
    let replay = Replay::read(&path).unwrap();
    assert_eq!(replay.manifest, Some(manifest("m")));
    assert_eq!(records_of(&replay), records);
    assert_eq!((replay.num_torn_bytes, replay.num_damaged_bytes), (0, 0));
    let folder = tempfile::tempdir().unwrap();
    let segment = Segment::create(folder.path(), 0, &manifest("m")).unwrap();
    let lines = records
        .each_ref()
        .map(|record| segment.append(record).unwrap());
    let read = |lines: &[Line]| -> Vec<TeacherRecord> {
        let replies = segment.replies(lines.iter().copied()).unwrap();
        replies.map(Result::unwrap).collect()
    };
    assert_eq!(
        read(&[lines[1], lines[0]]),
        [records[1].clone(), records[0].clone()]
    );
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(number(PREFIX, name), Some(0));
    assert_eq!(stem(PREFIX, 7), "part-000007");
}

/// A line as [`line`] writes it, of any JSON.
fn rewrite(path: &Path, line_number: usize, edit: impl Fn(&str) -> String) {
    let bytes = std::fs::read(path).unwrap();
    let mut lines: Vec<Vec<u8>> = bytes
        .split_inclusive(|&byte| byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    let edited = edit(std::str::from_utf8(json(&lines[line_number]).unwrap()).unwrap());
    lines[line_number] = line(&serde_json::from_str::<serde_json::Value>(&edited).unwrap());
    std::fs::write(path, lines.concat()).unwrap();
}

#[test]
fn another_version_is_refused_by_number() {
    let (_folder, path, _) = written(&[record(1, "one")]);
    rewrite(&path, 0, |json| {
        json.replace("\"format_version\":1", "\"format_version\":2")
    });
    let error = Replay::read(&path).unwrap_err();
    assert!(
        matches!(
            error,
            Error::FormatVersion {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_whole_line_that_is_no_reply_is_an_error() {
    let (_folder, path, _) = written(&[record(1, "one"), record(2, "two")]);
    rewrite(&path, 2, |json| json.replace("\"draw\"", "\"turn\""));
    let error = Replay::read(&path).unwrap_err();
    assert!(
        matches!(error, Error::InvalidJournal { line: 3, .. }),
        "{error}"
    );
}

#[test]
fn what_is_not_whole_before_the_end_is_damage() {
    let records = [record(1, "one"), record(2, "two"), record(3, "three")];
    for (damaged_line, kept) in [(0, &[][..]), (1, &records[1..]), (3, &records[..2])] {
        let (_folder, path, ends) = written(&records);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[ends[damaged_line] - 2] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let replay = Replay::read(&path).unwrap();
        assert_eq!(records_of(&replay), kept);
        let is_last = damaged_line == 3;
        assert_eq!(
            (replay.num_torn_bytes > 0, replay.num_damaged_bytes > 0),
            (is_last, !is_last)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_torn_tail_costs_only_the_torn_line(texts in proptest::collection::vec(".{0,40}", 1..6), share in any::<proptest::sample::Index>()) {
        let records: Vec<_> = texts.iter().zip(0..).map(|(text, number)| record(number, text)).collect();
        let (_folder, path, ends) = written(&records);
        let cut = share.index(*ends.last().unwrap());
        OpenOptions::new().write(true).open(&path).unwrap().set_len(cut as u64).unwrap();
        let replay = Replay::read(&path).unwrap();
        let num_whole = ends.iter().filter(|&&end| end <= cut).count();
        prop_assert_eq!(&records_of(&replay)[..], &records[..num_whole.saturating_sub(1)]);
        let last_end = ends.iter().copied().filter(|&end| end <= cut).max().unwrap_or(0);
        prop_assert_eq!((replay.num_torn_bytes, replay.num_damaged_bytes), ((cut - last_end) as u64, 0));
    }

    #[test]
    fn a_flipped_bit_never_changes_a_record(texts in proptest::collection::vec(".{0,40}", 1..6), share in any::<proptest::sample::Index>(), bit in 0..8_u32) {
        let records: Vec<_> = texts.iter().zip(0..).map(|(text, number)| record(number, text)).collect();
        let (_folder, path, _) = written(&records);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = share.index(bytes.len());
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, bytes).unwrap();
        let replay = Replay::read(&path).unwrap();
        prop_assert!(replay.num_torn_bytes + replay.num_damaged_bytes > 0);
        prop_assert!(records_of(&replay).iter().all(|record| records.contains(record)));
        // A flipped line feed joins two lines, and both are lost; nothing loses more unless the header is hit.
        if replay.manifest.is_some() {
            prop_assert!(replay.records.len() + 2 >= records.len());
        }
    }
}
