//! RoBERTa (Liu et al., arXiv 1907.11692) and its kin: BERT's layers with other names and other position rows.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions.

use burn::tensor::{Int, Tensor};
use serde_json::{Value, json};

use super::StudentError;
use super::architecture::{Architecture, ClassifierNaming, Naming, Sizes};
use super::bert::{BertConfig, PositionRows};
use super::fields::Fields;

/// A RoBERTa encoder's shape: every value has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct RobertaConfig {
    /// Whose class names are written.
    pub family: RobertaFamily,
    /// The sizes.
    pub encoder: BertConfig,
}

/// Architectures that compute the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RobertaFamily {
    /// `roberta`.
    Roberta,
    /// `xlm-roberta` (Conneau et al., arXiv 1911.02116).
    XlmRoberta,
    /// `camembert` (Martin et al., arXiv 1911.03894).
    Camembert,
}

impl RobertaFamily {
    /// The family of a `model_type`.
    pub(super) fn parse(model_type: &str) -> Option<Self> {
        [Self::Roberta, Self::XlmRoberta, Self::Camembert]
            .into_iter()
            .find(|family| family.model_type() == model_type)
    }

    fn model_type(self) -> &'static str {
        match self {
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::Camembert => "camembert",
        }
    }
}

impl RobertaConfig {
    /// Reads the fields of `config.json`; what it leaves out has the default of `transformers`.
    pub(super) fn from_fields(
        family: RobertaFamily,
        fields: &Fields,
    ) -> Result<Self, StudentError> {
        let encoder = BertConfig {
            position_rows: PositionRows::AfterPadding,
            pad_token_id: fields.optional_id("pad_token_id")?.unwrap_or(1),
            ..BertConfig::from_fields(fields)?
        };
        let config = Self { family, encoder };
        if config.encoder.max_positions <= config.first_row() {
            let value = config.encoder.max_positions;
            let supported = "more than pad_token_id + 1";
            return Err(fields.refuse("max_position_embeddings", value, supported));
        }
        Ok(config)
    }

    /// The position row of a sequence's first token.
    fn first_row(&self) -> usize {
        self.encoder.pad_token_id as usize + 1
    }
}

/// The row of the position embedding that every token reads, `[b, s]`: padding that of its own id, others the rows
/// after it, counting only tokens that are not padding.
pub(super) fn position_ids(token_ids_bs: Tensor<2, Int>, pad_token_id: u32) -> Tensor<2, Int> {
    let is_token_bs = token_ids_bs.not_equal_elem(pad_token_id).int();
    (is_token_bs.clone().cumsum(1) * is_token_bs).add_scalar(pad_token_id)
}

const fn naming(base: &'static str, classifier: &'static str) -> Naming {
    Naming {
        prefixes: &["roberta."],
        base: (base, ""),
        classifier: Some(ClassifierNaming {
            class: classifier,
            prefix: "roberta.",
            head: "classifier.out_proj",
            renamed: &[("pooler.dense.", "classifier.dense.")],
        }),
        causal: None,
        parts: &[("self_attention", "self"), ("layer_norm", "LayerNorm")],
        optional: &["pooler."],
        outside: &[],
    }
}

static ROBERTA: Naming = naming("RobertaModel", "RobertaForSequenceClassification");
static XLM_ROBERTA: Naming = naming("XLMRobertaModel", "XLMRobertaForSequenceClassification");
static CAMEMBERT: Naming = naming("CamembertModel", "CamembertForSequenceClassification");

impl Architecture for RobertaConfig {
    fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.encoder.hidden_size,
            num_layers: self.encoder.num_layers,
            vocab: self.encoder.vocab_size,
            max_positions: self.encoder.max_positions - self.first_row(),
        }
    }

    fn keep_layers(&mut self, num_layers: usize) {
        self.encoder.num_layers = num_layers;
    }

    fn pad_token_id(&self) -> Option<u32> {
        Some(self.encoder.pad_token_id)
    }

    fn naming(&self) -> &'static Naming {
        match self.family {
            RobertaFamily::Roberta => &ROBERTA,
            RobertaFamily::XlmRoberta => &XLM_ROBERTA,
            RobertaFamily::Camembert => &CAMEMBERT,
        }
    }

    fn to_hugging_face(&self) -> Value {
        let mut config = self.encoder.to_hugging_face();
        config["model_type"] = json!(self.family.model_type());
        config
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn positions_count_tokens_that_are_not_padding() {
        let token_ids_bs =
            Tensor::<2, Int>::from_data([[0, 7, 2, 1, 1], [1, 1, 0, 9, 2]], &Device::flex());
        let position_ids_bs = position_ids(token_ids_bs, 1).to_data();
        let expected = [[2_i64, 3, 4, 1, 1], [1, 1, 2, 3, 4]];
        assert_eq!(
            position_ids_bs.iter::<i64>().collect::<Vec<_>>(),
            expected.as_flattened()
        );
    }

    #[test]
    fn rows_up_to_the_paddings_own_are_no_positions() {
        let parse = |max_positions: usize| {
            let raw = json!({
                "model_type": "camembert", "vocab_size": 60, "hidden_size": 32,
                "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
                "max_position_embeddings": max_positions,
            });
            let fields = Fields::new("config.json", raw.as_object().unwrap().clone());
            RobertaConfig::from_fields(RobertaFamily::Camembert, &fields)
        };
        let config = parse(514).unwrap();
        assert_eq!(config.max_positions(), 512);
        let written = config.to_hugging_face().as_object().unwrap().clone();
        let read =
            RobertaConfig::from_fields(RobertaFamily::Camembert, &Fields::new("again", written));
        assert_eq!(read.unwrap(), config);
        assert_eq!(
            parse(2).unwrap_err().to_string(),
            "config.json: `max_position_embeddings` is `2`, supported: more than pad_token_id + 1"
        );
    }
}
