//! `config.json` of DeBERTa-v2 and v3.

use serde_json::{Value, json};

use crate::student::StudentError;
use crate::student::activation::Activation;
use crate::student::architecture::{Architecture, ClassifierNaming, Naming, Sizes};
use crate::student::fields::{Fields, shown};

/// A DeBERTa-v2 encoder's shape: every value has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct DebertaV2Config {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the embeddings; projected to the hidden width where it differs.
    pub embedding_size: usize,
    /// Hidden width d.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Width between the two feed-forward matrices.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Whether the input holds a position embedding, beside the relative positions of the attention.
    pub position_biased_input: bool,
    /// Rows of the segment embedding; 0 for none.
    pub num_token_types: usize,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Dropout on embeddings, relative embeddings and residual branches, in `[0, 1)`.
    pub hidden_dropout: f64,
    /// Dropout on attention probabilities, in `[0, 1)`.
    pub attention_dropout: f64,
    /// Dropout before the pooler, in `[0, 1)`.
    pub pooler_dropout: f64,
    /// Activation of the pooler.
    pub pooler_activation: Activation,
    /// Added to the variance in layer normalisation.
    pub layer_norm_epsilon: f64,
    /// Id that padding carries.
    pub pad_token_id: u32,
    /// What the attention reads of relative positions.
    pub relative: RelativeConfig,
    /// The convolution beside the first layer.
    pub convolution: Option<ConvolutionConfig>,
}

/// Disentangled attention's relative positions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in `config.json`"
)]
pub struct RelativeConfig {
    /// Distances that are told apart, in logarithmic buckets where there are any.
    pub distances: Distances,
    /// Content reads positions: `c2p`.
    pub content_to_position: bool,
    /// Positions read content: `p2c`.
    pub position_to_content: bool,
    /// Content and positions share their projections.
    pub share_projections: bool,
    /// The relative embedding passes a layer norm first.
    pub normalised: bool,
}

/// How the distance of two tokens becomes a row of the relative embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distances {
    /// Buckets to each side; without them every distance up to `max_distance` has its own row.
    pub num_buckets: Option<usize>,
    /// From here on distances share the outermost row.
    pub max_distance: usize,
}

/// A convolution over the embedded text, added to the first layer's output (the `xlarge` and `xxlarge` checkpoints).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvolutionConfig {
    /// Tokens seen at once; odd.
    pub kernel_size: usize,
    /// Groups of channels that are kept apart.
    pub num_groups: usize,
    /// Activation after it.
    pub activation: Activation,
}

impl DebertaV2Config {
    /// Reads the fields of `config.json`; what it leaves out has the default of `transformers`.
    pub(in crate::student) fn from_fields(fields: &Fields) -> Result<Self, StudentError> {
        let hidden_size = fields.size("hidden_size")?;
        let num_heads = fields.size("num_attention_heads")?;
        fields.check_heads("num_attention_heads", num_heads, hidden_size)?;
        let head_size = json!(hidden_size / num_heads);
        let by_heads = "hidden_size / num_attention_heads";
        fields.expect("attention_head_size", &head_size, by_heads)?;
        fields.expect("pooler_hidden_size", &json!(hidden_size), "hidden_size")?;
        let max_positions = fields.size_or("max_position_embeddings", 512)?;
        let num_token_types = fields.integer_or("type_vocab_size", 0)?;
        Ok(Self {
            vocab_size: fields.size("vocab_size")?,
            embedding_size: fields.size_or("embedding_size", hidden_size)?,
            hidden_size,
            num_layers: fields.size("num_hidden_layers")?,
            num_heads,
            intermediate_size: fields.size("intermediate_size")?,
            max_positions,
            position_biased_input: fields.flag_or("position_biased_input", true)?,
            num_token_types: usize::try_from(num_token_types)
                .map_err(|_| fields.refuse("type_vocab_size", num_token_types, "0 or more"))?,
            activation: fields.activation_or("hidden_act", Activation::Gelu)?,
            hidden_dropout: fields.dropout_or("hidden_dropout_prob", 0.1)?,
            attention_dropout: fields.dropout_or("attention_probs_dropout_prob", 0.1)?,
            pooler_dropout: fields.dropout_or("pooler_dropout", 0.0)?,
            pooler_activation: fields.activation_or("pooler_hidden_act", Activation::Gelu)?,
            layer_norm_epsilon: fields.epsilon_or("layer_norm_eps", 1e-7)?,
            pad_token_id: fields.optional_id("pad_token_id")?.unwrap_or(0),
            relative: RelativeConfig::from_fields(fields, max_positions)?,
            convolution: ConvolutionConfig::from_fields(fields, hidden_size)?,
        })
    }

