//! Low-rank adapters beside frozen linear maps (Hu et al., arXiv 2106.09685): `y = x W + b + (α/r) drop(x) A B`.
//!
//! The product is computed from the activations, so that neither `A B` nor a gradient of its size is ever held, and
//! dropout acts on the adapter's input alone.
//!
//! Shape suffixes: `n` rows (batch times positions), `i` input width, `o` output width, `r` rank.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use burn::module::{Initializer, Module, ModuleMapper, Param};
use burn::tensor::{Device, FloatDType, Tensor};
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::architecture::Naming;
use super::backbone::with_trunk;
use super::layers::{Linear, to_precision};
use super::save::ModelNaming;
use super::trunk::Trunk as _;
use super::weights::FieldPath;
use super::{Backbone, BackboneConfig, StudentError};
use crate::config::Positive;
use crate::device::Precision;
use crate::dropout::Dropout;
use crate::heads::DropoutProbability;

/// The table `[student.lora]`. Defaults are those of the package `peft`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// r: width between the two matrices.
    pub rank: NonZeroUsize,
    /// α: what an adapter adds is scaled by α/r.
    pub alpha: Positive,
    /// Dropout on an adapter's input.
    pub dropout: DropoutProbability,
    /// Which linear maps get an adapter; left out, the architecture's usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<TargetModules>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: NonZeroUsize::new(8).expect("8 is not zero"),
            alpha: Positive::try_from(8.0).expect("8 is over zero"),
            dropout: DropoutProbability::try_from(0.0).expect("0 is a probability"),
            target_modules: None,
        }
    }
}

impl LoraConfig {
    /// α/r.
    fn scale(&self) -> f64 {
        self.alpha.get() / self.rank.get() as f64
    }
}

/// Linear maps by name, as `peft` reads `target_modules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TargetDocument", into = "TargetDocument")]
pub enum TargetModules {
    /// Every linear map of the layers.
    AllLinear,
    /// Those whose name is one of these or ends with a dot and one of these.
    Suffixes(Vec<String>),
    /// Those whose whole name a regular expression matches.
    Pattern(String),
}

const ALL_LINEAR: &str = "all-linear";

/// The value as written: a list, or one text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum TargetDocument {
    Suffixes(Vec<String>),
    Text(String),
}

impl TryFrom<TargetDocument> for TargetModules {
    type Error = String;

    fn try_from(document: TargetDocument) -> Result<Self, String> {
        match document {
            TargetDocument::Suffixes(suffixes) if suffixes.is_empty() => {
                Err("`target_modules` is an empty list".to_owned())
            }
            TargetDocument::Suffixes(suffixes) => Ok(Self::Suffixes(suffixes)),
            TargetDocument::Text(text) if text == ALL_LINEAR => Ok(Self::AllLinear),
            TargetDocument::Text(text) => match Regex::new(&text).and_then(|_| whole(&text)) {
                Ok(_) => Ok(Self::Pattern(text)),
                Err(error) => Err(format!(
                    "`target_modules` is no regular expression: {error}"
                )),
            },
        }
    }
}

impl From<TargetModules> for TargetDocument {
    fn from(target: TargetModules) -> Self {
        match target {
            TargetModules::AllLinear => Self::Text(ALL_LINEAR.to_owned()),
            TargetModules::Suffixes(suffixes) => Self::Suffixes(suffixes),
            TargetModules::Pattern(pattern) => Self::Text(pattern),
        }
    }
}

/// A pattern that matches whole names alone.
fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

impl TargetModules {
    /// What `peft` takes where nothing is said; of `camembert`, which it does not know, what it takes of RoBERTa.
    fn usual(config: &BackboneConfig) -> Self {
        let suffixes = match config {
            BackboneConfig::Bert(_) | BackboneConfig::Roberta(_) => ["query", "value"],
            BackboneConfig::DebertaV2(_) => ["query_proj", "value_proj"],
            BackboneConfig::Llama(_) | BackboneConfig::Opt(_) => ["q_proj", "v_proj"],
        };
        Self::Suffixes(suffixes.map(str::to_owned).into())
    }

    /// The chosen names of `names`.
    fn choose(&self, names: &[String]) -> Result<BTreeSet<String>, StudentError> {
        let chosen = |pattern: &str, matches: &dyn Fn(&str) -> bool| {
            let chosen: Vec<String> = names.iter().filter(|name| matches(name)).cloned().collect();
            if chosen.is_empty() {
                return Err(StudentError::NoLoraTarget {
                    pattern: pattern.to_owned(),
                    names: without_layer_numbers(names),
                });
            }
            Ok(chosen)
        };
        match self {
            Self::AllLinear => Ok(names.iter().cloned().collect()),
            Self::Pattern(pattern) => {
                let expression = whole(pattern).expect("the pattern was checked when parsed");
                Ok(chosen(pattern, &|name| expression.is_match(name))?
                    .into_iter()
                    .collect())
            }
            Self::Suffixes(suffixes) => {
                let mut all = BTreeSet::new();
                for suffix in suffixes {
                    let end = format!(".{suffix}");
                    all.extend(chosen(suffix, &|name| {
                        name == suffix || name.ends_with(&end)
                    })?);
                }
                Ok(all)
            }
        }
    }
}

/// Each name once, the number of its layer replaced by `N`.
fn without_layer_numbers(names: &[String]) -> Vec<String> {
    let without = |name: &String| {
        let parts = name.split('.');
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        parts
            .map(|part| if is_number(part) { "N" } else { part })
            .collect::<Vec<_>>()
            .join(".")
    };
    let mut seen = BTreeSet::new();
    names
        .iter()
        .map(without)
        .filter(|name| seen.insert(name.clone()))
        .collect()
}

