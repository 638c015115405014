//! What students that write compute, beside values from elsewhere: `transformers` (`tests/fixtures/generation.json`,
//! made by `scripts/fixtures/make_generation.py`) and NumPy (`tests/golden/generation_losses.json`, made by
//! `scripts/golden/generation.py`).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Gradients, Tensor};
use distill::objective::{
    AlignerOutputs, Guidance, LossTerms, MANIFOLD, Manifold, Objective, ObjectiveSettings, Preset,
    RECONSTRUCTION, RECONSTRUCTION_AUXILIARY, Responses, StudentOutputs, TASK, Targets,
};
use distill::random::{Purpose, Randomness};
use distill::student::LanguageModel;
use distill::student::generation::{Style, write};
use distill::student::sampling::Sampling;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

#[derive(Deserialize)]
struct Written {
    prompts: Vec<Vec<u32>>,
    logits: Vec<f32>,
    warped: Vec<Warped>,
}

#[derive(Deserialize)]
struct Warped {
    temperature: f64,
    top_k: Option<usize>,
    top_p: f64,
    probabilities: Vec<f64>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read<T: for<'a> Deserialize<'a>>(path: &str) -> T {
    serde_json::from_slice(&std::fs::read(root().join(path)).unwrap()).unwrap()
}

fn written() -> Written {
    read("tests/fixtures/generation.json")
}

fn load(name: &str) -> LanguageModel {
    let dir = root().join("tests/fixtures/causal").join(name);
    LanguageModel::from_pretrained(&dir, None, &Device::flex())
        .unwrap()
        .0
}

fn streams(count: usize) -> Vec<ChaCha8Rng> {
    (0..count)
        .map(|row| Randomness::new(1).stream(Purpose::Sampling, &[row as u8]))
        .collect()
}

#[test]
fn probabilities_are_warped_as_in_transformers() {
    let written = written();
    assert_eq!(written.warped.len(), 8);
    for case in &written.warped {
        let sampling = Sampling::new(case.temperature, case.top_k, case.top_p).unwrap();
        let probabilities = sampling.distribution(&written.logits);
        assert_eq!(probabilities.len(), case.probabilities.len());
        for (actual, expected) in probabilities.iter().zip(&case.probabilities) {
            assert!(
                (actual - expected).abs() < 1e-5,
                "{sampling:?}: {actual}, not {expected}"
            );
        }
    }
}

#[test]
fn drawn_texts_depend_on_their_own_stream_alone() {
    let (model, device) = (load("qwen3"), Device::flex());
    let written = written();
    let prompts: Vec<&[u32]> = written.prompts.iter().map(Vec::as_slice).collect();
    let style = Style {
        max_new_tokens: 12,
        sampling: Some(Sampling::new(1.5, None, 0.95).unwrap()),
        ends: &[],
    };
    let together = write(&model, &prompts, style, &mut streams(3), &device);
    assert_eq!(
        together,
        write(&model, &prompts, style, &mut streams(3), &device)
    );
    for (row, text) in together.iter().enumerate() {
        let alone = write(
            &model,
            &prompts[row..=row],
            style,
            &mut streams(3)[row..=row],
            &device,
        );
        assert_eq!(&alone[0], text);
    }
    let greedy = Style {
        sampling: None,
        ..style
    };
    assert_ne!(together, write(&model, &prompts, greedy, &mut [], &device));
}

type Matrix = Vec<Vec<f32>>;

#[derive(Deserialize)]
struct Case {
    preset: Preset,
    manifold: Manifold,
    beta: f64,
    gamma: f64,
    inputs: Inputs,
    reconstruction: f64,
    reconstruction_aux: f64,
    aligner_loss: f64,
    task: f64,
    manifold_term: f64,
    total: f64,
    gradients: ExpectedGradients,
}

#[derive(Deserialize)]
struct Inputs {
    z: Matrix,
    r: Matrix,
    a: Matrix,
    p_t: Matrix,
    p_s: Matrix,
    logits: Matrix,
    tokens: Vec<i64>,
}

#[derive(Deserialize)]
struct ExpectedGradients {
    r: Matrix,
    a: Matrix,
    logits: Matrix,
    p_s: Matrix,
}

fn tensor(rows: &Matrix, device: &Device) -> Tensor<2> {
    let flat = rows.concat();
    Tensor::<1>::from_floats(flat.as_slice(), device).reshape([rows.len(), rows[0].len()])
}

fn near(actual: f64, expected: f64) -> bool {
    (actual - expected).abs() <= 1e-5 * expected.abs().max(0.1)
}

fn assert_term(loss: &LossTerms, name: &str, expected: f64) {
    let actual: f32 = loss.get(name).unwrap().clone().into_scalar();
    assert!(
        near(f64::from(actual), expected),
        "{name}: {actual}, not {expected}"
    );
}

fn assert_gradient(leaf: &Tensor<2>, gradients: &Gradients, expected: &Matrix, name: &str) {
    let gradient = leaf.grad(gradients).unwrap();
    let actual: Vec<f32> = gradient.into_data().try_to_vec().unwrap();
    for (actual, expected) in actual.iter().zip(expected.concat()) {
        assert!(
            near(f64::from(*actual), f64::from(expected)),
            "gradient of {name}: {actual}, not {expected}"
        );
    }
}

fn responses(tokens: &[i64], device: &Device) -> Targets {
    let weights = vec![1.0 / tokens.len() as f32; tokens.len()];
    let places = vec![0_i64; tokens.len()];
    Targets::Responses(Responses {
        rows_r: Tensor::from_ints(places.as_slice(), device),
        columns_r: Tensor::from_ints(places.as_slice(), device),
        tokens_r: Tensor::from_ints(tokens, device),
        weights_r: Tensor::from_floats(weights.as_slice(), device),
        prompt_ends_b: Tensor::from_ints([0, 0, 0], device),
    })
}

#[test]
fn losses_of_generation_tasks_match_double_precision() {
    let device = Device::flex().autodiff();
    let cases: Vec<Case> = read("tests/golden/generation_losses.json");
    assert_eq!(cases.len(), 8);
    for case in cases {
        let settings = ObjectiveSettings {
            preset: case.preset,
            manifold: case.manifold,
            alpha: 0.0,
            beta: case.beta,
            gamma: case.gamma,
            ..ObjectiveSettings::default()
        };
        let objective = Objective::new(settings.try_into().unwrap());
        let targets = responses(&case.inputs.tokens, &device);
        let leaf = |rows: &Matrix| tensor(rows, &device).require_grad();
        let aligner = AlignerOutputs {
            main_bc: leaf(&case.inputs.r),
            auxiliary_bc: leaf(&case.inputs.a),
            projection_bk: leaf(&case.inputs.p_t),
            reconstructed_bf: Some(tensor(&case.inputs.z, &device)),
        };
        let student = StudentOutputs {
            main_bc: leaf(&case.inputs.logits),
            auxiliary_bc: None,
            projection_bk: leaf(&case.inputs.p_s),
        };
        let taught = objective.aligner_loss(&aligner, &targets);
        assert_eq!(taught.terms.len(), 2);
        assert_term(&taught, RECONSTRUCTION, case.reconstruction);
        assert_term(&taught, RECONSTRUCTION_AUXILIARY, case.reconstruction_aux);
        let total: f32 = taught.total.clone().into_scalar();
        assert!(near(f64::from(total), case.aligner_loss));
        let gradients = taught.total.backward();
        assert_gradient(&aligner.main_bc, &gradients, &case.gradients.r, "r");
        assert_gradient(&aligner.auxiliary_bc, &gradients, &case.gradients.a, "a");

        let learned = objective.student_loss(&student, Guidance::Teacher(&aligner), &targets);
        assert_eq!(learned.terms.len(), 2);
        assert_term(&learned, TASK, case.task);
        assert_term(&learned, MANIFOLD, case.manifold_term);
        let total: f32 = learned.total.clone().into_scalar();
        assert!(near(f64::from(total), case.total));
        let gradients = learned.total.backward();
        assert_gradient(
            &student.main_bc,
            &gradients,
            &case.gradients.logits,
            "logits",
        );
        assert_gradient(
            &student.projection_bk,
            &gradients,
            &case.gradients.p_s,
            "p_s",
        );
        assert!(aligner.projection_bk.grad(&gradients).is_none());
    }
}