    pub(super) fn head_size(&self) -> usize {
        self.hidden_size / self.num_heads
    }
}

impl RelativeConfig {
    fn from_fields(fields: &Fields, max_positions: usize) -> Result<Self, StudentError> {
        if !fields.flag_or("relative_attention", false)? {
            return Err(fields.refuse("relative_attention", false, "true"));
        }
        let (content_to_position, position_to_content) = position_attention(fields)?;
        let normalised = match fields.text("norm_rel_ebd")? {
            None | Some("none") => false,
            Some("layer_norm") => true,
            Some(other) => return Err(fields.refuse("norm_rel_ebd", other, "none, layer_norm")),
        };
        Ok(Self {
            distances: Distances::from_fields(fields, max_positions)?,
            content_to_position,
            position_to_content,
            share_projections: fields.flag_or("share_att_key", false)?,
            normalised,
        })
    }

    /// Parts of an attention score: content, and each way of reading positions.
    pub(super) fn num_parts(&self) -> usize {
        1 + usize::from(self.content_to_position) + usize::from(self.position_to_content)
    }
}

/// `pos_att_type`: a list, or a text with bars between.
fn position_attention(fields: &Fields) -> Result<(bool, bool), StudentError> {
    const FIELD: &str = "pos_att_type";
    const SUPPORTED: &str = "c2p, p2c or both";
    let value = fields
        .get(FIELD)
        .ok_or_else(|| fields.refuse(FIELD, "left out", SUPPORTED))?;
    let refuse = || fields.refuse(FIELD, shown(value), SUPPORTED);
    let names: Vec<String> = match value {
        Value::String(text) => text
            .split('|')
            .map(|name| name.trim().to_lowercase())
            .collect(),
        other => serde_json::from_value(other.clone()).map_err(|_| refuse())?,
    };
    let is_known = |name: &String| name == "c2p" || name == "p2c";
    if names.is_empty() || !names.iter().all(is_known) {
        return Err(refuse());
    }
    let has = |name: &str| names.iter().any(|found| found == name);
    Ok((has("c2p"), has("p2c")))
}

impl Distances {
    fn from_fields(fields: &Fields, max_positions: usize) -> Result<Self, StudentError> {
        // Below 1 both mean "not set".
        let positive = |field, default| -> Result<Option<usize>, StudentError> {
            let value = fields.integer_or(field, default)?;
            Ok(usize::try_from(value).ok().filter(|&size| size > 0))
        };
        let max_distance = positive("max_relative_positions", -1)?.unwrap_or(max_positions);
        let num_buckets = positive("position_buckets", -1)?;
        if let Some(buckets) = num_buckets
            && (buckets < 2 || buckets / 2 + 1 >= max_distance)
        {
            let supported = "2 or more, and half of it less than max_relative_positions - 1";
            return Err(fields.refuse("position_buckets", buckets, supported));
        }
        Ok(Self {
            num_buckets,
            max_distance,
        })
    }
}

impl ConvolutionConfig {
    fn from_fields(fields: &Fields, hidden_size: usize) -> Result<Option<Self>, StudentError> {
        let kernel_size = match fields.integer_or("conv_kernel_size", 0)? {
            ..=0 => return Ok(None),
            size => usize::try_from(size)
                .ok()
                .filter(|size| size % 2 == 1)
                .ok_or_else(|| fields.refuse("conv_kernel_size", size, "an odd number, 0"))?,
        };
        let num_groups = fields.size_or("conv_groups", 1)?;
        if !hidden_size.is_multiple_of(num_groups) {
            return Err(fields.refuse("conv_groups", num_groups, "a divisor of hidden_size"));
        }
        Ok(Some(Self {
            kernel_size,
            num_groups,
            activation: fields.activation_or("conv_act", Activation::Tanh)?,
        }))
    }
}

static NAMING: Naming = Naming {
    prefixes: &["deberta."],
    base: ("DebertaV2Model", ""),
    classifier: Some(ClassifierNaming {
        class: "DebertaV2ForSequenceClassification",
        prefix: "deberta.",
        head: "classifier",
        renamed: &[],
    }),
    causal: None,
    parts: &[("self_attention", "self"), ("layer_norm", "LayerNorm")],
    optional: &["pooler."],
    outside: &["pooler."],
};

