//! A student's backbone, whatever its architecture.

use burn::module::Module;
use burn::tensor::Device;

use super::bert::Bert;
use super::deberta_v2::DebertaV2;
use super::decoder::CausalTrunk;
use super::llama::Llama;
use super::lora::Adapters;
use super::opt::Opt;
use super::trunk::Trunk as _;
use super::{
    BackboneConfig, BackboneOutput, FreshBertConfig, StudentError, TextTokenizer, TokenBatch,
    weights,
};
use crate::device::Precision;

/// A backbone: parameters and sizes. Field paths do not show the architecture, so that names are those within the
/// trunk behind `trunk.`.
#[derive(Module, Debug)]
pub struct Backbone {
    pub(super) trunk: AnyTrunk,
    #[module(skip)]
    pub(super) config: BackboneConfig,
    #[module(skip)]
    precision: Precision,
    #[module(skip)]
    pub(super) adapters: Option<Adapters>,
}

/// The architectures.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one backbone in a process or two"
)]
pub(super) enum AnyTrunk {
    Bert(Bert),
    Llama(Llama),
    Opt(Opt),
    DebertaV2(DebertaV2),
}

/// Evaluates an expression with the trunk of whatever architecture.
macro_rules! with_trunk {
    ($any:expr, $trunk:ident => $result:expr) => {
        match $any {
            $crate::student::backbone::AnyTrunk::Bert($trunk) => $result,
            $crate::student::backbone::AnyTrunk::DebertaV2($trunk) => $result,
            $crate::student::backbone::AnyTrunk::Llama($trunk) => $result,
            $crate::student::backbone::AnyTrunk::Opt($trunk) => $result,
        }
    };
}
pub(super) use with_trunk;

impl Backbone {
    /// A small BERT without pretraining: weights N(0, 0.02²), biases 0, layer norms 1 and 0.
    ///
    /// The values follow from [`Device::seed`] alone.
    ///
    /// # Errors
    ///
    /// [`StudentError::UnsupportedConfig`] as in [`FreshBertConfig::resolve`].
    pub fn fresh(
        config: &FreshBertConfig,
        vocab_size: usize,
        device: &Device,
    ) -> Result<Self, StudentError> {
        Ok(Self::initialised(config.resolve(vocab_size)?, device))
    }

    /// A backbone of any architecture without pretraining, drawn as [`Backbone::fresh`].
    pub fn initialised(config: BackboneConfig, device: &Device) -> Self {
        let backbone = Self::uninitialised(config, device);
        weights::initialise(&backbone);
        backbone
    }

    /// A backbone whose parameters are drawn when first read, unless they are loaded before.
    pub fn uninitialised(config: BackboneConfig, device: &Device) -> Self {
        let trunk = match &config {
            BackboneConfig::Bert(config) => AnyTrunk::Bert(Bert::uninitialised(config, device)),
            BackboneConfig::Llama(config) => AnyTrunk::Llama(Llama::uninitialised(config, device)),
            BackboneConfig::Opt(config) => AnyTrunk::Opt(Opt::uninitialised(config, device)),
            BackboneConfig::Roberta(config) => {
                AnyTrunk::Bert(Bert::uninitialised(&config.encoder, device))
            }
            BackboneConfig::DebertaV2(config) => {
                AnyTrunk::DebertaV2(DebertaV2::uninitialised(config, device))
            }
        };
        Self {
            trunk,
            config,
            precision: Precision::F32,
            adapters: None,
        }
    }

    /// The same backbone computing its matrix products in `precision`; parameters stay f32.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The number format of the matrix products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Sizes and names.
    pub fn config(&self) -> &BackboneConfig {
        &self.config
    }

    /// The trunk of an architecture that predicts the next token.
    pub(super) fn causal(&self) -> Option<&dyn CausalTrunk> {
        match &self.trunk {
            AnyTrunk::Llama(trunk) => Some(trunk),
            AnyTrunk::Opt(trunk) => Some(trunk),
            AnyTrunk::Bert(_) | AnyTrunk::DebertaV2(_) => None,
        }
    }

