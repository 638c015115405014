//! The one place that maps teacher records to Arrow columns and back.
//!
//! | column | Arrow type | content |
//! |---|---|---|
//! | `example_id` | Utf8 | 32 hexadecimal digits |
//! | `draw` | UInt32 | which reply to the example this is, from 0 |
//! | a vector signal | FixedSizeList of Float16 or Float32 | never null |
//! | a token top-k signal | Binary | packed, see [`TokenTopK`] |
//! | a text signal | Utf8 | |
//! | an image signal | Binary | the encoded picture |
//! | `served_model`, `fingerprint`, `finish_reason` | Utf8, nullable | provenance |
//! | `tokens_in`, `tokens_out` | UInt32, nullable | provenance |
//! | `tries` | UInt32 | provenance |
//! | `latency_ms` | Float32, nullable | provenance |
//! | `cost` | Float64, nullable | provenance, in the currency of the configured price |
//! | `answered_at` | Timestamp in milliseconds, UTC, nullable | provenance |
//!
//! Every signal's field carries its [`SignalSpec`] as JSON under the metadata key `armada.signal`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray as _, BinaryArray, FixedSizeListArray, Float16Array, Float32Array,
    Float64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array,
};
use arrow::datatypes::{
    DataType, Field, FieldRef, Float16Type, Float32Type, Float64Type, Schema, TimeUnit,
    TimestampMillisecondType, UInt32Type,
};
use half::f16;

use crate::example::ExampleId;
use crate::record::{Provenance, SignalValue, TeacherRecord, TokenTopK};
use crate::signal::{FloatType, SignalKind, SignalSpec};

/// Metadata key of a field that holds a signal: its [`SignalSpec`] as JSON.
pub const SIGNAL_METADATA_KEY: &str = "armada.signal";

pub(crate) const ID_COLUMN: &str = "example_id";
pub(crate) const DRAW_COLUMN: &str = "draw";
/// Columns whose values repeat from row to row.
pub(crate) const REPETITIVE_COLUMNS: [&str; 3] = ["served_model", "fingerprint", "finish_reason"];

fn element_field(dtype: FloatType) -> FieldRef {
    let data_type = match dtype {
        FloatType::F16 => DataType::Float16,
        FloatType::F32 => DataType::Float32,
    };
    Arc::new(Field::new("element", data_type, false))
}

fn signal_field(spec: &SignalSpec) -> Field {
    let data_type = match spec.kind() {
        SignalKind::Feature { width, dtype } | SignalKind::ClassLogits { width, dtype } => {
            DataType::FixedSizeList(element_field(*dtype), width.cast_signed())
        }
        SignalKind::TokenTopK { .. } | SignalKind::Image => DataType::Binary,
        SignalKind::Text => DataType::Utf8,
    };
    let json = serde_json::to_string(spec).expect("a signal has string keys only");
    Field::new(spec.name(), data_type, false)
        .with_metadata(HashMap::from([(SIGNAL_METADATA_KEY.to_owned(), json)]))
}

/// The Arrow schema of a shard that holds these signals.
pub fn arrow_schema(specs: &[SignalSpec]) -> Schema {
    let mut fields = vec![
        Field::new(ID_COLUMN, DataType::Utf8, false),
        Field::new(DRAW_COLUMN, DataType::UInt32, false),
    ];
    fields.extend(specs.iter().map(signal_field));
    fields.extend([
        Field::new("served_model", DataType::Utf8, true),
        Field::new("fingerprint", DataType::Utf8, true),
        Field::new("finish_reason", DataType::Utf8, true),
        Field::new("tokens_in", DataType::UInt32, true),
        Field::new("tokens_out", DataType::UInt32, true),
        Field::new("tries", DataType::UInt32, false),
        Field::new("latency_ms", DataType::Float32, true),
        Field::new("cost", DataType::Float64, true),
        Field::new(
            "answered_at",
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            true,
        ),
    ]);
    Schema::new(fields)
}

/// Columns of `records`, each of which was fitted to `specs` ([`TeacherRecord::fit`]).
pub fn to_batch(
    schema: &Arc<Schema>,
    specs: &[SignalSpec],
    records: &[TeacherRecord],
) -> RecordBatch {
    let text = |of: fn(&Provenance) -> &Option<String>| -> ArrayRef {
        Arc::new(
            records
                .iter()
                .map(|r| of(&r.provenance).as_deref())
                .collect::<StringArray>(),
        )
    };
    let count = |of: fn(&Provenance) -> Option<u32>| -> ArrayRef {
        Arc::new(
            records
                .iter()
                .map(|r| of(&r.provenance))
                .collect::<UInt32Array>(),
        )
    };
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(
            records.iter().map(|r| r.id.to_string()),
        )),
        Arc::new(UInt32Array::from_iter_values(
            records.iter().map(|r| r.draw),
        )),
    ];
    columns.extend(specs.iter().map(|spec| signal_column(spec, records)));
    columns.extend([
        text(|p| &p.served_model),
        text(|p| &p.fingerprint),
        text(|p| &p.finish_reason),
        count(|p| p.tokens_in),
        count(|p| p.tokens_out),
        Arc::new(UInt32Array::from_iter_values(
            records.iter().map(|r| r.provenance.tries),
        )),
        Arc::new(
            records
                .iter()
                .map(|r| r.provenance.latency_ms)
                .collect::<Float32Array>(),
        ),
        Arc::new(
            records
                .iter()
                .map(|r| r.provenance.cost)
                .collect::<Float64Array>(),
        ),
        Arc::new(
            records
                .iter()
                .map(|r| r.provenance.answered_at)
                .collect::<TimestampMillisecondArray>()
                .with_timezone("UTC"),
        ),
    ]);
    RecordBatch::try_new(Arc::clone(schema), columns)
        .expect("fitted records match the schema of their signals")
}

