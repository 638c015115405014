//! Parquet files from outside: data sets, features to import, lists of failures, shards.
//!
//! The reader of the `parquet` crate trusts what a file says of itself. It panics on some damaged files, where a column
//! starts before its file or the levels of a page are not those that its header promises. What this module opens is
//! checked where that is cheap; a panic that is left ends up as an error like any other. That takes a profile that unwinds,
//! as all of this workspace do.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;

/// Characters of a panic's message that an error repeats.
const MAX_MESSAGE_CHARS: usize = 200;

thread_local! {
    /// Whether this thread is inside of the decoder, where a panic means a damaged file.
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Reads the footer of a file and checks that its columns lie within the file.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub fn open<R: ChunkReader>(file: &R) -> Result<ArrowReaderMetadata, String> {
    let metadata = guarded(|| ArrowReaderMetadata::load(file, ArrowReaderOptions::new()))?;
    check_chunks(metadata.metadata(), file.len())?;
    Ok(metadata)
}

/// Reads the rows that `builder` was told to read.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub fn rows<R: ChunkReader + 'static>(
    builder: ParquetRecordBatchReaderBuilder<R>,
) -> Result<Batches, String> {
    guarded(|| builder.build()).map(|reader| Batches(Some(reader)))
}

/// The rows of a file, a batch at a time; the first error is the last item.
#[derive(Debug)]
pub struct Batches(Option<ParquetRecordBatchReader>);

impl Iterator for Batches {
    type Item = Result<RecordBatch, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.0.as_mut()?;
        let batch = guarded(|| reader.next().transpose()).transpose();
        if !matches!(batch, Some(Ok(_))) {
            self.0 = None;
        }
        batch
    }
}

/// Runs a step of the `parquet` crate; where it panics, that is its error.
///
/// Whatever the step changed must not be used again after an error.
///
/// # Errors
/// The error or the panic's message, in one line.
pub(crate) fn guarded<T, E: fmt::Display>(
    decode: impl FnOnce() -> Result<T, E>,
) -> Result<T, String> {
    keep_decoders_quiet();
    let outer = DECODING.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(outer);
    match outcome {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(payload) => Err(format!(
            "it is damaged, and its pages cannot be decoded: {}",
            message(payload.as_ref())
        )),
    }
}

/// A user is told of a damaged file once, by the error; the message and the backtrace of a panic would say that the
/// program is at fault. All other panics are reported as before.
fn keep_decoders_quiet() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // The thread's storage is gone where a panic is among the last things that it does.
            if !DECODING.try_with(Cell::get).unwrap_or(false) {
                report(info);
            }
        }));
    });
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("for a reason unknown");
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    one_line.chars().take(MAX_MESSAGE_CHARS).collect()
}

/// Whether the columns of a file lie within its `num_bytes` bytes.
fn check_chunks(metadata: &ParquetMetaData, num_bytes: u64) -> Result<(), String> {
    for (index, group) in metadata.row_groups().iter().enumerate() {
        for column in group.columns() {
            let start = column
                .dictionary_page_offset()
                .unwrap_or(column.data_page_offset());
            let end = u64::try_from(start)
                .ok()
                .zip(u64::try_from(column.compressed_size()).ok())
                .and_then(|(start, size)| start.checked_add(size));
            if end.is_none_or(|end| end > num_bytes) {
                let name = column.column_path();
                return Err(format!(
                    "column {name} of row group {index} lies outside of the file"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_decoder_is_an_error_and_says_nothing_else() {
        let problem = guarded::<(), String>(|| panic!("index 9\n  out of range")).unwrap_err();
        assert_eq!(
            problem,
            "it is damaged, and its pages cannot be decoded: index 9 out of range"
        );
        let problem = guarded::<(), String>(|| panic::panic_any(3)).unwrap_err();
        assert!(problem.ends_with("for a reason unknown"), "{problem}");
        assert!(!DECODING.get(), "panics of others are reported again");
    }
}
