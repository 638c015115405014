//! Croissant metadata: <http://mlcommons.org/croissant/1.0>.
//!
//! Every shard is a `FileObject` with its SHA-256, all of them are a `FileSet`, and the rows are a `RecordSet` whose
//! fields are the columns.

use arrow::datatypes::DataType;
use schemas::SignalKind;
use schemas::columns::arrow_schema;
use serde_json::{Value, json};

use super::{Card, MARKER};

const ENCODING: &str = "application/x-parquet";

pub(super) fn of(card: &Card) -> Value {
    let manifest = &card.manifest;
    let mut metadata = json!({
        "@context": context(),
        "@type": "sc:Dataset",
        "name": format!("{}-teacher-cache", manifest.dataset.task),
        "description": format!(
            "What the teacher {} said about every example of {}, kept for knowledge distillation.",
            manifest.teacher.model, manifest.dataset.task
        ),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "keywords": ["knowledge distillation", "teacher cache", MARKER],
        "distribution": distribution(card),
        "recordSet": [{
            "@type": "cr:RecordSet",
            "@id": "rows",
            "name": "rows",
            "description": "One reply of the teacher a row.",
            "key": [{"@id": "rows/example_id"}, {"@id": "rows/draw"}],
            "field": fields(card),
        }],
    });
    if let Some(license) = card.license() {
        metadata["license"] = license.into();
    }
    if let Some(digest) = manifest.digest() {
        metadata["identifier"] = digest.to_string().into();
    }
    if let Some((_, last)) = card.stats.provenance.answered_at {
        let day: String = crate::stats::utc(last).chars().take(10).collect();
        metadata["dateModified"] = day.into();
    }
    metadata
}

/// The context that Croissant 1.0 prescribes.
fn context() -> Value {
    let mut context = json!({
        "@language": "en",
        "@vocab": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "dct": "http://purl.org/dc/terms/",
        "sc": "https://schema.org/",
        "conformsTo": "dct:conformsTo",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
    });
    for term in [
        "citeAs",
        "column",
        "equivalentProperty",
        "extract",
        "field",
        "fileProperty",
        "fileObject",
        "fileSet",
        "format",
        "includes",
        "isLiveDataset",
        "jsonPath",
        "key",
        "md5",
        "parentField",
        "path",
        "recordSet",
        "references",
        "regex",
        "repeated",
        "replace",
        "samplingRate",
        "separator",
        "source",
        "subField",
        "transform",
    ] {
        context[term] = format!("cr:{term}").into();
    }
    context
}

fn distribution(card: &Card) -> Vec<Value> {
    let mut files: Vec<Value> = card
        .shards
        .iter()
        .map(|shard| {
            json!({
                "@type": "cr:FileObject",
                "@id": shard.file,
                "name": shard.file,
                "contentUrl": shard.file,
                "contentSize": format!("{} B", shard.num_bytes),
                "encodingFormat": ENCODING,
                "sha256": shard.sha256.hex(),
            })
        })
        .collect();
    files.push(json!({
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": "All shards; every one has the same columns. They lie beside this file.",
        "encodingFormat": ENCODING,
        "includes": card.shards.iter().map(|shard| &shard.file).collect::<Vec<_>>(),
    }));
    files
}

fn fields(card: &Card) -> Vec<Value> {
    let schema = arrow_schema(&card.manifest.signals);
    let fields = schema.fields().iter().map(|column| {
        let name = column.name();
        let signal = card.manifest.signal(name);
        let is_image = signal.is_some_and(|signal| *signal.kind() == SignalKind::Image);
        let data_type = match column.data_type() {
            _ if is_image => "sc:ImageObject",
            DataType::UInt32 => "sc:Integer",
            DataType::Float32 | DataType::Float64 | DataType::FixedSizeList(..) => "sc:Float",
            DataType::Timestamp(..) => "sc:Date",
            _ => "sc:Text",
        };
        let mut field = json!({
            "@type": "cr:Field",
            "@id": format!("rows/{name}"),
            "name": name,
            "description": describe(card, name),
            "dataType": data_type,
            "source": {"fileSet": {"@id": "shards"}, "extract": {"column": name}},
        });
        if matches!(column.data_type(), DataType::FixedSizeList(..)) {
            field["repeated"] = true.into();
        }
        field
    });
    fields.collect()
}

/// What a column holds, in words.
pub(super) fn describe(card: &Card, column: &str) -> String {
    if let Some(signal) = card.manifest.signal(column) {
        return signal.meaning().to_owned();
    }
    let text = match column {
        "example_id" => "BLAKE3 of the example's fields, 32 hexadecimal digits",
        "draw" => "which of several replies to the same example, from 0",
        "served_model" => "the model that answered, as the server named it",
        "fingerprint" => "the server's fingerprint of its configuration",
        "finish_reason" => "why generation stopped",
        "tokens_in" => "tokens of the request",
        "tokens_out" => "tokens of the reply",
        "tries" => "requests sent for this reply",
        "latency_ms" => "milliseconds of the successful request",
        "cost" => "cost, in the currency of the configured price",
        "answered_at" => "when the reply came, UTC",
        _ => "",
    };
    text.to_owned()
}
