//! What a row of a data set means: its fields, label, metric and the template that turns it into text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::choices::Choices;
use crate::error::Error;
use crate::example::Example;
pub use crate::template::Template;

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
    /// Of multiple-choice options: the likeliest by log-likelihood for each token.
    AccuracyPerToken,
    /// Of multiple-choice options: the likeliest by log-likelihood for each byte, `acc_norm` of evaluation harnesses.
    AccuracyPerByte,
    /// Mean ROUGE-L F1 of written texts.
    RougeL,
    /// Share of written texts whose last number is that of the expected text.
    LastNumber,
}

/// What a label is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LabelKind {
    /// One of these classes; a label is an index into them.
    Classes(Vec<String>),
    /// A number.
    Number,
    /// A text to be written.
    Text,
    /// One of the row's own options, whose texts are compared; a label is an index into them.
    Choice(Choices),
}

impl LabelKind {
    /// What it is, in a word for messages.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Classes(_) => "classes",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::Choice(_) => "options of each row",
        }
    }

    /// Whether the answer is a text that a language model writes or weighs.
    pub fn is_generation(&self) -> bool {
        matches!(self, Self::Text | Self::Choice(_))
    }

    fn is_scored_by(&self, metric: Metric) -> bool {
        match self {
            Self::Classes(classes) => match metric {
                Metric::Accuracy | Metric::F1Macro | Metric::Matthews => true,
                Metric::F1 => classes.len() == 2,
                _ => false,
            },
            Self::Number => matches!(metric, Metric::Pearson | Metric::Spearman),
            Self::Text => matches!(metric, Metric::RougeL | Metric::LastNumber),
            Self::Choice(_) => matches!(
                metric,
                Metric::Accuracy | Metric::AccuracyPerToken | Metric::AccuracyPerByte
            ),
        }
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Instead of `label`: the column that holds the text to be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// The classes, in the order of their indices; left out, the label is a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// Instead of `classes`: where the options of each row are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Choices>,
    /// What labels call the options, in their order; left out, a label is an index from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choice_names: Vec<String>,
    /// How predictions are scored.
    pub metric: Metric,
    /// How a row becomes the student's text.
    pub template: TemplateConfig,
}

/// The templates of a task's texts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateConfig {
    /// First segment; the prompt, where a text is to be written.
    pub first: String,
    /// Second segment, where the student reads a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
    /// What is written after the prompt, with `{response}` for the response or the option; `{response}` alone unless
    /// said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// What stands before `first` in a chat, in its order; `first` is the user's last message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<MessageConfig>,
}

/// A message of a chat.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageConfig {
    /// Who says it: `system`, `user` or `assistant`.
    pub role: Role,
    /// What is said.
    pub text: String,
}

/// Who says a message of a chat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole chat.
    System,
    /// The one who asks.
    User,
    /// The one who answers.
    Assistant,
}

impl Role {
    /// The name, as chat templates write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A task: what its fields, label and metric are, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    name: String,
    fields: Vec<String>,
    label_field: String,
    label: LabelKind,
    choice_names: Vec<String>,
    metric: Metric,
    first: Template,
    second: Option<Template>,
    response: Template,
    messages: Vec<(Role, Template)>,
}

/// The placeholder of what is written.
const RESPONSE: &str = "response";

impl TryFrom<TaskConfig> for Task {
    type Error = Error;

    fn try_from(config: TaskConfig) -> Result<Self, Error> {
        let task = config.name.clone();
        config
            .check()
            .map_err(|problem| Error::InvalidTask { task, problem })
    }
}

impl TaskConfig {
    fn check(self) -> Result<Task, String> {
        if self.fields.is_empty() {
            return Err("it has no fields".into());
        }
        if let Some(name) = first_duplicate(&self.fields) {
            return Err(format!("field `{name}` is named twice"));
        }
        let (label_field, label) = self.label()?;
        if self.fields.contains(&label_field) {
            return Err(format!("`{label_field}` is both a field and the label"));
        }
        if self.metric == Metric::F1
            && matches!(&label, LabelKind::Classes(names) if names.len() != 2)
        {
            return Err("metric f1 scores two classes; use f1_macro".into());
        }
        if !label.is_scored_by(self.metric) {
            return Err(format!(
                "metric {:?} does not score this kind of label",
                self.metric
            ));
        }
        if !label.is_generation() {
            self.check_no_generation()?;
        } else if self.template.second.is_some() {
            return Err("a language model reads one text: `template.second` has no place".into());
        }
        let parse = |source: &str| Template::parse(source, &self.fields);
        let first = parse(&self.template.first)?;
        let second = self.template.second.as_deref().map(parse).transpose()?;
        let messages = self.template.messages.iter();
        let messages: Vec<(Role, Template)> = messages
            .map(|message| Ok((message.role, parse(&message.text)?)))
            .collect::<Result<_, String>>()?;
        let response = self.template.response.as_deref().unwrap_or("{response}");
        let response = Template::parse(response, &[RESPONSE.to_owned()])?;
        if response.fields().count() != 1 {
            return Err("`template.response` names `{response}` once".into());
        }
        let in_templates = [&first].into_iter().chain(&second);
        let in_templates = in_templates.chain(messages.iter().map(|(_, text)| text));
        self.check_every_field_is_seen(in_templates.flat_map(Template::fields), &label)?;
        Ok(Task {
            first,
            second,
            response,
            messages,
            label,
            label_field,
            name: self.name,
            fields: self.fields,
            choice_names: self.choice_names,
            metric: self.metric,
        })
    }

