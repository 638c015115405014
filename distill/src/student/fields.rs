//! The fields of a `config.json`, each read with what is supported in its place.

use std::path::Path;

use serde_json::{Map, Value};

use super::StudentError;
use super::activation::Activation;

/// `config.json` as parsed. A field that is null counts as left out, as in `transformers`.
#[derive(Debug, Clone)]
pub struct Fields {
    origin: String,
    values: Map<String, Value>,
}

impl Fields {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It cannot be read or holds no JSON object.
    pub fn from_file(path: &Path) -> Result<Self, StudentError> {
        let text = std::fs::read_to_string(path).map_err(StudentError::io(path))?;
        let values = serde_json::from_str(&text).map_err(StudentError::json(path))?;
        Ok(Self {
            origin: path.display().to_string(),
            values,
        })
    }

    /// Fields of another origin, which errors name.
    pub fn new(origin: &str, values: Map<String, Value>) -> Self {
        Self {
            origin: origin.to_owned(),
            values,
        }
    }

    /// The refusal of a field's value.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers give texts and numbers alike"
    )]
    pub(super) fn refuse(
        &self,
        field: &'static str,
        value: impl ToString,
        supported: &'static str,
    ) -> StudentError {
        StudentError::UnsupportedConfig {
            origin: self.origin.clone(),
            field,
            value: value.to_string(),
            supported,
        }
    }

    /// The value, unless it is left out or null.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.values.get(field).filter(|value| !value.is_null())
    }

    fn parsed<T>(
        &self,
        field: &'static str,
        supported: &'static str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, StudentError> {
        self.get(field)
            .map(|value| parse(value).ok_or_else(|| self.refuse(field, shown(value), supported)))
            .transpose()
    }

    fn required<T>(&self, field: &'static str, value: Option<T>) -> Result<T, StudentError> {
        value.ok_or_else(|| self.refuse(field, "left out", "a value"))
    }

    /// A size of 1 or more.
    pub(super) fn size(&self, field: &'static str) -> Result<usize, StudentError> {
        let size = self.optional_size(field)?;
        self.required(field, size)
    }

    /// A size of 1 or more, or `default`.
    pub(super) fn size_or(
        &self,
        field: &'static str,
        default: usize,
    ) -> Result<usize, StudentError> {
        Ok(self.optional_size(field)?.unwrap_or(default))
    }

    /// A size of 1 or more, if it is there.
    pub(super) fn optional_size(&self, field: &'static str) -> Result<Option<usize>, StudentError> {
        self.parsed(field, "1 or more", |value| {
            usize::try_from(value.as_u64()?)
                .ok()
                .filter(|&size| size > 0)
        })
    }

    /// A whole number, or `default`.
    pub(super) fn integer_or(
        &self,
        field: &'static str,
        default: i64,
    ) -> Result<i64, StudentError> {
        let integer = self.parsed(field, "a whole number", Value::as_i64)?;
        Ok(integer.unwrap_or(default))
    }

    /// A token id, if it is there; published configurations also write -1 for none.
    pub(super) fn optional_id(&self, field: &'static str) -> Result<Option<u32>, StudentError> {
        let id = self.parsed(field, "a token id", |value| match value.as_i64()? {
            -1 => Some(None),
            id => u32::try_from(id).ok().map(Some),
        })?;
        Ok(id.flatten())
    }

    /// One token id or several; none where the field is left out.
    pub(super) fn ids(&self, field: &'static str) -> Result<Option<Vec<u32>>, StudentError> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        self.parsed(
            field,
            "a token id, a list of token ids",
            |value| match value.as_array() {
                Some(values) => values.iter().map(id).collect(),
                None => Some(vec![id(value)?]),
            },
        )
    }

    /// A number above 0.
    pub(super) fn positive(&self, field: &'static str) -> Result<f64, StudentError> {
        let number = self.optional_positive(field)?;
        self.required(field, number)
    }

    /// A number above 0, if it is there.
    pub(super) fn optional_positive(
        &self,
        field: &'static str,
    ) -> Result<Option<f64>, StudentError> {
        self.parsed(field, "a number above 0", |value| {
            value.as_f64().filter(|&number| number > 0.0)
        })
    }

    /// `count` numbers above 0.
    pub(super) fn positives(
        &self,
        field: &'static str,
        count: usize,
    ) -> Result<Vec<f64>, StudentError> {
        let numbers = self.parsed(
            field,
            "one number above 0 for every two of a head's values",
            |value| {
                let number = |value: &Value| value.as_f64().filter(|&number| number > 0.0);
                let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(number).collect();
                numbers.filter(|numbers| numbers.len() == count)
            },
        )?;
        self.required(field, numbers)
    }

    /// The fields of an object, if it is there.
    pub(super) fn nested(&self, field: &'static str) -> Result<Option<Self>, StudentError> {
        let values = self.parsed(field, "an object", |value| value.as_object().cloned())?;
        let origin = format!("{}: `{field}`", self.origin);
        Ok(values.map(|values| Self { origin, values }))
    }

    /// A number, or `default`.
    pub(super) fn number_or(&self, field: &'static str, default: f64) -> Result<f64, StudentError> {
        let number = self.parsed(field, "a number", Value::as_f64)?;
        Ok(number.unwrap_or(default))
    }

    /// What is added to a variance, above 0, or `default`.
    pub(super) fn epsilon_or(
        &self,
        field: &'static str,
        default: f64,
    ) -> Result<f64, StudentError> {
        Ok(self.optional_positive(field)?.unwrap_or(default))
    }

    /// A dropout probability, or `default`.
    pub(super) fn dropout_or(
        &self,
        field: &'static str,
        default: f64,
    ) -> Result<f64, StudentError> {
        let dropout = self.parsed(field, "0 up to, but not, 1", |value| {
            value
                .as_f64()
                .filter(|dropout| (0.0..1.0).contains(dropout))
        })?;
        Ok(dropout.unwrap_or(default))
    }

    /// A flag, or `default`.
    pub(super) fn flag_or(&self, field: &'static str, default: bool) -> Result<bool, StudentError> {
        let flag = self.parsed(field, "true, false", Value::as_bool)?;
        Ok(flag.unwrap_or(default))
    }

    /// A text, if it is there.
    pub(super) fn text(&self, field: &'static str) -> Result<Option<&str>, StudentError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.refuse(field, shown(other), "a text")),
        }
    }

    /// An activation by name, or `default`.
    pub(super) fn activation_or(
        &self,
        field: &'static str,
        default: Activation,
    ) -> Result<Activation, StudentError> {
        let activation = self.parsed(field, Activation::NAMES, |value| {
            Activation::parse(value.as_str()?)
        })?;
        Ok(activation.unwrap_or(default))
    }

    /// Refuses any value but `only`; a field left out passes.
    pub(super) fn expect(
        &self,
        field: &'static str,
        only: &Value,
        supported: &'static str,
    ) -> Result<(), StudentError> {
        match self.get(field) {
            Some(value) if value != only => Err(self.refuse(field, shown(value), supported)),
            _ => Ok(()),
        }
    }

    /// Refuses any number but `only`; a field left out passes.
    pub(super) fn expect_number(
        &self,
        field: &'static str,
        only: f64,
        supported: &'static str,
    ) -> Result<(), StudentError> {
        let number = self.number_or(field, only)?;
        #[expect(clippy::float_cmp, reason = "both are written in a configuration")]
        if number == only {
            Ok(())
        } else {
            Err(self.refuse(field, number, supported))
        }
    }

    /// Refuses any value; a field left out passes, and so does an empty list or object.
    pub(super) fn expect_none(
        &self,
        field: &'static str,
        supported: &'static str,
    ) -> Result<(), StudentError> {
        let is_empty = |value: &Value| match value {
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            _ => false,
        };
        match self.get(field) {
            Some(value) if !is_empty(value) => Err(self.refuse(field, shown(value), supported)),
            _ => Ok(()),
        }
    }

    /// Whether no field is there.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// `num_heads` of width `hidden_size / num_heads` each.
    pub(super) fn check_heads(
        &self,
        field: &'static str,
        num_heads: usize,
        hidden_size: usize,
    ) -> Result<(), StudentError> {
        if hidden_size.is_multiple_of(num_heads) {
            return Ok(());
        }
        let value = format!("{num_heads} for hidden_size {hidden_size}");
        Err(self.refuse(field, value, "a divisor of hidden_size"))
    }
}

/// A value as an error shows it: a text without its quotes.
pub(super) fn shown(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
