//! What a row of a data set means: its fields, label, metric and the template that turns it into text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::example::Example;

/// How predictions are scored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of examples predicted right.
    Accuracy,
    /// F1 of class 1.
    F1,
    /// Unweighted mean of the F1 of every class.
    F1Macro,
    /// Matthews correlation coefficient.
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation.
    Spearman,
}

/// What a label is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LabelKind {
    /// One of these classes; a label is an index into them.
    Classes(Vec<String>),
    /// A number.
    Number,
}

/// A template with `{field}` placeholders; `{{` and `}}` stand for braces.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(into = "String")]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Literal(String),
    Field(String),
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.source
    }
}

impl Template {
    /// Parses a template whose placeholders must be among `fields`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(source: &str, fields: &[String]) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
                continue;
            }
            let name = (brace == "{")
                .then(|| rest.split_once('}'))
                .flatten()
                .ok_or_else(|| format!("template `{source}` has a lone `{brace}`; write `{brace}{brace}` for the character"))?;
            if !fields.iter().any(|field| field == name.0) {
                return Err(format!(
                    "template `{source}` names field `{}`; the fields are {}",
                    name.0,
                    fields.join(", ")
                ));
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Field(name.0.to_owned()));
            rest = name.1;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self {
            source: source.to_owned(),
            parts,
        })
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Names of the fields it uses.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// The text for an example; a field that the example lacks renders as nothing.
    pub fn render(&self, example: &Example) -> String {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Literal(text) => text,
                Part::Field(name) => example.field(name).unwrap_or_default(),
            })
            .collect()
    }
}

/// A task as written in `task.toml` or inside another configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// Name, used in messages and manifests.
    pub name: String,
    /// The text fields; together they are the example's identity.
    pub fields: Vec<String>,
    /// Those of the fields that only a teacher sees, such as the path of a picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teacher_fields: Vec<String>,
    /// The column that holds the label.
    pub label: String,
    /// The classes, in the order of their indices; left out, the label is a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// How predictions are scored.
    pub metric: Metric,
    /// How a row becomes the student's text.
    pub template: TemplateConfig,
}

/// The templates of a task's two text segments.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateConfig {
    /// First segment.
    pub first: String,
    /// Second segment, where the student reads a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
}

/// A task: what its fields, label and metric are, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    name: String,
    fields: Vec<String>,
    label_field: String,
    label: LabelKind,
    metric: Metric,
    first: Template,
    second: Option<Template>,
}

impl TryFrom<TaskConfig> for Task {
    type Error = Error;

    fn try_from(config: TaskConfig) -> Result<Self, Error> {
        let invalid = |problem: String| Error::InvalidTask {
            task: config.name.clone(),
            problem,
        };
        if config.fields.is_empty() {
            return Err(invalid("it has no fields".into()));
        }
        if let Some(name) = first_duplicate(&config.fields) {
            return Err(invalid(format!("field `{name}` is named twice")));
        }
        if config.fields.contains(&config.label) {
            return Err(invalid(format!(
                "`{}` is both a field and the label",
                config.label
            )));
        }
        let label = match &config.classes {
            None => LabelKind::Number,
            Some(classes) if classes.len() < 2 => {
                return Err(invalid(
                    "a classification task has at least two classes".into(),
                ));
            }
            Some(classes) => match first_duplicate(classes) {
                Some(name) => return Err(invalid(format!("class `{name}` is named twice"))),
                None => LabelKind::Classes(classes.clone()),
            },
        };
        let correlation = matches!(config.metric, Metric::Pearson | Metric::Spearman);
        if correlation != (label == LabelKind::Number) {
            return Err(invalid(format!(
                "metric {:?} does not score this kind of label",
                config.metric
            )));
        }
        if config.metric == Metric::F1
            && config
                .classes
                .as_ref()
                .is_some_and(|classes| classes.len() != 2)
        {
            return Err(invalid("metric f1 scores two classes; use f1_macro".into()));
        }
        let first = Template::parse(&config.template.first, &config.fields).map_err(invalid)?;
        let second = config
            .template
            .second
            .as_deref()
            .map(|source| Template::parse(source, &config.fields))
            .transpose()
            .map_err(invalid)?;
        let used = |field: &String| {
            let mut names = first
                .fields()
                .chain(second.iter().flat_map(Template::fields));
            names.any(|name| name == field)
        };
        if let Some(other) = config
            .teacher_fields
            .iter()
            .find(|field| !config.fields.contains(field))
        {
            return Err(invalid(format!(
                "`teacher_fields` names `{other}`, which is not among `fields`"
            )));
        }
        let seen = |field: &&String| used(field) || config.teacher_fields.contains(field);
        if let Some(unused) = config.fields.iter().find(|field| !seen(field)) {
            return Err(invalid(format!(
                "field `{unused}` never reaches the model: no template names it"
            )));
        }
        Ok(Self {
            first,
            second,
            label,
            name: config.name,
            fields: config.fields,
            label_field: config.label,
            metric: config.metric,
        })
    }
}

fn first_duplicate(names: &[String]) -> Option<&String> {
    names
        .iter()
        .enumerate()
        .find(|(index, name)| names[..*index].contains(name))
        .map(|(_, name)| name)
}

impl Task {
    /// Name, used in messages and manifests.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text fields, in the order of the description.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// The column that holds the label.
    pub fn label_field(&self) -> &str {
        &self.label_field
    }

    /// What a label is.
    pub fn label(&self) -> &LabelKind {
        &self.label
    }

    /// How predictions are scored.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The student's text: first segment and, for pairs, the second.
    pub fn render(&self, example: &Example) -> (String, Option<String>) {
        (
            self.first.render(example),
            self.second
                .as_ref()
                .map(|template| template.render(example)),
        )
    }

    /// The template that a teacher's prompt follows where none is configured: both segments, a space between.
    pub fn prompt(&self) -> Template {
        let source = match &self.second {
            None => self.first.source.clone(),
            Some(second) => format!("{} {}", self.first.source, second.source),
        };
        Template::parse(&source, &self.fields)
            .expect("both halves were parsed against the same fields")
    }

    /// Picks this task's fields out of a row.
    ///
    /// # Errors
    /// The name of the first field that the row lacks.
    pub fn select(
        &self,
        row: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, String> {
        self.fields
            .iter()
            .map(|name| {
                Ok((
                    name.clone(),
                    row.get(name).ok_or_else(|| name.clone())?.clone(),
                ))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Split;

    fn fields(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn template_renders_fields_and_braces() {
        let template = Template::parse("{{{a}}} is {b}.", &fields(&["a", "b"])).unwrap();
        let row = [("a", "x"), ("b", "{y}")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let example = Example::new(row.into(), None, Split::train());
        assert_eq!(template.render(&example), "{x} is {y}.");
    }

    #[test]
    fn templates_with_unknown_fields_or_lone_braces_are_refused() {
        for source in ["{c}", "{a", "a}", "{}"] {
            assert!(
                Template::parse(source, &fields(&["a"])).is_err(),
                "{source}"
            );
        }
    }

    #[test]
    fn a_field_that_reaches_no_template_is_refused() {
        let config = TaskConfig {
            name: "t".into(),
            fields: fields(&["a", "b"]),
            teacher_fields: Vec::new(),
            label: "label".into(),
            classes: Some(fields(&["no", "yes"])),
            metric: Metric::Accuracy,
            template: TemplateConfig {
                first: "{a}".into(),
                second: None,
            },
        };
        let error = Task::try_from(config).unwrap_err();
        assert_eq!(
            error.to_string(),
            "task `t`: field `b` never reaches the model: no template names it"
        );
    }
}