fn signal_column(spec: &SignalSpec, records: &[TeacherRecord]) -> ArrayRef {
    let values = records.iter().map(|record| &record.signals[spec.name()]);
    if let Some((width, dtype)) = spec.vector() {
        let elements = values.flat_map(|value| match value {
            SignalValue::Vector(vector) => vector.iter().copied(),
            other => unreachable!("a fitted record holds a vector here, not {other:?}"),
        });
        let elements: ArrayRef = match dtype {
            FloatType::F16 => Arc::new(Float16Array::from_iter_values(elements.map(f16::from_f32))),
            FloatType::F32 => Arc::new(Float32Array::from_iter_values(elements)),
        };
        let width = i32::try_from(width).expect("widths are far below 2^31");
        return Arc::new(FixedSizeListArray::new(
            element_field(dtype),
            width,
            elements,
            None,
        ));
    }
    match spec.kind() {
        SignalKind::Text => Arc::new(StringArray::from_iter_values(values.map(
            |value| match value {
                SignalValue::Text(text) => text,
                other => unreachable!("a fitted record holds text here, not {other:?}"),
            },
        ))),
        _ => Arc::new(BinaryArray::from_iter_values(values.map(
            |value| match value {
                SignalValue::TokenTopK(top_k) => top_k.to_bytes(),
                SignalValue::Image(bytes) => bytes.clone(),
                other => unreachable!("a fitted record holds bytes here, not {other:?}"),
            },
        ))),
    }
}

/// A column of `batch` under the type that `read` wants.
fn column<'a, T>(
    batch: &'a RecordBatch,
    name: &str,
    read: impl Fn(&'a dyn Array) -> Option<&'a T>,
) -> Result<&'a T, String> {
    let column = batch
        .column_by_name(name)
        .ok_or_else(|| format!("column `{name}` is missing"))?;
    read(column.as_ref()).ok_or_else(|| format!("column `{name}` is a {}", column.data_type()))
}

/// As [`column`], `None` where there is no such column.
fn optional_column<'a, T>(
    batch: &'a RecordBatch,
    name: &str,
    read: impl Fn(&'a dyn Array) -> Option<&'a T>,
) -> Result<Option<&'a T>, String> {
    if batch.column_by_name(name).is_none() {
        return Ok(None);
    }
    column(batch, name, read).map(Some)
}

/// Example id and draw number of every row.
///
/// # Errors
/// A sentence that names the column that cannot be read.
pub fn keys(batch: &RecordBatch) -> Result<Vec<(ExampleId, u32)>, String> {
    let ids = column(batch, ID_COLUMN, |array| array.as_string_opt::<i32>())?;
    let draws = column(batch, DRAW_COLUMN, |array| {
        array.as_primitive_opt::<UInt32Type>()
    })?;
    (0..batch.num_rows())
        .map(|row| match ids.value(row).parse() {
            Ok(id) => Ok((id, draws.value(row))),
            Err(error) => Err(format!("column `{ID_COLUMN}`, row {row}: {error}")),
        })
        .collect()
}

/// The flat elements of a vector column, without copying them.
///
/// # Errors
/// A sentence that says what about the column is wrong.
pub fn vector_elements(batch: &RecordBatch, name: &str, width: usize) -> Result<ArrayRef, String> {
    let list = column(batch, name, |array| array.as_fixed_size_list_opt())?;
    if usize::try_from(list.value_length()) != Ok(width) {
        return Err(format!(
            "column `{name}` is {} wide, the signal says {width}",
            list.value_length()
        ));
    }
    if list.null_count() > 0 {
        return Err(format!(
            "column `{name}` has {} null vectors",
            list.null_count()
        ));
    }
    Ok(list
        .values()
        .slice(list.offset() * width, list.len() * width))
}

