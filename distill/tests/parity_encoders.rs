//! Encoders beside `transformers`: expected values are in `tests/fixtures/encoders`, made by
//! `scripts/fixtures/make_encoders.py`.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `d` hidden width, `c` classes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use distill::student::parity::ENCODERS;
use distill::student::save::{ClassifierHead, HeadOutputs, save_pretrained};
use distill::student::{Backbone, TextTokenizer, TokenBatch};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Largest difference over largest expected value.
const TOLERANCE: f32 = 1e-4;

/// Name to shape and values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/encoders")
        .join(name)
}

/// All tensors of a file; whole numbers as f32, which holds them exactly.
fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: TensorView<'_>| -> Vec<f32> {
        if view.dtype() == Dtype::I64 {
            let (chunks, _) = view.data().as_chunks::<8>();
            let whole = chunks.iter().map(|chunk| i64::from_le_bytes(*chunk));
            return whole.map(|value| value as f32).collect();
        }
        let (chunks, _) = view.data().as_chunks::<4>();
        let values = chunks.iter().map(|chunk| f32::from_le_bytes(*chunk));
        values.collect()
    };
    stored
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(view))))
        .collect()
}

fn tensor<const D: usize>(tensors: &Tensors, name: &str, device: &Device) -> Tensor<D> {
    let (shape, values) = &tensors[name];
    Tensor::from_data(TensorData::new(values.clone(), shape.clone()), device)
}

fn batch(expected: &Tensors, device: &Device) -> TokenBatch {
    let ids = |name| -> Tensor<2, Int> { tensor::<2>(expected, name, device).int() };
    TokenBatch {
        token_ids_bs: ids("token_ids"),
        type_ids_bs: ids("type_ids"),
        attention_mask_bs: ids("attention_mask"),
    }
}

/// The rows from `row` on, cut to the first tokens.
fn cut(batch: &TokenBatch, row: usize, length: usize) -> TokenBatch {
    let part = |ids_bs: &Tensor<2, Int>| ids_bs.clone().narrow(0, row, 1).narrow(1, 0, length);
    TokenBatch {
        token_ids_bs: part(&batch.token_ids_bs),
        type_ids_bs: part(&batch.type_ids_bs),
        attention_mask_bs: part(&batch.attention_mask_bs),
    }
}

