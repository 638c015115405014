//! Parquet shards: an atomic writer and a verifying reader.
//!
//! A shard is committed by one rename to `<stem>-<first 16 hexadecimal digits of its SHA-256>.parquet`. Its name thus
//! tells whether its bytes are whole, names of different shards cannot collide, and nothing else has to be kept
//! consistent with the file. Its key/value metadata describes it: see [`MANIFEST_METADATA_KEY`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::Schema;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use serde::Deserialize;
use tempfile::NamedTempFile;

use crate::FORMAT_VERSION;
use crate::columns::{self, DRAW_COLUMN, ID_COLUMN, REPETITIVE_COLUMNS};
use crate::digest::DigestWriter;
use crate::error::Error;
use crate::example::ExampleId;
use crate::manifest::{Manifest, ShardEntry, make_readable, sync_folder};
use crate::parquet_file::{self, Batches};
use crate::record::TeacherRecord;
use crate::source::ShardSource;
use crate::vectors::VectorPages;

pub use crate::vectors::VectorValues;

/// Key under which a shard carries the open form of its cache's manifest as JSON, format version included.
pub const MANIFEST_METADATA_KEY: &str = "armada.manifest";

/// Rows of a page at most. Every column keeps its page and a compressor for pages of its size while a shard is written:
/// short pages keep that to about a megabyte.
const PAGE_ROWS: usize = 2_048;
/// A row group is closed once its encoded columns reach this size: large enough for sequential reads, small enough
/// that a reader of one row group stays within a few hundred megabytes.
const ROW_GROUP_BYTES: usize = 64 << 20;

const ROWS_PER_BATCH: usize = 1024;

/// Writes one shard. Dropped before [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct ShardWriter {
    folder: PathBuf,
    stem: String,
    manifest: Manifest,
    schema: Arc<Schema>,
    writer: ArrowWriter<DigestWriter<NamedTempFile>>,
    num_rows: u64,
}

impl ShardWriter {
    /// Starts a shard in `folder` that holds the signals of `manifest` and describes itself with it.
    ///
    /// # Errors
    /// [`Error::Io`] where the temporary file cannot be made.
    pub fn create(folder: &Path, stem: &str, manifest: &Manifest) -> Result<Self, Error> {
        let manifest = manifest.clone().reopened();
        let json = serde_json::to_string(&manifest).expect("a manifest has string keys only");
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(
                ZstdLevel::try_new(3).expect("3 is a zstd level"),
            ))
            .set_dictionary_enabled(false)
            .set_data_page_row_count_limit(PAGE_ROWS)
            .set_created_by(concat!("armada ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(vec![KeyValue::new(
                MANIFEST_METADATA_KEY.to_owned(),
                json,
            )]));
        for name in REPETITIVE_COLUMNS {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(name), true);
        }
        let schema = Arc::new(columns::arrow_schema(&manifest.signals));
        let file = tempfile::Builder::new()
            .prefix(".shard-")
            .suffix(".tmp")
            .tempfile_in(folder)
            .map_err(|source| Error::io(folder, "create a file in", source))?;
        let writer = ArrowWriter::try_new(
            DigestWriter::new(file),
            Arc::clone(&schema),
            Some(properties.build()),
        )
        .map_err(|error| write_error(folder, error))?;
        Ok(Self {
            folder: folder.to_owned(),
            stem: stem.to_owned(),
            manifest,
            schema,
            writer,
            num_rows: 0,
        })
    }

    /// Adds records, checked against the signals and rounded to their stored precision.
    ///
    /// # Errors
    /// [`Error::InvalidSignal`] about the first record that does not fit, in which case none of `records` is added;
    /// [`Error::Io`].
    pub fn write(&mut self, records: &[TeacherRecord]) -> Result<(), Error> {
        let specs = &self.manifest.signals;
        let fitted = records
            .iter()
            .map(|record| record.clone().fit(specs))
            .collect::<Result<Vec<_>, _>>()?;
        for chunk in fitted.chunks(ROWS_PER_BATCH) {
            self.writer
                .write(&columns::to_batch(&self.schema, specs, chunk))
                .map_err(|error| write_error(&self.folder, error))?;
            if self.writer.in_progress_size() >= ROW_GROUP_BYTES {
                self.writer
                    .flush()
                    .map_err(|error| write_error(&self.folder, error))?;
            }
        }
        self.num_rows += records.len() as u64;
        Ok(())
    }

    /// Rows added so far.
    pub fn num_rows(&self) -> u64 {
        self.num_rows
    }

    /// Commits the shard: synchronises it to the disk and renames it to its final name.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is left behind then.
    pub fn finish(self) -> Result<ShardEntry, Error> {
        let inner = self
            .writer
            .into_inner()
            .map_err(|error| write_error(&self.folder, error))?;
        let (temporary, sha256, num_bytes) = inner.finish();
        let file = format!("{}-{}.parquet", self.stem, sha256.short());
        let path = self.folder.join(&file);
        let commit = || -> std::io::Result<()> {
            make_readable(temporary.as_file())?;
            temporary.as_file().sync_all()?;
            temporary.persist(&path)?;
            sync_folder(&self.folder)
        };
        commit().map_err(|source| Error::io(&path, "write", source))?;
        Ok(ShardEntry {
            file,
            num_rows: self.num_rows,
            num_bytes,
            sha256,
        })
    }
}

