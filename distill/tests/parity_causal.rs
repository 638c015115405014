//! Causal students beside `transformers`: expected values are in `tests/fixtures/causal`, made by
//! `scripts/fixtures/make_causal.py`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use distill::config::{StudentConfig, StudentSource};
use distill::device::Precision;
use distill::heads::AlignerConfig;
use distill::model::Student;
use distill::objective::{Preset, TaskKind};
use distill::random::Randomness;
use distill::student::parity::CAUSAL;
use distill::student::save::{ClassifierHead, HeadOutputs, save_language_model, save_pretrained};
use distill::student::{
    Backbone, Cache, LanguageModel, TextTokenizer, TokenBatch, WordPieceOptions,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// Largest difference from `transformers`, relative to the largest value.
const TOLERANCE: f32 = 1e-4;

/// Rows of every fixture's word embedding.
const VOCABULARY: usize = 64;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn fixture(model: &str) -> PathBuf {
    fixtures().join("causal").join(model)
}

fn load(model: &str, device: &Device) -> LanguageModel {
    LanguageModel::from_pretrained(&fixture(model), None, device)
        .unwrap()
        .0
}

/// Values and shape of every tensor of a file.
struct Stored(Vec<u8>);

impl Stored {
    fn read(path: &Path) -> Self {
        Self(fs::read(path).unwrap())
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>, Vec<u8>)> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let mut tensors: Vec<_> = tensors
            .iter()
            .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()))
            .collect();
        tensors.sort();
        tensors
    }

    fn get<T>(&self, name: &str, value: impl Fn(&[u8]) -> T, size: usize) -> (Vec<T>, Vec<usize>) {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(name).unwrap();
        (
            view.data().chunks_exact(size).map(value).collect(),
            view.shape().to_vec(),
        )
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
        self.get(name, value, 4).0
    }

    fn ids(&self, name: &str, device: &Device) -> Tensor<2, Int> {
        let value = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().unwrap());
        let (values, shape) = self.get(name, value, 8);
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn batch(&self, side: &str, device: &Device) -> TokenBatch {
        let token_ids_bs = self.ids(&format!("{side}.token_ids"), device);
        TokenBatch {
            type_ids_bs: token_ids_bs.zeros_like(),
            token_ids_bs,
            attention_mask_bs: self.ids(&format!("{side}.mask"), device),
        }
    }
}

fn expected(model: &str) -> Stored {
    Stored::read(&fixture(model).join("expected.safetensors"))
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().as_slice::<f32>().unwrap().to_vec()
}

/// Largest difference over the largest expected value.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    let difference = differences.fold(0.0, |most, value| if value <= most { most } else { value });
    difference / largest
}

/// The values `[b, s, ..]` of real positions.
fn real(values: &[f32], mask_bs: &Tensor<2, Int>) -> Vec<f32> {
    let mask: Vec<i64> = mask_bs.to_data().iter::<i64>().collect();
    let width = values.len() / mask.len();
    let rows = values.chunks_exact(width).zip(mask);
    rows.filter(|(_, mask)| *mask == 1)
        .flat_map(|(row, _)| row.to_vec())
        .collect()
}

#[test]
fn left_and_right_padding_pool_alike() {
    let device = Device::flex();
    for name in CAUSAL {
        let (expected, model) = (expected(name), load(name, &device));
        let pooled = |side| {
            let batch = expected.batch(side, &device);
            values(&model.backbone().forward(&batch).pooled_bd)
        };
        let difference = difference(&pooled("left"), &pooled("right"));
        assert!(difference < 1e-5, "{name}: {difference}");
    }
}

#[test]
fn steps_with_a_cache_equal_the_whole() {
    let device = Device::flex();
    for name in CAUSAL {
        let (expected, model) = (expected(name), load(name, &device));
        for side in ["right", "left"] {
            let batch = expected.batch(side, &device);
            let whole = real(&values(&model.logits(&batch)), &batch.attention_mask_bs);
            let mut cache = Cache::default();
            let steps = [(0, 3), (3, 1), (4, 1), (5, 3)].map(|(start, count)| {
                let part = |tensor: &Tensor<2, Int>| tensor.clone().narrow(1, start, count);
                let part = TokenBatch {
                    token_ids_bs: part(&batch.token_ids_bs),
                    type_ids_bs: part(&batch.type_ids_bs),
                    attention_mask_bs: part(&batch.attention_mask_bs),
                };
                let logits_bsv = model.step(&part, &mut cache);
                assert_eq!(cache.num_positions(), start + count);
                logits_bsv
            });
            let steps = Tensor::cat(steps.to_vec(), 1);
            let steps = real(&values(&steps), &batch.attention_mask_bs);
            let difference = difference(&steps, &whole);
            assert!(difference < 1e-5, "{name} {side}: {difference}");
        }
    }
}

