//! A student as a directory that `transformers` loads, written whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use serde_json::{Map, Value, json};

use super::pretrained::{hugging_face_name, is_transposed, transpose};
use super::tokenizer::TOKENIZER_FILES;
use super::weights::{self, NamedTensor};
use super::{Encoder, StudentError, TextTokenizer};

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";

/// The main head on the pooled vector, for `BertForSequenceClassification`.
#[derive(Debug, Clone)]
pub struct ClassifierHead {
    /// `[classes, hidden]`, the layout of `PyTorch`.
    pub weight_cd: Tensor<2>,
    /// `[classes]`.
    pub bias_c: Tensor<1>,
    /// What the outputs mean.
    pub outputs: HeadOutputs,
}

/// What a head's outputs mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadOutputs {
    /// One logit per class; names in the order of the outputs.
    Classes(Vec<String>),
    /// One number.
    Number,
}

/// Writes `config.json`, `model.safetensors` and the tokenizer's files into `dir`.
///
/// Without a head the directory holds a `BertModel`, with one a `BertForSequenceClassification`.
/// Everything is written to a directory beside `dir` and renamed at the end; an earlier export at
/// `dir` is replaced.
///
/// # Errors
///
/// [`StudentError::ExportTarget`] where `dir` holds anything else; [`StudentError::Io`] names the
/// file. `dir` is as it was then.
pub fn save_pretrained(
    dir: &Path,
    encoder: &Encoder,
    tokenizer: &TextTokenizer,
    head: Option<&ClassifierHead>,
) -> Result<(), StudentError> {
    check_target(dir)?;
    let staging = sibling(dir, "partial");
    remove_if_there(&staging)?;
    let written = fs::create_dir_all(&staging)
        .map_err(StudentError::io(&staging))
        .and_then(|()| write_files(&staging, encoder, tokenizer, head))
        .and_then(|()| replace(&staging, dir));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = remove_if_there(&staging);
    }
    written
}

/// Refuses a directory that holds anything but an earlier export: it would be lost.
fn check_target(dir: &Path) -> Result<(), StudentError> {
    let refused = |problem: String| StudentError::ExportTarget {
        dir: dir.to_owned(),
        problem,
    };
    if dir.file_name().is_none() {
        return Err(refused("it has no name of its own".to_owned()));
    }
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(StudentError::io(dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(StudentError::io(dir))?;
        let kind = entry.file_type().map_err(StudentError::io(&entry.path()))?;
        let name = entry.file_name();
        let mut ours = [CONFIG_FILE, WEIGHTS_FILE].iter().chain(&TOKENIZER_FILES);
        let is_ours = kind.is_file() && ours.any(|file| name == *file);
        if !is_ours {
            let name = name.to_string_lossy();
            return Err(refused(format!("it holds `{name}`, which is no export's")));
        }
    }
    Ok(())
}

fn write_files(
    dir: &Path,
    encoder: &Encoder,
    tokenizer: &TextTokenizer,
    head: Option<&ClassifierHead>,
) -> Result<(), StudentError> {
    let config = config_json(encoder, head);
    let config = serde_json::to_vec_pretty(&config).expect("a JSON value has string keys");
    write(&dir.join(CONFIG_FILE), &config)?;
    let weights = weights::serialize(&hugging_face_tensors(encoder, head))?;
    write(&dir.join(WEIGHTS_FILE), &weights)?;
    for (name, bytes) in tokenizer.files()? {
        write(&dir.join(name), &bytes)?;
    }
    Ok(())
}

fn config_json(encoder: &Encoder, head: Option<&ClassifierHead>) -> Value {
    let mut config = encoder.config().to_hugging_face();
    let fields = config
        .as_object_mut()
        .expect("a configuration is an object");
    let architecture = if head.is_some() {
        "BertForSequenceClassification"
    } else {
        "BertModel"
    };
    fields.insert("architectures".to_owned(), json!([architecture]));
    match head.map(|head| &head.outputs) {
        None => {}
        Some(HeadOutputs::Number) => {
            fields.insert("problem_type".to_owned(), json!("regression"));
            insert_labels(fields, &["LABEL_0".to_owned()]);
        }
        Some(HeadOutputs::Classes(names)) => {
            fields.insert(
                "problem_type".to_owned(),
                json!("single_label_classification"),
            );
            insert_labels(fields, names);
        }
    }
    config
}

fn insert_labels(fields: &mut Map<String, Value>, names: &[String]) {
    let by_id: Map<String, Value> = names
        .iter()
        .enumerate()
        .map(|(id, name)| (id.to_string(), json!(name)))
        .collect();
    let by_name: Map<String, Value> = names
        .iter()
        .enumerate()
        .map(|(id, name)| (name.clone(), json!(id)))
        .collect();
    fields.insert("id2label".to_owned(), Value::Object(by_id));
    fields.insert("label2id".to_owned(), Value::Object(by_name));
    fields.insert("num_labels".to_owned(), json!(names.len()));
}

/// All tensors under the names and in the layout of `transformers`.
fn hugging_face_tensors(encoder: &Encoder, head: Option<&ClassifierHead>) -> Vec<NamedTensor> {
    let prefix = if head.is_some() { "bert." } else { "" };
    let mut tensors: Vec<NamedTensor> = weights::named_tensors(encoder)
        .into_iter()
        .map(|tensor| to_hugging_face(tensor, prefix))
        .collect();
    if let Some(head) = head {
        tensors.push(classifier("weight", head.weight_cd.to_data()));
        tensors.push(classifier("bias", head.bias_c.to_data()));
    }
    tensors
}

fn classifier(field: &str, data: TensorData) -> NamedTensor {
    NamedTensor {
        name: format!("classifier.{field}"),
        owner: String::new(),
        data,
    }
}

fn to_hugging_face(tensor: NamedTensor, prefix: &str) -> NamedTensor {
    let NamedTensor { name, owner, data } = tensor;
    let name = format!("{prefix}{}", hugging_face_name(&name));
    let shape = data.shape().to_vec();
    let data = if is_transposed(&owner, shape.len()) {
        let values = data
            .as_slice::<f32>()
            .expect("an encoder's parameters are f32");
        TensorData::new(transpose(values, shape[0], shape[1]), [shape[1], shape[0]])
    } else {
        data
    };
    NamedTensor { name, owner, data }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StudentError> {
    let mut file = File::create(path).map_err(StudentError::io(path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(StudentError::io(path))
}

/// `dir` with a hidden name that no other process uses.
fn sibling(dir: &Path, purpose: &str) -> PathBuf {
    let name = dir
        .file_name()
        .map_or_else(|| "student".into(), |name| name.to_string_lossy());
    dir.with_file_name(format!(".{name}.{purpose}-{}", std::process::id()))
}

fn remove_if_there(dir: &Path) -> Result<(), StudentError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StudentError::io(dir)(error))
        }
        _ => Ok(()),
    }
}

/// Renames `staging` to `dir`; a directory already there gives way and is removed afterwards.
fn replace(staging: &Path, dir: &Path) -> Result<(), StudentError> {
    if !dir.exists() {
        return fs::rename(staging, dir).map_err(StudentError::io(dir));
    }
    let replaced = sibling(dir, "replaced");
    remove_if_there(&replaced)?;
    fs::rename(dir, &replaced).map_err(StudentError::io(dir))?;
    if let Err(error) = fs::rename(staging, dir) {
        // The first error is the one to tell.
        let _ = fs::rename(&replaced, dir);
        return Err(StudentError::io(dir)(error));
    }
    remove_if_there(&replaced)
}
