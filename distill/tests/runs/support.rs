//! A small data set with a frozen cache, in a folder of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use distill::checkpoint::{Checkpoints, Which};
use schemas::{
    DatasetIdentity, Example, ExampleId, FloatType, Label, Manifest, Provenance, Sha256Digest,
    ShardWriter, SignalKind, SignalSpec, SignalValue, Split, TeacherIdentity, TeacherRecord,
};

/// Width of the cached features.
const WIDTH: usize = 6;
const WORDS: [&str; 8] = [
    "red", "blue", "green", "big", "small", "left", "right", "shape",
];

/// One row: a pair of texts and a class.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) first: String,
    pub(crate) second: String,
    pub(crate) class: u32,
}

impl Row {
    pub(crate) fn example(&self) -> Example {
        let fields = [("first", &self.first), ("second", &self.second)];
        let fields: BTreeMap<String, String> = fields
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).clone()))
            .collect();
        Example::new(fields, Some(Label::Class(self.class)), Split::train())
    }

    fn json(&self) -> String {
        let class = ["no", "yes"][self.class as usize];
        serde_json::json!({"first": self.first, "second": self.second, "label": class}).to_string()
    }
}

/// Rows `range` of an endless list without repetition, of different lengths.
pub(crate) fn rows(range: std::ops::Range<usize>) -> Vec<Row> {
    range
        .map(|number| {
            let word = |place: usize| WORDS[(number >> (3 * place)) % 8];
            let more = vec![word(1); number % 4].join(" ");
            Row {
                first: format!("the {} {} is {}", word(0), word(1), word(2)),
                second: format!("the {} is {} {more}", word(2), word(0)),
                class: u32::from(number % 8 < 4),
            }
        })
        .collect()
}

/// A cache record that gives the class away, with some noise.
pub(crate) fn record(row: &Row) -> TeacherRecord {
    record_of(row.example().id(), row.class)
}

/// A cache record of any example, with `hint` in its first component.
pub(crate) fn record_of(id: ExampleId, hint: u32) -> TeacherRecord {
    let bytes = id.as_bytes();
    let noise = |n: usize| f32::from(bytes[n]) / 256.0;
    let vector = (0..WIDTH)
        .map(|n| noise(n) + if n == 0 { 2.0 * hint as f32 } else { 0.0 })
        .collect();
    TeacherRecord {
        id,
        draw: 0,
        signals: [("feature".to_owned(), SignalValue::Vector(vector))].into(),
        provenance: Provenance::default(),
    }
}

/// A folder with `data/`, `cache/` and `run.toml`.
#[derive(Debug)]
pub(crate) struct World {
    folder: tempfile::TempDir,
    pub(crate) digest: Sha256Digest,
}

impl World {
    /// 20 training, 8 validation and 8 test rows, all cached.
    pub(crate) fn new() -> Self {
        let splits = [
            ("train", rows(0..20)),
            ("validation", rows(20..28)),
            ("test", rows(28..36)),
        ];
        let records: Vec<_> = splits
            .iter()
            .flat_map(|(_, rows)| rows)
            .map(record)
            .collect();
        Self::with(&splits, &records)
    }

    pub(crate) fn with(splits: &[(&str, Vec<Row>)], records: &[TeacherRecord]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let task = "name = \"pairs\"\nfields = [\"first\", \"second\"]\nlabel = \"label\"\nclasses = [\"no\", \"yes\"]\n\
                    metric = \"accuracy\"\n[template]\nfirst = \"{first}\"\nsecond = \"{second}\"\n";
        std::fs::write(data.join("task.toml"), task).unwrap();
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "is"];
        let vocabulary: Vec<&str> = special.into_iter().chain(WORDS).collect();
        std::fs::write(data.join("vocab.txt"), vocabulary.join("\n")).unwrap();
        for (split, rows) in splits {
            let mut text = String::new();
            for row in rows {
                writeln!(text, "{}", row.json()).unwrap();
            }
            std::fs::write(data.join(format!("{split}.jsonl")), text).unwrap();
        }
        let digest = write_cache(&folder.path().join("cache"), &["first", "second"], records);
        let world = Self { folder, digest };
        world.write_config(CONFIG);
        world
    }

    /// A folder whose `data/` is filled already, with a cache of `records` and a configuration.
    pub(crate) fn around(
        folder: tempfile::TempDir,
        fields: &[&str],
        records: &[TeacherRecord],
        config: &str,
    ) -> Self {
        let digest = write_cache(&folder.path().join("cache"), fields, records);
        let world = Self { folder, digest };
        world.write_config(config);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("run.toml")
    }

    pub(crate) fn write_config(&self, text: &str) {
        std::fs::write(self.config(), text).unwrap();
    }

    /// The standard configuration with one text replaced.
    pub(crate) fn replace(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "{from}");
        self.write_config(&text.replace(from, to));
    }
}

fn write_cache(folder: &Path, fields: &[&str], records: &[TeacherRecord]) -> Sha256Digest {
    std::fs::create_dir_all(folder).unwrap();
    let kind = SignalKind::Feature {
        width: WIDTH as u32,
        dtype: FloatType::F16,
    };
    let signals = vec![SignalSpec::new("feature", kind, "tells the class").unwrap()];
    let teacher = TeacherIdentity {
        kind: "test".into(),
        model: "test".into(),
        settings: serde_json::Value::Null,
    };
    let fields = fields.iter().map(|field| (*field).to_owned()).collect();
    let dataset = DatasetIdentity {
        task: "test".into(),
        fields,
        prompt: None,
    };
    let manifest = Manifest::new(teacher, dataset, 1, signals);
    let mut writer = ShardWriter::create(folder, "part-000000", &manifest).unwrap();
    writer.write(records).unwrap();
    let entry = writer.finish().unwrap();
    let frozen = manifest.frozen(vec![entry]);
    frozen.write(folder).unwrap();
    frozen.digest().unwrap()
}

/// Four steps a pass; ten passes with the default schedule are two epochs each of aligner and student.
pub(crate) const CONFIG: &str = r#"
[dataset]
path = "data"
[cache]
path = "cache"
[student]
tokenizer = "data"
max_length = 24
[student.fresh]
hidden_size = 8
num_layers = 1
num_heads = 2
intermediate_size = 16
max_positions = 24
dropout = 0.1
[aligner]
hidden = 8
projection = 4
[training]
schedule = "alternate-epoch"
epochs = 2
batch_size = 6
student_learning_rate = 1e-3
aligner_learning_rate = 1e-3
[output]
path = "out"
[compare]
seeds = [1, 2]
noise_sigmas = [1]
"#;

/// burn's CPU generator is one for the whole process: tests that train take turns.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tensor files of a run's last checkpoint.
pub(crate) fn tensor_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let checkpoint = Checkpoints::of(folder).open(Which::Last).unwrap();
    let read = |name: &str| checkpoint.file(name).unwrap().to_vec();
    let names = checkpoint.file_names();
    names.map(|name| (name.to_owned(), read(name))).collect()
}
