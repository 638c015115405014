//! What a training step of a student holds in memory, by calculation; with `measure`, the gradients of one step on a
//! device as well, the CPU unless it is named.
//!
//! Usage: `memory CONFIG.json ROWS POSITIONS [OPTIONS] [measure [DEVICE]]`
//!
//! `OPTIONS` is TOML: `precision`, `optimizer_state`, `activation_checkpointing` and a table `lora`, as in a run's
//! configuration. Weights, gradients and moments are counted from the parameters' shapes; activations by the formulas
//! below, which list what the backward pass of each operation reads. Heads, aligner and what operations hold while they
//! run are left out: they are small or pass.
//!
//! Shape letters: n = rows times positions, d hidden width, i feed-forward width, a = rows · heads · positions².

use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, FloatDType, Int, Tensor};
use distill::device::{DeviceChoice, Precision};
use distill::student::checkpointing::{self, Segment, SegmentDraws};
use distill::student::{Backbone, BackboneConfig, LoraConfig, TokenBatch};
use serde::Deserialize;
use serde_json::Value;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    precision: Precision,
    optimizer_state: Precision,
    activation_checkpointing: bool,
    lora: Option<LoraConfig>,
}

/// Numbers of parameters.
#[derive(Default)]
struct Counter<'a> {
    backbone: Option<&'a Backbone>,
    path: Vec<String>,
    trained: usize,
    /// Matrices and embeddings that are not trained.
    frozen_tables: usize,
    frozen_rest: usize,
    /// Matrices of linear maps within the layers, trained or not.
    trained_matrices: usize,
}

impl ModuleVisitor for Counter<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        // The variant of an enum is no part of a name.
        let name = if container.starts_with("Enum:") {
            ""
        } else {
            name
        };
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        let count = parameter.lazy_shape().num_elements();
        let path: Vec<&str> = self
            .path
            .iter()
            .map(String::as_str)
            .filter(|name| !name.is_empty())
            .collect();
        let is_trained = self
            .backbone
            .is_none_or(|backbone| backbone.is_trained(&path.join(".")));
        match (is_trained, D) {
            (true, _) => self.trained += count,
            (false, 2) => self.frozen_tables += count,
            (false, _) => self.frozen_rest += count,
        }
        if is_trained && D == 2 && !path.iter().any(|name| name.contains("embed")) {
            self.trained_matrices += count;
        }
    }
}

fn bytes(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 4.0,
        Precision::Bf16 => 2.0,
    }
}

