//! The student with its heads.
//!
//! Shape suffixes: `b` batch rows, `c` outputs.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use schemas::task::LabelKind;

use crate::config::{StudentConfig, StudentSource};
use crate::error::Error;
use crate::heads::{HeadsConfig, StudentHeads};
use crate::objective::StudentOutputs;
use crate::random::{Purpose, Randomness};
use crate::student::save::{ClassifierHead, HeadOutputs};
use crate::student::{Encoder, PretrainedFiles, TextTokenizer, TokenBatch};

/// An encoder and what sits on its pooled state.
#[derive(Module, Debug)]
pub struct Student {
    encoder: Encoder,
    heads: StudentHeads,
}

impl Student {
    /// A student at the start of its training, on `device`. Encoder and heads are drawn from streams of their own, so
    /// that all variants of a seed start from the same student.
    ///
    /// # Errors
    /// The directory cannot be read, or encoder and tokenizer do not fit.
    pub fn new(
        config: &StudentConfig,
        base: &Path,
        tokenizer: &TextTokenizer,
        heads: &HeadsConfig,
        randomness: Randomness,
        device: &Device,
    ) -> Result<Self, Error> {
        device.seed(randomness.device_seed(Purpose::EncoderWeights, 0));
        let encoder = match &config.source {
            StudentSource::Pretrained { path, num_layers } => {
                let num_layers = num_layers.map(std::num::NonZeroUsize::get);
                let (encoder, report) =
                    Encoder::from_pretrained(&base.join(path), num_layers, device)?;
                tracing::debug!("student: {report}");
                encoder
            }
            StudentSource::Fresh { sizes, .. } => {
                Encoder::fresh(sizes, tokenizer.vocab_size(), device)?
            }
        };
        let encoder = encoder.with_precision(config.precision);
        encoder.check_tokenizer(tokenizer)?;
        device.seed(randomness.device_seed(Purpose::HeadWeights, 0));
        let heads = heads.init_student_heads(encoder.config().hidden_size, device);
        Ok(Self { encoder, heads })
    }

    /// A student of these parts.
    pub fn from_parts(encoder: Encoder, heads: StudentHeads) -> Self {
        Self { encoder, heads }
    }

    /// All outputs of a batch.
    pub fn forward(&self, tokens: &TokenBatch) -> StudentOutputs {
        self.heads.forward(self.encoder.forward(tokens).pooled_bd)
    }

    /// The main outputs alone, `[b, c]`: inference.
    pub fn main(&self, tokens: &TokenBatch) -> Tensor<2> {
        self.heads.main(self.encoder.forward(tokens).pooled_bd)
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// The main head as `transformers` stores it.
    pub fn classifier(&self, label: &LabelKind) -> ClassifierHead {
        let linear = self.heads.main_linear();
        let bias = linear.bias.as_ref().expect("the main head has a bias");
        ClassifierHead {
            weight_cd: linear.weight.val().inner().transpose(),
            bias_c: bias.val().inner(),
            outputs: match label {
                LabelKind::Classes(names) => HeadOutputs::Classes(names.clone()),
                LabelKind::Number => HeadOutputs::Number,
            },
        }
    }
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
    Ok(TextTokenizer::from_dir(
        &base.join(folder),
        config.max_length.get(),
    )?)
}
