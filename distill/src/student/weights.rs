//! Every tensor of a module by name, to and from safetensors bytes, bit for bit.
//!
//! Names are field paths joined by dots (`encoder.layer.0.output.dense.weight`), so they depend on
//! the module's definition alone. Works for any [`Module`]: students, aligners, heads.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Int, Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use thiserror::Error;

/// Why stored tensors and a module do not fit together.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The bytes are not safetensors, or tensors cannot be written as such.
    #[error("weights: {0}")]
    Format(#[from] SafeTensorError),
    /// A tensor's type has no safetensors counterpart.
    #[error("weights: tensor `{name}` has type {dtype:?}, which cannot be stored")]
    Unstorable {
        /// The tensor's name.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// Names differ between the module and the bytes.
    #[error("weights: missing [{}], unexpected [{}]", missing.join(", "), unexpected.join(", "))]
    Names {
        /// In the module, not in the bytes.
        missing: Vec<String>,
        /// In the bytes, not in the module.
        unexpected: Vec<String>,
    },
    /// A tensor's shape or type differs between the module and the bytes.
    #[error("weights: tensor `{name}` is {found}, the module has {expected}")]
    Layout {
        /// The tensor's name.
        name: String,
        /// Type and shape in the module.
        expected: String,
        /// Type and shape in the bytes.
        found: String,
    },
}

impl WeightsError {
    /// What to do next, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Names { .. } | Self::Layout { .. } => Some(
                "the weights were written under another configuration; resume with that one"
                    .to_owned(),
            ),
            Self::Format(_) | Self::Unstorable { .. } => None,
        }
    }
}

/// One tensor of a module.
#[derive(Debug, Clone)]
pub struct NamedTensor {
    /// Field path joined by dots.
    pub name: String,
    /// The values.
    pub data: TensorData,
}

/// All tensors of `module` in the order of its fields.
pub fn named_tensors<M: Module>(module: &M) -> Vec<NamedTensor> {
    named_tensors_where(module, |_| true)
}

/// The tensors of `module` whose name is chosen, in the order of its fields.
fn named_tensors_where<M: Module>(
    module: &M,
    is_chosen: impl Fn(&str) -> bool,
) -> Vec<NamedTensor> {
    let mut collector = Collector {
        path: FieldPath::default(),
        is_chosen: &is_chosen,
        tensors: Vec::new(),
    };
    module.visit(&mut collector);
    collector.tensors
}

/// Writes all tensors of `module` as safetensors bytes.
///
/// Equal modules give equal bytes.
///
/// # Errors
///
/// [`WeightsError::Unstorable`] for quantised tensors.
pub fn to_safetensors<M: Module>(module: &M) -> Result<Vec<u8>, WeightsError> {
    to_safetensors_where(module, |_| true)
}

/// Writes the tensors of `module` whose name is chosen.
///
/// # Errors
///
/// As [`to_safetensors`].
pub fn to_safetensors_where<M: Module>(
    module: &M,
    is_chosen: impl Fn(&str) -> bool,
) -> Result<Vec<u8>, WeightsError> {
    serialize(&named_tensors_where(module, is_chosen))
}

/// Replaces every tensor of `module` by the one of its name in `bytes`.
///
/// Devices, gradient requirements and parameter ids stay as they are.
///
/// # Errors
///
/// The bytes are not safetensors, or a name, a shape or a type differs.
pub fn load_safetensors<M: Module>(module: M, bytes: &[u8]) -> Result<M, WeightsError> {
    load_safetensors_where(module, bytes, |_| true)
}

/// Replaces the tensors of `module` whose name is chosen; `bytes` hold these and no others.
///
/// # Errors
///
/// As [`load_safetensors`].
pub fn load_safetensors_where<M: Module>(
    module: M,
    bytes: &[u8],
    is_chosen: impl Fn(&str) -> bool,
) -> Result<M, WeightsError> {
    let stored = SafeTensors::deserialize(bytes)?;
    let mut names = tensor_names(&module);
    names.retain(|name| is_chosen(name));
    check_names(&names, &stored)?;
    let mut loader = Loader {
        path: FieldPath::default(),
        is_chosen: &is_chosen,
        stored: &stored,
        error: None,
    };
    let module = module.map(&mut loader);
    loader.error.map_or(Ok(module), Err)
}

