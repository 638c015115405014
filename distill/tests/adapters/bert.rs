//! A BERT classifier's adapters: expected values are in `tests/fixtures/bert-tiny-lora`, made by
//! `scripts/fixtures/make_lora.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use distill::heads::AlignerConfig;
use distill::model::Student;
use distill::objective::{Preset, TaskKind};
use distill::student::peft::save_adapter;
use distill::student::save::{HeadOutputs, save_pretrained};
use distill::student::weights::named_tensors;
use distill::student::{Backbone, LoraConfig, TextTokenizer, TokenBatch};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Tensors, assert_near, by_path, fixtures, lora, serialize, tensors, transposed, values,
};

#[derive(Deserialize)]
struct Batch {
    shape: [usize; 3],
    token_ids: Vec<i64>,
    type_ids: Vec<i64>,
    attention_mask: Vec<i64>,
}

#[derive(Deserialize)]
struct Expected {
    logits: Vec<f32>,
    layer: String,
    gradients: BTreeMap<String, Vec<f32>>,
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&fs::read(fixtures().join(name)).unwrap()).unwrap()
}

fn batch(device: &Device) -> TokenBatch {
    let batch: Batch = read("bert-tiny/expected.json");
    let [rows, positions, _] = batch.shape;
    let ids = |values: Vec<i64>| {
        Tensor::<2, Int>::from_data(TensorData::new(values, [rows, positions]), device)
    };
    TokenBatch {
        token_ids_bs: ids(batch.token_ids),
        type_ids_bs: ids(batch.type_ids),
        attention_mask_bs: ids(batch.attention_mask),
    }
}

/// The fixture without dropout, and without the tensors that start with `lost`.
fn base(lost: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = fs::read_to_string(fixtures().join("bert-tiny/config.json")).unwrap();
    fs::write(dir.path().join("config.json"), config.replace("0.1", "0.0")).unwrap();
    let mut weights = tensors(&fs::read(fixtures().join("bert-tiny/model.safetensors")).unwrap());
    weights.retain(|name, _| lost.is_empty() || !name.starts_with(lost));
    fs::write(dir.path().join("model.safetensors"), serialize(&weights)).unwrap();
    dir
}

fn student(base: &Path, lora: &LoraConfig, device: &Device) -> Student {
    let (backbone, report) = Backbone::from_pretrained(base, None, device).unwrap();
    let backbone = backbone.with_lora(lora, &report.missing, device).unwrap();
    let aligner: AlignerConfig = toml::from_str("projection = 16\ndropout = 0.0").unwrap();
    let heads = aligner.resolve(Preset::Paper, TaskKind::Classification { num_classes: 3 });
    Student::from_parts(backbone, heads.init_student_heads(32, device))
}

fn own_name(peft: &str) -> String {
    let name = peft.strip_prefix("base_model.model.").unwrap();
    if let Some(name) = name.strip_prefix("classifier.") {
        return format!("heads.main.{name}");
    }
    name.replace("bert.", "backbone.trunk.")
        .replace(".self.", ".self_attention.")
        .replace(".lora_A.weight", ".adapter.a")
        .replace(".lora_B.weight", ".adapter.b")
}

fn peft_bytes() -> Vec<u8> {
    fs::read(fixtures().join("bert-tiny-lora/adapter_model.safetensors")).unwrap()
}

/// A student with the adapters and the head of the fixture.
fn fixture_student(device: &Device) -> Student {
    let base = base("");
    let student = student(base.path(), &lora("rank = 4\nalpha = 6"), device);
    let mut trained = tensors(&student.to_safetensors().unwrap());
    for (name, (shape, values)) in tensors(&peft_bytes()) {
        let own = trained.get_mut(&own_name(&name)).unwrap();
        *own = transposed(&shape, &values);
    }
    student.load_safetensors(&serialize(&trained)).unwrap()
}

#[test]
fn logits_and_gradients_are_those_of_peft() {
    let expected: Expected = read("bert-tiny-lora/expected.json");
    let device = Device::flex().autodiff();
    let student = fixture_student(&device);
    let logits_bc = student.main(&batch(&device));
    assert_near(&values(logits_bc.clone()), &expected.logits);

    let weights = (0..3).flat_map(|row| (0..3).map(move |class| (row + 2 * class) as f32));
    let weights = TensorData::new(weights.collect::<Vec<_>>(), [3, 3]);
    let loss = (logits_bc * Tensor::from_data(weights, &device)).sum();
    let gradients = GradientsParams::from_grads(loss.backward(), &student);
    // 3 layers, 2 maps, 2 matrices; the main head's weight and bias. Nothing frozen has a gradient.
    assert_eq!(gradients.len(), 14);
    let found = by_path(&student, &gradients);
    for (matrix, expected_values) in &expected.gradients {
        let name = own_name(&format!("{}.lora_{matrix}.weight", expected.layer));
        let is_it = |path: &&String| path.ends_with(&name);
        let path = found.keys().find(is_it).unwrap();
        assert_near(&found[path], expected_values);
    }
}

fn tokenizer() -> TextTokenizer {
    TextTokenizer::from_dir(&fixtures().join("bert-tiny"), 24).unwrap()
}

fn label() -> HeadOutputs {
    HeadOutputs::Classes(["no", "maybe", "yes"].map(str::to_owned).into())
}

