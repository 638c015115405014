//! Times training steps of the MiniLM shape on the CPU; `scripts/bench_student` compares them with
//! PyTorch in one run.
//!
//! Usage: `bench_student STEPS DROPOUT`; prints one JSON line with the best step and its parts.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use distill::student::{Encoder, FreshBertConfig, TokenBatch};
use serde_json::json;

const ROWS: usize = 16;
const POSITIONS: usize = 128;
const WIDTH: usize = 384;
const VOCABULARY: usize = 30522;

/// Seconds of one step, by part.
#[derive(Clone, Copy)]
struct Step {
    forward: f64,
    backward: f64,
    optimiser: f64,
}

impl Step {
    fn total(self) -> f64 {
        self.forward + self.backward + self.optimiser
    }
}

fn batch(seed: u64, device: &Device) -> TokenBatch {
    let shape = [ROWS, POSITIONS];
    let mut state = seed;
    let ids = (0..ROWS * POSITIONS)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % 30_000 + 100).cast_signed()
        })
        .collect();
    TokenBatch {
        token_ids_bs: Tensor::<2, Int>::from_data(TensorData::new::<i64, _>(ids, shape), device),
        type_ids_bs: Tensor::zeros(shape, device),
        attention_mask_bs: Tensor::ones(shape, device),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [steps, dropout] = arguments.as_slice() else {
        return Err("usage: bench_student STEPS DROPOUT".into());
    };
    let (steps, dropout): (usize, f64) = (steps.parse()?, dropout.parse()?);
    let device = Device::flex().autodiff();
    device.seed(42);
    let config = FreshBertConfig {
        hidden_size: WIDTH,
        num_layers: 6,
        num_heads: 12,
        intermediate_size: 1536,
        max_positions: 512,
        dropout,
    };
    let mut encoder = Encoder::fresh(&config, VOCABULARY, &device)?;
    let mut optimiser = AdamWConfig::new()
        .with_epsilon(1e-8)
        .with_weight_decay(0.01)
        .init();
    let target_bsd = Tensor::<3>::random(
        [ROWS, POSITIONS, WIDTH],
        Distribution::Normal(0.0, 1.0),
        &device,
    );
    let mut best: Option<Step> = None;
    let mut last_loss = 0.0_f32;
    for step in 0..=steps {
        let batch = batch(step as u64 + 1, &device);
        let start = Instant::now();
        let hidden_bsd = encoder.forward(&batch).hidden_bsd;
        let loss = (hidden_bsd - target_bsd.clone()).square().mean();
        last_loss = loss.clone().into_scalar();
        let forward = start.elapsed().as_secs_f64();
        let gradients = GradientsParams::from_grads(loss.backward(), &encoder);
        device.sync()?;
        let backward = start.elapsed().as_secs_f64() - forward;
        encoder = optimiser.step(1e-4, encoder, gradients);
        device.sync()?;
        let optimiser = start.elapsed().as_secs_f64() - forward - backward;
        let timed = Step {
            forward,
            backward,
            optimiser,
        };
        if step > 0 && best.is_none_or(|best| timed.total() < best.total()) {
            best = Some(timed);
        }
    }
    let best = best.ok_or("at least one step")?;
    let inference = inference_seconds(&encoder.valid(), steps);
    let line = json!({
        "step": best.total(), "forward": best.forward, "backward": best.backward,
        "optimiser": best.optimiser, "inference": inference, "loss": last_loss,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

fn inference_seconds(encoder: &Encoder, steps: usize) -> f64 {
    let device = Device::flex();
    (0..=steps)
        .map(|step| {
            let batch = batch(step as u64 + 1, &device);
            let start = Instant::now();
            let _: f32 = encoder.forward(&batch).hidden_bsd.mean().into_scalar();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}
