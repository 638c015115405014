//! The objective's part of a run configuration.

use serde::{Deserialize, Serialize};

/// Which source the formulas follow, where the paper and the authors' script differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// arXiv 2603.10877: norms, both projections orthogonal, the aligner's read off its hidden layer.
    #[default]
    Paper,
    /// The authors' published script: mean squares, the aligner's projection read off the teacher's feature, the
    /// student's a plain linear map.
    Reference,
}

/// The distance between the projections of aligner and student, the manifold term. For `euclid` and `elementwise` the
/// presets differ in scale by about k/2, k the shared width: a `beta` tuned for one means nothing to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manifold {
    /// One minus the cosine of the batch means.
    #[default]
    Cosine,
    /// One minus the inner product of the batch means, Eq. 3 as printed. Unbounded below.
    Inner,
    /// Distance between the batch means.
    Euclid,
    /// Mean distance of each row from its own teacher row.
    Elementwise,
}

/// The objective as written in a configuration file; every key may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveSettings {
    /// Whose formulas.
    pub preset: Preset,
    /// The manifold term.
    pub manifold: Manifold,
    /// α: weight of the aligner's outputs against the labels; 0 to 1.
    pub alpha: f64,
    /// β: weight of the manifold term; 0 or more.
    pub beta: f64,
    /// γ: weight of the auxiliary outputs; 0 or more.
    pub gamma: f64,
    /// τ: temperature of the softened outputs; over 0.
    pub temperature: f64,
}

impl Default for ObjectiveSettings {
    /// The paper's defaults: α = 0.5, β = γ = 1, τ = 5.
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            manifold: Manifold::default(),
            alpha: 0.5,
            beta: 1.0,
            gamma: 1.0,
            temperature: 5.0,
        }
    }
}

/// [`ObjectiveSettings`] whose numbers are in range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ObjectiveSettings", into = "ObjectiveSettings")]
pub struct ObjectiveConfig {
    settings: ObjectiveSettings,
}

/// Why settings are no objective.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ObjectiveError {
    /// α outside its range.
    #[error("objective.alpha is {0}; it is a share and lies between 0 and 1")]
    Alpha(f64),
    /// A negative or non-finite weight.
    #[error("objective.{key} is {value}; a weight is finite and not negative")]
    Weight {
        /// The key in the configuration.
        key: &'static str,
        /// What was given.
        value: f64,
    },
    /// A temperature that cannot divide.
    #[error("objective.temperature is {0}; it is finite and over 0")]
    Temperature(f64),
}

impl ObjectiveError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Alpha(_) => {
                    "0 uses labels alone, 1 the aligner's outputs alone; the paper uses 0 and 0.5"
                }
                Self::Weight { .. } => "0 turns the term off; the paper uses 0 and 1",
                Self::Temperature(_) => "1 leaves the outputs as they are; the paper uses 5",
            }
            .to_owned(),
        )
    }
}

impl TryFrom<ObjectiveSettings> for ObjectiveConfig {
    type Error = ObjectiveError;

    fn try_from(settings: ObjectiveSettings) -> Result<Self, ObjectiveError> {
        if !(0.0..=1.0).contains(&settings.alpha) {
            return Err(ObjectiveError::Alpha(settings.alpha));
        }
        for (key, value) in [("beta", settings.beta), ("gamma", settings.gamma)] {
            if !(0.0..=f64::from(f32::MAX)).contains(&value) {
                return Err(ObjectiveError::Weight { key, value });
            }
        }
        let temperature = settings.temperature;
        if !(f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&temperature) {
            return Err(ObjectiveError::Temperature(temperature));
        }
        Ok(Self { settings })
    }
}

impl From<ObjectiveConfig> for ObjectiveSettings {
    fn from(config: ObjectiveConfig) -> Self {
        config.settings
    }
}

impl ObjectiveConfig {
    /// Whose formulas.
    pub fn preset(&self) -> Preset {
        self.settings.preset
    }

    /// The manifold term.
    pub fn manifold(&self) -> Manifold {
        self.settings.manifold
    }

    /// α, in 0..=1.
    pub fn alpha(&self) -> f32 {
        self.settings.alpha as f32
    }

    /// β, not negative.
    pub fn beta(&self) -> f32 {
        self.settings.beta as f32
    }

    /// γ, not negative.
    pub fn gamma(&self) -> f32 {
        self.settings.gamma as f32
    }

    /// τ, over 0.
    pub fn temperature(&self) -> f32 {
        self.settings.temperature as f32
    }

    /// What a user of these settings should be told before training.
    pub fn warning(&self) -> Option<&'static str> {
        (self.settings.manifold == Manifold::Inner && self.settings.beta > 0.0).then_some(
            "manifold `inner` is the paper's Eq. 3 as printed and unbounded below: the student can lower it by growing \
             its projection alone; `cosine` is what the authors' script computes",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ObjectiveConfig, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn an_empty_table_is_the_papers_default() {
        let config = parse("").unwrap();
        assert_eq!(config.preset(), Preset::Paper);
        assert_eq!(config.manifold(), Manifold::Cosine);
        assert_eq!(
            (
                config.alpha(),
                config.beta(),
                config.gamma(),
                config.temperature()
            ),
            (0.5, 1.0, 1.0, 5.0)
        );
        assert_eq!(config.warning(), None);
    }

    #[test]
    fn every_key_is_read() {
        let text = "preset = \"reference\"\nmanifold = \"inner\"\nalpha = 0.25\nbeta = 2\ngamma = 0\ntemperature = 1.5";
        let config = parse(text).unwrap();
        assert_eq!(config.preset(), Preset::Reference);
        assert_eq!(config.manifold(), Manifold::Inner);
        assert_eq!(
            (
                config.alpha(),
                config.beta(),
                config.gamma(),
                config.temperature()
            ),
            (0.25, 2.0, 0.0, 1.5)
        );
        assert!(config.warning().unwrap().contains("unbounded below"));
        let again: ObjectiveConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn refuses_what_is_out_of_range_or_unknown() {
        let refusals = [
            (
                "alpha = 1.5",
                "objective.alpha is 1.5; it is a share and lies between 0 and 1",
            ),
            (
                "alpha = nan",
                "objective.alpha is NaN; it is a share and lies between 0 and 1",
            ),
            (
                "beta = -1",
                "objective.beta is -1; a weight is finite and not negative",
            ),
            (
                "gamma = inf",
                "objective.gamma is inf; a weight is finite and not negative",
            ),
            (
                "temperature = 0",
                "objective.temperature is 0; it is finite and over 0",
            ),
        ];
        for (text, expected) in refusals {
            assert_eq!(parse(text).unwrap_err(), expected);
        }
        assert!(
            parse("delta = 1")
                .unwrap_err()
                .starts_with("unknown field `delta`")
        );
        assert!(
            parse("manifold = \"euclidean\"")
                .unwrap_err()
                .starts_with("unknown variant `euclidean`")
        );
    }
}