/// Records of a batch that was read with every column.
///
/// # Errors
/// A sentence that says what about the batch is wrong.
pub fn from_batch(specs: &[SignalSpec], batch: &RecordBatch) -> Result<Vec<TeacherRecord>, String> {
    let text = |name: &str| column(batch, name, |array| array.as_string_opt::<i32>());
    let count = |name: &str| column(batch, name, |array| array.as_primitive_opt::<UInt32Type>());
    let (served_model, fingerprint, finish_reason) = (
        text("served_model")?,
        text("fingerprint")?,
        text("finish_reason")?,
    );
    let (tokens_in, tokens_out, tries) =
        (count("tokens_in")?, count("tokens_out")?, count("tries")?);
    let latency_ms = column(batch, "latency_ms", |array| {
        array.as_primitive_opt::<Float32Type>()
    })?;
    // Shards written before these two columns came have none.
    let cost = optional_column(batch, "cost", |array| {
        array.as_primitive_opt::<Float64Type>()
    })?;
    let answered_at = optional_column(batch, "answered_at", |array| {
        array.as_primitive_opt::<TimestampMillisecondType>()
    })?;

    let mut records: Vec<TeacherRecord> = keys(batch)?
        .into_iter()
        .enumerate()
        .map(|(row, (id, draw))| TeacherRecord {
            id,
            draw,
            signals: BTreeMap::new(),
            provenance: Provenance {
                served_model: optional_text(served_model, row),
                fingerprint: optional_text(fingerprint, row),
                finish_reason: optional_text(finish_reason, row),
                tokens_in: tokens_in.is_valid(row).then(|| tokens_in.value(row)),
                tokens_out: tokens_out.is_valid(row).then(|| tokens_out.value(row)),
                tries: tries.value(row),
                latency_ms: latency_ms.is_valid(row).then(|| latency_ms.value(row)),
                cost: cost.filter(|c| c.is_valid(row)).map(|c| c.value(row)),
                answered_at: answered_at
                    .filter(|c| c.is_valid(row))
                    .map(|c| c.value(row)),
            },
        })
        .collect();
    for spec in specs {
        for (record, value) in records.iter_mut().zip(signal_values(spec, batch)?) {
            record.signals.insert(spec.name().to_owned(), value);
        }
    }
    Ok(records)
}

fn optional_text(column: &StringArray, row: usize) -> Option<String> {
    column.is_valid(row).then(|| column.value(row).to_owned())
}

fn signal_values(spec: &SignalSpec, batch: &RecordBatch) -> Result<Vec<SignalValue>, String> {
    let name = spec.name();
    if let Some((width, _)) = spec.vector() {
        let elements = elements_to_f32(vector_elements(batch, name, width)?.as_ref())
            .ok_or_else(|| format!("column `{name}` holds no floats of 16 or 32 bits"))?;
        return Ok(elements
            .chunks_exact(width)
            .map(|vector| SignalValue::Vector(vector.to_vec()))
            .collect());
    }
    let rows = 0..batch.num_rows();
    if *spec.kind() == SignalKind::Text {
        let texts = column(batch, name, |array| array.as_string_opt::<i32>())?;
        return Ok(rows
            .map(|row| SignalValue::Text(texts.value(row).to_owned()))
            .collect());
    }
    let bytes = column(batch, name, |array| array.as_binary_opt::<i32>())?;
    if *spec.kind() == SignalKind::Image {
        return Ok(rows
            .map(|row| SignalValue::Image(bytes.value(row).to_vec()))
            .collect());
    }
    rows.map(|row| {
        TokenTopK::from_bytes(bytes.value(row))
            .map(SignalValue::TokenTopK)
            .ok_or_else(|| {
                format!("column `{name}`, row {row}: the packed top-k does not follow its layout")
            })
    })
    .collect()
}

pub(crate) fn elements_to_f32(elements: &dyn Array) -> Option<Vec<f32>> {
    if let Some(halves) = elements.as_primitive_opt::<Float16Type>() {
        return Some(halves.values().iter().map(|value| value.to_f32()).collect());
    }
    Some(
        elements
            .as_primitive_opt::<Float32Type>()?
            .values()
            .to_vec(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_without_the_later_columns_read_as_silent_about_them() {
        let record = TeacherRecord {
            id: ExampleId::from([7; 16]),
            draw: 0,
            signals: BTreeMap::from([("text".to_owned(), SignalValue::Text("said".into()))]),
            provenance: Provenance {
                tokens_in: Some(3),
                cost: Some(0.5),
                answered_at: Some(1_767_225_600_250),
                tries: 1,
                ..Provenance::default()
            },
        };
        let specs = [SignalSpec::new("text", SignalKind::Text, "said").unwrap()];
        let schema = Arc::new(arrow_schema(&specs));
        let batch = to_batch(&schema, &specs, std::slice::from_ref(&record));
        assert_eq!(
            from_batch(&specs, &batch).unwrap(),
            std::slice::from_ref(&record)
        );

        let early: Vec<usize> = (0..schema.fields().len())
            .filter(|index| {
                !["cost", "answered_at"].contains(&schema.field(*index).name().as_str())
            })
            .collect();
        let batch = batch.project(&early).unwrap();
        assert_eq!(batch.num_columns(), schema.fields().len() - 2);
        let mut silent = record;
        silent.provenance.cost = None;
        silent.provenance.answered_at = None;
        assert_eq!(from_batch(&specs, &batch).unwrap(), [silent]);
    }
}
