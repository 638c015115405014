//! Parquet files of a data set, read a batch at a time, the columns asked for only.

use std::fs::File;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type, Int64Type, UInt64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::row::{Column, Row, Rows, Value};
use crate::error::Error;
use crate::parquet_file;

const ROWS_PER_BATCH: usize = 1024;

/// Opens a Parquet file.
pub(super) fn open(path: &Path, columns: &[Column]) -> Result<Rows, Error> {
    let bad = |problem: String| Error::BadDataset {
        path: path.to_owned(),
        problem,
        hint: Some(
            "check that it is a Parquet file of text, number and truth value columns".into(),
        ),
    };
    let file = File::open(path).map_err(|source| Error::io(path, "read", source))?;
    let metadata = parquet_file::open(&file).map_err(bad)?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
    let fields = builder.schema().fields();
    let header: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
    let indices = columns
        .iter()
        .map(|column| column.find(path, &header))
        .collect::<Result<Vec<_>, _>>()?;
    for index in indices.iter().flatten() {
        let data_type = fields[*index].data_type();
        let is_list = columns
            .iter()
            .any(|column| column.is_list && column.names.contains(&header[*index]));
        if reading_type(data_type).is_none() || (is_text_list(data_type) && !is_list) {
            return Err(bad(format!("column `{}` is a {data_type}", header[*index])));
        }
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), indices.iter().flatten().copied());
    let names: Vec<Option<String>> = indices
        .iter()
        .map(|index| index.map(|index| header[index].clone()))
        .collect();
    let builder = builder
        .with_projection(mask)
        .with_batch_size(ROWS_PER_BATCH);
    let batches = parquet_file::rows(builder).map_err(bad)?;

    let path = path.to_owned();
    let mut num_rows_before = 0;
    Ok(Box::new(batches.flat_map(move |batch| {
        let rows = batch.and_then(|batch| rows_of(&batch, &names, num_rows_before));
        match rows {
            Ok(rows) => {
                num_rows_before += rows.len() as u64;
                rows.into_iter().map(Ok).collect::<Vec<_>>()
            }
            Err(error) => vec![Err(Error::BadDataset {
                path: path.clone(),
                problem: format!("the batch from row {} on: {error}", num_rows_before + 1),
                hint: Some("copy the file again from where it came, or write it again".into()),
            })],
        }
    })))
}

/// The type under which a column's values are taken; `None` where they are no text, number or truth value.
fn reading_type(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(DataType::LargeUtf8),
        DataType::Boolean | DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            Some(data_type.clone())
        }
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            Some(DataType::Int64)
        }
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            Some(DataType::UInt64)
        }
        DataType::Dictionary(_, values) => reading_type(values),
        list if is_text_list(list) => Some(DataType::new_large_list(DataType::LargeUtf8, true)),
        _ => None,
    }
}

fn is_text_list(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::List(item) | DataType::LargeList(item)
            if reading_type(item.data_type()) == Some(DataType::LargeUtf8)
    )
}

fn rows_of(
    batch: &RecordBatch,
    names: &[Option<String>],
    num_rows_before: u64,
) -> Result<Vec<Row>, String> {
    let columns = names
        .iter()
        .map(|name| {
            let Some(name) = name else { return Ok(None) };
            let column = batch.column_by_name(name).ok_or("a column is gone")?;
            let wanted = reading_type(column.data_type()).ok_or("a column changed its type")?;
            cast(column, &wanted)
                .map(Some)
                .map_err(|error| error.to_string())
        })
        .collect::<Result<Vec<Option<ArrayRef>>, String>>()?;
    Ok((0..batch.num_rows())
        .map(|row| Row {
            line: num_rows_before + row as u64 + 1,
            values: columns
                .iter()
                .map(|column| column.as_ref().and_then(|column| value(column, row)))
                .collect(),
        })
        .collect())
}

/// Numbers of 32 bits are written with the digits they need, so that 3.8 stored as f32 is `3.8` again.
fn value(column: &ArrayRef, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    // Not-a-number has no JSON text; `NaN` as a label is refused by name.
    let single = |value: f32| Value::Bare(json_number(&value, value.is_finite()));
    let double = |value: f64| Value::Bare(json_number(&value, value.is_finite()));
    Some(match column.data_type() {
        DataType::LargeUtf8 => Value::Text(column.as_string::<i64>().value(row).to_owned()),
        DataType::LargeList(_) => {
            let texts: Vec<_> = column
                .as_list::<i64>()
                .value(row)
                .as_string::<i64>()
                .iter()
                .map(|text| text.map(str::to_owned))
                .collect();
            Value::Text(serde_json::json!(texts).to_string())
        }
        DataType::Boolean => Value::Bare(column.as_boolean().value(row).to_string()),
        DataType::Int64 => Value::Bare(column.as_primitive::<Int64Type>().value(row).to_string()),
        DataType::UInt64 => Value::Bare(column.as_primitive::<UInt64Type>().value(row).to_string()),
        DataType::Float16 => single(column.as_primitive::<Float16Type>().value(row).to_f32()),
        DataType::Float32 => single(column.as_primitive::<Float32Type>().value(row)),
        _ => double(column.as_primitive::<Float64Type>().value(row)),
    })
}

fn json_number<T: serde::Serialize + std::fmt::Display>(number: &T, finite: bool) -> String {
    if finite {
        serde_json::to_string(number).expect("a finite number has a JSON text")
    } else {
        number.to_string()
    }
}
