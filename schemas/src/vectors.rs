//! Vectors straight from the pages of a shard.
//!
//! A vector signal is a list of fixed size without nulls, stored PLAIN in data pages of version 1: repetition levels,
//! definition levels, then the little-endian elements one after the other. The general Arrow reader materialises a
//! level for every element; here the levels are checked run by run and the elements are copied.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::SerializedPageReader;

use crate::parquet_file::guarded;
use crate::signal::FloatType;
use crate::source::ShardSource;

/// The elements of a batch of vectors, row by row.
#[derive(Clone, PartialEq, Debug)]
pub enum VectorValues {
    /// Half precision.
    F16(Vec<f16>),
    /// Single precision.
    F32(Vec<f32>),
}

impl VectorValues {
    /// The elements in single precision.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
            Self::F32(values) => values.clone(),
        }
    }

    fn with_capacity(dtype: FloatType, capacity: usize) -> Self {
        match dtype {
            FloatType::F16 => Self::F16(Vec::with_capacity(capacity)),
            FloatType::F32 => Self::F32(Vec::with_capacity(capacity)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    fn extend_from_le_bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::F16(values) => {
                values.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)));
            }
            Self::F32(values) => {
                values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
            }
        }
    }

    /// Removes and returns everything from `at` on.
    fn split_off(&mut self, at: usize) -> Self {
        match self {
            Self::F16(values) => Self::F16(values.split_off(at)),
            Self::F32(values) => Self::F32(values.split_off(at)),
        }
    }
}

/// Reads one vector column, some whole rows at a time.
pub(crate) struct VectorPages {
    source: Arc<ShardSource>,
    metadata: Arc<ParquetMetaData>,
    column: usize,
    width: usize,
    dtype: FloatType,
    rows_per_batch: usize,
    groups: Range<usize>,
    pages: Option<SerializedPageReader<ShardSource>>,
    /// Elements read from the current row group so far: where the next page goes on.
    position: usize,
    pending: VectorValues,
}

impl VectorPages {
    /// Opens the column of the vector signal `name`.
    ///
    /// # Errors
    /// A sentence that says how the file differs from what a shard is.
    pub(crate) fn open(
        source: &ShardSource,
        metadata: &Arc<ParquetMetaData>,
        name: &str,
        (width, dtype): (usize, FloatType),
        rows_per_batch: usize,
    ) -> Result<Self, String> {
        let schema = metadata.file_metadata().schema_descr();
        let mut leaves = schema.columns().iter();
        let column = leaves
            .position(|leaf| leaf.path().parts().first().is_some_and(|root| root == name))
            .ok_or_else(|| format!("column `{name}` is missing"))?;
        let leaf = schema.column(column);
        let stored = match leaf.physical_type() {
            Type::FIXED_LEN_BYTE_ARRAY if leaf.type_length() == 2 => Some(FloatType::F16),
            Type::FLOAT => Some(FloatType::F32),
            _ => None,
        };
        if stored != Some(dtype) || (leaf.max_rep_level(), leaf.max_def_level()) != (1, 1) {
            return Err(format!(
                "column `{name}` does not hold lists of {dtype:?} without nulls"
            ));
        }
        Ok(Self {
            column,
            width,
            dtype,
            rows_per_batch,
            groups: 0..metadata.num_row_groups(),
            source: Arc::new(source.clone()),
            metadata: Arc::clone(metadata),
            pages: None,
            position: 0,
            pending: VectorValues::with_capacity(dtype, 0),
        })
    }

    /// Whole rows, at least `rows_per_batch` of them unless they are the last; `None` at the end.
    fn next_rows(&mut self) -> Result<Option<VectorValues>, String> {
        let wanted = self.rows_per_batch * self.width;
        while self.pending.len() < wanted {
            let Some(page) = self.next_page()? else { break };
            let elements = self.elements(&page)?;
            if self.pending.len() == 0 {
                // A page more than wanted, so that the rest of this batch is appended in place.
                let size = self.element_size();
                self.pending =
                    VectorValues::with_capacity(self.dtype, wanted + elements.len() / size);
            }
            self.pending.extend_from_le_bytes(elements);
        }
        let whole = self.pending.len() - self.pending.len() % self.width;
        let rest = self.pending.split_off(whole);
        let rows = std::mem::replace(&mut self.pending, rest);
        match (rows.len(), self.pending.len()) {
            (0, 0) => Ok(None),
            (0, rest) => Err(format!(
                "the last vector has {rest} elements of {}",
                self.width
            )),
            _ => Ok(Some(rows)),
        }
    }

    fn element_size(&self) -> usize {
        match self.dtype {
            FloatType::F16 => 2,
            FloatType::F32 => 4,
        }
    }

