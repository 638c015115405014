//! The weight files of a Hugging Face directory: one safetensors file, or several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::mapped::map;
use crate::student::StudentError;
use crate::student::architecture::Naming;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// All weights in one, and the index of several.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// The weight files of one directory, indexed by canonical name.
pub(super) struct Checkpoint {
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
    pub(super) fn open(dir: &Path, naming: &Naming) -> Result<Self, StudentError> {
        let single = dir.join(SINGLE_FILE);
        let index = dir.join(INDEX_FILE);
        let pickle = PICKLES.into_iter().find(|file| dir.join(file).is_file());
        if single.is_file() {
            Ok(Self::from_shards(vec![Shard::open(single)?], naming))
        } else if index.is_file() {
            Self::from_index(dir, &index, naming)
        } else if let Some(file) = pickle {
            Err(StudentError::PickleOnly {
                dir: dir.to_owned(),
                file,
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

    /// Names of all tensors, without the trunk's prefix.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.places.keys()
    }

    /// The weight files as they are.
    pub(super) fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.shards.iter().map(|shard| &shard.bytes[..])
    }

    /// Values in f32 and stored shape; `None` when the checkpoint has no such tensor.
    pub(super) fn read(
        &self,
        name: &str,
        expected: &[usize],
    ) -> Option<Result<Vec<f32>, StudentError>> {
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
        let bytes = File::open(&path)
            .and_then(|file| map(&file))
            .map_err(StudentError::io(&path))?;
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