    /// The column that holds the label, and what it is.
    fn label(&self) -> Result<(String, LabelKind), String> {
        let label = match (&self.label, &self.response) {
            (Some(label), None) => label.clone(),
            (None, Some(_)) if self.classes.is_some() || self.choices.is_some() => {
                return Err("`classes` and `choices` go with `label`, not with `response`".into());
            }
            (None, Some(response)) => return Ok((response.clone(), LabelKind::Text)),
            (Some(_), Some(_)) | (None, None) => {
                return Err(
                    "a task has either `label` or, where a text is to be written, `response`"
                        .into(),
                );
            }
        };
        let kind = match (&self.classes, &self.choices) {
            (None, None) => LabelKind::Number,
            (Some(_), Some(_)) => {
                return Err("a label is one of `classes` or of `choices`, not of both".into());
            }
            (Some(classes), None) if classes.len() < 2 => {
                return Err("a classification task has at least two classes".into());
            }
            (Some(classes), None) => match first_duplicate(classes) {
                Some(name) => return Err(format!("class `{name}` is named twice")),
                None => LabelKind::Classes(classes.clone()),
            },
            (None, Some(choices)) => {
                let fields = choices.fields();
                if let Some(other) = fields.iter().find(|field| !self.fields.contains(field)) {
                    return Err(format!(
                        "`choices` names `{other}`, which is not among `fields`"
                    ));
                }
                if choices.list().is_none() && fields.len() < 2 {
                    return Err(
                        "`choices` are at least two fields, or the name of one that holds a list"
                            .into(),
                    );
                }
                LabelKind::Choice(choices.clone())
            }
        };
        if let Some(name) = first_duplicate(&self.choice_names) {
            return Err(format!("option `{name}` is named twice"));
        }
        Ok((label, kind))
    }

    fn check_no_generation(&self) -> Result<(), String> {
        for (key, is_there) in [
            ("template.response", self.template.response.is_some()),
            ("template.messages", !self.template.messages.is_empty()),
            ("choice_names", !self.choice_names.is_empty()),
        ] {
            if is_there {
                return Err(format!(
                    "`{key}` belongs to a task with `response` or `choices`"
                ));
            }
        }
        Ok(())
    }

    fn check_every_field_is_seen<'a>(
        &self,
        shown: impl Iterator<Item = &'a str>,
        label: &LabelKind,
    ) -> Result<(), String> {
        let shown: Vec<&str> = shown.collect();
        let options: &[String] = match label {
            LabelKind::Choice(choices) => choices.fields(),
            _ => &[],
        };
        if let Some(other) = self
            .teacher_fields
            .iter()
            .find(|field| !self.fields.contains(field))
        {
            return Err(format!(
                "`teacher_fields` names `{other}`, which is not among `fields`"
            ));
        }
        let is_seen = |field: &&String| {
            shown.contains(&field.as_str())
                || options.contains(field)
                || self.teacher_fields.contains(field)
        };
        match self.fields.iter().find(|field| !is_seen(field)) {
            Some(unused) => Err(format!(
                "field `{unused}` never reaches the model: no template names it"
            )),
            None => Ok(()),
        }
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

    /// The field that may hold a list in files: that of the options.
    pub fn list_field(&self) -> Option<&str> {
        match &self.label {
            LabelKind::Choice(choices) => choices.list(),
            _ => None,
        }
    }

    /// What labels call a row's options, in their order; empty where a label is an index.
    pub fn choice_names(&self) -> &[String] {
        &self.choice_names
    }

    /// How predictions are scored.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The chat that a language model answers: the messages of the task, and the first segment as the user's last.
    pub fn conversation(&self, example: &Example) -> Vec<(Role, String)> {
        let before = self.messages.iter();
        before
            .map(|(role, template)| (*role, template.render(example)))
            .chain([(Role::User, self.first.render(example))])
            .collect()
    }

    /// Whether something stands before the first segment in a chat.
    pub fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    /// What is written after the prompt where the response, or the option, is `text`.
    pub fn render_response(&self, text: &str) -> String {
        self.response.fill(|_| Some(text))
    }

    /// What a text written by the model says, without what the response's template adds at its ends.
    pub fn strip_response<'a>(&self, written: &'a str) -> &'a str {
        let around = self.render_response("\0");
        let (begin, end) = around
            .split_once('\0')
            .expect("the template names the response once");
        let written = written.strip_prefix(begin).unwrap_or(written);
        written.strip_suffix(end).unwrap_or(written)
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
            None => self.first.source().to_owned(),
            Some(second) => format!("{} {}", self.first.source(), second.source()),
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
    fn a_field_that_reaches_no_template_is_refused() {
        let config = TaskConfig {
            name: "t".into(),
            fields: fields(&["a", "b"]),
            teacher_fields: Vec::new(),
            label: Some("label".into()),
            response: None,
            classes: Some(fields(&["no", "yes"])),
            choices: None,
            choice_names: Vec::new(),
            metric: Metric::Accuracy,
            template: TemplateConfig {
                first: "{a}".into(),
                ..TemplateConfig::default()
            },
        };
        let error = Task::try_from(config).unwrap_err();
        assert_eq!(
            error.to_string(),
            "task `t`: field `b` never reaches the model: no template names it"
        );
    }

    fn parse(text: &str) -> Result<Task, String> {
        let config: TaskConfig = toml::from_str(text).unwrap();
        Task::try_from(config).map_err(|error| error.to_string())
    }

    const DOLLY: &str = r#"
