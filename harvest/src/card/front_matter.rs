//! The YAML at the head of a card, as the Hugging Face hub and `datasets` read it.
//!
//! Keys: <https://huggingface.co/docs/hub/datasets-cards>; `configs` makes `datasets.load_dataset` find the shards,
//! `dataset_info` tells their columns before one is read.

use arrow::datatypes::DataType;
use schemas::columns::arrow_schema;
use schemas::{SignalKind, SignalSpec};

use super::Card;

/// Licences that the hub knows by these names; any other is `other` with a name of its own.
const LICENSES: [&str; 40] = [
    "afl-3.0",
    "agpl-3.0",
    "apache-2.0",
    "artistic-2.0",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsl-1.0",
    "cc",
    "cc-by-2.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-nc-2.0",
    "cc-by-nc-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "cdla-permissive-2.0",
    "ecl-2.0",
    "epl-2.0",
    "gemma",
    "gpl",
    "gpl-2.0",
    "gpl-3.0",
    "isc",
    "lgpl-3.0",
    "llama2",
    "llama3",
    "llama3.1",
    "mit",
    "mpl-2.0",
    "odbl",
    "openrail",
    "pddl",
    "unlicense",
    "zlib",
];

pub(super) fn of(card: &Card) -> String {
    let mut lines = vec!["---".to_owned()];
    lines.extend(license(card.license()));
    lines.push(format!("pretty_name: {}", quoted(&card.title())));
    lines.push("task_categories:".to_owned());
    lines.extend(
        task_categories(&card.manifest.signals)
            .into_iter()
            .map(|name| format!("- {name}")),
    );
    lines.push("tags:\n- knowledge-distillation\n- teacher-cache\n- armada".to_owned());
    lines.push(format!(
        "size_categories:\n- {}",
        size_category(card.stats.num_rows)
    ));
    lines.push(
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path:".to_owned(),
    );
    lines.extend(
        card.shard_globs()
            .iter()
            .map(|glob| format!("    - {}", quoted(glob))),
    );
    lines.push("dataset_info:\n  config_name: default\n  features:".to_owned());
    lines.extend(features(&card.manifest.signals));
    lines.push("---\n".to_owned());
    lines.join("\n")
}

/// JSON strings are YAML strings.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn license(license: Option<&str>) -> Vec<String> {
    let Some(name) = license else {
        return vec!["license: unknown".to_owned()];
    };
    let known = name.to_lowercase();
    if LICENSES.contains(&known.as_str()) {
        return vec![format!("license: {known}")];
    }
    vec![
        "license: other".to_owned(),
        format!("license_name: {}", quoted(name)),
    ]
}

fn task_categories(signals: &[SignalSpec]) -> Vec<&'static str> {
    let mut names: Vec<&str> = signals
        .iter()
        .map(|signal| match signal.kind() {
            SignalKind::Feature { .. } => "feature-extraction",
            SignalKind::ClassLogits { .. } => "text-classification",
            SignalKind::TokenTopK { .. } | SignalKind::Text => "text-generation",
            SignalKind::Image => "text-to-image",
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn size_category(num_rows: u64) -> String {
    const STEPS: [(u64, &str); 10] = [
        (1_000, "1K"),
        (10_000, "10K"),
        (100_000, "100K"),
        (1_000_000, "1M"),
        (10_000_000, "10M"),
        (100_000_000, "100M"),
        (1_000_000_000, "1B"),
        (10_000_000_000, "10B"),
        (100_000_000_000, "100B"),
        (1_000_000_000_000, "1T"),
    ];
    match STEPS.iter().position(|(bound, _)| num_rows < *bound) {
        Some(0) => "n<1K".to_owned(),
        Some(at) => format!("{}<n<{}", STEPS[at - 1].1, STEPS[at].1),
        None => "n>1T".to_owned(),
    }
}

fn features(signals: &[SignalSpec]) -> Vec<String> {
    let is_image = |name: &str| {
        signals
            .iter()
            .any(|signal| signal.name() == name && *signal.kind() == SignalKind::Image)
    };
    let schema = arrow_schema(signals);
    let lines = schema.fields().iter().map(|field| {
        let kind = match field.data_type() {
            DataType::FixedSizeList(element, width) => {
                format!("list: {}\n    length: {width}", dtype(element.data_type()))
            }
            _ if is_image(field.name()) => "dtype: image".to_owned(),
            other => format!("dtype: {}", dtype(other)),
        };
        format!("  - name: {}\n    {kind}", field.name())
    });
    lines.collect()
}

fn dtype(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Utf8 => "string",
        DataType::UInt32 => "uint32",
        DataType::Float16 => "float16",
        DataType::Float32 => "float32",
        DataType::Float64 => "float64",
        DataType::Timestamp(..) => "timestamp[ms, tz=UTC]",
        _ => "binary",
    }
}
