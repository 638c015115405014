//! Adapters beside those of the package `peft`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bert;
mod llama;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use distill::student::LoraConfig;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// Largest absolute difference from `peft` that f32 rounding explains.
const TOLERANCE: f32 = 1e-5;

/// Name, and shape with values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn tensors(bytes: &[u8]) -> Tensors {
    let stored = SafeTensors::deserialize(bytes).unwrap();
    let read = |(name, view): (&str, TensorView<'_>)| {
        let values = view.data().as_chunks::<4>().0.iter();
        let values = values.map(|chunk| f32::from_le_bytes(*chunk)).collect();
        (name.to_owned(), (view.shape().to_vec(), values))
    };
    stored.iter().map(read).collect()
}

fn serialize(tensors: &Tensors) -> Vec<u8> {
    let stored: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (name, shape, bytes)
        })
        .collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, (*shape).clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize(views, None).unwrap()
}

fn transposed(shape: &[usize], values: &[f32]) -> (Vec<usize>, Vec<f32>) {
    let [rows, columns] = *shape else {
        return (shape.to_vec(), values.to_vec());
    };
    let swapped =
        (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column]));
    (vec![columns, rows], swapped.collect())
}

fn lora(text: &str) -> LoraConfig {
    toml::from_str(text).unwrap()
}

fn assert_near(actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len());
    let scale = expected
        .iter()
        .fold(1.0_f32, |most, value| most.max(value.abs()));
    for (actual, expected) in actual.iter().zip(expected) {
        let difference = (actual - expected).abs();
        assert!(
            difference <= TOLERANCE * scale,
            "{actual} is not {expected}"
        );
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Every gradient by the field path of its parameter, matrices as `PyTorch` lays them out.
fn by_path<M: Module>(module: &M, gradients: &GradientsParams) -> BTreeMap<String, Vec<f32>> {
    struct Collector<'a>(&'a GradientsParams, Vec<String>, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Collector<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            // The variant of an enum is no part of a name.
            let is_variant = container.starts_with("Enum:");
            self.1.push(if is_variant { "" } else { name }.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.1.pop();
        }
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            if let Some(gradient) = self.0.get::<D>(parameter.id) {
                let fields = self.1.iter().filter(|name| !name.is_empty());
                let path: Vec<&str> = fields.map(String::as_str).collect();
                let values = values(gradient.swap_dims(0, D - 1));
                self.2.insert(path.join("."), values);
            }
        }
    }
    let mut collector = Collector(gradients, Vec::new(), BTreeMap::new());
    module.visit(&mut collector);
    collector.2
}