impl Architecture for DebertaV2Config {
    fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden_size,
            num_layers: self.num_layers,
            vocab: self.vocab_size,
            max_positions: self.max_positions,
        }
    }

    fn keep_layers(&mut self, num_layers: usize) {
        self.num_layers = num_layers;
    }

    fn pad_token_id(&self) -> Option<u32> {
        Some(self.pad_token_id)
    }

    fn naming(&self) -> &'static Naming {
        &NAMING
    }

    fn to_hugging_face(&self) -> Value {
        let relative = &self.relative;
        let positions: Vec<&str> = [
            ("p2c", relative.position_to_content),
            ("c2p", relative.content_to_position),
        ]
        .into_iter()
        .filter_map(|(name, is_on)| is_on.then_some(name))
        .collect();
        let mut config = json!({
            "model_type": "deberta-v2",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "position_biased_input": self.position_biased_input,
            "type_vocab_size": self.num_token_types,
            "hidden_act": self.activation.name(),
            "hidden_dropout_prob": self.hidden_dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "layer_norm_eps": self.layer_norm_epsilon,
            "pad_token_id": self.pad_token_id,
            "pooler_dropout": self.pooler_dropout,
            "pooler_hidden_act": self.pooler_activation.name(),
            "pooler_hidden_size": self.hidden_size,
            "relative_attention": true,
            "max_relative_positions": relative.distances.max_distance,
            "pos_att_type": positions,
            "share_att_key": relative.share_projections,
            "norm_rel_ebd": if relative.normalised { "layer_norm" } else { "none" },
            "initializer_range": 0.02,
            "dtype": "float32",
        });
        if self.embedding_size != self.hidden_size {
            config["embedding_size"] = json!(self.embedding_size);
        }
        if let Some(num_buckets) = relative.distances.num_buckets {
            config["position_buckets"] = json!(num_buckets);
        }
        if let Some(convolution) = &self.convolution {
            config["conv_kernel_size"] = json!(convolution.kernel_size);
            config["conv_groups"] = json!(convolution.num_groups);
            config["conv_act"] = json!(convolution.activation.name());
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: &Value) -> Result<DebertaV2Config, StudentError> {
        let mut raw = json!({
            "model_type": "deberta-v2", "vocab_size": 60, "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "max_position_embeddings": 24, "relative_attention": true, "pos_att_type": "p2c|c2p",
        });
        let fields = raw.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        DebertaV2Config::from_fields(&Fields::new("config.json", fields.clone()))
    }

    #[test]
    fn unsupported_values_are_refused_by_name() {
        for (changes, expected) in [
            (
                json!({"relative_attention": false}),
                "`relative_attention` is `false`, supported: true",
            ),
            (
                json!({"pos_att_type": "c2p|p2p"}),
                "`pos_att_type` is `c2p|p2p`, supported: c2p, p2c or both",
            ),
            (
                json!({"pos_att_type": []}),
                "`pos_att_type` is `[]`, supported: c2p, p2c or both",
            ),
            (
                json!({"norm_rel_ebd": "batch_norm"}),
                "`norm_rel_ebd` is `batch_norm`, supported: none, layer_norm",
            ),
            (
                json!({"attention_head_size": 16}),
                "`attention_head_size` is `16`, supported: hidden_size / num_attention_heads",
            ),
            (
                json!({"pooler_hidden_size": 16}),
                "`pooler_hidden_size` is `16`, supported: hidden_size",
            ),
            (
                json!({"position_buckets": 48}),
                "`position_buckets` is `48`, supported: 2 or more, and half of it less than \
                 max_relative_positions - 1",
            ),
            (
                json!({"conv_kernel_size": 4}),
                "`conv_kernel_size` is `4`, supported: an odd number, 0",
            ),
            (
                json!({"conv_kernel_size": 3, "conv_groups": 5}),
                "`conv_groups` is `5`, supported: a divisor of hidden_size",
            ),
            (
                json!({"type_vocab_size": -1}),
                "`type_vocab_size` is `-1`, supported: 0 or more",
            ),
        ] {
            let message = parse(&changes).unwrap_err().to_string();
            assert_eq!(message, format!("config.json: {expected}"));
        }
    }

    #[test]
    fn written_configuration_reads_back_equal() {
        for changes in [
            json!({}),
            json!({
                "pos_att_type": ["c2p"], "share_att_key": true, "norm_rel_ebd": "layer_norm",
                "position_buckets": 8, "max_relative_positions": 20, "conv_kernel_size": 3,
                "conv_groups": 2, "type_vocab_size": 2, "embedding_size": 16, "pad_token_id": 3,
                "position_biased_input": false, "pooler_hidden_act": "tanh", "pooler_dropout": 0.2,
            }),
        ] {
            let config = parse(&changes).unwrap();
            let written = config.to_hugging_face().as_object().unwrap().clone();
            let read = DebertaV2Config::from_fields(&Fields::new("round trip", written));
            assert_eq!(read.unwrap(), config);
        }
    }
}
