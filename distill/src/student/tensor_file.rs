//! A safetensors file written tensor by tensor: beside the module, memory holds one of its tensors at a time.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};

use super::StudentError;
use super::layout::{is_transposed, transpose};
use super::weights::{FieldPath, WeightsError};

/// What a tensor begins at a multiple of, as in files of the safetensors library.
const ALIGNMENT: usize = 8;

/// A tensor to be written, in f32 and in the layout of `PyTorch`; its values are fetched from the device when they are.
pub(super) struct FileTensor {
    /// In the file.
    pub(super) name: String,
    /// In the module.
    pub(super) shape: Vec<usize>,
    /// Whether the file has the matrix the other way round.
    pub(super) is_transposed: bool,
    values: Box<dyn FnOnce() -> TensorData>,
}

impl FileTensor {
    /// A tensor that is written as it is.
    #[expect(clippy::disallowed_methods, reason = "tensors are written to a file")]
    pub(super) fn new<const D: usize>(name: String, tensor: Tensor<D>) -> Self {
        Self {
            name,
            shape: tensor.dims().to_vec(),
            is_transposed: false,
            values: Box::new(move || tensor.into_data()),
        }
    }

    /// The same tensor with a longer name.
    pub(super) fn prefixed(self, prefix: &str) -> Self {
        let name = format!("{prefix}{}", self.name);
        Self { name, ..self }
    }

    fn written_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.is_transposed {
            shape.reverse();
        }
        shape
    }

    fn num_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }

    /// Fetches the values and gives them to `file`.
    fn write(self, file: &mut impl Write) -> std::io::Result<()> {
        let data = (self.values)().convert_dtype(DType::F32);
        if !self.is_transposed {
            return file.write_all(data.as_bytes());
        }
        let values = data
            .as_slice::<f32>()
            .expect("the values were converted to f32");
        let values = transpose(values, self.shape[0], self.shape[1]);
        drop(data);
        let shape = [self.shape[1], self.shape[0]];
        file.write_all(TensorData::new(values, shape).as_bytes())
    }
}

/// The float tensors of `module`, each under the name that `named` gives its field path; those without one are left out.
pub(super) fn file_tensors<M: Module>(
    module: &M,
    named: impl Fn(&str) -> Option<String>,
) -> Vec<FileTensor> {
    struct Collector<'a> {
        path: FieldPath,
        named: &'a dyn Fn(&str) -> Option<String>,
        tensors: Vec<FileTensor>,
    }
    impl ModuleVisitor for Collector<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }

        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            if let Some(name) = (self.named)(&self.path.name()) {
                self.tensors.push(FileTensor {
                    is_transposed: is_transposed(self.path.owner(), D),
                    ..FileTensor::new(name, parameter.base())
                });
            }
        }
    }
    let mut collector = Collector {
        path: FieldPath::default(),
        named: &named,
        tensors: Vec::new(),
    };
    module.visit(&mut collector);
    collector.tensors
}

/// Writes a file with these tensors, in the order of their names.
pub(super) fn write_tensors(path: &Path, mut tensors: Vec<FileTensor>) -> Result<(), StudentError> {
    tensors.sort_by(|one, other| one.name.cmp(&other.name));
    let header = header(&tensors).map_err(WeightsError::Format)?;
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(&header)?;
        for tensor in tensors {
            tensor.write(&mut file)?;
        }
        file.sync_all()
    };
    write().map_err(StudentError::io(path))
}

/// What stands before the values: its own length, then names, shapes and places as JSON.
fn header(tensors: &[FileTensor]) -> Result<Vec<u8>, SafeTensorError> {
    let mut end = 0;
    let places = tensors.iter().map(|tensor| {
        let begin = end;
        end += tensor.num_bytes();
        let info = TensorInfo {
            dtype: Dtype::F32,
            shape: tensor.written_shape(),
            data_offsets: (begin, end),
        };
        (tensor.name.clone(), info)
    });
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let metadata = Metadata::new(Some(format), places.collect())?;
    let mut json = serde_json::to_vec(&metadata)?;
    json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
    let length = u64::try_from(json.len()).expect("a header is in memory");
    Ok([&length.to_le_bytes()[..], &json].concat())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use safetensors::tensor::TensorView;

    use super::super::layers::Linear;
    use super::*;

    fn view(data: &TensorData) -> TensorView<'_> {
        TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes()).unwrap()
    }

    #[test]
    fn a_file_is_that_of_the_library() {
        let device = Device::flex();
        let linear = Linear::new(3, 5, &device);
        let named = |name: &str| Some(format!("model.{name}"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        write_tensors(&path, file_tensors(&linear, named)).unwrap();

        let weight = linear.weight.val().transpose().into_data();
        let bias = linear.bias.unwrap().val().into_data();
        let views = [("model.weight", view(&weight)), ("model.bias", view(&bias))];
        let format = [("format".to_owned(), "pt".to_owned())].into();
        let expected = safetensors::serialize(views, Some(format)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
}