    /// Checks that every id and length that `tokenizer` produces has an embedding.
    ///
    /// # Errors
    ///
    /// [`StudentError::VocabularyMismatch`] or [`StudentError::TooLong`].
    pub fn check_tokenizer(&self, tokenizer: &TextTokenizer) -> Result<(), StudentError> {
        let architecture = self.config.architecture();
        let (vocab_size, max_positions) = (architecture.vocab_size(), architecture.max_positions());
        if tokenizer.vocab_size() > vocab_size {
            return Err(StudentError::VocabularyMismatch {
                tokenizer: tokenizer.vocab_size(),
                encoder: vocab_size,
            });
        }
        if tokenizer.max_length() > max_positions {
            return Err(StudentError::TooLong {
                max_length: tokenizer.max_length(),
                max_positions,
            });
        }
        Ok(())
    }

    /// Hidden states and pooled vector of a batch; see [`BackboneOutput`] for the shapes.
    ///
    /// Padding never changes a real position's output, except where rotary frequencies follow the batch's length: rule
    /// `dynamic` beyond its trained length, and `longrope` around its original one.
    ///
    /// # Panics
    ///
    /// The batch is longer than `max_positions`, or an id has no embedding: see
    /// [`Backbone::check_tokenizer`].
    pub fn forward(&self, batch: &TokenBatch) -> BackboneOutput {
        with_trunk!(&self.trunk, trunk => trunk.forward(batch, self.precision))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::student::LoraConfig;
    use crate::student::fields::Fields;
    use crate::student::tensor_file::file_tensors;

    fn backbone(changes: &Value) -> Backbone {
        let mut config = json!({
            "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 8, "max_position_embeddings": 8,
        });
        let fields = config.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        let config = BackboneConfig::from_fields(&Fields::new("test", fields.clone())).unwrap();
        Backbone::uninitialised(config, &Device::flex())
    }

    #[test]
    fn every_architecture_has_usual_adapters() {
        let deberta = json!({
            "model_type": "deberta-v2", "relative_attention": true, "pos_att_type": "p2c",
        });
        let decoder = json!({"num_key_value_heads": 1, "ffn_dim": 8});
        let types = [
            "bert",
            "roberta",
            "xlm-roberta",
            "camembert",
            "llama",
            "opt",
            "qwen2",
            "qwen3",
        ];
        let plain = types.map(|model_type| {
            let mut changes = decoder.clone();
            changes["model_type"] = json!(model_type);
            changes
        });
        for changes in plain.iter().chain([&deberta]) {
            let device = Device::flex();
            let adapted = backbone(changes).with_lora(&LoraConfig::default(), &[], &device);
            let names = weights::tensor_names(&adapted.unwrap());
            let num_adapters = names.iter().filter(|name| name.ends_with(".adapter.a"));
            assert_eq!(num_adapters.count(), 4, "{changes}");
        }
    }

    #[test]
    fn visited_linears_are_those_of_the_layers_by_published_name() {
        for changes in [
            json!({"model_type": "bert"}),
            json!({"model_type": "xlm-roberta"}),
            json!({"model_type": "deberta-v2", "relative_attention": true, "pos_att_type": "p2c"}),
            json!({
                "model_type": "deberta-v2", "relative_attention": true, "pos_att_type": "p2c|c2p",
                "embedding_size": 2, "conv_kernel_size": 3,
            }),
            json!({
                "model_type": "deberta-v2", "relative_attention": true, "pos_att_type": "p2c|c2p",
                "share_att_key": true,
            }),
        ] {
            let mut backbone = backbone(&changes);
            let mut visited = BTreeSet::new();
            let trunk = &mut backbone.trunk;
            with_trunk!(trunk, trunk => trunk.visit_linears(&mut |name, linear| {
                let [input, output] = linear.weight.dims();
                visited.insert((format!("{name}.weight"), input, output));
            }));
            let naming = backbone.config.architecture().naming();
            let expected: BTreeSet<_> =
                file_tensors(&backbone.trunk, |path| Some(naming.published(path)))
                    .into_iter()
                    .filter(|tensor| tensor.is_transposed && tensor.name.contains(".layer."))
                    .map(|tensor| (tensor.name, tensor.shape[0], tensor.shape[1]))
                    .collect();
            assert_eq!(visited, expected, "{changes}");
        }
    }
}
