//! The student with its heads.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `d` hidden width, `c` outputs, `r` response tokens of the batch.

use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};

use crate::config::{StudentConfig, StudentSource};
use crate::data::PromptError;
use crate::device::Precision;
use crate::error::Error;
use crate::heads::{HeadsConfig, StudentHeads};
use crate::loss::predicting_states;
use crate::objective::{Responses, StudentOutputs, Targets};
use crate::random::{Purpose, Randomness};
use crate::student::causal::{LanguageHead, next_token_scores};
use crate::student::checkpointing::{self, SegmentDraws};
use crate::student::save::{ClassifierHead, HeadOutputs};
use crate::student::weights::{
    WeightsError, load_safetensors_where, tensor_names, to_safetensors_where,
};
use crate::student::{
    Backbone, BackboneOutput, LanguageModel, LoadReport, PretrainedFiles, TextTokenizer, TokenBatch,
};

/// A backbone and what sits on its pooled state; a student that writes has its language-model head besides.
#[derive(Module, Debug)]
pub struct Student {
    backbone: Backbone,
    heads: StudentHeads,
    /// `None` for a student that does not write, and where the head is the word embedding.
    language_head: Option<LanguageHead>,
}

impl Student {
    /// A student at the start of its training, on `device`. Backbone and heads are drawn from streams of their own, so
    /// that all variants of a seed start from the same student.
    ///
    /// # Errors
    /// The directory cannot be read, or backbone and tokenizer do not fit.
    #[expect(clippy::disallowed_methods, reason = "once a run")]
    pub fn new(
        config: &StudentConfig,
        base: &Path,
        tokenizer: &TextTokenizer,
        heads: &HeadsConfig,
        randomness: Randomness,
        device: &Device,
    ) -> Result<Self, Error> {
        device.seed(randomness.device_seed(Purpose::EncoderWeights, 0));
        let (backbone, language_head) = match &config.source {
            StudentSource::Pretrained { path, num_layers } => {
                let num_layers = num_layers.map(std::num::NonZeroUsize::get);
                // Frozen weights need no more digits than the products that are computed from them.
                let storage = match config.lora {
                    Some(_) => config.precision,
                    None => Precision::F32,
                };
                let dir = base.join(path);
                let writes = heads.task.num_outputs().is_none();
                let (backbone, head, report) = load(&dir, num_layers, storage, writes, device)?;
                tracing::info!("student `{}`: {report}", dir.display());
                match &config.lora {
                    Some(lora) => {
                        if writes && !report.missing.is_empty() {
                            return Err(PromptError::NoHead { dir }.into());
                        }
                        device.seed(randomness.device_seed(Purpose::AdapterWeights, 0));
                        let backbone = backbone.with_lora(lora, &report.missing, device)?;
                        (backbone, head.map(Module::no_grad))
                    }
                    None => (backbone, head),
                }
            }
            StudentSource::Fresh { sizes, .. } => {
                let vocab_size = tokenizer.vocab_size();
                (Backbone::fresh(sizes, vocab_size, device)?, None)
            }
        };
        let backbone = backbone.with_precision(config.precision);
        backbone.check_tokenizer(tokenizer)?;
        device.seed(randomness.device_seed(Purpose::HeadWeights, 0));
        let architecture = backbone.config().architecture();
        let heads = heads.init_student_heads(architecture.hidden_size(), device);
        let heads = if architecture.is_causal() {
            heads.without_main_bias()
        } else {
            heads
        };
        Ok(Self {
            backbone,
            heads,
            language_head,
        })
    }

    /// A student of these parts, which does not write.
    pub fn from_parts(backbone: Backbone, heads: StudentHeads) -> Self {
        Self {
            backbone,
            heads,
            language_head: None,
        }
    }

    /// All outputs of a batch with these targets.
    pub fn forward(&self, tokens: &TokenBatch, targets: &Targets) -> StudentOutputs {
        self.outputs(self.backbone.forward(tokens), targets)
    }

    /// All outputs, read off what the backbone makes of a batch with these targets. Of texts to be written, the tokens of
    /// the responses alone are scored, and the pooled state is that of the last prompt token.
    pub fn outputs(&self, output: BackboneOutput, targets: &Targets) -> StudentOutputs {
        match targets {
            Targets::Responses(responses) => self.written(output.hidden_bsd, responses),
            Targets::Classes(_) | Targets::Values(_) => self.heads.forward(output.pooled_bd),
        }
    }

    fn written(&self, hidden_bsd: Tensor<3>, responses: &Responses) -> StudentOutputs {
        let [batch, positions, _] = hidden_bsd.dims();
        let size = |count| i64::try_from(count).expect("a batch is smaller than 2^63");
        let ends_b = &responses.prompt_ends_b;
        let integers = (&ends_b.device(), ends_b.dtype());
        let rows_b = Tensor::<1, Int>::arange(0..size(batch), integers);
        let place = |rows: Tensor<1, Int>, columns: &Tensor<1, Int>| {
            rows.mul_scalar(size(positions)) + columns.clone()
        };
        let ends_b = place(rows_b, ends_b);
        let places_r = place(responses.rows_r.clone(), &responses.columns_r);
        let predicting_rd = predicting_states(hidden_bsd.clone(), places_r);
        let language_head = self.language_head.as_ref();
        StudentOutputs {
            main_bc: next_token_scores(&self.backbone, language_head, predicting_rd),
            auxiliary_bc: None,
            projection_bk: self.heads.project(predicting_states(hidden_bsd, ends_b)),
        }
    }