fn serialize(tensors: &[NamedTensor]) -> Result<Vec<u8>, WeightsError> {
    let mut views = BTreeMap::new();
    for NamedTensor { name, data } in tensors {
        let dtype = stored_dtype(data.dtype()).ok_or_else(|| WeightsError::Unstorable {
            name: name.clone(),
            dtype: data.dtype(),
        })?;
        let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes())?;
        views.insert(name.as_str(), view);
    }
    let metadata = [("format".to_owned(), "pt".to_owned())]
        .into_iter()
        .collect();
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// The names of all tensors of `module`.
pub fn tensor_names<M: Module>(module: &M) -> BTreeSet<String> {
    let mut collector = NameCollector::default();
    module.visit(&mut collector);
    collector.names
}

fn check_names(expected: &BTreeSet<String>, stored: &SafeTensors<'_>) -> Result<(), WeightsError> {
    let found: BTreeSet<String> = stored.names().into_iter().map(str::to_owned).collect();
    if *expected == found {
        return Ok(());
    }
    Err(WeightsError::Names {
        missing: expected.difference(&found).cloned().collect(),
        unexpected: found.difference(expected).cloned().collect(),
    })
}

fn stored_dtype(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F64 => Some(Dtype::F64),
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        DType::I64 => Some(Dtype::I64),
        DType::I32 => Some(Dtype::I32),
        _ => None,
    }
}

/// Draws every parameter that has not been read yet, in the order of the fields.
pub(super) fn initialise<M: Module>(module: &M) {
    struct Initialiser;
    impl ModuleVisitor for Initialiser {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            drop(parameter.val());
        }
    }
    module.visit(&mut Initialiser);
}

/// Where a traversal stands: field names from the root, and the struct that owns the last one.
#[derive(Default)]
pub(super) struct FieldPath {
    fields: Vec<(String, String)>,
}

impl FieldPath {
    /// The variant of an enum is a place, but no part of a name.
    pub(super) fn enter(&mut self, name: &str, container: &str) {
        let owner = container.strip_prefix("Struct:").unwrap_or(container);
        let name = if container.starts_with("Enum:") {
            ""
        } else {
            name
        };
        self.fields.push((name.to_owned(), owner.to_owned()));
    }

    pub(super) fn exit(&mut self) {
        self.fields.pop();
    }

    pub(super) fn name(&self) -> String {
        let fields: Vec<&str> = self
            .fields
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        fields.join(".")
    }

    pub(super) fn owner(&self) -> &str {
        self.fields.last().map_or("", |(_, owner)| owner)
    }
}

struct Collector<'a> {
    path: FieldPath,
    is_chosen: &'a dyn Fn(&str) -> bool,
    tensors: Vec<NamedTensor>,
}

impl Collector<'_> {
    fn push(&mut self, data: impl FnOnce() -> TensorData) {
        let name = self.path.name();
        if (self.is_chosen)(&name) {
            let data = data();
            self.tensors.push(NamedTensor { name, data });
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "tensors are written to a file")]
impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        self.push(|| parameter.base().into_data());
    }

    fn visit_int<const D: usize>(&mut self, parameter: &Param<Tensor<D, Int>>) {
        self.push(|| parameter.base().into_data());
    }
}

#[derive(Default)]
struct NameCollector {
    path: FieldPath,
    names: BTreeSet<String>,
}

impl ModuleVisitor for NameCollector {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
        self.names.insert(self.path.name());
    }

    fn visit_int<const D: usize>(&mut self, _: &Param<Tensor<D, Int>>) {
        self.names.insert(self.path.name());
    }
}

struct Loader<'a> {
    path: FieldPath,
    is_chosen: &'a dyn Fn(&str) -> bool,
    stored: &'a SafeTensors<'a>,
    error: Option<WeightsError>,
}