/// Bytes that the backward pass of one layer reads, apart from weights.
fn layer_activations(
    config: &Value,
    options: &Options,
    rows: f64,
    positions: f64,
) -> Result<f64, Box<dyn Error>> {
    let size = |field: &str| config[field].as_f64();
    let needed = |field: &str| size(field).ok_or_else(|| format!("config.json has no `{field}`"));
    let n = rows * positions;
    let (d, heads) = (needed("hidden_size")?, needed("num_attention_heads")?);
    let (nd, ni) = (n * d, n * needed("intermediate_size")?);
    let a = rows * heads * positions * positions;
    // A product's operands are in the compute precision, everything between two products in f32.
    let p = bytes(options.precision);
    // A norm keeps its input, or its difference from the mean, and what the gradient of a trained weight reads.
    let norm = if options.lora.is_some() { 4.0 } else { 8.0 };
    match config["model_type"].as_str().unwrap_or("bert") {
        "bert" | "roberta" | "xlm-roberta" | "camembert" => {
            let drops = |field: &str| size(field).unwrap_or(0.1) > 0.0;
            // Softmax is computed in parts: its shifted input and its exponentials. The dropout's mask, the operand.
            let masks = |field: &str| if drops(field) { 4.0 } else { 0.0 };
            let attention = (8.0 + masks("attention_probs_dropout_prob") + p) * a;
            // Both residual branches and their norms: mask, centred and normalised values.
            let residual = 2.0 * (masks("hidden_dropout_prob") + norm) * nd;
            // Input, query, key, value, context and the feed-forward part's input.
            let hidden = 6.0 * p * nd;
            // Before and after the activation.
            Ok(attention + residual + hidden + 2.0 * p * ni)
        }
        "llama" | "qwen2" | "qwen3" => {
            let head = size("head_dim").unwrap_or(d / heads);
            let key_value = size("num_key_value_heads").unwrap_or(heads) * head * n;
            let attention = (8.0 + p) * a;
            // Both norms; the products' operands query, key and value.
            let hidden = 2.0 * norm * nd + p * (n * heads * head + 2.0 * key_value);
            // The activation's input and sigmoid, and both factors after it.
            let feed_forward = 4.0 * p * ni;
            // The inputs of linear maps: all four where they are trained, the attention's alone where adapters are
            // beside its maps.
            let inputs = if options.lora.is_some() {
                p * nd
            } else {
                p * (2.0 * nd + n * heads * head + ni)
            };
            Ok(attention + hidden + feed_forward + inputs)
        }
        other => Err(format!("no formula for the activations of `{other}`").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: memory CONFIG.json ROWS POSITIONS [OPTIONS] [measure [DEVICE]]";
    let measured = arguments.iter().position(|word| word == "measure");
    let measured = match measured.map(|place| arguments.split_off(place)).as_deref() {
        None => None,
        Some([_]) => Some(DeviceChoice::Cpu),
        Some([_, device]) => Some(device.parse::<DeviceChoice>()?),
        Some(_) => return Err(usage.into()),
    };
    let (path, rows, positions, options) = match arguments.as_slice() {
        [path, rows, positions] => (path, rows, positions, ""),
        [path, rows, positions, options] => (path, rows, positions, options.as_str()),
        _ => return Err(usage.into()),
    };
    let (rows, positions): (usize, usize) = (rows.parse()?, positions.parse()?);
    let options: Options = toml::from_str(options)?;
    let config = BackboneConfig::from_file(Path::new(path))?;
    let build = |device: &Device| -> Result<Backbone, Box<dyn Error>> {
        let config = config.clone();
        let backbone = Backbone::uninitialised(config, device).with_precision(options.precision);
        Ok(match &options.lora {
            Some(lora) => backbone.with_lora(lora, &[], device)?,
            None => backbone,
        })
    };
    let backbone = build(&Device::flex().autodiff())?;
    let mut counter = Counter {
        backbone: Some(&backbone),
        ..Counter::default()
    };
    backbone.visit(&mut counter);
    let config: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    print_table(&counter, &config, &options, rows as f64, positions as f64)?;
    if let Some(choice) = measured {
        let device = choice.open()?.autodiff();
        let backbone = build(&device)?.map(&mut Stored(&options));
        let [before, after] = measure(&backbone, &options, rows, positions, &device)?;
        writeln!(
            std::io::stdout(),
            "measured on {choice}: {before:.0} MB at a step of 2 tokens, {after:.0} MB at this one"
        )?;
    }
    Ok(())
}

fn print_table(
    counter: &Counter<'_>,
    config: &Value,
    options: &Options,
    rows: f64,
    positions: f64,
) -> Result<(), Box<dyn Error>> {
    let &Counter {
        trained,
        frozen_tables,
        frozen_rest,
        trained_matrices,
        ..
    } = counter;
    let [trained, frozen_tables, frozen_rest] =
        [trained, frozen_tables, frozen_rest].map(|count| count as f64);
    let layer = layer_activations(config, options, rows, positions)?;
    let num_layers = config["num_hidden_layers"].as_f64().unwrap_or(0.0);
    let inputs = 4.0 * rows * positions * config["hidden_size"].as_f64().unwrap_or(0.0);
    // Trained matrices are cast for the products of a layer, and kept for its backward pass.
    let casts = match options.precision {
        Precision::F32 => 0.0,
        Precision::Bf16 => 2.0 * trained_matrices as f64,
    };
    let activations = if options.activation_checkpointing {
        layer + num_layers * inputs + casts / num_layers
    } else {
        num_layers * layer + casts
    };
    let lines = [
        ("trained weights, f32", 4.0 * trained),
        (
            "frozen weights",
            bytes(options.precision) * frozen_tables + 4.0 * frozen_rest,
        ),
        ("gradients, f32", 4.0 * trained),
        ("moments", 2.0 * bytes(options.optimizer_state) * trained),
        ("activations", activations),
    ];
    let mut out = std::io::stdout();
    writeln!(out, "| held | MB |\n|---|---:|")?;
    for (name, size) in lines {
        writeln!(out, "| {name} | {:.0} |", size / 1e6)?;
    }
    let sum: f64 = lines.iter().map(|(_, size)| size).sum();
    writeln!(out, "| **sum** | **{:.0}** |", sum / 1e6)?;
    Ok(())
}

struct Draws(Device);

impl SegmentDraws for Draws {
    fn drawing<T>(&self, segment: Segment, compute: impl FnOnce() -> T) -> T {
        self.0.seed(segment.number());
        compute()
    }
}

/// Draws a backbone's weights, frozen ones as they are stored when they come from a checkpoint.
struct Stored<'a>(&'a Options);

impl ModuleMapper for Stored<'_> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let is_frozen = !parameter.is_require_grad();
        match self.0.precision {
            Precision::Bf16 if is_frozen && D == 2 => {
                parameter.map(|tensor| tensor.cast(FloatDType::BF16))
            }
            Precision::Bf16 | Precision::F32 => parameter,
        }
    }
}