#[test]
fn a_later_token_changes_nothing_before_it() {
    let device = Device::flex();
    for name in CAUSAL {
        let (expected, model) = (expected(name), load(name, &device));
        let batch = expected.batch("right", &device);
        let changed = TokenBatch {
            token_ids_bs: Tensor::cat(
                vec![
                    batch.token_ids_bs.clone().narrow(1, 0, 7),
                    batch.token_ids_bs.clone().narrow(1, 0, 1),
                ],
                1,
            ),
            ..batch.clone()
        };
        let first =
            |batch: &TokenBatch| values(&model.logits(batch).narrow(1, 0, 7).narrow(0, 0, 1));
        let last =
            |batch: &TokenBatch| values(&model.logits(batch).narrow(1, 7, 1).narrow(0, 0, 1));
        assert_eq!(first(&batch), first(&changed), "{name}");
        assert_ne!(last(&batch), last(&changed), "{name}");
    }
}

fn tokenizer() -> TextTokenizer {
    TextTokenizer::from_dir(&fixtures().join("bert-tiny"), 16).unwrap()
}

fn config_of(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_saved_language_model_is_what_transformers_wrote() {
    let scratch = tempfile::tempdir().unwrap();
    for name in CAUSAL {
        let model = load(name, &Device::flex());
        let dir = scratch.path().join(name);
        save_language_model(&dir, &model, &tokenizer()).unwrap();
        let weights = |dir: &Path| Stored::read(&dir.join("model.safetensors")).tensors();
        assert_eq!(weights(&dir), weights(&fixture(name)), "{name}");
        let (written, read) = (config_of(&dir), config_of(&fixture(name)));
        for field in [
            "architectures",
            "model_type",
            "eos_token_id",
            "tie_word_embeddings",
        ] {
            assert_eq!(written[field], read[field], "{name}");
        }
        let (again, report) = LanguageModel::from_pretrained(&dir, None, &Device::flex()).unwrap();
        assert_eq!((report.missing.len(), report.unused.len()), (0, 0));
        let batch = expected(name).batch("right", &Device::flex());
        assert_eq!(values(&again.logits(&batch)), values(&model.logits(&batch)));
    }
}

#[test]
fn backbone_and_classifier_are_saved_under_their_own_names() {
    let scratch = tempfile::tempdir().unwrap();
    let device = Device::flex();
    for (name, class, base, classifier) in [
        ("llama-biased-untied", "Llama", "", "model."),
        ("qwen2", "Qwen2", "", "model."),
        ("qwen3", "Qwen3", "", "model."),
        (
            "opt-post-norm-projected",
            "OPT",
            "decoder.",
            "model.decoder.",
        ),
    ] {
        let (backbone, report) = Backbone::from_pretrained(&fixture(name), None, &device).unwrap();
        let has_head = name == "llama-biased-untied" || name == "qwen2";
        let unused: &[&str] = if has_head { &["lm_head.weight"] } else { &[] };
        assert_eq!(report.unused, unused);
        let width = backbone.config().architecture().hidden_size();
        let head = ClassifierHead {
            weight_cd: Tensor::ones([3, width], &device),
            bias_c: None,
            outputs: HeadOutputs::Classes(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]),
        };
        for (head, suffix, prefix) in [
            (None, "Model", base),
            (Some(&head), "ForSequenceClassification", classifier),
        ] {
            let dir = scratch.path().join(name).with_extension(suffix);
            save_pretrained(&dir, &backbone, &tokenizer(), head).unwrap();
            assert_eq!(
                config_of(&dir)["architectures"][0],
                format!("{class}{suffix}")
            );
            let tensors = Stored::read(&dir.join("model.safetensors")).tensors();
            let names = tensors.iter().map(|(name, ..)| name.as_str());
            let (heads, trunk): (Vec<&str>, Vec<&str>) =
                names.partition(|name| name.starts_with("score"));
            assert_eq!(heads.len(), usize::from(head.is_some()));
            assert!(
                trunk.iter().all(|name| name.starts_with(prefix)),
                "{trunk:?}"
            );
            let (_, again) = Backbone::from_pretrained(&dir, None, &device).unwrap();
            assert_eq!(again.applied, report.applied);
        }
    }
}