impl Loader<'_> {
    /// The stored values under the current name, if it is chosen and they have this shape and type.
    fn read(&mut self, shape: &[usize], dtype: DType) -> Option<TensorData> {
        let name = self.path.name();
        if !(self.is_chosen)(&name) {
            return None;
        }
        let read = || {
            let view = self.stored.tensor(&name)?;
            if view.shape() != shape || Some(view.dtype()) != stored_dtype(dtype) {
                return Err(WeightsError::Layout {
                    name: name.clone(),
                    expected: format!("{dtype:?} {shape:?}"),
                    found: format!("{:?} {:?}", view.dtype(), view.shape()),
                });
            }
            Ok(TensorData::from_bytes_vec(
                view.data().to_vec(),
                shape.to_vec(),
                dtype,
            ))
        };
        match read() {
            Ok(data) => Some(data),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let dtype = parameter.dtype();
        let Some(data) = self.read(&parameter.lazy_shape().to_vec(), dtype) else {
            return parameter;
        };
        let tensor = Tensor::from_data(data, (&parameter.lazy_device(), dtype));
        let id = parameter.id;
        parameter.transform_for_load(tensor, id)
    }

    fn map_int<const D: usize>(
        &mut self,
        parameter: Param<Tensor<D, Int>>,
    ) -> Param<Tensor<D, Int>> {
        let dtype = parameter.dtype();
        let Some(data) = self.read(&parameter.lazy_shape().to_vec(), dtype) else {
            return parameter;
        };
        let tensor = Tensor::from_data(data, (&parameter.lazy_device(), dtype));
        let id = parameter.id;
        parameter.transform_for_load(tensor, id)
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    #[derive(Module, Debug)]
    struct TwoParts {
        dense: Linear,
        norms: Vec<LayerNorm>,
    }

    fn two_parts(device: &Device) -> TwoParts {
        TwoParts {
            dense: LinearConfig::new(3, 2).init(device),
            norms: vec![
                LayerNormConfig::new(2).init(device),
                LayerNormConfig::new(2).init(device),
            ],
        }
    }

    #[test]
    fn names_are_field_paths() {
        let names: Vec<String> = named_tensors(&two_parts(&Device::flex()))
            .into_iter()
            .map(|tensor| tensor.name)
            .collect();
        assert_eq!(
            names,
            [
                "dense.weight",
                "dense.bias",
                "norms.0.gamma",
                "norms.0.beta",
                "norms.1.gamma",
                "norms.1.beta",
            ]
        );
    }

    #[test]
    fn bits_round_trip_and_training_state_stays() {
        let device = Device::flex().autodiff();
        device.seed(1);
        let bytes = to_safetensors(&two_parts(&device)).unwrap();
        device.seed(2);
        let other = two_parts(&device);
        assert_ne!(to_safetensors(&other).unwrap(), bytes);
        let id = other.dense.weight.id;
        let loaded = load_safetensors(other, &bytes).unwrap();
        assert_eq!(to_safetensors(&loaded).unwrap(), bytes);
        assert_eq!(loaded.dense.weight.id, id);
        assert!(loaded.dense.weight.val().is_require_grad());
    }

    #[test]
    fn differing_names_and_shapes_are_named() {
        let device = Device::flex();
        let bytes = to_safetensors(&two_parts(&device)).unwrap();
        let dense: Linear = LinearConfig::new(3, 2).init(&device);
        assert_eq!(
            load_safetensors(dense, &bytes).unwrap_err().to_string(),
            "weights: missing [bias, weight], unexpected [dense.bias, dense.weight, \
             norms.0.beta, norms.0.gamma, norms.1.beta, norms.1.gamma]"
        );
        let mut wider = two_parts(&device);
        wider.dense = LinearConfig::new(4, 2).init(&device);
        assert_eq!(
            load_safetensors(wider, &bytes).unwrap_err().to_string(),
            "weights: tensor `dense.weight` is F32 [3, 2], the module has F32 [4, 2]"
        );
    }
}
