//! A LLaMA's adapters, with grouped queries: expected values are in `tests/fixtures/llama-lora`, made by
//! `scripts/fixtures/make_lora_causal.py`.

use std::fs;
use std::path::PathBuf;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use distill::heads::AlignerConfig;
use distill::model::Student;
use distill::objective::{Preset, TaskKind};
use distill::student::peft::save_adapter;
use distill::student::save::save_language_model;
use distill::student::{Backbone, LanguageModel, TextTokenizer, TokenBatch};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{
    Tensors, assert_near, by_path, fixtures, lora, serialize, tensors, transposed, values,
};

/// The choices of target modules, and the linear maps that each takes of a layer.
const CHOICES: [(&str, &str, usize); 2] = [
    ("usual", "", 2),
    ("all-linear", "target_modules = 'all-linear'", 7),
];
const NUM_LAYERS: usize = 2;

fn base() -> PathBuf {
    fixtures().join("causal/llama-grouped-tied")
}

fn read(name: &str) -> Vec<u8> {
    fs::read(fixtures().join("llama-lora").join(name)).unwrap()
}

/// Token ids and mask, `[b, s]`.
fn batch(device: &Device) -> TokenBatch {
    let bytes = fs::read(base().join("expected.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let integers = |name: &str| {
        let view = stored.tensor(name).unwrap();
        let (chunks, _) = view.data().as_chunks::<8>();
        let values: Vec<i64> = chunks
            .iter()
            .map(|chunk| i64::from_le_bytes(*chunk))
            .collect();
        Tensor::<2, Int>::from_data(TensorData::new(values, view.shape().to_vec()), device)
    };
    let token_ids_bs = integers("right.token_ids");
    TokenBatch {
        type_ids_bs: token_ids_bs.zeros_like(),
        token_ids_bs,
        attention_mask_bs: integers("right.mask"),
    }
}

fn own_name(peft: &str) -> String {
    let name = peft.strip_prefix("base_model.model.model.").unwrap();
    let name = name.replace(".lora_A.weight", ".adapter.a");
    format!(
        "backbone.trunk.{}",
        name.replace(".lora_B.weight", ".adapter.b")
    )
}

/// A student that writes, with the adapters of the fixture.
fn student(choice: &str, targets: &str, device: &Device) -> Student {
    let (backbone, report) = Backbone::from_pretrained(&base(), None, device).unwrap();
    let lora = lora(&format!("rank = 3\nalpha = 6\n{targets}"));
    let backbone = backbone.with_lora(&lora, &report.missing, device).unwrap();
    let heads = AlignerConfig::default().resolve(Preset::Paper, TaskKind::Generation);
    let student = Student::from_parts(backbone, heads.init_student_heads(16, device));
    let mut trained = tensors(&student.to_safetensors().unwrap());
    for (name, (shape, values)) in theirs(choice) {
        let own = trained.get_mut(&own_name(&name)).unwrap();
        *own = transposed(&shape, &values);
    }
    student.load_safetensors(&serialize(&trained)).unwrap()
}

fn theirs(choice: &str) -> Tensors {
    tensors(&read(&format!("{choice}/adapter_model.safetensors")))
}

fn expected(choice: &str) -> Tensors {
    tensors(&read(&format!("{choice}/expected.safetensors")))
}

/// The logits of real positions; those under padding count as zero.
fn real(logits_bsv: Tensor<3>, mask_bs: Tensor<2, Int>) -> Tensor<3> {
    logits_bsv * mask_bs.float().unsqueeze_dim(2)
}

fn expected_logits(choice: &str) -> Vec<f32> {
    let device = Device::flex();
    let (shape, values) = expected(choice).remove("logits").unwrap();
    let logits_bsv = Tensor::from_data(TensorData::new(values, shape), &device);
    crate::values(real(logits_bsv, batch(&device).attention_mask_bs))
}

#[test]
fn logits_and_all_gradients_are_those_of_peft() {
    for (choice, targets, num_maps) in CHOICES {
        let device = Device::flex().autodiff();
        let student = student(choice, targets, &device);
        let batch = batch(&device);
        let mask_bs = batch.attention_mask_bs.clone();
        let logits_bsv = real(student.language_model().logits(&batch), mask_bs.clone());
        assert_near(&values(logits_bsv.clone()), &expected_logits(choice));

        let loss = logits_bsv.square().sum() / mask_bs.float().sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &student);
        assert_eq!(gradients.len(), 2 * num_maps * NUM_LAYERS, "{choice}");
        let found = by_path(&student, &gradients);
        for (name, (_, expected)) in expected(choice) {
            if name != "logits" {
                assert_near(&found[&own_name(&name)], &expected);
            }
        }
    }
}

#[test]
fn a_saved_adapter_is_the_one_that_peft_saves() {
    let tokenizer = TextTokenizer::from_dir(&fixtures().join("bert-tiny"), 24).unwrap();
    for (choice, targets, num_maps) in CHOICES {
        let student = student(choice, targets, &Device::flex());
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("adapter");
        let backbone = student.backbone().clone();
        save_adapter(&dir, backbone, &tokenizer, None, "org/base").unwrap();
        let written = fs::read(dir.join("adapter_model.safetensors")).unwrap();
        assert_eq!(tensors(&written), theirs(choice));
        let config = fs::read(dir.join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let theirs: Value =
            serde_json::from_slice(&read(&format!("{choice}/adapter_config.json"))).unwrap();
        for key in ["peft_type", "task_type", "r", "bias", "inference_mode"] {
            assert_eq!(config[key], theirs[key], "{key}");
        }
        assert_eq!(config["base_model_name_or_path"], "org/base");
        let written = config["target_modules"].as_array().unwrap();
        assert_eq!(written.len(), num_maps * NUM_LAYERS);
        // Left out, peft stores ends of names; they choose the maps that the export names in full.
        let theirs = theirs["target_modules"].as_array().unwrap();
        let is_theirs = |name: &Value| {
            let name = name.as_str().unwrap();
            theirs
                .iter()
                .any(|end| name.ends_with(end.as_str().unwrap()))
        };
        assert!(written.iter().all(is_theirs), "{written:?}");
    }
}

#[test]
fn a_merged_language_model_answers_alike() {
    let device = Device::flex();
    let tokenizer = TextTokenizer::from_dir(&fixtures().join("bert-tiny"), 24).unwrap();
    for (choice, targets, _) in CHOICES {
        let merged = student(choice, targets, &device).merged().language_model();
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("merged");
        save_language_model(&dir, &merged, &tokenizer).unwrap();
        let (loaded, report) = LanguageModel::from_pretrained(&dir, None, &device).unwrap();
        assert!(report.missing.is_empty() && report.unused.is_empty());
        let batch = batch(&device);
        let logits_bsv = real(loaded.logits(&batch), batch.attention_mask_bs.clone());
        assert_near(&values(logits_bsv), &expected_logits(choice));
    }
}