/// A copy of a fixture that drops nothing in training, as the expected values.
fn without_dropout(model: &str) -> tempfile::TempDir {
    let dir = without(model, "");
    let mut config = config_of(dir.path());
    config["dropout"] = serde_json::json!(0.0);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// A copy of a fixture without one of its tensors.
fn without(model: &str, lost: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(
        fixture(model).join("config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let bytes = fs::read(fixture(model).join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let kept: Vec<(&str, TensorView<'_>)> =
        stored.iter().filter(|(name, _)| *name != lost).collect();
    let bytes = safetensors::serialize(kept, None).unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    dir
}

#[test]
fn a_missing_head_is_drawn_and_said_and_a_missing_trunk_weight_is_an_error() {
    let device = Device::flex();
    let dir = without("qwen2", "lm_head.weight");
    let (model, report) = LanguageModel::from_pretrained(dir.path(), None, &device).unwrap();
    assert_eq!(report.missing, ["lm_head.weight"]);
    let logits = values(&model.logits(&expected("qwen2").batch("right", &device)));
    assert!(
        logits.iter().all(|value| value.is_finite()) && logits.iter().any(|&value| value != 0.0)
    );

    let dir = without("qwen2", "model.norm.weight");
    let error = LanguageModel::from_pretrained(dir.path(), None, &device).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with(" lacks 1 weights of the encoder: norm.weight"),
        "{error}"
    );
}

#[test]
fn a_student_reads_the_last_token_with_a_head_without_bias() {
    let device = Device::flex().autodiff();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let words = (5..VOCABULARY).map(|id| format!("word{id}"));
    let vocabulary: Vec<String> = special.into_iter().chain(words).collect();
    for name in CAUSAL {
        let dir = without_dropout(name);
        let tokenizer =
            TextTokenizer::from_vocabulary(&vocabulary, WordPieceOptions::default(), 8).unwrap();
        let config = StudentConfig {
            source: StudentSource::Pretrained {
                path: dir.path().to_owned(),
                num_layers: None,
            },
            max_length: NonZeroUsize::new(8).unwrap(),
            precision: Precision::F32,
            chat: None,
            lora: None,
        };
        let heads = AlignerConfig::default().resolve(
            Preset::Reference,
            TaskKind::Classification { num_classes: 3 },
        );
        let randomness = Randomness::new(1);
        let student = Student::new(
            &config,
            Path::new(""),
            &tokenizer,
            &heads,
            randomness,
            &device,
        )
        .unwrap();
        let head = student.classifier(HeadOutputs::Classes(Vec::new()));
        assert!(head.bias_c.is_none());
        let expected = expected(name);
        let main = |side| {
            student
                .valid()
                .main(&expected.batch(side, &device.clone().inner()))
        };
        let pooled = expected.floats("right.pooled");
        let weight = head.weight_cd.transpose();
        let pooled = TensorData::new(pooled, [3, weight.dims()[0]]);
        let theirs = Tensor::<2>::from_data(pooled, &device.clone().inner()).matmul(weight);
        for side in ["right", "left"] {
            assert!(
                difference(&values(&main(side)), &values(&theirs)) < TOLERANCE,
                "{name}"
            );
        }
    }
}

#[test]
fn an_encoder_is_refused_as_a_language_model() {
    let error =
        LanguageModel::from_pretrained(&fixtures().join("bert-tiny"), None, &Device::flex())
            .unwrap_err();
    assert_eq!(
        error.to_string(),
        "`BertModel` is no causal language model: it cannot predict the next token"
    );
    assert!(error.hint().unwrap().contains("llama, opt, qwen2 or qwen3"));
}
