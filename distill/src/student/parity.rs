//! Compares students with what `transformers` computed for tiny checkpoints.
//!
//! A library function rather than a test, so that the same comparison runs on any device. The checkpoints are made by
//! `scripts/fixtures/make_encoders.py`, `make_causal.py` and `make_generation.py`, which state their losses.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `d` hidden width, `c` classes, `v` vocabulary, `x` any width.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData, activation};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tempfile::TempDir;

use super::architecture::Naming;
use super::generation::{Style, log_probabilities, write};
use super::layout::is_transposed;
use super::weights::{FieldPath, WeightsError};
use super::{Backbone, LanguageModel, TokenBatch};
use crate::device::Precision;
use crate::error::Error;
use crate::golden::{Comparison, values};

/// Checkpoints under `encoders`.
pub const ENCODERS: [&str; 6] = [
    "bert",
    "roberta",
    "deberta-v2",
    "deberta-v3",
    "deberta-separate",
    "deberta-c2p",
];

/// Checkpoints under `causal`.
pub const CAUSAL: [&str; 7] = [
    "llama-grouped-tied",
    "llama-biased-untied",
    "qwen2",
    "qwen3",
    "opt",
    "opt-post-norm-projected",
    "opt-plain-norm-unbiased",
];

/// What a quantity's name ends with where matrix products are bf16: as far from f32 as that rounding.
pub const IN_BF16: &str = " in bf16";

/// Hidden states, pooled vectors, logits, losses, gradients, written tokens and log-likelihoods of all checkpoints, in
/// f32; pooled vectors of encoders and logits of the others in bf16 as well. `fixtures` is `tests/fixtures`.
///
/// # Errors
/// A file of it cannot be read.
pub fn compare(device: &Device, fixtures: &Path) -> Result<Vec<Comparison>, Error> {
    let mut found = Vec::new();
    for name in ENCODERS {
        found.extend(encoder(
            name,
            &fixtures.join("encoders").join(name),
            device,
        )?);
    }
    for name in CAUSAL {
        found.extend(causal(name, &fixtures.join("causal").join(name), device)?);
    }
    found.extend(written(fixtures, device)?);
    Ok(found)
}

/// A copy of a checkpoint that drops nothing in training, as what `transformers` computed in evaluation.
///
/// # Errors
/// It cannot be read or copied.
pub fn without_dropout(checkpoint: &Path) -> Result<TempDir, Error> {
    let copy = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir(), "write"))?;
    let path = checkpoint.join("config.json");
    let mut config: serde_json::Map<String, serde_json::Value> = read_json(&path)?;
    for (field, value) in &mut config {
        if field.contains("dropout") && value.is_number() {
            *value = 0.0.into();
        }
    }
    let config = serde_json::Value::from(config).to_string();
    std::fs::write(copy.path().join("config.json"), config)
        .map_err(Error::io(copy.path(), "write"))?;
    let weights = "model.safetensors";
    std::fs::copy(checkpoint.join(weights), copy.path().join(weights))
        .map_err(Error::io(&checkpoint.join(weights), "copy"))?;
    Ok(copy)
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
    serde_json::from_slice(&text).map_err(|error| Error::Fixture {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// Shape and values of every tensor of a file; whole numbers as f32, which holds ids exactly.
struct Tensors(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Tensors {
    fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let stored = SafeTensors::deserialize(&bytes).map_err(WeightsError::from)?;
        let tensors = stored.iter().map(|(name, view)| {
            let values = if view.dtype() == Dtype::I64 {
                let (whole, _) = view.data().as_chunks::<8>();
                let whole = whole.iter().map(|bytes| i64::from_le_bytes(*bytes));
                whole.map(|value| value as f32).collect()
            } else {
                let (floats, _) = view.data().as_chunks::<4>();
                let floats = floats.iter().map(|bytes| f32::from_le_bytes(*bytes));
                floats.collect()
            };
            (name.to_owned(), (view.shape().to_vec(), values))
        });
        Ok(Self(tensors.collect()))
    }

    fn get(&self, name: &str) -> Result<&(Vec<usize>, Vec<f32>), Error> {
        let missing = || safetensors::SafeTensorError::TensorNotFound(name.to_owned());
        Ok(self
            .0
            .get(name)
            .ok_or_else(|| WeightsError::from(missing()))?)
    }

    fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Result<Tensor<D>, Error> {
        let (shape, values) = self.get(name)?;
        let data = TensorData::new(values.clone(), shape.clone());
        Ok(Tensor::from_data(data, device))
    }

    fn ids(&self, name: &str, device: &Device) -> Result<Tensor<2, Int>, Error> {
        Ok(self.tensor::<2>(name, device)?.int())
    }
}

/// One checkpoint's comparisons.
struct Case<'a> {
    name: &'a str,
    /// Before the names of expected tensors.
    prefix: &'a str,
    expected: &'a Tensors,
    /// 1 where a position is real.
    mask_bs1: Tensor<3>,
    device: &'a Device,
}

impl Case<'_> {
    fn of<const D: usize>(&self, quantity: &str, actual: Tensor<D>) -> Result<Comparison, Error> {
        let stored = quantity.trim_end_matches(IN_BF16);
        let (_, expected) = self.expected.get(&format!("{}{stored}", self.prefix))?;
        Ok(Comparison::new(
            self.name,
            quantity,
            &values(actual),
            expected,
        ))
    }

    /// Real positions alone.
    fn of_real(&self, quantity: &str, actual_bsx: Tensor<3>) -> Result<Comparison, Error> {
        let stored = quantity.trim_end_matches(IN_BF16);
        let name = format!("{}{stored}", self.prefix);
        let expected_bsx = self.expected.tensor::<3>(&name, self.device)? * self.mask_bs1.clone();
        let actual = values(actual_bsx * self.mask_bs1.clone());
        Ok(Comparison::new(
            self.name,
            quantity,
            &actual,
            &values(expected_bsx),
        ))
    }

    /// Every gradient that is expected.
    fn gradients(
        &self,
        backbone: &Backbone,
        gradients: &Gradients,
    ) -> Result<Vec<Comparison>, Error> {
        let mut found = Published {
            naming: backbone.config().architecture().naming(),
            path: FieldPath::default(),
            gradients,
            values: BTreeMap::new(),
        };
        backbone.visit(&mut found);
        let prefix = format!("{}gradient.", self.prefix);
        let names = self
            .expected
            .0
            .keys()
            .filter_map(|name| name.strip_prefix(&prefix));
        names
            .map(|name| {
                let (_, expected) = self.expected.get(&format!("{prefix}{name}"))?;
                let actual = found.values.get(name).map_or(&[][..], Vec::as_slice);
                Ok(Comparison::new(self.name, "gradients", actual, expected))
            })
            .collect()
    }
}