    fn next_page(&mut self) -> Result<Option<Page>, String> {
        loop {
            if let Some(pages) = &mut self.pages {
                if let Some(page) = guarded(|| pages.get_next_page())? {
                    return Ok(Some(page));
                }
                if !self.position.is_multiple_of(self.width) {
                    return Err("a row group ends inside a vector".into());
                }
            }
            let Some(group) = self.groups.next() else {
                return Ok(None);
            };
            let group = self.metadata.row_group(group);
            let num_rows = usize::try_from(group.num_rows()).map_err(|error| error.to_string())?;
            let pages = guarded(|| {
                SerializedPageReader::new(
                    Arc::clone(&self.source),
                    group.column(self.column),
                    num_rows,
                    None,
                )
            });
            self.pages = Some(pages?);
            self.position = 0;
        }
    }

    /// The bytes of a page's elements, once its levels are seen to be those of vectors of the right width.
    fn elements<'a>(&mut self, page: &'a Page) -> Result<&'a [u8], String> {
        let Page::DataPage {
            buf,
            num_values,
            encoding: Encoding::PLAIN,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            ..
        } = page
        else {
            return Err(format!(
                "a {:?} page of {:?} values",
                page.page_type(),
                page.encoding()
            ));
        };
        let num_values = *num_values as usize;
        let mut rest: &[u8] = buf;
        let (start, width) = (self.position, self.width);
        let repetition = take_levels(&mut rest).ok_or("a page ends inside its levels")?;
        let definition = take_levels(&mut rest).ok_or("a page ends inside its levels")?;
        // A vector starts where the repetition level is 0, and 1 continues it.
        let same_width = check_runs(repetition, num_values, |run, level| {
            let at = (start + run.start) % width;
            match level {
                0 => at == 0 && (run.len() == 1 || width == 1),
                _ => at > 0 && at + run.len() <= width,
            }
        });
        if !same_width {
            return Err(format!("a vector is not {width} wide"));
        }
        if !check_runs(definition, num_values, |_, level| level == 1) {
            return Err("a vector is null or empty".into());
        }
        if rest.len() != num_values * self.element_size() {
            return Err(format!("{} bytes for {num_values} elements", rest.len()));
        }
        self.position += num_values;
        Ok(rest)
    }
}

impl Iterator for VectorPages {
    type Item = Result<VectorValues, String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_rows().transpose()
    }
}

/// The levels at the start of a page: their size in bytes (u32, little endian), then the runs.
fn take_levels<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (size, after) = rest.split_first_chunk::<4>()?;
    let (levels, after) = after.split_at_checked(u32::from_le_bytes(*size) as usize)?;
    *rest = after;
    Some(levels)
}

/// Whether `accept` holds for every run of levels of one bit in Parquet's hybrid of run-length and bit-packed coding,
/// and the runs cover `num_values` exactly.
fn check_runs(
    mut bytes: &[u8],
    num_values: usize,
    accept: impl Fn(Range<usize>, u8) -> bool,
) -> bool {
    let mut position = 0;
    while position < num_values {
        let Some(header) = take_varint(&mut bytes) else {
            return false;
        };
        let count = header >> 1;
        if header & 1 == 0 {
            let Some((level, rest)) = bytes.split_first() else {
                return false;
            };
            bytes = rest;
            let end = position + count;
            if count == 0 || end > num_values || !accept(position..end, *level) {
                return false;
            }
            position = end;
        } else {
            let Some((packed, rest)) = bytes.split_at_checked(count) else {
                return false;
            };
            bytes = rest;
            // The last group is padded to eight.
            let levels = packed
                .iter()
                .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1));
            for level in levels.take(num_values - position) {
                if !accept(position..position + 1, level) {
                    return false;
                }
                position += 1;
            }
            if count == 0 {
                return false;
            }
        }
    }
    true
}

/// An unsigned number of at most 32 bits in groups of seven bits, the lowest first.
fn take_varint(bytes: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_seen_whole() {
        // Three of level 1 in a run, then a bit-packed group: 0 1 0 and padding.
        let bytes = [3 << 1, 1, 3, 0b010];
        let seen = std::cell::RefCell::new(Vec::new());
        let all = |run: Range<usize>, level| {
            seen.borrow_mut().push((run, level));
            true
        };
        assert!(check_runs(&bytes, 6, all));
        assert_eq!(seen.take(), [(0..3, 1), (3..4, 0), (4..5, 1), (5..6, 0)]);
        assert!(
            !check_runs(&bytes, 2, |_, _| true),
            "a run is longer than the page"
        );
        assert!(
            !check_runs(&bytes[..2], 4, |_, _| true),
            "the runs end early"
        );
        assert!(!check_runs(&bytes, 6, |_, level| level == 1));
    }

    #[test]
    fn long_runs_have_headers_of_several_bytes() {
        // 1016 << 1 = 2032 = 0x7f0.
        assert!(check_runs(&[0xf0, 0x0f, 1], 1016, |run, level| (
            run, level
        ) == (
            0..1016,
            1
        )));
        assert_eq!(take_varint(&mut [0x80_u8; 6].as_slice()), None);
    }
}
