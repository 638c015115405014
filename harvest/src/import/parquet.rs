//! A Parquet file with an id column and a column of vectors.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::ExampleId;
use schemas::parquet_file::{self, Batches};

use super::{ImportSummary, Missing, Sink};
use crate::config::ParquetConfig;
use crate::error::Error;
use crate::failures::shorten;
use crate::plan::Plan;

/// Characters of an id that are shown.
const MAX_KEY_CHARS: usize = 60;

pub(super) fn import(
    path: &Path,
    config: &ParquetConfig,
    plan: &Plan,
    mut sink: Sink<'_>,
) -> Result<ImportSummary, Error> {
    let table = Table { path, config };
    let wanted = plan.by_key(config.id_field.as_deref())?;
    // Equal fields make equal ids, so no id is under two keys.
    let ids = || wanted.values().flatten();
    let mut summary = ImportSummary {
        num_examples: ids().count() as u64,
        num_known: ids().filter(|&&id| sink.known().contains(&(id, 0))).count() as u64,
        ..ImportSummary::default()
    };
    summary.num_extra = table.check(&wanted, summary.num_examples, &sink)?;
    for batch in table.batches(&[&config.id_column, &config.feature_column])? {
        let batch = batch.map_err(|problem| table.bad(problem))?;
        let keys = table.keys(&batch)?;
        for (key, vector) in keys.iter().zip(table.vectors(&batch)?) {
            let Some(ids) = wanted.get(key) else { continue };
            for &id in ids {
                if !sink.known().contains(&(id, 0)) {
                    let vector = vector
                        .clone()
                        .ok_or_else(|| table.bad(format!("the feature of `{key}` is null")))?;
                    sink.add(id, vector, path)?;
                }
            }
        }
    }
    summary.num_imported = sink.finish()?;
    Ok(summary)
}

struct Table<'a> {
    path: &'a Path,
    config: &'a ParquetConfig,
}

impl Table<'_> {
    fn bad(&self, problem: String) -> Error {
        Error::BadFeature {
            path: self.path.to_owned(),
            problem,
        }
    }

    /// Reads everything once before anything is written: every example must have one row with a feature, no id two.
    /// Returns the number of rows nobody wants.
    fn check(
        &self,
        wanted: &BTreeMap<String, Vec<ExampleId>>,
        num_examples: u64,
        sink: &Sink<'_>,
    ) -> Result<u64, Error> {
        // Whether the row has a feature or a null, by id.
        let mut found: HashMap<String, bool> = HashMap::new();
        let mut num_extra = 0;
        for batch in self.batches(&[&self.config.id_column, &self.config.feature_column])? {
            let batch = batch.map_err(|problem| self.bad(problem))?;
            let features = self.features(&batch);
            for (row, key) in self.keys(&batch)?.into_iter().enumerate() {
                if !wanted.contains_key(&key) {
                    num_extra += 1;
                    continue;
                }
                match found.entry(key) {
                    Entry::Vacant(entry) => {
                        entry.insert(features.is_valid(row));
                    }
                    Entry::Occupied(entry) => {
                        let key = shorten(entry.key(), MAX_KEY_CHARS);
                        return Err(self.bad(format!("two rows have the id `{key}`")));
                    }
                }
            }
        }
        let mut missing = Missing::default();
        for (key, ids) in wanted {
            let is_unknown = |id: &&ExampleId| !sink.known().contains(&(**id, 0));
            let num_unknown = ids.iter().filter(is_unknown).count() as u64;
            let what = match found.get(key) {
                Some(true) => continue,
                Some(false) => " (null)",
                None => "",
            };
            if num_unknown > 0 {
                missing.add(num_unknown, || {
                    format!("{}{what}", shorten(key, MAX_KEY_CHARS))
                });
            }
        }
        missing.refuse(self.path, num_examples)?;
        Ok(num_extra)
    }

    fn features<'a>(&self, batch: &'a RecordBatch) -> &'a ArrayRef {
        batch
            .column_by_name(&self.config.feature_column)
            .expect("the projection holds it")
    }

    fn batches(&self, columns: &[&String]) -> Result<Batches, Error> {
        let file = File::open(self.path)
            .map_err(|source| schemas::Error::io(self.path, "read", source))?;
        let metadata = parquet_file::open(&file).map_err(|problem| self.bad(problem))?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        let names: Vec<String> = builder
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect();
        let mut roots = Vec::new();
        for &column in columns {
            match names.iter().position(|name| name == column) {
                Some(index) => roots.push(index),
                None => {
                    return Err(self.bad(format!(
                        "it has no column `{column}`; its columns are {}",
                        names.join(", ")
                    )));
                }
            }
        }
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        parquet_file::rows(builder.with_projection(mask)).map_err(|problem| self.bad(problem))
    }

    fn keys(&self, batch: &RecordBatch) -> Result<Vec<String>, Error> {
        let name = &self.config.id_column;
        let column = batch.column_by_name(name).expect("the projection holds it");
        let text = cast(column, &DataType::Utf8)
            .map_err(|error| self.bad(format!("column `{name}`: {error}")))?;
        let text = text.as_string::<i32>();
        let key = |row: usize| text.is_valid(row).then(|| text.value(row).to_owned());
        let keys = (0..text.len())
            .map(|row| key(row).ok_or_else(|| self.bad(format!("column `{name}` has a null"))));
        keys.collect()
    }

    fn vectors(&self, batch: &RecordBatch) -> Result<Vec<Option<Vec<f32>>>, Error> {
        let name = &self.config.feature_column;
        let column = self.features(batch);
        let is_list_of_floats = match column.data_type() {
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                item.data_type().is_floating()
            }
            _ => false,
        };
        if !is_list_of_floats {
            let holds = column.data_type();
            return Err(self.bad(format!("column `{name}` holds {holds}, no lists of floats")));
        }
        let of_f32 = DataType::List(Arc::new(Field::new_list_field(DataType::Float32, true)));
        let lists =
            cast(column, &of_f32).map_err(|error| self.bad(format!("column `{name}`: {error}")))?;
        let lists = lists.as_list::<i32>();
        let vector = |row: usize| -> Result<Option<Vec<f32>>, Error> {
            if lists.is_null(row) {
                return Ok(None);
            }
            let values = lists.value(row);
            if values.null_count() > 0 {
                return Err(self.bad(format!("column `{name}` has a null inside a vector")));
            }
            Ok(Some(values.as_primitive::<Float32Type>().values().to_vec()))
        };
        (0..lists.len()).map(vector).collect()
    }
}
