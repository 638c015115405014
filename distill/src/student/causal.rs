//! A causal backbone with the layer that predicts the next token.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `n` rows, `d` hidden width, `v` vocabulary.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::decoder::CausalTrunk;
use super::layers::{Linear, to_f32};
use super::{Backbone, BackboneConfig, Cache, StudentError, TokenBatch, weights};
use crate::device::Precision;

/// The layer of a head that is not the word embedding.
pub type LanguageHead = Linear;

/// Scores of the next token for hidden states `[n, d]` of `backbone`, f32 `[n, v]`. Without a head of its own, a language
/// model scores with its word embedding.
///
/// # Panics
///
/// The backbone is not causal.
pub(crate) fn next_token_scores(
    backbone: &Backbone,
    head: Option<&LanguageHead>,
    hidden_nd: Tensor<2>,
) -> Tensor<2> {
    let precision = backbone.precision();
    match head {
        Some(head) => to_f32(head.forward(hidden_nd, precision), precision),
        None => backbone
            .causal()
            .expect("a language model's backbone is causal")
            .word_embedding()
            .scores(hidden_nd, precision),
    }
}

/// A language model: its backbone is causal.
#[derive(Module, Debug)]
pub struct LanguageModel {
    pub(super) backbone: Backbone,
    /// `None` where the head is the word embedding.
    pub(super) head: Option<Linear>,
}

impl LanguageModel {
    /// A language model without pretraining: weights N(0, 0.02²), biases 0, norms 1 and 0. The values follow from
    /// [`Device::seed`] alone.
    ///
    /// # Errors
    ///
    /// [`StudentError::NotCausal`].
    pub fn initialised(config: BackboneConfig, device: &Device) -> Result<Self, StudentError> {
        let model = Self::uninitialised(config, device)?;
        weights::initialise(&model);
        Ok(model)
    }

    /// A language model whose parameters are drawn when first read, unless they are loaded before.
    pub(super) fn uninitialised(
        config: BackboneConfig,
        device: &Device,
    ) -> Result<Self, StudentError> {
        let architecture = config.architecture();
        if !architecture.is_causal() {
            let class = architecture.naming().base.0;
            return Err(StudentError::NotCausal { class });
        }
        let (width, rows) = (architecture.hidden_size(), architecture.vocab_size());
        let head = (!architecture.ties_word_embeddings())
            .then(|| Linear::without_bias(width, rows, device));
        Ok(Self {
            backbone: Backbone::uninitialised(config, device),
            head,
        })
    }

    /// The same model computing its matrix products in `precision`; parameters stay f32.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.backbone = self.backbone.with_precision(precision);
        self
    }

    /// Backbone and head; the head is `None` where it is the word embedding.
    pub fn into_parts(self) -> (Backbone, Option<LanguageHead>) {
        (self.backbone, self.head)
    }

    /// A language model of the parts of another.
    pub(crate) fn from_parts(backbone: Backbone, head: Option<LanguageHead>) -> Self {
        Self { backbone, head }
    }

    /// The backbone.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// Scores of every position's next token, f32 `[b, s, v]`; those under padding carry no meaning.
    ///
    /// # Panics
    ///
    /// As [`Backbone::forward`].
    pub fn logits(&self, batch: &TokenBatch) -> Tensor<3> {
        self.logits_of_batch(self.backbone.forward(batch).hidden_bsd)
    }

    /// Scores of the next token for chosen hidden states, `[n, d]` to f32 `[n, v]`: a loss over few positions need not
    /// compute those of all.
    pub fn logits_of(&self, hidden_nd: Tensor<2>) -> Tensor<2> {
        next_token_scores(&self.backbone, self.head.as_ref(), hidden_nd)
    }

    /// Scores of the next token, f32 `[b, s, v]`, at positions that follow those in `cache`, which grows by them: what
    /// [`LanguageModel::logits`] computes of the whole text, at the cost of the new positions.
    ///
    /// The mask of `batch` is that of the new positions.
    ///
    /// # Panics
    ///
    /// The cache is of another model or another number of rows; an id has no embedding, or a position none.
    pub fn step(&self, batch: &TokenBatch, cache: &mut Cache) -> Tensor<3> {
        let precision = self.backbone.precision();
        self.logits_of_batch(self.trunk().advance(batch, cache, precision))
    }

    /// Scores of the token after the last position of `batch`, f32 `[b, v]`: [`LanguageModel::step`] at the cost of one
    /// position's scores. Padding stands on the left.
    ///
    /// # Panics
    ///
    /// As [`LanguageModel::step`].
    pub fn next_logits(&self, batch: &TokenBatch, cache: &mut Cache) -> Tensor<2> {
        let hidden_bsd = self
            .trunk()
            .advance(batch, cache, self.backbone.precision());
        let [_, positions, _] = hidden_bsd.dims();
        let last_bd = hidden_bsd.narrow(1, positions - 1, 1).squeeze_dim(1);
        self.logits_of(last_bd)
    }

    fn logits_of_batch(&self, hidden_bsd: Tensor<3>) -> Tensor<3> {
        let [rows, positions, width] = hidden_bsd.dims();
        let logits_nv = self.logits_of(hidden_bsd.reshape([rows * positions, width]));
        let [_, vocabulary] = logits_nv.dims();
        logits_nv.reshape([rows, positions, vocabulary])
    }

    fn trunk(&self) -> &dyn CausalTrunk {
        self.backbone
            .causal()
            .expect("a language model's backbone is causal")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::backbone::{AnyTrunk, with_trunk};
    use super::super::fields::Fields;
    use super::super::tensor_file::file_tensors;
    use super::super::trunk::Trunk as _;
    use super::*;

    fn visited(trunk: &mut AnyTrunk) -> Vec<String> {
        let mut names = Vec::new();
        let mut visit = |name: &str, _: &mut Linear| names.push(format!("{name}.weight"));
        with_trunk!(trunk, trunk => trunk.visit_linears(&mut visit));
        names.sort();
        names
    }

    #[test]
    fn every_linear_map_is_visited_under_its_published_name() {
        for model_type in ["llama", "qwen2", "qwen3", "opt"] {
            let fields = json!({
                "model_type": model_type, "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 8, "ffn_dim": 8,
                "max_position_embeddings": 8, "word_embed_proj_dim": 4,
            });
            let fields = Fields::new("test", fields.as_object().unwrap().clone());
            let config = BackboneConfig::from_fields(&fields).unwrap();
            let mut backbone = Backbone::initialised(config, &Device::flex());
            let mut names: Vec<String> =
                file_tensors(&backbone.trunk, |path| Some(path.to_owned()))
                    .into_iter()
                    .filter(|tensor| tensor.is_transposed)
                    .map(|tensor| tensor.name)
                    .collect();
            names.sort();
            assert!(names.len() >= 12);
            assert_eq!(visited(&mut backbone.trunk), names);
        }
    }
}
