//! Writes and reads a cache of random f16 features, for `scripts/bench_read`.
//!
//! `bench_read write FOLDER ROWS WIDTH` makes the shards; `bench_read read FOLDER` reads every value and id of them
//! twice, once trusting the files and once with their digests checked, and prints the times as one line of JSON.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use schemas::{
    DatasetIdentity, ExampleId, FloatType, Manifest, Provenance, ShardReader, ShardWriter,
    SignalKind, SignalSpec, SignalValue, TeacherIdentity, TeacherRecord,
};

const ROWS_PER_SHARD: u64 = 25_000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["write", folder, rows, width] => write(Path::new(folder), rows.parse()?, width.parse()?),
        ["read", folder] => read(Path::new(folder)),
        _ => Err("usage: bench_read write FOLDER ROWS WIDTH | bench_read read FOLDER".into()),
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Nearly normal: the sum of four uniform values, with a standard deviation of about 1.15.
    fn value(&mut self) -> f32 {
        let bits = self.next();
        let quarters = [0, 16, 32, 48].map(|shift| ((bits >> shift) & 0xffff) as f32 / 32_768.0);
        quarters.iter().sum::<f32>() - 4.0
    }
}

fn record(row: u64, width: u32, random: &mut Random) -> TeacherRecord {
    let text = BTreeMap::from([("text".to_owned(), row.to_string())]);
    let values = (0..width).map(|_| random.value()).collect();
    TeacherRecord {
        id: ExampleId::of(&text),
        draw: 0,
        signals: [("feature".to_owned(), SignalValue::Vector(values))].into(),
        provenance: Provenance::default(),
    }
}

fn write(folder: &Path, rows: u64, width: u32) -> Result<(), Box<dyn Error>> {
    let kind = SignalKind::Feature {
        width,
        dtype: FloatType::F16,
    };
    let manifest = Manifest::new(
        TeacherIdentity {
            kind: "random".into(),
            model: "random".into(),
            settings: serde_json::json!({}),
        },
        DatasetIdentity {
            task: "bench".into(),
            fields: vec!["text".into()],
            prompt: None,
        },
        1,
        vec![SignalSpec::new("feature", kind, "random values")?],
    );
    let mut random = Random(7);
    for first in (0..rows).step_by(usize::try_from(ROWS_PER_SHARD)?) {
        let mut writer = ShardWriter::create(folder, "bench", &manifest)?;
        let last = rows.min(first + ROWS_PER_SHARD);
        for chunk in (first..last).step_by(1024) {
            let records: Vec<TeacherRecord> = (chunk..last.min(chunk + 1024))
                .map(|row| record(row, width, &mut random))
                .collect();
            writer.write(&records)?;
        }
        writer.finish()?;
    }
    Ok(())
}

/// Reads all values and keys; the sum over the bits keeps the work from being optimised away.
fn read_all(folder: &Path, verify: bool) -> Result<(f64, usize, usize), Box<dyn Error>> {
    let start = Instant::now();
    let (mut num_rows, mut num_values) = (0, 0);
    for path in schemas::shard::list_shards(folder)? {
        let reader = if verify {
            ShardReader::open(&path)?
        } else {
            ShardReader::open_unverified(&path)?
        };
        for batch in reader.vectors("feature")? {
            let batch = batch?;
            num_rows += std::hint::black_box(&batch.keys).len();
            num_values += batch.keys.len() * batch.width;
            std::hint::black_box(&batch.values);
        }
    }
    Ok((start.elapsed().as_secs_f64(), num_rows, num_values))
}

#[expect(clippy::print_stdout, reason = "the figures are the output")]
fn read(folder: &Path) -> Result<(), Box<dyn Error>> {
    let (seconds, num_rows, num_values) = read_all(folder, false)?;
    let (seconds_verified, ..) = read_all(folder, true)?;
    let figures = serde_json::json!({
        "rows": num_rows,
        "values": num_values,
        "seconds": seconds,
        "seconds_verified": seconds_verified,
    });
    println!("{figures}");
    Ok(())
}