/// Gradients by published name and in the published layout.
struct Published<'a> {
    naming: &'static Naming,
    path: FieldPath,
    gradients: &'a Gradients,
    values: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Published<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        let Some(gradient) = parameter.grad(self.gradients) else {
            return;
        };
        let gradient = if is_transposed(self.path.owner(), D) {
            gradient.swap_dims(0, 1)
        } else {
            gradient
        };
        let path = self.path.name();
        let path = path.strip_prefix("trunk.").unwrap_or(&path);
        self.values
            .insert(self.naming.published(path), values(gradient));
    }
}

fn encoder(name: &str, folder: &Path, device: &Device) -> Result<Vec<Comparison>, Error> {
    let device = &device.clone().autodiff();
    let expected = Tensors::read(&folder.join("expected.safetensors"))?;
    let stored = Tensors::read(&folder.join("model.safetensors"))?;
    let copy = without_dropout(folder)?;
    let (backbone, _) = Backbone::from_pretrained(copy.path(), None, device)?;
    let batch = TokenBatch {
        token_ids_bs: expected.ids("token_ids", device)?,
        type_ids_bs: expected.ids("type_ids", device)?,
        attention_mask_bs: expected.ids("attention_mask", device)?,
    };
    let naming = backbone.config().architecture().naming();
    let head = naming.classifier.as_ref().map_or("", |naming| naming.head);
    let weight_cd: Tensor<2> = stored.tensor(&format!("{head}.weight"), device)?;
    let bias_c: Tensor<1> = stored.tensor(&format!("{head}.bias"), device)?;

    let mask_bs1: Tensor<3> = batch.attention_mask_bs.clone().float().unsqueeze_dim(2);
    let output = backbone.forward(&batch);
    let pooled_bd = output.pooled_bd.clone();
    let logits_bc = pooled_bd.matmul(weight_cd.transpose()) + bias_c.unsqueeze();
    let cubes = (output.hidden_bsd.clone().powi_scalar(3) * mask_bs1.clone()).sum();
    let loss = cubes / mask_bs1.clone().sum() + logits_bc.clone().square().sum();
    let rounded = backbone
        .clone()
        .with_precision(Precision::Bf16)
        .forward(&batch);

    let case = Case {
        name,
        prefix: "",
        expected: &expected,
        mask_bs1,
        device,
    };
    let mut found = vec![
        case.of_real("hidden", output.hidden_bsd)?,
        case.of("pooled", output.pooled_bd)?,
        case.of("logits", logits_bc)?,
        case.of("pooled in bf16", rounded.pooled_bd)?,
    ];
    found.extend(case.gradients(&backbone, &loss.backward())?);
    Ok(found)
}

