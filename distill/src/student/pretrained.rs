//! BERT weights of a Hugging Face directory: one safetensors file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use schemas::Sha256Digest;
use serde::Deserialize;

use super::weights::{self, FieldPath};
use super::{BertConfig, Encoder, StudentError};

const CONFIG_FILE: &str = "config.json";
const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const PICKLE_FILE: &str = "pytorch_model.bin";

/// What became of every tensor, by its name in the checkpoint without the `bert.` prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Loaded into the encoder.
    pub applied: Vec<String>,
    /// Absent from the checkpoint and drawn afresh: the pooler, which many exports leave out.
    pub missing: Vec<String>,
    /// In the checkpoint, but no part of this encoder.
    pub unused: Vec<String>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} tensors loaded", self.applied.len())?;
        if !self.missing.is_empty() {
            write!(
                formatter,
                "; newly initialised: {}",
                self.missing.join(", ")
            )?;
        }
        if !self.unused.is_empty() {
            write!(formatter, "; unused: {}", self.unused.join(", "))?;
        }
        Ok(())
    }
}

/// What a student's directory holds, without building the student.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PretrainedFiles {
    /// SHA-256 over `config.json` and the weight files.
    pub digest: Sha256Digest,
    has_pooler: bool,
    dir: PathBuf,
}

impl PretrainedFiles {
    /// Reads `config.json` and the weights of a Hugging Face BERT directory.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is no safetensors file.
    pub fn open(dir: &Path) -> Result<Self, StudentError> {
        let config_path = dir.join(CONFIG_FILE);
        let config = std::fs::read(&config_path).map_err(StudentError::io(&config_path))?;
        let checkpoint = Checkpoint::open(dir)?;
        let files = checkpoint.shards.iter().map(|shard| &shard.bytes);
        let digests: Vec<String> = std::iter::once(&config)
            .chain(files)
            .map(|bytes| Sha256Digest::of(bytes).to_string())
            .collect();
        let has = |name: &str| checkpoint.places.contains_key(name);
        Ok(Self {
            digest: Sha256Digest::of(digests.join("\n").as_bytes()),
            has_pooler: has("pooler.dense.weight") && has("pooler.dense.bias"),
            dir: dir.to_owned(),
        })
    }

    /// What a user should know before training from it.
    pub fn warning(&self) -> Option<String> {
        (!self.has_pooler).then(|| {
            format!(
                "student `{}` has no pooler: it is drawn afresh from the run's seed",
                self.dir.display()
            )
        })
    }
}

impl Encoder {
    /// Reads `config.json` and the weights of a Hugging Face BERT directory.
    ///
    /// `num_layers` keeps the first that many layers (BERT-6L is 6 of bert-base's 12). Weights
    /// stored as f16 or bf16 become f32. Names may carry the prefix `bert.` and the older
    /// `LayerNorm.gamma` and `LayerNorm.beta`.
    ///
    /// # Errors
    ///
    /// See [`StudentError`]: nothing is guessed, every refusal names file, tensor and shapes.
    pub fn from_pretrained(
        dir: &Path,
        num_layers: Option<usize>,
        device: &Device,
    ) -> Result<(Self, LoadReport), StudentError> {
        let mut config = BertConfig::from_file(&dir.join(CONFIG_FILE))?;
        if let Some(requested) = num_layers {
            if requested == 0 || requested > config.num_layers {
                return Err(StudentError::TooManyLayers {
                    dir: dir.to_owned(),
                    requested,
                    available: config.num_layers,
                });
            }
            config.num_layers = requested;
        }
        let checkpoint = Checkpoint::open(dir)?;
        let mut filler = Filler::new(&checkpoint);
        let encoder = Self::uninitialised(config, device).map(&mut filler);
        let report = filler.finish(dir)?;
        weights::initialise(&encoder);
        Ok((encoder, report))
    }
}

