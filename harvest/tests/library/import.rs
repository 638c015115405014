//! Features made elsewhere.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeListBuilder, Float32Builder, Float64Builder, Int64Array, ListBuilder,
    RecordBatch, StringArray,
};
use harvest::config::Source;
use harvest::import::{self, ImportSummary};
use harvest::{Cache, Error, Place, Plan, Stop};
use parquet::arrow::ArrowWriter;
use schemas::{Manifest, SignalValue};

use crate::support::{Project, id};

const TEXTS: [&str; 4] = ["one", "two", "one", "three"];
const NPY: &str = "[import]\nkind = \"npy\"\npath = \"features\"\nmodel = \"sd-1-4\"\npattern = \"{split}_{index}.npy\"\n";
const PARQUET: &str =
    "[import]\nkind = \"parquet\"\npath = \"features.parquet\"\nmodel = \"sd-1-4\"\n";

fn run(project: &Project) -> Result<ImportSummary, Error> {
    let config = project.config();
    let Source::Import(source) = &config.source else {
        panic!("it is an import")
    };
    let plan = Plan::open(&config, 0, None)?;
    import::run(
        &config,
        source,
        &plan,
        Cache::lock_or_create(Place::of(&config, None)?, &Stop::default())?,
    )
}

fn write_npy(path: &Path, values: &[f32]) {
    let header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': (1, {}), }}",
        values.len()
    );
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

fn npy_project(features: &[(&str, [f32; 2])]) -> Project {
    let project = Project::new(&TEXTS, NPY);
    std::fs::create_dir(project.path("features")).unwrap();
    for (name, values) in features {
        write_npy(&project.path("features").join(name), values);
    }
    project
}

fn imported(project: &Project) -> Vec<(schemas::ExampleId, SignalValue)> {
    project
        .records()
        .into_iter()
        .map(|record| (record.id, record.signals["feature"].clone()))
        .collect()
}

fn expected(rows: &[(&str, [f32; 2])]) -> Vec<(schemas::ExampleId, SignalValue)> {
    rows.iter()
        .map(|(text, values)| (id(text), SignalValue::Vector(values.to_vec())))
        .collect()
}

const ALL: [(&str, [f32; 2]); 4] = [
    ("train_0.npy", [1.0, 1.5]),
    ("train_1.npy", [2.0, 2.5]),
    ("train_2.npy", [9.0, 9.5]),
    ("train_3.npy", [3.0, 3.5]),
];

#[test]
fn a_folder_of_npy_files_becomes_a_cache() {
    let project = npy_project(&ALL);
    write_npy(&project.path("features/train_4.npy"), &[0.0, 0.0]);
    let summary = run(&project).unwrap();
    assert_eq!(
        summary,
        ImportSummary {
            num_examples: 3,
            num_known: 0,
            num_imported: 3,
            num_extra: 1
        }
    );
    assert_eq!(
        imported(&project),
        expected(&[
            ("one", [1.0, 1.5]),
            ("two", [2.0, 2.5]),
            ("three", [3.0, 3.5])
        ])
    );
    let manifest = Manifest::open(&project.cache()).unwrap();
    assert_eq!(
        (
            manifest.teacher.kind.as_str(),
            manifest.teacher.model.as_str()
        ),
        ("import", "sd-1-4")
    );
    assert_eq!(
        run(&project).unwrap(),
        ImportSummary {
            num_examples: 3,
            num_known: 3,
            num_imported: 0,
            num_extra: 1
        }
    );
}

#[test]
fn a_full_cache_of_another_source_is_refused() {
    let project = npy_project(&ALL);
    run(&project).unwrap();
    let files = project.files();
    let other_dtype = "[cache]\npath = \"cache\"\ndtype = \"f16\"\n";
    for (config, key) in [
        (NPY.replace("sd-1-4", "sd-1-5"), "teacher.model"),
        (PARQUET.to_owned(), "teacher.settings.feature_column"),
        (format!("{other_dtype}{NPY}"), "signals.0.dtype"),
    ] {
        project.configure(&config);
        let error = run(&project).unwrap_err();
        assert!(
            matches!(&error, Error::DifferentSource { key: found, .. } if found == key),
            "{error}"
        );
    }
    assert_eq!(project.files(), files);
}

