//! Puts adapters with random values beside a student directory and writes them, for comparison with `peft`.
//!
//! Usage: `adapt MODEL_DIR TOKENIZER_DIR BATCH.json OUT_DIR TARGET_MODULES`
//!
//! `BATCH.json` is as for the example `encode`; `TARGET_MODULES` is a TOML value. `OUT_DIR` receives `adapter/`,
//! `merged/` and `logits.json`, the flat logits of the student with its adapters: of a classifier (b, 3), of a causal
//! language model (b, s, vocabulary).

use std::error::Error;
use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use distill::heads::AlignerConfig;
use distill::model::Student;
use distill::objective::{Preset, TaskKind};
use distill::student::peft::save_adapter;
use distill::student::save::{HeadOutputs, save_language_model, save_pretrained};
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

fn read_batch(path: &Path) -> Result<TokenBatch, Box<dyn Error>> {
    let Batch {
        shape,
        token_ids,
        type_ids,
        attention_mask,
    } = serde_json::from_slice(&fs::read(path)?)?;
    let ids = |values: Vec<i64>| {
        let data = TensorData::new(values, [shape[0], shape[1]]);
        Tensor::<2, Int>::from_data(data, &Device::flex())
    };
    Ok(TokenBatch {
        token_ids_bs: ids(token_ids),
        type_ids_bs: ids(type_ids),
        attention_mask_bs: ids(attention_mask),
    })
}

fn adapted(model: &Path, target: &str) -> Result<Student, Box<dyn Error>> {
    let lora = format!("rank = 4\nalpha = 6\ntarget_modules = {target}");
    let lora: LoraConfig = toml::from_str(&lora)?;
    let device = Device::flex().autodiff();
    device.seed(1);
    let (backbone, report) = Backbone::from_pretrained(model, None, &device)?;
    let backbone = backbone.with_lora(&lora, &report.missing, &device)?;
    let architecture = backbone.config().architecture();
    let task = if architecture.is_causal() {
        TaskKind::Generation
    } else {
        TaskKind::Classification { num_classes: 3 }
    };
    let heads = AlignerConfig::default().resolve(Preset::Paper, task);
    let heads = heads.init_student_heads(architecture.hidden_size(), &device);
    Ok(Student::from_parts(backbone, heads).map(&mut Noise).valid())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokenizer, batch, out, target] = arguments.as_slice() else {
        return Err(
            "usage: adapt MODEL_DIR TOKENIZER_DIR BATCH.json OUT_DIR TARGET_MODULES".into(),
        );
    };
    let out = Path::new(out);
    let student = adapted(Path::new(model), target)?;
    let batch = read_batch(Path::new(batch))?;
    let names = ["one", "two", "three"].map(str::to_owned);
    let (logits, head) = if student.writes() {
        (student.language_model().logits(&batch).into_data(), None)
    } else {
        let head = student.classifier(HeadOutputs::Classes(names.into()));
        (student.main(&batch).into_data(), Some(head))
    };
    fs::create_dir_all(out)?;
    let logits = serde_json::to_string(logits.as_slice::<f32>()?)?;
    fs::write(out.join("logits.json"), logits)?;

    let tokenizer = TextTokenizer::from_dir(Path::new(tokenizer), 24)?;
    let (adapter, merged) = (out.join("adapter"), out.join("merged"));
    let backbone = student.backbone().clone();
    save_adapter(&adapter, backbone, &tokenizer, head.as_ref(), model)?;
    let student = student.merged();
    match head {
        Some(_) => save_pretrained(&merged, student.backbone(), &tokenizer, head.as_ref())?,
        None => save_language_model(&merged, &student.language_model(), &tokenizer)?,
    }
    Ok(())
}