fn causal(name: &str, folder: &Path, device: &Device) -> Result<Vec<Comparison>, Error> {
    let device = &device.clone().autodiff();
    let expected = Tensors::read(&folder.join("expected.safetensors"))?;
    let copy = without_dropout(folder)?;
    let (model, _) = LanguageModel::from_pretrained(copy.path(), None, device)?;
    let rounded = model.clone().with_precision(Precision::Bf16);
    let mut found = Vec::new();
    for prefix in ["right.", "left."] {
        let token_ids_bs = expected.ids(&format!("{prefix}token_ids"), device)?;
        let batch = TokenBatch {
            type_ids_bs: token_ids_bs.zeros_like(),
            token_ids_bs,
            attention_mask_bs: expected.ids(&format!("{prefix}mask"), device)?,
        };
        let output = model.backbone().forward(&batch);
        let logits_bsv = model.logits(&batch);
        let pooled_bd = output.pooled_bd;
        let loss = entropy(logits_bsv.clone(), &batch) + pooled_bd.clone().powi_scalar(3).mean();
        let case = Case {
            name,
            prefix,
            expected: &expected,
            mask_bs1: batch.attention_mask_bs.clone().float().unsqueeze_dim(2),
            device,
        };
        found.extend([
            case.of_real("hidden", output.hidden_bsd)?,
            case.of("pooled", pooled_bd)?,
            case.of_real("logits", logits_bsv)?,
            case.of_real("logits in bf16", rounded.logits(&batch))?,
            case.of("loss", loss.clone())?,
        ]);
        found.extend(case.gradients(model.backbone(), &loss.backward())?);
    }
    Ok(found)
}

/// Mean cross-entropy of the next token where both are real.
fn entropy(logits_bsv: Tensor<3>, batch: &TokenBatch) -> Tensor<1> {
    let [rows, positions, _] = logits_bsv.dims();
    let before = |tensor: Tensor<2, Int>| tensor.narrow(1, 0, positions - 1);
    let after = |tensor: Tensor<2, Int>| tensor.narrow(1, 1, positions - 1);
    let mask_bs = batch.attention_mask_bs.clone();
    let both_bs = (before(mask_bs.clone()) * after(mask_bs)).float();
    let log_probability_bs = activation::log_softmax(logits_bsv, 2)
        .narrow(1, 0, positions - 1)
        .gather(2, after(batch.token_ids_bs.clone()).unsqueeze_dim::<3>(2))
        .reshape([rows, positions - 1]);
    (log_probability_bs * both_bs.clone()).sum().neg() / both_bs.sum()
}

/// The parts of `generation.json` that models compute.
#[derive(Deserialize)]
struct Written {
    prompts: Vec<Vec<u32>>,
    options: Vec<(Vec<u32>, Vec<u32>)>,
    models: BTreeMap<String, WrittenByModel>,
}

#[derive(Deserialize)]
struct WrittenByModel {
    num_tokens: usize,
    ends: Vec<u32>,
    texts: Vec<Vec<u32>>,
    log_likelihoods: Vec<f64>,
}

/// Greedy texts, token by token, and log-likelihoods of given ones.
fn written(fixtures: &Path, device: &Device) -> Result<Vec<Comparison>, Error> {
    let written: Written = read_json(&fixtures.join("generation.json"))?;
    let mut found = Vec::new();
    for (name, expected) in &written.models {
        let folder = fixtures.join("causal").join(name);
        let (model, _) = LanguageModel::from_pretrained(&folder, None, device)?;
        let prompts: Vec<&[u32]> = written.prompts.iter().map(Vec::as_slice).collect();
        let style = Style {
            max_new_tokens: expected.num_tokens,
            sampling: None,
            ends: &expected.ends,
        };
        let texts = write(&model, &prompts, style, &mut [], device);
        for (text, expected_text) in texts.iter().zip(&expected.texts) {
            let ends = |token| expected.ends.contains(token);
            let end = expected_text.len() - usize::from(expected_text.last().is_some_and(ends));
            let ids: Vec<f32> = text.iter().map(|&id| id as f32).collect();
            found.push(Comparison::new(name, "tokens", &ids, &expected_text[..end]));
        }
        let joined: Vec<Vec<u32>> = written
            .options
            .iter()
            .map(|(prompt, option)| [prompt.clone(), option.clone()].concat())
            .collect();
        let starts = written.options.iter().map(|(prompt, _)| prompt.len());
        let sequences: Vec<(&[u32], usize)> =
            joined.iter().map(Vec::as_slice).zip(starts).collect();
        let sums: Vec<f32> = log_probabilities(&model, &sequences, device)
            .iter()
            .map(|tokens| tokens.iter().sum())
            .collect();
        let likelihoods = &expected.log_likelihoods;
        found.push(Comparison::new(name, "log-likelihoods", &sums, likelihoods));
    }
    Ok(found)
}