/// Parquet wraps the errors of the file below it; the cause is what a user needs.
fn write_error(folder: &Path, error: ParquetError) -> Error {
    let source = match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => *source,
            Err(other) => std::io::Error::other(other),
        },
        other => std::io::Error::other(other),
    };
    Error::io(folder, "write a shard in", source)
}

/// Consecutive rows of one vector signal.
#[derive(Clone, PartialEq, Debug)]
pub struct VectorBatch {
    /// Example id and draw number of each row.
    pub keys: Vec<(ExampleId, u32)>,
    /// Elements of a vector.
    pub width: usize,
    /// `keys.len() * width` elements.
    pub values: VectorValues,
}

/// An opened shard.
#[derive(Debug)]
pub struct ShardReader {
    source: ShardSource,
    metadata: ArrowReaderMetadata,
    manifest: Manifest,
    num_rows: u64,
}

impl ShardReader {
    /// Opens a shard whose bytes match the digest in its name.
    ///
    /// # Errors
    /// [`Error::CorruptShard`], [`Error::InvalidShard`], [`Error::FormatVersion`] or [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_source(ShardSource::file(path)?)
    }

    /// Opens a shard whose bytes match the digest in its name, wherever it lies.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_source(source: ShardSource) -> Result<Self, Error> {
        let path = source.name();
        let expected = path
            .file_name()
            .and_then(OsStr::to_str)
            .and_then(digest_in_name)
            .ok_or_else(|| source.invalid("its name carries no digest"))?;
        let found = source.sha256()?;
        if found.short() != expected {
            return Err(Error::CorruptShard {
                path: path.to_owned(),
                found,
                expected: format!("sha256:{expected}..."),
            });
        }
        Self::open_source_unverified(source)
    }

    /// Opens a shard of `folder` whose bytes match the digest in the manifest.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_entry(folder: &Path, entry: &ShardEntry) -> Result<Self, Error> {
        Self::open_source_entry(ShardSource::file(&folder.join(&entry.file))?, entry)
    }

    /// Opens a shard whose bytes match the digest in the manifest, wherever it lies.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_source_entry(source: ShardSource, entry: &ShardEntry) -> Result<Self, Error> {
        let found = source.sha256()?;
        if found != entry.sha256 {
            return Err(Error::CorruptShard {
                path: source.name().to_owned(),
                found,
                expected: entry.sha256.to_string(),
            });
        }
        let reader = Self::open_source_unverified(source)?;
        if reader.num_rows != entry.num_rows {
            return Err(reader.source.invalid(format_args!(
                "it has {} rows, the manifest says {}",
                reader.num_rows, entry.num_rows
            )));
        }
        Ok(reader)
    }

    /// Opens a shard without reading more than its footer.
    ///
    /// # Errors
    /// [`Error::InvalidShard`], [`Error::FormatVersion`] or [`Error::Io`].
    pub fn open_unverified(path: &Path) -> Result<Self, Error> {
        Self::open_source_unverified(ShardSource::file(path)?)
    }

    /// Opens a shard without reading more than its footer, wherever it lies.
    ///
    /// # Errors
    /// As [`open_unverified`](Self::open_unverified).
    pub fn open_source_unverified(source: ShardSource) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let metadata = parquet_file::open(&source).map_err(|problem| source.invalid(problem))?;
        let file = metadata.metadata().file_metadata();
        let json = file
            .key_value_metadata()
            .and_then(|pairs| pairs.iter().find(|pair| pair.key == MANIFEST_METADATA_KEY))
            .and_then(|pair| pair.value.as_deref())
            .ok_or_else(|| {
                source.invalid(format_args!(
                    "it has no `{MANIFEST_METADATA_KEY}` metadata, so Armada did not write it"
                ))
            })?;
        let unreadable = |error: serde_json::Error| {
            source.invalid(format_args!(
                "its `{MANIFEST_METADATA_KEY}` metadata: {error}"
            ))
        };
        let Version { format_version } = serde_json::from_str(json).map_err(unreadable)?;
        if format_version != FORMAT_VERSION {
            return Err(Error::FormatVersion {
                path: source.name().to_owned(),
                found: format_version,
                supported: FORMAT_VERSION,
            });
        }
        let manifest: Manifest = serde_json::from_str(json).map_err(unreadable)?;
        let num_rows = u64::try_from(file.num_rows())
            .map_err(|_| source.invalid("it has a negative number of rows"))?;
        Ok(Self {
            source,
            metadata,
            manifest,
            num_rows,
        })
    }

    /// What the shard says of itself: teacher, data set and signals.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Rows in the shard.
    pub fn num_rows(&self) -> u64 {
        self.num_rows
    }

    /// The entry that a manifest has for this shard; reads the whole file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn entry(&self) -> Result<ShardEntry, Error> {
        Ok(ShardEntry {
            file: self
                .source
                .name()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            num_rows: self.num_rows,
            num_bytes: self.source.num_bytes(),
            sha256: self.source.sha256()?,
        })
    }

    /// Example id and draw number of every row; reads these two columns only.
    ///
    /// # Errors
    /// [`Error::InvalidShard`] or [`Error::Io`].
    pub fn keys(&self) -> Result<Vec<(ExampleId, u32)>, Error> {
        // The footer may say any number of rows; a shard that has them is larger.
        let mut all = Vec::with_capacity(self.num_rows.min(self.source.num_bytes()) as usize);
        for batch in self.batches(Some(&[ID_COLUMN, DRAW_COLUMN]))? {
            let batch = batch.map_err(|problem| self.invalid(problem))?;
            all.extend(columns::keys(&batch).map_err(|problem| self.invalid(problem))?);
        }
        Ok(all)
    }

    /// All records in file order, read a batch at a time.
    ///
    /// # Errors
    /// [`Error::InvalidShard`] or [`Error::Io`], here or from the iterator.
    pub fn records(
        &self,
    ) -> Result<impl Iterator<Item = Result<TeacherRecord, Error>> + '_, Error> {
        let batches = self.batches(None)?;
        Ok(batches.flat_map(|batch| {
            let records =
                batch.and_then(|batch| columns::from_batch(&self.manifest.signals, &batch));
            match records {
                Ok(records) => records.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(problem) => vec![Err(self.invalid(problem))],
            }
        }))
    }

    /// The vectors of one signal in file order, with their keys; no other column is read.
    ///
    /// # Errors
    /// [`Error::NoSuchSignal`] where the shard has no vector signal of that name; [`Error::InvalidShard`] or
    /// [`Error::Io`], here or from the iterator.
    pub fn vectors(
        &self,
        signal: &str,
    ) -> Result<impl Iterator<Item = Result<VectorBatch, Error>> + '_, Error> {
        let spec = self.manifest.signal(signal);
        let shape =
            spec.and_then(crate::SignalSpec::vector)
                .ok_or_else(|| Error::NoSuchSignal {
                    path: self.source.name().to_owned(),
                    signal: signal.to_owned(),
                    present: self
                        .manifest
                        .signals
                        .iter()
                        .map(|spec| spec.name().to_owned())
                        .collect(),
                })?;
        let (width, _) = shape;
        let mut keys = self.keys()?.into_iter();
        let mut pages = VectorPages::open(
            &self.source,
            self.metadata.metadata(),
            signal,
            shape,
            ROWS_PER_BATCH,
        )
        .map_err(|problem| self.invalid(problem))?;
        Ok(std::iter::from_fn(move || {
            let values = match pages.next() {
                Some(Ok(values)) => values,
                Some(Err(problem)) => return Some(Err(self.invalid(problem))),
                None if keys.len() == 0 => return None,
                None => {
                    let missing = keys.by_ref().count();
                    return Some(Err(self.invalid(format!("{missing} rows have no vector"))));
                }
            };
            let num_rows = values.len() / width;
            let batch_keys: Vec<_> = keys.by_ref().take(num_rows).collect();
            if batch_keys.len() < num_rows {
                return Some(Err(self.invalid("it has more vectors than rows".into())));
            }
            Some(Ok(VectorBatch {
                keys: batch_keys,
                width,
                values,
            }))
        }))
    }

    fn batches(&self, names: Option<&[&str]>) -> Result<Batches, Error> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.source.clone(),
            self.metadata.clone(),
        );
        let mask = match names {
            None => ProjectionMask::all(),
            Some(names) => {
                let fields = builder.schema().fields();
                let roots = fields
                    .iter()
                    .enumerate()
                    .filter(|(_, field)| names.contains(&field.name().as_str()));
                let roots: Vec<usize> = roots.map(|(index, _)| index).collect();
                ProjectionMask::roots(builder.parquet_schema(), roots)
            }
        };
        let builder = builder
            .with_projection(mask)
            .with_batch_size(ROWS_PER_BATCH);
        parquet_file::rows(builder).map_err(|problem| self.invalid(problem))
    }

    fn invalid(&self, problem: String) -> Error {
        self.source.invalid(problem)
    }
}

/// The leading digits of the digest that a committed shard's file name carries; `None` for the names of other files.
pub fn digest_in_name(name: &str) -> Option<&str> {
    let (_, digits) = name.strip_suffix(".parquet")?.rsplit_once('-')?;
    (digits.len() == 16
        && digits
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')))
    .then_some(digits)
}

/// The committed shards in `folder`, ordered by name.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be listed.
pub fn list_shards(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut shards = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry
                .file_name()
                .to_str()
                .and_then(digest_in_name)
                .is_some()
            {
                shards.push(entry.path());
            }
        }
        shards.sort();
        Ok(shards)
    };
    list().map_err(|source| Error::io(folder, "list", source))
}