fn load(dir: &Path, device: &Device) -> Backbone {
    Backbone::from_pretrained(dir, None, device).unwrap().0
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let apart = found
        .iter()
        .zip(expected)
        .fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(
        apart <= TOLERANCE * largest,
        "{what}: {apart} of {largest} apart"
    );
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// The classification head beside the pooler, as stored.
fn head(name: &str, device: &Device) -> ClassifierHead {
    let stored = read(&fixture(name).join("model.safetensors"));
    let layer = match name {
        "roberta" => "classifier.out_proj",
        _ => "classifier",
    };
    ClassifierHead {
        weight_cd: tensor(&stored, &format!("{layer}.weight"), device),
        bias_c: Some(tensor(&stored, &format!("{layer}.bias"), device)),
        outputs: HeadOutputs::Classes(["LABEL_0", "LABEL_1", "LABEL_2"].map(str::to_owned).into()),
    }
}

/// A checkpoint with another configuration.
fn changed_copy(name: &str, dir: &Path, change: impl Fn(&mut serde_json::Value)) {
    let text = fs::read(fixture(name).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    change(&mut config);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let weights = "model.safetensors";
    fs::copy(fixture(name).join(weights), dir.join(weights)).unwrap();
}

#[test]
fn a_row_alone_equals_the_row_in_a_padded_batch() {
    let device = Device::flex();
    for name in ENCODERS {
        let expected = read(&fixture(name).join("expected.safetensors"));
        let backbone = load(&fixture(name), &device);
        let whole = batch(&expected, &device);
        let padded = backbone.forward(&whole);
        for (row, length) in [(0, 20), (1, 13), (2, 3)] {
            let alone = backbone.forward(&cut(&whole, row, length));
            let in_batch = padded.hidden_bsd.clone().narrow(0, row, 1);
            assert_close(
                &values(alone.hidden_bsd),
                &values(in_batch.narrow(1, 0, length)),
                &format!("{name}: row {row}"),
            );
        }
    }
}

/// Names, shapes and values of an export are those of the checkpoint that was read.
#[test]
fn an_export_with_its_head_is_what_transformers_wrote() {
    let device = Device::flex();
    let tokenizer = TextTokenizer::from_dir(&fixture("../bert-tiny"), 20).unwrap();
    for (name, class) in [
        ("bert", "BertForSequenceClassification"),
        ("roberta", "RobertaForSequenceClassification"),
        ("deberta-v2", "DebertaV2ForSequenceClassification"),
        ("deberta-v3", "DebertaV2ForSequenceClassification"),
        ("deberta-separate", "DebertaV2ForSequenceClassification"),
        ("deberta-c2p", "DebertaV2ForSequenceClassification"),
    ] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("student");
        let (backbone, report) = Backbone::from_pretrained(&fixture(name), None, &device).unwrap();
        assert_eq!(report.missing, [""; 0], "{name}");
        assert_eq!(report.unused.len(), 2, "{name}: {:?}", report.unused);
        save_pretrained(&dir, &backbone, &tokenizer, Some(&head(name, &device))).unwrap();
        let weights = "model.safetensors";
        assert_eq!(
            read(&dir.join(weights)),
            read(&fixture(name).join(weights)),
            "{name}"
        );
        assert_eq!(load(&dir, &device).config(), backbone.config());
        let config = fs::read_to_string(dir.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["architectures"], serde_json::json!([class]));

        save_pretrained(&dir, &backbone, &tokenizer, None).unwrap();
        let (_, report) = Backbone::from_pretrained(&dir, None, &device).unwrap();
        assert_eq!((report.missing.len(), report.unused.len()), (0, 0));
    }
}

#[test]
fn kin_of_roberta_keep_their_class() {
    let device = Device::flex();
    let tokenizer = TextTokenizer::from_dir(&fixture("../bert-tiny"), 20).unwrap();
    for (model_type, class) in [
        ("xlm-roberta", "XLMRobertaForSequenceClassification"),
        ("camembert", "CamembertForSequenceClassification"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        changed_copy("roberta", dir.path(), |config| {
            config["model_type"] = serde_json::json!(model_type);
        });
        let target = dir.path().join("student");
        let backbone = load(dir.path(), &device);
        let head = head("roberta", &device);
        save_pretrained(&target, &backbone, &tokenizer, Some(&head)).unwrap();
        let config = fs::read_to_string(target.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["architectures"], serde_json::json!([class]));
        assert_eq!(config["model_type"], model_type);
    }
}

/// Beside a trained head, `classifier.dense` is the pooler, and the base model's own pooler is left over.
#[test]
fn the_dense_layer_of_a_trained_roberta_head_is_the_pooler() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    changed_copy("roberta", dir.path(), |_| ());
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let untrained = vec![
        0;
        stored
            .tensor("classifier.dense.weight")
            .unwrap()
            .data()
            .len()
    ];
    let view = TensorView::new(Dtype::F32, vec![16, 16], &untrained).unwrap();
    let with_pooler = stored.iter().chain([("roberta.pooler.dense.weight", view)]);
    let bytes = safetensors::serialize(with_pooler, None).unwrap();
    drop(stored);
    fs::write(&path, bytes).unwrap();

    let expected = read(&fixture("roberta").join("expected.safetensors"));
    let (backbone, report) = Backbone::from_pretrained(dir.path(), None, &device).unwrap();
    assert_eq!(
        report.unused,
        [
            "classifier.out_proj.bias",
            "classifier.out_proj.weight",
            "roberta.pooler.dense.weight"
        ]
    );
    let pooled = values(backbone.forward(&batch(&expected, &device)).pooled_bd);
    assert_close(&pooled, &expected["pooled"].1, "pooled");
}

#[test]
fn other_architectures_are_refused_by_name() {
    for model_type in ["deberta", "xlm-roberta-xl"] {
        let dir = tempfile::tempdir().unwrap();
        changed_copy("bert", dir.path(), |config| {
            config["model_type"] = serde_json::json!(model_type);
        });
        let error = Backbone::from_pretrained(dir.path(), None, &Device::flex()).unwrap_err();
        let expected = format!("`model_type` is `{model_type}`, supported: bert, roberta");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}
