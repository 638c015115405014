//! The BERT student beside `transformers`: expected values are in `tests/fixtures/bert-tiny`, made
//! by `scripts/fixtures/make_bert_tiny.py`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use distill::device::Precision;
use distill::student::save::{ClassifierHead, HeadOutputs, save_pretrained};
use distill::student::{
    Backbone, BackboneOutput, FreshBertConfig, TextTokenizer, TokenBatch, WordPieceOptions, weights,
};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// Largest absolute difference from `transformers` that f32 rounding explains.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Expected {
    shape: [usize; 3],
    token_ids: Vec<i64>,
    type_ids: Vec<i64>,
    attention_mask: Vec<i64>,
    hidden: Vec<f32>,
    pooled: Vec<f32>,
    hidden_of_layer_2: Vec<f32>,
}

#[derive(Deserialize)]
struct TokenizedGroup {
    options: WordPieceOptions,
    cases: Vec<TokenizedText>,
}

#[derive(Deserialize)]
struct TokenizedText {
    max_length: usize,
    first: String,
    second: Option<String>,
    ids: Vec<u32>,
    type_ids: Vec<u32>,
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/bert-tiny")
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&fs::read(fixture().join(name)).unwrap()).unwrap()
}

fn ids(values: &[i64], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

impl Expected {
    fn batch(&self, device: &Device) -> TokenBatch {
        let shape = [self.shape[0], self.shape[1]];
        TokenBatch {
            token_ids_bs: ids(&self.token_ids, shape, device),
            type_ids_bs: ids(&self.type_ids, shape, device),
            attention_mask_bs: ids(&self.attention_mask, shape, device),
        }
    }
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().as_slice::<f32>().unwrap().to_vec()
}

fn difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter()
        .zip(right)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn load(dir: &Path) -> Backbone {
    Backbone::from_pretrained(dir, None, &Device::flex())
        .unwrap()
        .0
}

fn forward(encoder: &Backbone, expected: &Expected) -> BackboneOutput {
    encoder.forward(&expected.batch(&Device::flex()))
}

/// A copy of the fixture whose weights went through `change`, as `(name, dtype, shape, bytes)`.
fn changed_checkpoint(
    change: impl Fn(&str, &[usize], &[u8]) -> Option<(String, Dtype, Vec<usize>, Vec<u8>)>,
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(
        fixture().join("config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let bytes = fs::read(fixture().join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = stored
        .iter()
        .filter_map(|(name, view)| change(name, view.shape(), view.data()))
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), data).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    dir
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|chunk| f32::from_le_bytes(*chunk))
}

#[test]
fn hidden_states_and_pooled_output_match_transformers() {
    let expected: Expected = read("expected.json");
    let (encoder, report) = Backbone::from_pretrained(&fixture(), None, &Device::flex()).unwrap();
    assert_eq!(report.applied.len(), 55);
    assert_eq!(report.missing, [""; 0]);
    assert_eq!(report.unused, [""; 0]);
    let output = forward(&encoder, &expected);
    let (hidden, pooled) = (values(&output.hidden_bsd), values(&output.pooled_bd));
    assert!(difference(&hidden, &expected.hidden) < TOLERANCE);
    assert!(difference(&pooled, &expected.pooled) < TOLERANCE);
}

#[test]
fn num_layers_keeps_the_first_layers() {
    let expected: Expected = read("expected.json");
    let device = Device::flex();
    let (encoder, report) = Backbone::from_pretrained(&fixture(), Some(2), &device).unwrap();
    assert_eq!(encoder.config().architecture().num_layers(), 2);
    assert_eq!(report.unused.len(), 16);
    assert!(
        report
            .unused
            .iter()
            .all(|name| name.starts_with("encoder.layer.2."))
    );
    let hidden = values(&forward(&encoder, &expected).hidden_bsd);
    assert!(difference(&hidden, &expected.hidden_of_layer_2) < TOLERANCE);

    for requested in [0, 4] {
        let error = Backbone::from_pretrained(&fixture(), Some(requested), &device).unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("num_layers = {requested}, but ")),
            "{message}"
        );
        assert!(message.ends_with(" has 3 layers"), "{message}");
    }
}