/// The two matrices beside one linear map.
#[derive(Module, Debug)]
pub(super) struct Adapter {
    /// A, `[i, r]`.
    a: Param<Tensor<2>>,
    /// B, `[r, o]`.
    b: Param<Tensor<2>>,
    dropout: Dropout,
    /// α/r.
    scale: f64,
}

impl Adapter {
    /// A from U(-1/√i, 1/√i), which is Kaiming's uniform distribution with a = √5, B zero: at first it adds nothing.
    fn new(config: &LoraConfig, [input, output]: [usize; 2], device: &Device) -> Self {
        let bound = 1.0 / (input as f64).sqrt();
        let rank = config.rank.get();
        let uniform = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        let a: Param<Tensor<2>> = uniform.init([input, rank], device);
        // Parameters are otherwise drawn at their first use, in whatever order that is.
        a.val();
        Self {
            a,
            b: Param::from_tensor(Tensor::zeros([rank, output], device)),
            dropout: Dropout::new(config.dropout.into()),
            scale: config.scale(),
        }
    }

    /// `(α/r) drop(x) A B`, `[n, i]` to `[n, o]`, computed in `precision`.
    pub(super) fn forward(&self, input_ni: Tensor<2>, precision: Precision) -> Tensor<2> {
        let dropped_ni = to_precision(self.dropout.forward(input_ni), precision);
        let lowered_nr = dropped_ni.matmul(to_precision(self.a.val(), precision));
        lowered_nr
            .matmul(to_precision(self.b.val(), precision))
            .mul_scalar(self.scale)
    }

    /// A and B in the layout of `PyTorch`: `[r, i]` and `[o, r]`.
    pub(super) fn matrices(&self) -> [Tensor<2>; 2] {
        [&self.a, &self.b].map(|matrix| matrix.val().inner().transpose())
    }

    /// `(α/r) A B`, `[i, o]`.
    fn product(&self) -> Tensor<2> {
        let [a_io, b_io] = [&self.a, &self.b].map(Param::val);
        a_io.matmul(b_io).mul_scalar(self.scale)
    }
}

/// The adapters of a backbone: how they were made, and what else is trained.
#[derive(Clone, Debug)]
pub(super) struct Adapters {
    pub(super) config: LoraConfig,
    /// Published names within the trunk of the weights that no checkpoint brought: they are trained in full.
    pub(super) drawn: BTreeSet<String>,
}

impl Backbone {
    /// Freezes the backbone and puts fresh adapters beside the linear maps that `config` names, A drawn from the
    /// device's generator. `drawn` are the weights that were missing from the checkpoint: they stay trainable.
    ///
    /// # Errors
    ///
    /// [`StudentError::NoLoraTarget`]: a pattern matches no linear map.
    pub fn with_lora(
        mut self,
        config: &LoraConfig,
        drawn: &[String],
        device: &Device,
    ) -> Result<Self, StudentError> {
        let naming = self.config.architecture().naming();
        let model = ModelNaming::classifier(naming);
        let full_name = |name: &str| model.published(name, naming);
        let mut names = Vec::new();
        self.visit_linears(&mut |name, _| names.push(full_name(name)));
        let target = config.target_modules.clone();
        let target = target.unwrap_or_else(|| TargetModules::usual(&self.config));
        let chosen = target.choose(&names)?;

        let drawn: BTreeSet<String> = drawn.iter().cloned().collect();
        self.trunk = self.trunk.map(&mut Freezer {
            path: FieldPath::default(),
            naming,
            trained: &drawn,
        });
        self.visit_linears(&mut |name, linear| {
            if chosen.contains(&full_name(name)) {
                let shape = linear.weight.lazy_shape().dims();
                linear.adapter = Some(Adapter::new(config, shape, device));
            }
        });
        self.adapters = Some(Adapters {
            config: config.clone(),
            drawn,
        });
        Ok(self)
    }

    /// The backbone without adapters: what they add becomes part of the weights, `W + (α/r) A B`, in f32.
    #[must_use]
    pub fn merged(mut self) -> Self {
        self.adapters = None;
        self.visit_linears(&mut |_, linear| {
            if let Some(adapter) = linear.adapter.take() {
                let weight = linear.weight.clone();
                linear.weight =
                    weight.map(|weight_io| weight_io.cast(FloatDType::F32) + adapter.product());
            }
        });
        self
    }

    /// Whether adapters are trained instead of the backbone.
    pub fn has_adapters(&self) -> bool {
        self.adapters.is_some()
    }

    /// Whether training moves the tensor of this field path: all of a backbone without adapters; of one with them, the
    /// adapters and what was drawn afresh.
    pub fn is_trained(&self, path: &str) -> bool {
        let Some(adapters) = &self.adapters else {
            return true;
        };
        let within = path.strip_prefix("trunk.").unwrap_or(path);
        let naming = self.config.architecture().naming();
        within.contains(".adapter.") || adapters.drawn.contains(&naming.published(within))
    }

    pub(super) fn visit_linears(&mut self, visit: &mut dyn FnMut(&str, &mut Linear)) {
        with_trunk!(&mut self.trunk, trunk => trunk.visit_linears(visit));
    }
}

/// Stops the gradients of all parameters but some.
struct Freezer<'a> {
    path: FieldPath,
    naming: &'static Naming,
    trained: &'a BTreeSet<String>,
}

impl ModuleMapper for Freezer<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.naming.published(&self.path.name());
        parameter.set_require_grad(self.trained.contains(&name))
    }
}