/// The name that `transformers` gives to a field path of [`Encoder`].
pub(super) fn hugging_face_name(path: &str) -> String {
    path.replace("self_attention", "self")
        .replace("layer_norm", "LayerNorm")
}

/// `PyTorch` stores a linear layer's matrix as `[output, input]`, burn as `[input, output]`.
pub(super) fn is_transposed(owner: &str, num_axes: usize) -> bool {
    owner == "Linear" && num_axes == 2
}

/// Swaps the axes of a row-major `[rows, columns]` matrix.
pub(super) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut transposed = Vec::with_capacity(values.len());
    for column in 0..columns {
        transposed.extend((0..rows).map(|row| values[row * columns + column]));
    }
    transposed
}

/// The weight files of one directory, indexed by canonical name.
struct Checkpoint {
    shards: Vec<Shard>,
    /// Canonical name to shard number and stored name.
    places: BTreeMap<String, (usize, String)>,
}

struct Shard {
    path: PathBuf,
    bytes: Vec<u8>,
    metadata: Metadata,
    /// Where tensor data begin in `bytes`.
    start: usize,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    fn open(dir: &Path) -> Result<Self, StudentError> {
        let single = dir.join(SINGLE_FILE);
        let index = dir.join(INDEX_FILE);
        if single.is_file() {
            Ok(Self::from_shards(vec![Shard::open(single)?]))
        } else if index.is_file() {
            Self::from_index(dir, &index)
        } else if dir.join(PICKLE_FILE).is_file() {
            Err(StudentError::PickleOnly {
                dir: dir.to_owned(),
            })
        } else {
            Err(StudentError::NoWeights {
                dir: dir.to_owned(),
            })
        }
    }

    fn from_index(dir: &Path, index: &Path) -> Result<Self, StudentError> {
        let text = std::fs::read_to_string(index).map_err(StudentError::io(index))?;
        let ShardIndex { weight_map } =
            serde_json::from_str(&text).map_err(StudentError::json(index))?;
        let files: BTreeSet<&String> = weight_map.values().collect();
        let shards = files
            .into_iter()
            .map(|file| Shard::open(dir.join(file)))
            .collect::<Result<Vec<_>, _>>()?;
        for (name, file) in &weight_map {
            let shard = shards.iter().find(|shard| shard.path == dir.join(file));
            if let Some(shard) = shard
                && shard.metadata.info(name).is_none()
            {
                let (path, name) = (shard.path.clone(), name.clone());
                return Err(StudentError::IndexedTensorMissing { path, name });
            }
        }
        Ok(Self::from_shards(shards))
    }

    fn from_shards(shards: Vec<Shard>) -> Self {
        let mut places = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for stored in shard.metadata.tensors().into_keys() {
                places.insert(canonical_name(&stored), (number, stored));
            }
        }
        Self { shards, places }
    }

    /// Values in f32 and stored shape; `None` when the checkpoint has no such tensor.
    fn read(&self, name: &str, expected: &[usize]) -> Option<Result<Vec<f32>, StudentError>> {
        let (number, stored) = self.places.get(name)?;
        Some(self.shards[*number].read(stored, expected))
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, StudentError> {
        let bytes = std::fs::read(&path).map_err(StudentError::io(&path))?;
        let (header, metadata) = match SafeTensors::read_metadata(&bytes) {
            Ok(parsed) => parsed,
            Err(source) => return Err(StudentError::Safetensors { path, source }),
        };
        Ok(Self {
            path,
            bytes,
            metadata,
            start: size_of::<u64>() + header,
        })
    }

    fn read(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, StudentError> {
        let info = self
            .metadata
            .info(name)
            .expect("the index lists tensors of this shard");
        if info.shape != expected {
            return Err(StudentError::ShapeMismatch {
                path: self.path.clone(),
                name: name.to_owned(),
                expected: expected.to_vec(),
                found: info.shape.clone(),
            });
        }
        let (begin, end) = info.data_offsets;
        let bytes = &self.bytes[self.start + begin..self.start + end];
        match info.dtype {
            Dtype::F32 => Ok(decode(bytes, f32::from_le_bytes)),
            Dtype::F16 => Ok(decode(bytes, |pair| f16::from_le_bytes(pair).to_f32())),
            Dtype::BF16 => Ok(decode(bytes, |pair| bf16::from_le_bytes(pair).to_f32())),
            other => Err(StudentError::UnsupportedDtype {
                path: self.path.clone(),
                name: name.to_owned(),
                dtype: format!("{other:?}"),
            }),
        }
    }
}

fn decode<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| value(*chunk)).collect()
}