#[test]
fn padding_changes_no_real_position() {
    let expected: Expected = read("expected.json");
    let device = Device::flex();
    let encoder = load(&fixture());
    let padded = forward(&encoder, &expected);
    for (row, length) in [(0_usize, 10_usize), (1, 6), (2, 3)] {
        let cut = |all: &[i64]| ids(&all[row * 10..row * 10 + length], [1, length], &device);
        let alone = encoder.forward(&TokenBatch {
            token_ids_bs: cut(&expected.token_ids),
            type_ids_bs: cut(&expected.type_ids),
            attention_mask_bs: cut(&expected.attention_mask),
        });
        let in_batch = padded
            .hidden_bsd
            .clone()
            .narrow(0, row, 1)
            .narrow(1, 0, length);
        assert!(difference(&values(&alone.hidden_bsd), &values(&in_batch)) < 2e-6);
        let in_batch = padded.pooled_bd.clone().narrow(0, row, 1);
        assert!(difference(&values(&alone.pooled_bd), &values(&in_batch)) < 2e-6);
    }
}

#[test]
fn ids_under_padding_have_no_influence() {
    let mut expected: Expected = read("expected.json");
    let encoder = load(&fixture());
    let before = values(&forward(&encoder, &expected).pooled_bd);
    for (id, mask) in expected.token_ids.iter_mut().zip(&expected.attention_mask) {
        if *mask == 0 {
            *id = 17;
        }
    }
    assert_eq!(values(&forward(&encoder, &expected).pooled_bd), before);
}

#[test]
fn prefixed_and_old_names_load_alike() {
    let expected: Expected = read("expected.json");
    let dir = changed_checkpoint(|name, shape, data| {
        let name = name
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta");
        Some((
            format!("bert.{name}"),
            Dtype::F32,
            shape.to_vec(),
            data.to_vec(),
        ))
    });
    let original = forward(&load(&fixture()), &expected);
    let renamed = forward(&load(dir.path()), &expected);
    assert_eq!(values(&renamed.hidden_bsd), values(&original.hidden_bsd));
}

#[test]
fn half_precision_weights_become_f32() {
    let half = |value: f32| f16::from_f32(value).to_le_bytes();
    let brain = |value: f32| bf16::from_f32(value).to_le_bytes();
    for (dtype, narrow, steps) in [
        (Dtype::F16, &half as &dyn Fn(f32) -> [u8; 2], 2048.0),
        (Dtype::BF16, &brain, 256.0),
    ] {
        let dir = changed_checkpoint(|name, shape, data| {
            let narrowed = floats(data).flat_map(narrow).collect();
            Some((name.to_owned(), dtype, shape.to_vec(), narrowed))
        });
        let narrowed = weights::named_tensors(&load(dir.path()));
        for (original, narrowed) in weights::named_tensors(&load(&fixture()))
            .iter()
            .zip(narrowed)
        {
            let original = original.data.as_slice::<f32>().unwrap();
            let narrowed = narrowed.data.as_slice::<f32>().unwrap();
            for (original, narrowed) in original.iter().zip(narrowed) {
                let error = (original - narrowed).abs();
                assert!(
                    error <= original.abs() / steps + 1e-7,
                    "{dtype:?} {original} {narrowed}"
                );
            }
        }
    }
}