name = "dolly"
fields = ["instruction", "context"]
response = "output"
metric = "rouge_l"
[template]
first = "{instruction}{?context}\n{context}{/context}\n"
response = "{{{response}}}"
"#;

    #[test]
    fn a_response_is_written_after_a_prompt() {
        let task = parse(DOLLY).unwrap();
        assert_eq!(task.label(), &LabelKind::Text);
        assert_eq!(task.label_field(), "output");
        let row = [("instruction", "Do."), ("context", "")];
        let row = row.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let example = Example::new(row.into(), None, Split::train());
        assert_eq!(
            task.conversation(&example),
            [(Role::User, "Do.\n".to_owned())]
        );
        assert_eq!(task.render_response("ok"), "{ok}");
        assert_eq!(task.strip_response("{ok}"), "ok");
        assert_eq!(task.strip_response("cut off"), "cut off");
    }

    #[test]
    fn keys_of_generation_fit_together() {
        const OUTPUT: &str = "response = \"output\"";
        let neither_nor = "a task has either `label` or, where a text is to be written, `response`";
        for (from, to, problem) in [
            (OUTPUT, "response = \"output\"\nlabel = \"x\"", neither_nor),
            (OUTPUT, "", neither_nor),
            (
                OUTPUT,
                "response = \"output\"\nchoices = \"context\"",
                "`classes` and `choices` go with `label`, not with `response`",
            ),
            (
                "\"rouge_l\"",
                "\"accuracy\"",
                "metric Accuracy does not score this kind of label",
            ),
            (
                "[template]",
                "[template]\nsecond = \"x\"",
                "a language model reads one text: `template.second` has no place",
            ),
            (
                "{{{response}}}",
                "yes",
                "`template.response` names `{response}` once",
            ),
            (
                OUTPUT,
                "label = \"output\"\nchoices = \"endings\"",
                "`choices` names `endings`, which is not among `fields`",
            ),
            (
                OUTPUT,
                "label = \"output\"\nchoices = [\"context\"]",
                "`choices` are at least two fields, or the name of one that holds a list",
            ),
            (
                OUTPUT,
                "label = \"output\"\nclasses = [\"a\", \"b\"]\nchoices = \"context\"",
                "a label is one of `classes` or of `choices`, not of both",
            ),
        ] {
            assert!(DOLLY.contains(from));
            let error = parse(&DOLLY.replace(from, to)).unwrap_err();
            assert_eq!(error, format!("task `dolly`: {problem}"));
        }
        let classes = DOLLY
            .replace(OUTPUT, "label = \"output\"\nclasses = [\"a\", \"b\"]")
            .replace("rouge_l", "accuracy");
        assert_eq!(
            parse(&classes).unwrap_err(),
            "task `dolly`: `template.response` belongs to a task with `response` or `choices`"
        );
    }

    #[test]
    fn options_reach_the_model_without_a_template() {
        let text = "name = \"c\"\nfields = [\"ctx\", \"endings\"]\nlabel = \"label\"\nchoices = \"endings\"\n\
                    metric = \"accuracy_per_byte\"\n[template]\nfirst = \"{ctx}\"\nresponse = \" {response}\"\n";
        let task = parse(text).unwrap();
        assert_eq!(
            task.label(),
            &LabelKind::Choice(Choices::List("endings".into()))
        );
        assert_eq!(task.list_field(), Some("endings"));
    }
}
