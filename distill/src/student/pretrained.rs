//! Weights of a Hugging Face directory: one safetensors file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use schemas::Sha256Digest;
use serde::Deserialize;

use super::architecture::Naming;
use super::weights::{self, FieldPath};
use super::{Backbone, BackboneConfig, LanguageModel, StudentError};
use crate::device::Precision;

const CONFIG_FILE: &str = "config.json";
const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// The layer that predicts the next token, as every architecture publishes it.
pub(super) const LANGUAGE_HEAD: &str = "lm_head";
const PICKLE_FILE: &str = "pytorch_model.bin";

/// What became of every tensor, by its name in the checkpoint without the trunk's prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Loaded into the student.
    pub applied: Vec<String>,
    /// Absent from the checkpoint and drawn afresh: poolers and heads, which many exports leave out.
    pub missing: Vec<String>,
    /// In the checkpoint, but no part of this student.
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
    /// Beginnings of names that the checkpoint lacks and that are drawn afresh.
    drawn: Vec<&'static str>,
    dir: PathBuf,
}

impl PretrainedFiles {
    /// Reads `config.json` and the weights of a Hugging Face directory.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is no safetensors file.
    pub fn open(dir: &Path) -> Result<Self, StudentError> {
        let config_path = dir.join(CONFIG_FILE);
        let config = std::fs::read(&config_path).map_err(StudentError::io(&config_path))?;
        let naming = BackboneConfig::from_file(&config_path)?
            .architecture()
            .naming();
        let checkpoint = Checkpoint::open(dir, naming)?;
        let files = checkpoint.shards.iter().map(|shard| &shard.bytes[..]);
        let digests: Vec<String> = std::iter::once(&config[..])
            .chain(files)
            .map(|bytes| Sha256Digest::of(bytes).to_string())
            .collect();
        let is_there = |start: &str| checkpoint.places.keys().any(|name| name.starts_with(start));
        let optional = naming.optional.iter().copied();
        Ok(Self {
            digest: Sha256Digest::of(digests.join("\n").as_bytes()),
            drawn: optional.filter(|start| !is_there(start)).collect(),
            dir: dir.to_owned(),
        })
    }

    /// What a user should know before training from it.
    pub fn warning(&self) -> Option<String> {
        let drawn: Vec<&str> = self
            .drawn
            .iter()
            .map(|start| start.trim_end_matches('.'))
            .collect();
        (!drawn.is_empty()).then(|| {
            format!(
                "student `{}` has no {}: it is drawn afresh from the run's seed",
                self.dir.display(),
                drawn.join(", ")
            )
        })
    }
}

impl Backbone {
    /// Reads `config.json` and the weights of a Hugging Face directory.
    ///
    /// `num_layers` keeps the first that many layers (BERT-6L is 6 of bert-base's 12). Weights
    /// stored as f16 or bf16 become f32. Names may carry the prefix that `transformers` gives beside a head
    /// and the older `LayerNorm.gamma` and `LayerNorm.beta`. Files are memory-mapped and read tensor by
    /// tensor, so that no second copy of the weights is held.
    ///
    /// # Errors
    ///
    /// See [`StudentError`]: nothing is guessed, every refusal names file, tensor and shapes.
    pub fn from_pretrained(
        dir: &Path,
        num_layers: Option<usize>,
        device: &Device,
    ) -> Result<(Self, LoadReport), StudentError> {
        Self::from_pretrained_as(dir, num_layers, Precision::F32, device)
    }

    /// As [`Backbone::from_pretrained`], with matrices and embeddings held in `storage`: half the memory for weights
    /// that are not trained. Biases and norms are f32 in any case.
    ///
    /// # Errors
    ///
    /// As [`Backbone::from_pretrained`].
    pub fn from_pretrained_as(
        dir: &Path,
        num_layers: Option<usize>,
        storage: Precision,
        device: &Device,
    ) -> Result<(Self, LoadReport), StudentError> {
        let config = read_config(dir, num_layers)?;
        let naming = config.architecture().naming();
        let checkpoint = Checkpoint::open(dir, naming)?;
        let mut backbone = Self::uninitialised(config, device);
        let mut filler = Filler::new(&checkpoint, naming, storage);
        backbone.trunk = backbone.trunk.map(&mut filler);
        let report = filler.finish(dir)?;
        weights::initialise(&backbone);
        Ok((backbone, report))
    }
}

impl LanguageModel {
    /// Reads `config.json` and the weights of a Hugging Face directory, as [`Backbone::from_pretrained`] does, and with
    /// them the language-model head. A head of its own that the checkpoint lacks is drawn afresh, and reported.
    ///
    /// # Errors
    ///
    /// As for a backbone, and [`StudentError::NotCausal`].
    pub fn from_pretrained(
        dir: &Path,
        num_layers: Option<usize>,
        device: &Device,
    ) -> Result<(Self, LoadReport), StudentError> {
        Self::from_pretrained_as(dir, num_layers, Precision::F32, device)
    }

    /// As [`LanguageModel::from_pretrained`], with matrices and embeddings held in `storage`; see
    /// [`Backbone::from_pretrained_as`].
    ///
    /// # Errors
    ///
    /// As [`LanguageModel::from_pretrained`].
    pub fn from_pretrained_as(
        dir: &Path,
        num_layers: Option<usize>,
        storage: Precision,
        device: &Device,
    ) -> Result<(Self, LoadReport), StudentError> {
        let config = read_config(dir, num_layers)?;
        let naming = config.architecture().naming();
        let mut model = Self::uninitialised(config, device)?;
        let checkpoint = Checkpoint::open(dir, naming)?;
        let mut filler = Filler::new(&checkpoint, naming, storage);
        model.backbone.trunk = model.backbone.trunk.map(&mut filler);
        filler.path.enter(LANGUAGE_HEAD, "");
        model.head = model.head.map(|head| head.map(&mut filler));
        filler.path.exit();
        let report = filler.finish(dir)?;
        weights::initialise(&model);
        Ok((model, report))
    }
}