#[test]
fn shards_with_an_index_load_alike() {
    let expected: Expected = read("expected.json");
    let whole = fs::read(fixture().join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&whole).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::copy(
        fixture().join("config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let mut index = BTreeMap::new();
    for (number, file) in ["model-1.safetensors", "model-2.safetensors"]
        .into_iter()
        .enumerate()
    {
        let part: Vec<_> = stored
            .iter()
            .filter(|(name, _)| name.len() % 2 == number)
            .collect();
        index.extend(part.iter().map(|(name, _)| ((*name).to_owned(), file)));
        fs::write(
            dir.path().join(file),
            safetensors::serialize(part, None).unwrap(),
        )
        .unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": index});
    fs::write(
        dir.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    let original = forward(&load(&fixture()), &expected);
    let sharded = forward(&load(dir.path()), &expected);
    assert_eq!(values(&sharded.hidden_bsd), values(&original.hidden_bsd));
}

#[test]
fn a_missing_trunk_weight_is_an_error_that_names_it() {
    let dir = changed_checkpoint(|name, shape, data| {
        let lost = [
            "embeddings.LayerNorm.bias",
            "encoder.layer.1.attention.self.key.weight",
        ];
        (!lost.contains(&name))
            .then(|| (name.to_owned(), Dtype::F32, shape.to_vec(), data.to_vec()))
    });
    let error = Backbone::from_pretrained(dir.path(), None, &Device::flex()).unwrap_err();
    let expected = " lacks 2 weights of the encoder: embeddings.LayerNorm.bias, \
                    encoder.layer.1.attention.self.key.weight";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn a_missing_pooler_is_drawn_and_reported() {
    let _turn = RANDOM_STATE.lock().unwrap();
    let dir = changed_checkpoint(|name, shape, data| {
        (!name.starts_with("pooler."))
            .then(|| (name.to_owned(), Dtype::F32, shape.to_vec(), data.to_vec()))
    });
    let device = Device::flex();
    device.seed(5);
    let (encoder, report) = Backbone::from_pretrained(dir.path(), None, &device).unwrap();
    assert_eq!(report.missing, ["pooler.dense.weight", "pooler.dense.bias"]);
    assert_eq!(
        report.to_string(),
        "53 tensors loaded; newly initialised: pooler.dense.weight, pooler.dense.bias"
    );
    let tensors = weights::named_tensors(&encoder);
    let pooler = tensors
        .iter()
        .find(|tensor| tensor.name == "trunk.pooler.dense.weight")
        .unwrap();
    let drawn = pooler.data.as_slice::<f32>().unwrap();
    let deviation = (drawn.iter().map(|x| x * x).sum::<f32>() / drawn.len() as f32).sqrt();
    assert!((0.018..0.022).contains(&deviation), "{deviation}");
}

#[test]
fn a_wrong_shape_is_an_error_with_both_shapes() {
    let dir = changed_checkpoint(|name, shape, data| {
        let shape = match name {
            "encoder.layer.0.intermediate.dense.weight" => vec![32, 64],
            _ => shape.to_vec(),
        };
        Some((name.to_owned(), Dtype::F32, shape, data.to_vec()))
    });
    let error = Backbone::from_pretrained(dir.path(), None, &Device::flex()).unwrap_err();
    let expected = "tensor `encoder.layer.0.intermediate.dense.weight` has shape [32, 64], \
                    config.json implies [64, 32]";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn pickled_weights_are_refused_with_the_command_that_converts_them() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(
        fixture().join("config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let error = Backbone::from_pretrained(dir.path(), None, &Device::flex()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("neither model.safetensors nor model.safetensors.index.json"),
        "{error}"
    );
    for file in ["pytorch_model.bin.index.json", "pytorch_model.bin"] {
        fs::write(dir.path().join(file), b"pickle").unwrap();
        let error = Backbone::from_pretrained(dir.path(), None, &Device::flex()).unwrap_err();
        let expected = format!("only as pickles ({file}), of which none is ever opened");
        assert!(error.to_string().ends_with(&expected), "{error}");
        let hint = error.hint().unwrap();
        assert!(hint.starts_with("convert it once: python3 -c "), "{hint}");
    }
}

#[test]
fn a_saved_student_loads_bit_equal() {
    let encoder = load(&fixture());
    let tokenizer = TextTokenizer::from_dir(&fixture(), 24).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("student");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("config.json"), "gives way").unwrap();
    save_pretrained(&dir, &encoder, &tokenizer, None).unwrap();

    let loaded = load(&dir);
    assert_eq!(loaded.config(), encoder.config());
    assert_eq!(
        weights::to_safetensors(&loaded).unwrap(),
        weights::to_safetensors(&encoder).unwrap()
    );
    let files = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let expected = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ];
    assert_eq!(files(&dir), expected);
    assert_eq!(files(parent.path()), ["student"]);
}

#[test]
fn a_head_is_saved_under_the_names_of_transformers() {
    let device = Device::flex();
    let encoder = load(&fixture());
    let tokenizer = TextTokenizer::from_dir(&fixture(), 24).unwrap();
    let head = ClassifierHead {
        weight_cd: Tensor::ones([2, 32], &device),
        bias_c: Some(Tensor::zeros([2], &device)),
        outputs: HeadOutputs::Classes(vec!["no".to_owned(), "yes".to_owned()]),
    };
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("student");
    save_pretrained(&dir, &encoder, &tokenizer, Some(&head)).unwrap();

    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        config["architectures"],
        serde_json::json!(["BertForSequenceClassification"])
    );
    assert_eq!(
        config["id2label"],
        serde_json::json!({"0": "no", "1": "yes"})
    );
    assert_eq!(config["problem_type"], "single_label_classification");
    let (_, report) = Backbone::from_pretrained(&dir, None, &device).unwrap();
    assert_eq!(report.applied.len(), 55);
    assert_eq!(report.unused, ["classifier.bias", "classifier.weight"]);
}

#[test]
fn token_ids_match_transformers() {
    let vocabulary = fs::read_to_string(fixture().join("vocab.txt")).unwrap();
    let vocabulary: Vec<String> = vocabulary.lines().map(str::to_owned).collect();
    let groups: Vec<TokenizedGroup> = read("tokenized.json");
    assert_eq!(groups.len(), 4);
    for TokenizedGroup { options, cases } in groups {
        for case in cases {
            let tokenizer =
                TextTokenizer::from_vocabulary(&vocabulary, options, case.max_length).unwrap();
            let encoding = tokenizer
                .encode_pair(&case.first, case.second.as_deref())
                .unwrap();
            let text = (&case.first, &case.second, options);
            assert_eq!(encoding.ids, case.ids, "{text:?}");
            assert_eq!(encoding.type_ids, case.type_ids, "{text:?}");
        }
    }
}

#[test]
fn the_tokenizer_of_a_directory_is_the_same_from_either_file() {
    let from_vocabulary = TextTokenizer::from_dir(&fixture(), 24).unwrap();
    assert_eq!(from_vocabulary.vocab_size(), 71);
    assert_eq!(from_vocabulary.pad_id(), 0);
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("student");
    save_pretrained(&dir, &load(&fixture()), &from_vocabulary, None).unwrap();
    fs::remove_file(dir.join("vocab.txt")).unwrap();
    let groups: Vec<TokenizedGroup> = read("tokenized.json");
    for case in &groups[0].cases {
        let tokenizer = TextTokenizer::from_dir(&dir, case.max_length).unwrap();
        let encoding = tokenizer
            .encode_pair(&case.first, case.second.as_deref())
            .unwrap();
        assert_eq!(encoding.ids, case.ids, "{:?}", case.first);
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let encoder = load(&fixture());
    let longer = TextTokenizer::from_dir(&fixture(), 25).unwrap();
    assert_eq!(
        encoder.check_tokenizer(&longer).unwrap_err().to_string(),
        "max_length = 25, but the encoder has 24 positions"
    );
    let mut vocabulary: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .map(str::to_owned)
        .to_vec();
    vocabulary.extend((5..72).map(|id| format!("word{id}")));
    let larger =
        TextTokenizer::from_vocabulary(&vocabulary, WordPieceOptions::default(), 24).unwrap();
    assert_eq!(
        encoder.check_tokenizer(&larger).unwrap_err().to_string(),
        "the tokenizer has 72 tokens, the encoder embeds 71"
    );
    let error = TextTokenizer::from_vocabulary(&vocabulary[1..], WordPieceOptions::default(), 24);
    assert_eq!(
        error.unwrap_err().to_string(),
        "vocabulary: the vocabulary lacks [PAD]"
    );
    let error = TextTokenizer::from_dir(&fixture(), 3).unwrap_err();
    assert_eq!(
        error.to_string(),
        "max_length = 3: a pair needs 3 special tokens and room for text"
    );
}

/// The random state is one per process: whoever draws from it takes turns.
static RANDOM_STATE: Mutex<()> = Mutex::new(());

fn fresh(seed: u64, dropout: f64, device: &Device) -> Backbone {
    let config = FreshBertConfig {
        hidden_size: 32,
        num_layers: 2,
        num_heads: 4,
        intermediate_size: 64,
        max_positions: 24,
        dropout,
    };
    device.seed(seed);
    Backbone::fresh(&config, 71, device).unwrap()
}

#[test]
fn a_fresh_student_follows_from_the_seed() {
    let _turn = RANDOM_STATE.lock().unwrap();
    let device = Device::flex();
    let bytes = |seed| weights::to_safetensors(&fresh(seed, 0.1, &device)).unwrap();
    assert_eq!(bytes(1), bytes(1));
    assert_ne!(bytes(1), bytes(2));
}

#[test]
fn dropout_acts_in_training_alone() {
    let _turn = RANDOM_STATE.lock().unwrap();
    let expected: Expected = read("expected.json");
    let device = Device::flex().autodiff();
    let encoder = fresh(3, 0.1, &device);
    let batch = expected.batch(&device);
    let pooled = |encoder: &Backbone, batch: &TokenBatch| values(&encoder.forward(batch).pooled_bd);
    assert_ne!(pooled(&encoder, &batch), pooled(&encoder, &batch));
    let evaluated = encoder.valid();
    let plain = expected.batch(&Device::flex());
    assert_eq!(pooled(&evaluated, &plain), pooled(&evaluated, &plain));
    let parameters = weights::to_safetensors(&encoder).unwrap();
    let without = weights::load_safetensors(fresh(3, 0.0, &device), &parameters).unwrap();
    let trained = pooled(&without, &batch);
    assert!(difference(&trained, &pooled(&evaluated, &plain)) < TOLERANCE);
}

#[test]
fn bf16_stays_close_to_f32_and_keeps_f32_gradients() {
    let expected: Expected = read("expected.json");
    let device = Device::flex().autodiff();
    let (encoder, _) = Backbone::from_pretrained(&fixture(), None, &device).unwrap();
    let exact = values(
        &encoder
            .valid()
            .forward(&expected.batch(&Device::flex()))
            .pooled_bd,
    );
    let encoder = encoder.with_precision(Precision::Bf16);
    let rough = values(
        &encoder
            .valid()
            .forward(&expected.batch(&Device::flex()))
            .pooled_bd,
    );
    let worst = difference(&exact, &rough);
    assert!(worst > 0.0 && worst < 0.1, "{worst}");

    let loss = encoder.forward(&expected.batch(&device)).pooled_bd.sum();
    let gradients = burn::optim::GradientsParams::from_grads(loss.backward(), &encoder);
    assert_eq!(gradients.len(), 55);
}

#[test]
fn every_tensor_of_an_encoder_round_trips_by_name() {
    let _turn = RANDOM_STATE.lock().unwrap();
    let device = Device::flex().autodiff();
    let bytes = weights::to_safetensors(&fresh(1, 0.1, &device)).unwrap();
    let loaded = weights::load_safetensors(fresh(2, 0.1, &device), &bytes).unwrap();
    assert_eq!(weights::to_safetensors(&loaded).unwrap(), bytes);
}