#[test]
fn missing_features_are_listed_and_nothing_is_written() {
    let project = npy_project(&ALL[..1]);
    let error = run(&project).unwrap_err();
    let Error::MissingFeatures {
        num_missing,
        num_examples,
        first,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(
        (*num_missing, *num_examples, first.join(" ").as_str()),
        (2, 3, "train_1.npy train_3.npy")
    );
    assert_eq!(project.files(), Vec::<String>::new());
}

#[test]
fn features_that_are_not_alike_or_not_finite_are_refused() {
    for (values, problem) in [
        (&[1.0, 2.0, 3.0][..], "3 values, expected 2"),
        (&[1.0, f32::NAN], "value 1 is NaN"),
    ] {
        let project = npy_project(&ALL);
        write_npy(&project.path("features/train_3.npy"), values);
        let error = run(&project).unwrap_err().to_string();
        assert!(
            error.contains("train_3.npy") && error.contains(problem),
            "{error}"
        );
        assert_eq!(project.files(), Vec::<String>::new());
    }
}

fn write_parquet(project: &Project, ids: ArrayRef, features: ArrayRef) {
    let batch = RecordBatch::try_from_iter([("key", ids), ("feature", features)]).unwrap();
    let file = std::fs::File::create(project.path("features.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn lists(rows: &[[f64; 2]]) -> ArrayRef {
    let mut builder = ListBuilder::new(Float64Builder::new());
    for row in rows {
        builder.values().append_slice(row);
        builder.append(true);
    }
    Arc::new(builder.finish())
}

#[test]
fn parquet_is_joined_by_field() {
    let project = Project::new(
        &TEXTS,
        &format!("{PARQUET}id_column = \"key\"\nid_field = \"text\"\n"),
    );
    let keys = StringArray::from(vec!["three", "nobody", "one", "two"]);
    write_parquet(
        &project,
        Arc::new(keys),
        lists(&[[3.0, 3.5], [0.0, 0.0], [1.0, 1.5], [2.0, 2.5]]),
    );
    let summary = run(&project).unwrap();
    assert_eq!(
        summary,
        ImportSummary {
            num_examples: 3,
            num_known: 0,
            num_imported: 3,
            num_extra: 1
        }
    );
    assert_eq!(
        imported(&project),
        expected(&[
            ("three", [3.0, 3.5]),
            ("one", [1.0, 1.5]),
            ("two", [2.0, 2.5])
        ])
    );
}

#[test]
fn examples_that_share_a_feature_are_counted_one_by_one() {
    let project = Project::new(
        &TEXTS,
        &format!("{PARQUET}id_column = \"key\"\nid_field = \"group\"\n"),
    );
    let task = std::fs::read_to_string(project.path("task.toml")).unwrap();
    let task = task
        .replace("[\"text\"]", "[\"text\", \"group\"]")
        .replace("{text}", "{text} {group}");
    std::fs::write(project.path("task.toml"), task).unwrap();
    let row = |text: &str, group: &str| {
        format!("{{\"text\": \"{text}\", \"group\": \"{group}\", \"label\": \"yes\"}}\n")
    };
    let rows = [row("one", "a"), row("two", "b"), row("three", "b")];
    std::fs::write(project.path("train.jsonl"), rows.concat()).unwrap();
    let keys = StringArray::from(vec!["a"]);
    write_parquet(&project, Arc::new(keys), lists(&[[1.0, 1.5]]));
    let error = run(&project).unwrap_err().to_string();
    assert!(
        error.starts_with("2 of 3 examples have no feature") && error.ends_with(": b"),
        "{error}"
    );
}

#[test]
fn parquet_is_joined_by_example_id() {
    let project = Project::new(&TEXTS, &format!("{PARQUET}id_column = \"key\"\n"));
    let keys =
        StringArray::from_iter_values(["one", "two", "three"].map(|text| id(text).to_string()));
    let mut features = FixedSizeListBuilder::new(Float32Builder::new(), 2);
    for start in [1.0, 2.0, 3.0] {
        features.values().append_slice(&[start, start + 0.5]);
        features.append(true);
    }
    write_parquet(&project, Arc::new(keys), Arc::new(features.finish()));
    assert_eq!(run(&project).unwrap().num_imported, 3);
    assert_eq!(
        imported(&project),
        expected(&[
            ("one", [1.0, 1.5]),
            ("two", [2.0, 2.5]),
            ("three", [3.0, 3.5])
        ])
    );
}

#[test]
fn parquet_with_missing_repeated_or_unknown_parts_is_refused() {
    let refusal = |keys: ArrayRef, features: ArrayRef, more: &str| {
        let project = Project::new(&TEXTS, &format!("{PARQUET}{more}"));
        write_parquet(&project, keys, features);
        let error = run(&project).unwrap_err().to_string();
        assert_eq!(project.files(), Vec::<String>::new());
        error.split_once(": ").unwrap().1.to_owned()
    };
    let text = |keys: &[&str]| -> ArrayRef { Arc::new(StringArray::from(keys.to_vec())) };
    let by_text = "id_column = \"key\"\nid_field = \"text\"\n";
    assert_eq!(
        refusal(text(&["one"]), lists(&[[0.0; 2]]), by_text),
        "three, two"
    );
    assert_eq!(
        refusal(text(&["one", "one"]), lists(&[[0.0; 2]; 2]), by_text),
        "two rows have the id `one`"
    );
    assert_eq!(
        refusal(text(&["one"]), lists(&[[0.0; 2]]), ""),
        "it has no column `example_id`; its columns are key, feature"
    );
    assert_eq!(
        refusal(
            text(&["one", "two", "three"]),
            Arc::new(Int64Array::from(vec![1, 2, 3])),
            by_text
        ),
        "column `feature` holds Int64, no lists of floats"
    );
    let mut with_null = ListBuilder::new(Float64Builder::new());
    for is_valid in [true, false] {
        with_null.values().append_slice(&[1.0, 2.0]);
        with_null.append(is_valid);
    }
    assert_eq!(
        refusal(text(&["one", "two"]), Arc::new(with_null.finish()), by_text),
        "three, two (null)"
    );
    let error = refusal(
        text(&["one", "two", "three"]),
        lists(&[[0.0; 2], [0.0, f64::INFINITY], [0.0; 2]]),
        by_text,
    );
    assert!(error.ends_with("value 1 is inf"), "{error}");
    assert_eq!(
        refusal(
            text(&["one"]),
            lists(&[[0.0; 2]]),
            "id_column = \"key\"\nid_field = \"label\"\n"
        ),
        "the data set has no field `label`"
    );
}

/// Bytes are changed in turn until one makes the Parquet reader itself panic.
#[test]
fn a_damaged_parquet_file_is_refused_by_name() {
    let config = format!("{PARQUET}id_column = \"key\"\nid_field = \"text\"\n");
    let keys: ArrayRef = Arc::new(StringArray::from(vec!["one", "two", "three"]));
    let damage = |at: usize| {
        let project = Project::new(&TEXTS, &config);
        write_parquet(&project, Arc::clone(&keys), lists(&[[1.0, 1.5]; 3]));
        let path = project.path("features.parquet");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] = 0;
        std::fs::write(&path, bytes).unwrap();
        let error = run(&project).err()?;
        let is_panic = error.to_string().contains("pages cannot be decoded");
        is_panic.then_some((project, error))
    };
    let found = (0..100).find_map(damage);
    let (project, error) = found.expect("a change reaches the decoder");
    assert!(error.to_string().contains("features.parquet"), "{error}");
    assert!(error.hint().is_some());
    assert_eq!(project.files(), Vec::<String>::new());
}
