//! A student as a directory that `transformers` loads, written whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use serde_json::{Map, Value, json};

use super::architecture::{ClassifierNaming, Naming};
use super::layers::Linear;
use super::peft::ADAPTER_FILES;
use super::pretrained::LANGUAGE_HEAD;
use super::tensor_file::{FileTensor, file_tensors, write_tensors};
use super::tokenizer::TOKENIZER_FILES;
use super::{Backbone, LanguageModel, StudentError, TextTokenizer};

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";

/// The main head on the pooled vector, for the classes `...ForSequenceClassification`.
#[derive(Debug, Clone)]
pub struct ClassifierHead {
    /// `[classes, hidden]`, the layout of `PyTorch`.
    pub weight_cd: Tensor<2>,
    /// `[classes]`; causal language models have none.
    pub bias_c: Option<Tensor<1>>,
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
/// Without a head the directory holds the architecture's base model, as `BertModel`; with one its
/// sequence classifier, as `BertForSequenceClassification`.
/// Everything is written to a directory beside `dir` and renamed at the end; an earlier export at
/// `dir` is replaced.
///
/// # Errors
///
/// [`StudentError::ExportTarget`] where `dir` holds anything else; [`StudentError::Io`] names the
/// file. `dir` is as it was then.
pub fn save_pretrained(
    dir: &Path,
    backbone: &Backbone,
    tokenizer: &TextTokenizer,
    head: Option<&ClassifierHead>,
) -> Result<(), StudentError> {
    let head = head.map_or(Head::None, Head::Classifier);
    save(dir, backbone, tokenizer, head)
}

/// Writes a language model as [`save_pretrained`] writes a backbone: the directory holds the architecture's class for
/// it, as `LlamaForCausalLM`.
///
/// # Errors
///
/// As [`save_pretrained`].
pub fn save_language_model(
    dir: &Path,
    model: &LanguageModel,
    tokenizer: &TextTokenizer,
) -> Result<(), StudentError> {
    let head = Head::Language(model.head.as_ref());
    save(dir, &model.backbone, tokenizer, head)
}

/// What stands on the trunk.
#[derive(Clone, Copy)]
enum Head<'a> {
    None,
    Classifier(&'a ClassifierHead),
    /// `None` where the head is the word embedding.
    Language(Option<&'a Linear>),
}

/// How a whole model is named.
pub(super) struct ModelNaming {
    class: &'static str,
    prefix: &'static str,
    renamed: &'static [(&'static str, &'static str)],
}

impl ModelNaming {
    /// A sequence classifier, or the base model of an architecture that has none.
    pub(super) fn classifier(naming: &'static Naming) -> Self {
        let (class, prefix, renamed) = match &naming.classifier {
            Some(classifier) => (classifier.class, classifier.prefix, classifier.renamed),
            None => (naming.base.0, naming.base.1, &[][..]),
        };
        Self {
            class,
            prefix,
            renamed,
        }
    }

    /// A language model.
    pub(super) fn language(naming: &'static Naming) -> Self {
        let (class, prefix) = naming.causal.expect("a language model's class is known");
        let renamed = &[];
        Self {
            class,
            prefix,
            renamed,
        }
    }

    fn new(naming: &'static Naming, head: Head<'_>) -> Self {
        let (class, prefix) = match head {
            Head::Classifier(_) => return Self::classifier(naming),
            Head::Language(_) => return Self::language(naming),
            Head::None => naming.base,
        };
        let renamed = &[];
        Self {
            class,
            prefix,
            renamed,
        }
    }

    /// The name within the whole model of a name within the trunk.
    pub(super) fn published(&self, name: &str, naming: &Naming) -> String {
        let renamed = self
            .renamed
            .iter()
            .find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
        match renamed {
            Some(renamed) => renamed,
            None if naming.is_outside(name) => name.to_owned(),
            None => format!("{}{name}", self.prefix),
        }
    }
}

fn save(
    dir: &Path,
    backbone: &Backbone,
    tokenizer: &TextTokenizer,
    head: Head<'_>,
) -> Result<(), StudentError> {
    write_directory(dir, |staging| {
        write_files(staging, backbone, tokenizer, head)
    })
}

/// Writes a directory beside `dir` and renames it at the end; an earlier export at `dir` is replaced.
pub(super) fn write_directory(
    dir: &Path,
    write_files: impl FnOnce(&Path) -> Result<(), StudentError>,
) -> Result<(), StudentError> {
    check_target(dir)?;
    let staging = sibling(dir, "partial");
    remove_if_there(&staging)?;
    let written = fs::create_dir_all(&staging)
        .map_err(StudentError::io(&staging))
        .and_then(|()| write_files(&staging))
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
        let mut ours = [CONFIG_FILE, WEIGHTS_FILE]
            .iter()
            .chain(&ADAPTER_FILES)
            .chain(&TOKENIZER_FILES);
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
    backbone: &Backbone,
    tokenizer: &TextTokenizer,
    head: Head<'_>,
) -> Result<(), StudentError> {
    let config = config_json(backbone, tokenizer, head);
    let config = serde_json::to_vec_pretty(&config).expect("a JSON value has string keys");
    write(&dir.join(CONFIG_FILE), &config)?;
    write_tensors(
        &dir.join(WEIGHTS_FILE),
        hugging_face_tensors(backbone, head),
    )?;
    for (name, bytes) in tokenizer.files()? {
        write(&dir.join(name), &bytes)?;
    }
    Ok(())
}

fn config_json(backbone: &Backbone, tokenizer: &TextTokenizer, head: Head<'_>) -> Value {
    let architecture = backbone.config().architecture();
    let mut config = architecture.to_hugging_face();
    let fields = config
        .as_object_mut()
        .expect("a configuration is an object");
    let class = ModelNaming::new(architecture.naming(), head).class;
    fields.insert("architectures".to_owned(), json!([class]));
    if architecture.pad_token_id().is_none() {
        // A causal classifier of `transformers` finds a row's last token by what padding carries.
        fields.insert("pad_token_id".to_owned(), json!(tokenizer.pad_id()));
    }
    if let Head::Classifier(classifier) = head {
        let (problem, labels) = match &classifier.outputs {
            HeadOutputs::Number => ("regression", &["LABEL_0".to_owned()][..]),
            HeadOutputs::Classes(names) => ("single_label_classification", &names[..]),
        };
        fields.insert("problem_type".to_owned(), json!(problem));
        insert_labels(fields, labels);
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

/// All tensors under their names in `transformers`.
fn hugging_face_tensors(backbone: &Backbone, head: Head<'_>) -> Vec<FileTensor> {
    let naming = backbone.config().architecture().naming();
    let model = ModelNaming::new(naming, head);
    let mut tensors = file_tensors(&backbone.trunk, |path| {
        Some(model.published(&naming.published(path), naming))
    });
    match head {
        Head::Classifier(classifier) => {
            if let Some(naming) = &naming.classifier {
                tensors.extend(classifier_tensors(classifier, naming));
            }
        }
        Head::Language(Some(linear)) => {
            let named = |path: &str| Some(format!("{LANGUAGE_HEAD}.{path}"));
            tensors.extend(file_tensors(linear, named));
        }
        Head::None | Head::Language(None) => {}
    }
    tensors
}

/// The head under its published names.
pub(super) fn classifier_tensors(
    head: &ClassifierHead,
    naming: &ClassifierNaming,
) -> impl Iterator<Item = FileTensor> {
    let name = |field: &str| format!("{}.{field}", naming.head);
    let weight = FileTensor::new(name("weight"), head.weight_cd.clone());
    let bias = head.bias_c.clone();
    let bias = bias.map(|bias_c| FileTensor::new(name("bias"), bias_c));
    std::iter::once(weight).chain(bias)
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), StudentError> {
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