/// Most memory that a GPU's allocator, or on the CPU this process, has held, in MB; on the CPU only Linux tells.
fn peak(device: &Device) -> Option<f64> {
    if let Some(usage) = device.memory_pool_usage() {
        return Some(usage.bytes_reserved as f64 / 1e6);
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024.0 / 1e6)
}

/// The gradients of one step from weights that are drawn: the peak after it, and the peak before.
fn measure(
    backbone: &Backbone,
    options: &Options,
    rows: usize,
    positions: usize,
    device: &Device,
) -> Result<[f64; 2], Box<dyn Error>> {
    let peak = || -> Result<f64, Box<dyn Error>> {
        device.sync()?;
        Ok(peak(device).ok_or("this system does not tell a process's memory")?)
    };
    let tokens = TokenBatch {
        token_ids_bs: Tensor::<2, Int>::full([rows, positions], 5, device),
        type_ids_bs: Tensor::zeros([rows, positions], device),
        attention_mask_bs: Tensor::ones([rows, positions], device),
    };
    // The first step of one row draws the weights and warms up.
    let step = |tokens: &TokenBatch| {
        if options.activation_checkpointing {
            let draws = Draws(device.clone());
            checkpointing::gradients(backbone, backbone, tokens, &draws, |output| {
                (output.pooled_bd.square().sum(), ())
            })
            .0
        } else {
            let loss = backbone.forward(tokens).pooled_bd.square().sum();
            GradientsParams::from_grads(loss.backward(), backbone)
        }
    };
    let small = TokenBatch {
        token_ids_bs: tokens.token_ids_bs.clone().narrow(0, 0, 1).narrow(1, 0, 2),
        type_ids_bs: tokens.type_ids_bs.clone().narrow(0, 0, 1).narrow(1, 0, 2),
        attention_mask_bs: tokens
            .attention_mask_bs
            .clone()
            .narrow(0, 0, 1)
            .narrow(1, 0, 2),
    };
    drop(step(&small));
    // What drawing the weights took passes.
    device.memory_cleanup();
    let before = peak()?;
    drop(step(&tokens));
    Ok([before, peak()?])
}