fn read_config(dir: &Path, num_layers: Option<usize>) -> Result<BackboneConfig, StudentError> {
    let mut config = BackboneConfig::from_file(&dir.join(CONFIG_FILE))?;
    let architecture = config.architecture_mut();
    if let Some(requested) = num_layers {
        let available = architecture.num_layers();
        if requested == 0 || requested > available {
            return Err(StudentError::TooManyLayers {
                dir: dir.to_owned(),
                requested,
                available,
            });
        }
        architecture.keep_layers(requested);
    }
    Ok(config)
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
    bytes: Mmap,
    metadata: Metadata,
    /// Where tensor data begin in `bytes`.
    start: usize,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    fn open(dir: &Path, naming: &Naming) -> Result<Self, StudentError> {
        let single = dir.join(SINGLE_FILE);
        let index = dir.join(INDEX_FILE);
        if single.is_file() {
            Ok(Self::from_shards(vec![Shard::open(single)?], naming))
        } else if index.is_file() {
            Self::from_index(dir, &index, naming)
        } else if dir.join(PICKLE_FILE).is_file() {
            Err(StudentError::PickleOnly {
                dir: dir.to_owned(),
                class: match naming.causal {
                    Some(_) => "AutoModelForCausalLM",
                    None => "AutoModel",
                },
            })
        } else {
            Err(StudentError::NoWeights {
                dir: dir.to_owned(),
            })
        }
    }

    fn from_index(dir: &Path, index: &Path, naming: &Naming) -> Result<Self, StudentError> {
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
        Ok(Self::from_shards(shards, naming))
    }

    fn from_shards(shards: Vec<Shard>, naming: &Naming) -> Self {
        let mut places = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for stored in shard.metadata.tensors().into_keys() {
                places.insert(naming.canonical(&stored), (number, stored));
            }
        }
        for (own, beside_head) in naming.classifier.iter().flat_map(|head| head.renamed) {
            serve_from_head(&mut places, own, beside_head);
        }
        Self { shards, places }
    }

    /// Values in f32 and stored shape; `None` when the checkpoint has no such tensor.
    fn read(&self, name: &str, expected: &[usize]) -> Option<Result<Vec<f32>, StudentError>> {
        let (number, stored) = self.places.get(name)?;
        Some(self.shards[*number].read(stored, expected))
    }
}

/// Lets a trained head's layer serve as the trunk's own, as RoBERTa's `classifier.dense` does for the pooler; a
/// layer of the trunk's own that it takes the place of keeps its stored name.
fn serve_from_head(places: &mut BTreeMap<String, (usize, String)>, own: &str, beside_head: &str) {
    let names = places.keys();
    let found: Vec<String> = names
        .filter(|name| name.starts_with(beside_head))
        .cloned()
        .collect();
    for name in found {
        let place = places.remove(&name).expect("the name was just listed");
        let served = name.replacen(beside_head, own, 1);
        if let Some(replaced) = places.insert(served, place) {
            places.insert(replaced.1.clone(), replaced);
        }
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, StudentError> {
        let bytes = map(&path).map_err(StudentError::io(&path))?;
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

/// A file in memory without a copy of it.
#[expect(
    unsafe_code,
    reason = "a mapped file that another process cuts short ends this one with a signal; weights are published \
              once and not written again, and a copy of an 8B checkpoint would take 16 GB"
)]
fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = std::fs::File::open(path)?;
    // SAFETY: the map is only read, as bytes without invariants.
    unsafe { Mmap::map(&file) }
}

/// Puts checkpoint values into an uninitialised encoder and keeps the account.
struct Filler<'a> {
    path: FieldPath,
    checkpoint: &'a Checkpoint,
    naming: &'static Naming,
    storage: Precision,
    applied: BTreeSet<String>,
    missing: Vec<String>,
    error: Option<StudentError>,
}

impl<'a> Filler<'a> {
    fn new(checkpoint: &'a Checkpoint, naming: &'static Naming, storage: Precision) -> Self {
        Self {
            path: FieldPath::default(),
            checkpoint,
            naming,
            storage,
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
            .partition(|name| self.naming.is_optional(name) || name.starts_with(LANGUAGE_HEAD));
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
        let name = self.naming.published(&self.path.name());
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
        let is_table = matches!(self.path.owner(), "Linear" | "Embedding") && D == 2;
        let dtype = match self.storage {
            Precision::Bf16 if is_table => DType::BF16,
            _ => DType::F32,
        };
        let data = TensorData::new(values, shape).convert_dtype(dtype);
        let tensor = Tensor::from_data(data, (&device, dtype));
        let id = parameter.id;
        parameter.transform_for_load(tensor, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_prefixed_names_become_canonical() {
        let fields = serde_json::json!({
            "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 8, "max_position_embeddings": 8,
        });
        let fields = super::super::fields::Fields::new("test", fields.as_object().unwrap().clone());
        let config = BackboneConfig::from_fields(&fields).unwrap();
        let naming = config.architecture().naming();
        for (stored, canonical) in [
            (
                "bert.encoder.layer.0.output.LayerNorm.gamma",
                "encoder.layer.0.output.LayerNorm.weight",
            ),
            ("embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
            ("bert.pooler.dense.weight", "pooler.dense.weight"),
            ("cls.predictions.bias", "cls.predictions.bias"),
        ] {
            assert_eq!(naming.canonical(stored), canonical);
        }
    }

    #[test]
    fn transpose_swaps_axes() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(transpose(&values, 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
