//! Adapters as a directory that the package `peft` loads beside the base model.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::architecture::ClassifierNaming;
use super::lora::Adapters;
use super::save::{ClassifierHead, ModelNaming, classifier_tensors, write, write_directory};
use super::tensor_file::{FileTensor, file_tensors, write_tensors};
use super::{Backbone, StudentError, TextTokenizer};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What an adapter's directory holds besides a tokenizer.
pub(super) const ADAPTER_FILES: [&str; 2] = [CONFIG_FILE, WEIGHTS_FILE];

/// What stands before every name: the model within `peft`'s wrapper.
const PREFIX: &str = "base_model.model.";

/// Writes `adapter_config.json`, `adapter_model.safetensors` and the tokenizer's files into `dir`, whole or not at all.
///
/// The main head, and whatever else of the model was not in the base model's checkpoint, is stored in full, as
/// `modules_to_save` of `peft`. Without a main head it is a language model's adapter. `base_model` is where `peft` finds the base model.
///
/// # Errors
///
/// [`StudentError::NoAdapters`] for a student that was trained in full; otherwise as
/// [`save_pretrained`](super::save::save_pretrained).
pub fn save_adapter(
    dir: &Path,
    backbone: Backbone,
    tokenizer: &TextTokenizer,
    head: Option<&ClassifierHead>,
    base_model: &str,
) -> Result<(), StudentError> {
    let adapters = backbone.adapters.clone().ok_or(StudentError::NoAdapters)?;
    let naming = backbone.config().architecture().naming();
    let (model, task) = match head {
        Some(_) => (ModelNaming::classifier(naming), "SEQ_CLS"),
        None => (ModelNaming::language(naming), "CAUSAL_LM"),
    };
    let head = head.zip(naming.classifier.as_ref());
    let classifier = head.map(|(_, classifier)| classifier);
    let saved = saved_tensors(&backbone, &adapters, &model, head);
    let (targets, mut tensors) = adapter_tensors(backbone, &model);
    let config = adapter_config(
        &adapters,
        task,
        &targets,
        &modules_of(&saved, classifier),
        base_model,
    );
    tensors.extend(saved.into_iter().map(|tensor| tensor.prefixed(PREFIX)));
    write_directory(dir, |staging| {
        let config = serde_json::to_vec_pretty(&config).expect("a JSON value has string keys");
        write(&staging.join(CONFIG_FILE), &config)?;
        write_tensors(&staging.join(WEIGHTS_FILE), tensors)?;
        for (name, bytes) in tokenizer.files()? {
            write(&staging.join(name), &bytes)?;
        }
        Ok(())
    })
}

/// The linear maps with an adapter, and both matrices of each.
fn adapter_tensors(mut backbone: Backbone, model: &ModelNaming) -> (Vec<String>, Vec<FileTensor>) {
    let naming = backbone.config().architecture().naming();
    let (mut targets, mut tensors) = (Vec::new(), Vec::new());
    backbone.visit_linears(&mut |name, linear| {
        let Some(adapter) = &linear.adapter else {
            return;
        };
        let target = model.published(name, naming);
        for (matrix, values) in ["lora_A", "lora_B"].into_iter().zip(adapter.matrices()) {
            let name = format!("{PREFIX}{target}.{matrix}.weight");
            tensors.push(FileTensor::new(name, values));
        }
        targets.push(target);
    });
    (targets, tensors)
}

/// What is stored in full under its name in the whole model: the head, and tensors that were drawn afresh or belong to
/// the head in the published model.
fn saved_tensors(
    backbone: &Backbone,
    adapters: &Adapters,
    model: &ModelNaming,
    head: Option<(&ClassifierHead, &ClassifierNaming)>,
) -> Vec<FileTensor> {
    let naming = backbone.config().architecture().naming();
    let is_saved = |name: &str| {
        let renamed = head.map_or(&[][..], |(_, classifier)| classifier.renamed);
        adapters.drawn.contains(name) || renamed.iter().any(|(from, _)| name.starts_with(from))
    };
    let mut tensors = file_tensors(&backbone.trunk, |path| {
        let name = naming.published(path);
        is_saved(&name).then(|| model.published(&name, naming))
    });
    if let Some((head, classifier)) = head {
        tensors.extend(classifier_tensors(head, classifier));
    }
    tensors
}

/// The modules that hold these tensors. Of a head of several layers it is the whole head, which `peft` wraps as one.
fn modules_of(tensors: &[FileTensor], classifier: Option<&ClassifierNaming>) -> BTreeSet<String> {
    let head = classifier.and_then(|classifier| classifier.head.split('.').next());
    tensors
        .iter()
        .map(|tensor| match (tensor.name.split_once('.'), head) {
            (Some((first, _)), Some(head)) if first == head => head,
            _ => tensor
                .name
                .rsplit_once('.')
                .map_or("", |(module, _)| module),
        })
        .map(str::to_owned)
        .collect()
}

fn adapter_config(
    adapters: &Adapters,
    task: &str,
    targets: &[String],
    modules_to_save: &BTreeSet<String>,
    base_model: &str,
) -> Value {
    let config = &adapters.config;
    json!({
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "modules_to_save": modules_to_save,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_rslora": false,
        "use_dora": false,
    })
}