fn canonical_name(stored: &str) -> String {
    let name = stored.strip_prefix("bert.").unwrap_or(stored);
    match name.strip_suffix("LayerNorm.gamma") {
        Some(prefix) => format!("{prefix}LayerNorm.weight"),
        None => match name.strip_suffix("LayerNorm.beta") {
            Some(prefix) => format!("{prefix}LayerNorm.bias"),
            None => name.to_owned(),
        },
    }
}

/// Puts checkpoint values into an uninitialised encoder and keeps the account.
struct Filler<'a> {
    path: FieldPath,
    checkpoint: &'a Checkpoint,
    applied: BTreeSet<String>,
    missing: Vec<String>,
    error: Option<StudentError>,
}

impl<'a> Filler<'a> {
    fn new(checkpoint: &'a Checkpoint) -> Self {
        Self {
            path: FieldPath::default(),
            checkpoint,
            applied: BTreeSet::new(),
            missing: Vec::new(),
            error: None,
        }
    }

    fn finish(self, dir: &Path) -> Result<LoadReport, StudentError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let (missing, trunk): (Vec<_>, Vec<_>) = self
            .missing
            .into_iter()
            .partition(|name| name.starts_with("pooler."));
        if !trunk.is_empty() {
            return Err(StudentError::MissingWeights {
                dir: dir.to_owned(),
                names: trunk,
            });
        }
        let names = self.checkpoint.places.keys();
        let unused = names
            .filter(|name| !self.applied.contains(*name))
            .cloned()
            .collect();
        Ok(LoadReport {
            applied: self.applied.into_iter().collect(),
            missing,
            unused,
        })
    }

    /// Values for the current field, in the module's own layout.
    fn read(&mut self, shape: &[usize]) -> Option<Vec<f32>> {
        let name = hugging_face_name(&self.path.name());
        let transposed = is_transposed(self.path.owner(), shape.len());
        let stored_shape: Vec<usize> = if transposed {
            shape.iter().rev().copied().collect()
        } else {
            shape.to_vec()
        };
        match self.checkpoint.read(&name, &stored_shape) {
            None => {
                self.missing.push(name);
                None
            }
            Some(Err(error)) => {
                self.error.get_or_insert(error);
                None
            }
            Some(Ok(values)) => {
                self.applied.insert(name);
                Some(if transposed {
                    transpose(&values, shape[1], shape[0])
                } else {
                    values
                })
            }
        }
    }
}

impl ModuleMapper for Filler<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = parameter.lazy_shape().to_vec();
        let Some(values) = self.read(&shape) else {
            return parameter;
        };
        let device = parameter.lazy_device();
        let tensor = Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32));
        let id = parameter.id;
        parameter.transform_for_load(tensor, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_prefixed_names_become_canonical() {
        for (stored, canonical) in [
            (
                "bert.encoder.layer.0.output.LayerNorm.gamma",
                "encoder.layer.0.output.LayerNorm.weight",
            ),
            ("embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
            ("bert.pooler.dense.weight", "pooler.dense.weight"),
            ("cls.predictions.bias", "cls.predictions.bias"),
        ] {
            assert_eq!(canonical_name(stored), canonical);
        }
    }

    #[test]
    fn transpose_swaps_axes() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(transpose(&values, 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
