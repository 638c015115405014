//! Puts adapters with random values beside a student directory and writes them, for comparison with `peft`.
//!
//! Usage: `adapt MODEL_DIR BATCH.json OUT_DIR TARGET_MODULES`
//!
//! `BATCH.json` is as for the example `encode`; `TARGET_MODULES` is a TOML value. `OUT_DIR` receives `adapter/`,
//! `merged/` and `logits.json`, the flat logits (b, 3) of the student with its adapters.

use std::error::Error;
use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use distill::heads::AlignerConfig;
use distill::model::Student;
use distill::objective::{Preset, TaskKind};
use distill::student::peft::save_adapter;
use distill::student::save::{HeadOutputs, save_pretrained};
use distill::student::{Backbone, LoraConfig, TextTokenizer, TokenBatch};
use serde::Deserialize;

#[derive(Deserialize)]
struct Batch {
    shape: Vec<usize>,
    token_ids: Vec<i64>,
    type_ids: Vec<i64>,
    attention_mask: Vec<i64>,
}

/// Adds noise to what is trained: B is zero at first.
struct Noise;

impl ModuleMapper for Noise {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !parameter.is_require_grad() {
            return parameter;
        }
        parameter.map(|values| {
            let values = values.inner();
            let noise = values.random_like(Distribution::Normal(0.0, 0.3));
            Tensor::from_inner(values + noise).require_grad()
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, batch, out, target] = arguments.as_slice() else {
        return Err("usage: adapt MODEL_DIR BATCH.json OUT_DIR TARGET_MODULES".into());
    };
    let (model, out) = (Path::new(model), Path::new(out));
    let lora: LoraConfig =
        toml::from_str(&format!("rank = 4\nalpha = 6\ntarget_modules = {target}"))?;
    let device = Device::flex().autodiff();
    device.seed(1);
    let (backbone, report) = Backbone::from_pretrained(model, None, &device)?;
    let backbone = backbone.with_lora(&lora, &report.missing, &device)?;
    let heads = AlignerConfig::default()
        .resolve(Preset::Paper, TaskKind::Classification { num_classes: 3 });
    let width = backbone.config().architecture().hidden_size();
    let student = Student::from_parts(backbone, heads.init_student_heads(width, &device));
    let student = student.map(&mut Noise).valid();

    let Batch {
        shape,
        token_ids,
        type_ids,
        attention_mask,
    } = serde_json::from_slice(&fs::read(batch)?)?;
    let ids = |values: Vec<i64>| {
        let data = TensorData::new(values, [shape[0], shape[1]]);
        Tensor::<2, Int>::from_data(data, &Device::flex())
    };
    let logits_bc = student.main(&TokenBatch {
        token_ids_bs: ids(token_ids),
        type_ids_bs: ids(type_ids),
        attention_mask_bs: ids(attention_mask),
    });
    fs::create_dir_all(out)?;
    let logits = logits_bc.into_data();
    fs::write(
        out.join("logits.json"),
        serde_json::to_string(logits.as_slice::<f32>()?)?,
    )?;
    let names = ["one", "two", "three"].map(str::to_owned);
    let head = student.classifier(HeadOutputs::Classes(names.into()));
    let tokenizer = TextTokenizer::from_dir(model, 24)?;
    let base = model.to_string_lossy();
    save_adapter(
        &out.join("adapter"),
        student.backbone().clone(),
        &tokenizer,
        Some(&head),
        &base,
    )?;
    let merged = student.merged();
    save_pretrained(
        &out.join("merged"),
        merged.backbone(),
        &tokenizer,
        Some(&head),
    )?;
    Ok(())
}
