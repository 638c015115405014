//! Weights of a Hugging Face directory: one safetensors file, or shards with an index.

mod filler;
mod shards;

use std::fmt;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use schemas::Sha256Digest;

use self::filler::Filler;
use self::shards::Checkpoint;
use super::architecture::Naming;
use super::{Backbone, BackboneConfig, LanguageModel, StudentError, weights};
use crate::device::Precision;

const CONFIG_FILE: &str = "config.json";
/// The layer that predicts the next token, as every architecture publishes it.
pub(super) const LANGUAGE_HEAD: &str = "lm_head";

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
        let digests: Vec<String> = std::iter::once(&config[..])
            .chain(checkpoint.files())
            .map(|bytes| Sha256Digest::of(bytes).to_string())
            .collect();
        let is_there = |start: &str| checkpoint.names().any(|name| name.starts_with(start));
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
        let mut backbone = Self::uninitialised(config, device);
        filled(dir, naming, storage, |filler| {
            backbone.trunk = backbone.trunk.map(filler);
            backbone
        })
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
        filled(dir, naming, storage, |filler| {
            model.backbone.trunk = model.backbone.trunk.map(filler);
            model.head = model.head.map(|head| filler.fill_as(LANGUAGE_HEAD, head));
            model
        })
    }
}

/// A module whose parameters `fill` maps through the checkpoint of `dir`; what it lacks is drawn.
fn filled<M: Module>(
    dir: &Path,
    naming: &'static Naming,
    storage: Precision,
    fill: impl FnOnce(&mut Filler<'_>) -> M,
) -> Result<(M, LoadReport), StudentError> {
    let checkpoint = Checkpoint::open(dir, naming)?;
    let mut filler = Filler::new(&checkpoint, naming, storage);
    let module = fill(&mut filler);
    let report = filler.finish(dir)?;
    weights::initialise(&module);
    Ok((module, report))
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
}