fn saved(student: &Student) -> (Value, Tensors) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("adapter");
    let head = student.classifier(label());
    save_adapter(
        &dir,
        student.backbone().clone(),
        &tokenizer(),
        Some(&head),
        "base",
    )
    .unwrap();
    let config = fs::read(dir.join("adapter_config.json")).unwrap();
    let weights = fs::read(dir.join("adapter_model.safetensors")).unwrap();
    (serde_json::from_slice(&config).unwrap(), tensors(&weights))
}

#[test]
fn a_saved_adapter_is_the_one_that_peft_saves() {
    let (config, weights) = saved(&fixture_student(&Device::flex()));
    assert_eq!(weights, tensors(&peft_bytes()));
    let theirs: Value = read("bert-tiny-lora/adapter_config.json");
    for key in ["peft_type", "task_type", "r", "bias", "inference_mode"] {
        assert_eq!(config[key], theirs[key], "{key}");
    }
    assert_eq!(config["lora_alpha"].as_f64(), theirs["lora_alpha"].as_f64());
    assert_eq!(config["modules_to_save"], serde_json::json!(["classifier"]));
    let targets: Vec<&str> = config["target_modules"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(targets.len(), 6);
    assert_eq!(targets[0], "bert.encoder.layer.0.attention.self.query");
}

#[test]
fn a_merged_student_answers_alike_and_has_no_adapters() {
    let expected: Expected = read("bert-tiny-lora/expected.json");
    let device = Device::flex();
    let merged = fixture_student(&device).merged();
    assert_near(&values(merged.main(&batch(&device))), &expected.logits);
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("student");
    let head = merged.classifier(label());
    save_pretrained(&dir, merged.backbone(), &tokenizer(), Some(&head)).unwrap();
    let (loaded, report) = Backbone::from_pretrained(&dir, None, &device).unwrap();
    assert_eq!(report.applied.len(), 55);
    let one = loaded.forward(&batch(&device)).pooled_bd;
    let two = merged.backbone().forward(&batch(&device)).pooled_bd;
    assert_eq!(values(one), values(two));
}

#[test]
fn a_checkpoint_holds_adapters_and_heads_alone() {
    let device = Device::flex();
    let base = base("");
    let student = student(
        base.path(),
        &lora("target_modules = ['output.dense']"),
        &device,
    );
    let stored = tensors(&student.to_safetensors().unwrap());
    let backbone: Vec<&String> = stored
        .keys()
        .filter(|name| !name.starts_with("heads."))
        .collect();
    assert_eq!(backbone.len(), 12);
    assert!(
        backbone
            .iter()
            .all(|name| name.contains(".output.dense.adapter."))
    );
    let heads = named_tensors(&student)
        .into_iter()
        .filter(|tensor| tensor.name.starts_with("heads."));
    assert_eq!(stored.len(), 12 + heads.count());
}

#[test]
fn a_pooler_that_the_checkpoint_lacks_is_trained_stored_and_saved() {
    let base = base("pooler.");
    let student = student(base.path(), &LoraConfig::default(), &Device::flex());
    let stored = tensors(&student.to_safetensors().unwrap());
    assert!(stored.contains_key("backbone.trunk.pooler.dense.weight"));
    let (config, weights) = saved(&student);
    let modules = serde_json::json!(["bert.pooler.dense", "classifier"]);
    assert_eq!(config["modules_to_save"], modules);
    let (shape, values) = &stored["backbone.trunk.pooler.dense.weight"];
    let published = &weights["base_model.model.bert.pooler.dense.weight"];
    assert_eq!(*published, transposed(shape, values));
}

#[test]
fn patterns_choose_as_in_peft_and_one_without_a_match_is_refused() {
    let device = Device::flex();
    let base = base("");
    let adapted = |text: &str| {
        let (backbone, _) = Backbone::from_pretrained(base.path(), None, &device).unwrap();
        backbone.with_lora(&lora(text), &[], &device)
    };
    let count = |text: &str| {
        let tensors = named_tensors(&adapted(text).unwrap());
        let adapters = tensors
            .iter()
            .filter(|tensor| tensor.name.ends_with(".adapter.a"));
        adapters.count()
    };
    assert_eq!(count(""), 6);
    assert_eq!(count("target_modules = 'all-linear'"), 18);
    assert_eq!(count("target_modules = ['query', 'intermediate.dense']"), 6);
    assert_eq!(
        count(r"target_modules = '.*\.layer\.[01]\..*\.(key|value)'"),
        4
    );
    // A suffix starts at a dot, an expression matches the whole name.
    for (text, pattern) in [
        ("target_modules = ['query', 'uery']", "uery"),
        ("target_modules = 'query'", "query"),
    ] {
        let error = adapted(text).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "`student.lora.target_modules`: `{pattern}` matches none of \
                 bert.encoder.layer.N.attention.self.query, bert.encoder.layer.N.attention.self.key, \
                 bert.encoder.layer.N.attention.self.value, bert.encoder.layer.N.attention.output.dense, \
                 bert.encoder.layer.N.intermediate.dense, bert.encoder.layer.N.output.dense"
            )
        );
        assert!(error.hint().unwrap().contains("all-linear"));
    }
}
