//! What teachers that generate text are told: which signals, how many tokens, how they are drawn.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Offer, OfferKind};
use crate::config::{ConfigError, Section};

/// Tokens of a reply where none are configured.
const DEFAULT_MAX_TOKENS: u32 = 1024;

/// A signal of a teacher that generates text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Signal {
    /// The generated text.
    Text,
    /// Tokens and their log-probabilities at each generated position.
    Logprobs,
    /// The same at each position of the prompt.
    PromptLogprobs,
    /// One logit a class.
    ClassLogits,
}

impl Signal {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Logprobs => "logprobs",
            Self::PromptLogprobs => "prompt_logprobs",
            Self::ClassLogits => "class_logits",
        }
    }

    /// The signal as it is offered, with `k` entries a position or `num_classes` classes.
    pub(super) fn offer(self, k: u32, num_classes: u32, meaning: &str) -> Offer {
        let kind = match self {
            Self::Text => OfferKind::Text,
            Self::Logprobs | Self::PromptLogprobs => OfferKind::TokenTopK { k },
            Self::ClassLogits => OfferKind::ClassLogits { width: num_classes },
        };
        Offer::new(self.name(), kind, meaning)
    }
}

/// The keys that such teachers share.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerationConfig {
    /// What is asked for.
    #[serde(default = "default_signals")]
    pub(super) signals: Vec<Signal>,
    /// The most entries at a position.
    #[serde(default = "default_top_logprobs")]
    pub(super) top_logprobs: NonZeroU32,
    /// The most tokens of a reply.
    max_tokens: Option<NonZeroU32>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    /// Of draw 0; each further draw adds one.
    seed: Option<u32>,
    /// What else goes into the body.
    #[serde(default)]
    options: Map<String, Value>,
}

fn default_signals() -> Vec<Signal> {
    vec![Signal::Text]
}

fn default_top_logprobs() -> NonZeroU32 {
    const { NonZeroU32::new(20).expect("not zero") }
}

/// Keys of a body that have a key of the configuration, or would change what a reply is.
const OWN_KEYS: [&str; 17] = [
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "n_predict",
    "temperature",
    "top_p",
    "seed",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "n_probs",
    "echo",
    "n",
    "best_of",
    "stream",
];

impl GenerationConfig {
    pub(super) const KEYS: [&'static str; 7] = [
        "signals",
        "top_logprobs",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "options",
    ];

    /// Takes the keys out of `section` and checks them.
    ///
    /// # Errors
    /// [`ConfigError::Refused`].
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let whole = section.clone();
        let config: Self = section.part(&Self::KEYS)?;
        let repeated = |index: usize| config.signals[..index].contains(&config.signals[index]);
        if config.signals.is_empty() || (0..config.signals.len()).any(repeated) {
            let problem = "name at least one signal, and none of them twice";
            return Err(whole.refuse_key("signals", problem));
        }
        if config
            .temperature
            .is_some_and(|t| !t.is_finite() || t < 0.0)
        {
            return Err(whole.refuse_key("temperature", "expected a number from 0"));
        }
        if config.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return Err(whole.refuse_key("top_p", "expected a number above 0 and up to 1"));
        }
        if let Some(key) = config
            .options
            .keys()
            .find(|key| OWN_KEYS.contains(&key.as_str()))
        {
            let problem = format!("`{key}` is not among the options: the teacher sends it itself");
            return Err(whole.refuse_key("options", &problem));
        }
        Ok(config)
    }

    pub(super) fn wants(&self, signal: Signal) -> bool {
        self.signals.contains(&signal)
    }

    /// Whether words are configured that end a reply, whose tokens some servers leave out.
    pub(super) fn has_stop_words(&self) -> bool {
        self.options.contains_key("stop")
    }

    /// The most tokens of a reply: one where only the first position counts.
    pub(super) fn max_tokens(&self) -> u32 {
        let generates = self.wants(Signal::Text) || self.wants(Signal::Logprobs);
        let default = if generates { DEFAULT_MAX_TOKENS } else { 1 };
        self.max_tokens.map_or(default, NonZeroU32::get)
    }

    /// Bytes that go with every prompt and that a model may read: the system's text, and options such as tools or a
    /// schema.
    pub(super) fn num_fixed_bytes(&self, system: Option<&str>) -> usize {
        let options = Some(&self.options).filter(|options| !options.is_empty());
        let num_option_bytes = options.map_or(0, |options| json!(options).to_string().len());
        system.map_or(0, str::len) + num_option_bytes
    }

    /// Adds what draws differ by and the options to a body.
    pub(super) fn fill(&self, body: &mut Map<String, Value>, draw: u32) {
        let settings = [
            ("temperature", self.temperature.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("seed", self.seed.map(|seed| seed.wrapping_add(draw).into())),
        ];
        for (key, value) in settings {
            if let Some(value) = value {
                body.insert(key.to_owned(), value);
            }
        }
        body.extend(self.options.clone());
    }

    /// For the teacher's identity.
    pub(super) fn settings(&self) -> Map<String, Value> {
        let scores = self.signals.iter().any(|signal| *signal != Signal::Text);
        let settings = json!({
            "signals": self.signals,
            "top_logprobs": scores.then_some(self.top_logprobs),
            "max_tokens": self.max_tokens(),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "options": self.options,
        });
        match settings {
            Value::Object(settings) => settings,
            _ => unreachable!("it was written as an object"),
        }
    }
}
