//! Values of a checkpoint put into the parameters of a module.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor, TensorData};

use super::shards::Checkpoint;
use super::{LANGUAGE_HEAD, LoadReport};
use crate::device::Precision;
use crate::student::StudentError;
use crate::student::architecture::Naming;
use crate::student::layout::{is_transposed, transpose};
use crate::student::weights::FieldPath;

/// Puts checkpoint values into an uninitialised encoder and keeps the account.
pub(super) struct Filler<'a> {
    path: FieldPath,
    checkpoint: &'a Checkpoint,
    naming: &'static Naming,
    storage: Precision,
    applied: BTreeSet<String>,
    missing: Vec<String>,
    error: Option<StudentError>,
}

impl<'a> Filler<'a> {
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        naming: &'static Naming,
        storage: Precision,
    ) -> Self {
        Self {
            path: FieldPath::default(),
            checkpoint,
            naming,
            storage,
            applied: BTreeSet::new(),
            missing: Vec::new(),
            error: None,
        }
    }

    /// Fills a module whose tensors the checkpoint has behind `name`.
    pub(super) fn fill_as<M: Module>(&mut self, name: &str, module: M) -> M {
        self.path.enter(name, "");
        let module = module.map(self);
        self.path.exit();
        module
    }

    pub(super) fn finish(self, dir: &Path) -> Result<LoadReport, StudentError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let (missing, trunk): (Vec<_>, Vec<_>) = self
            .missing
            .into_iter()
            .partition(|name| self.naming.is_optional(name) || name.starts_with(LANGUAGE_HEAD));
        if !trunk.is_empty() {
            return Err(StudentError::MissingWeights {
                dir: dir.to_owned(),
                names: trunk,
            });
        }
        let names = self.checkpoint.names();
        let unused = names
            .filter(|name| !self.applied.contains(*name))
            .cloned()
            .collect();
        Ok(LoadReport {
            applied: self.applied.into_iter().collect(),
            missing,
            unused,
        })
    }

    /// Values for the current field, in the module's own layout.
    fn read(&mut self, shape: &[usize]) -> Option<Vec<f32>> {
        let name = self.naming.published(&self.path.name());
        let transposed = is_transposed(self.path.owner(), shape.len());
        let stored_shape: Vec<usize> = if transposed {
            shape.iter().rev().copied().collect()
        } else {
            shape.to_vec()
        };
        match self.checkpoint.read(&name, &stored_shape) {
            None => {
                self.missing.push(name);
                None
            }
            Some(Err(error)) => {
                self.error.get_or_insert(error);
                None
            }
            Some(Ok(values)) => {
                self.applied.insert(name);
                Some(if transposed {
                    transpose(&values, shape[1], shape[0])
                } else {
                    values
                })
            }
        }
    }
}

impl ModuleMapper for Filler<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = parameter.lazy_shape().to_vec();
        let Some(values) = self.read(&shape) else {
            return parameter;
        };
        let device = parameter.lazy_device();
        let is_table = matches!(self.path.owner(), "Linear" | "Embedding") && D == 2;
        let dtype = match self.storage {
            Precision::Bf16 if is_table => DType::BF16,
            _ => DType::F32,
        };
        let data = TensorData::new(values, shape).convert_dtype(dtype);
        let tensor = Tensor::from_data(data, (&device, dtype));
        let id = parameter.id;
        parameter.transform_for_load(tensor, id)
    }
}