    /// Whether its answers are texts.
    pub fn writes(&self) -> bool {
        self.heads.writes()
    }

    /// The language model of a student that writes.
    pub fn language_model(&self) -> LanguageModel {
        LanguageModel::from_parts(self.backbone.clone(), self.language_head.clone())
    }

    /// The gradients of a loss of all outputs, with one layer's activations in memory at a time; see
    /// [`checkpointing::gradients`].
    pub fn checkpointed_gradients<R>(
        &self,
        tokens: &TokenBatch,
        targets: &Targets,
        draws: &impl SegmentDraws,
        loss: impl FnOnce(StudentOutputs) -> (Tensor<1>, R),
    ) -> (GradientsParams, R) {
        checkpointing::gradients(self, &self.backbone, tokens, draws, |output| {
            loss(self.outputs(output, targets))
        })
    }

    /// The main outputs alone, `[b, c]`: inference.
    pub fn main(&self, tokens: &TokenBatch) -> Tensor<2> {
        self.heads.main(self.backbone.forward(tokens).pooled_bd)
    }

    /// The backbone.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// The same student without adapters: what they add becomes part of the weights.
    #[must_use]
    pub fn merged(self) -> Self {
        Self {
            backbone: self.backbone.merged(),
            ..self
        }
    }

    /// What a checkpoint stores: all tensors, or, beside a frozen backbone, those that training moves.
    ///
    /// # Errors
    /// The format cannot hold them.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, WeightsError> {
        to_safetensors_where(self, |name| self.is_trained(name))
    }

    /// Takes over what [`Student::to_safetensors`] stored.
    ///
    /// # Errors
    /// The tensors are not those of this student.
    pub fn load_safetensors(self, bytes: &[u8]) -> Result<Self, WeightsError> {
        let mut trained = tensor_names(&self);
        trained.retain(|name| self.is_trained(name));
        load_safetensors_where(self, bytes, |name| trained.contains(name))
    }

    fn is_trained(&self, name: &str) -> bool {
        if name.starts_with("language_head.") {
            return !self.backbone.has_adapters();
        }
        name.strip_prefix("backbone.")
            .is_none_or(|name| self.backbone.is_trained(name))
    }

    /// The main head as `transformers` stores it.
    pub fn classifier(&self, outputs: HeadOutputs) -> ClassifierHead {
        let linear = self.heads.main_linear();
        ClassifierHead {
            weight_cd: linear.weight.val().inner().transpose(),
            bias_c: linear.bias.as_ref().map(|bias| bias.val().inner()),
            outputs,
        }
    }
}

/// Backbone, and of a student that writes its language-model head.
fn load(
    dir: &Path,
    num_layers: Option<usize>,
    storage: Precision,
    writes: bool,
    device: &Device,
) -> Result<(Backbone, Option<LanguageHead>, LoadReport), Error> {
    if !writes {
        let (backbone, report) = Backbone::from_pretrained_as(dir, num_layers, storage, device)?;
        return Ok((backbone, None, report));
    }
    let (model, report) = LanguageModel::from_pretrained_as(dir, num_layers, storage, device)?;
    if !report.missing.is_empty() {
        tracing::warn!(
            "student `{}` has no {}: drawn afresh from the run's seed",
            dir.display(),
            report.missing.join(", ")
        );
    }
    let (backbone, head) = model.into_parts();
    Ok((backbone, head, report))
}

/// What a pretrained student's directory holds; `None` for a fresh student.
///
/// # Errors
/// The directory cannot be read.
pub fn open_pretrained(
    config: &StudentConfig,
    base: &Path,
) -> Result<Option<PretrainedFiles>, Error> {
    match &config.source {
        StudentSource::Pretrained { path, .. } => {
            Ok(Some(PretrainedFiles::open(&base.join(path))?))
        }
        StudentSource::Fresh { .. } => Ok(None),
    }
}

/// The tokenizer that goes with a student.
///
/// # Errors
/// The folder holds none, or one that does not parse.
pub fn open_tokenizer(config: &StudentConfig, base: &Path) -> Result<TextTokenizer, Error> {
    let folder = match &config.source {
        StudentSource::Pretrained { path, .. } => path,
        StudentSource::Fresh { tokenizer, .. } => tokenizer,
    };
    let tokenizer = TextTokenizer::from_dir(&base.join(folder), config.max_length.get())?;
    if let Some(note) = tokenizer.padding_note() {
        tracing::info!("{}: {note}", folder.display());
    }
    Ok(tokenizer)
}
