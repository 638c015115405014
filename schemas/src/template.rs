//! Texts with placeholders.

use serde::Serialize;

use crate::example::Example;

/// A template with `{field}` placeholders; `{{` and `}}` stand for braces.
///
/// What stands between `{?field}` and `{/field}` is rendered where the field has text, between `{!field}` and
/// `{/field}` where it is blank. Such sections do not nest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(into = "String")]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Part {
    text: Text,
    /// Where it is rendered: everywhere unless inside a section.
    section: Option<Section>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Text {
    Literal(String),
    Field(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Section {
    field: String,
    /// Rendered where the field has text; else where it is blank.
    has_text: bool,
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.source
    }
}

/// A template as far as it is parsed.
#[derive(Default)]
struct Parser {
    parts: Vec<Part>,
    literal: String,
    section: Option<Section>,
}

impl Parser {
    fn push(&mut self, text: Text) {
        self.parts.push(Part {
            text,
            section: self.section.clone(),
        });
    }

    fn end_literal(&mut self) {
        if !self.literal.is_empty() {
            let literal = std::mem::take(&mut self.literal);
            self.push(Text::Literal(literal));
        }
    }

    /// What stands between two braces; the field that it names.
    fn placeholder<'a>(&mut self, inner: &'a str) -> Result<&'a str, String> {
        self.end_literal();
        let begins = |mark: char| inner.strip_prefix(mark);
        if let Some(field) = begins('?').or_else(|| begins('!')) {
            if let Some(open) = &self.section {
                return Err(format!(
                    "opens `{{{inner}}}` within the section of `{}`",
                    open.field
                ));
            }
            self.section = Some(Section {
                field: field.to_owned(),
                has_text: inner.starts_with('?'),
            });
            return Ok(field);
        }
        if let Some(field) = begins('/') {
            return match self.section.take() {
                Some(open) if open.field == field => Ok(field),
                _ => Err(format!("closes `{{{inner}}}`, which is not open")),
            };
        }
        self.push(Text::Field(inner.to_owned()));
        Ok(inner)
    }
}

impl Template {
    /// Parses a template whose placeholders must be among `fields`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(source: &str, fields: &[String]) -> Result<Self, String> {
        let refuse = |problem: String| format!("template `{source}` {problem}");
        let mut parser = Parser::default();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            parser.literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                parser.literal.push_str(brace);
                rest = after;
                continue;
            }
            let (inner, after) = (brace == "{")
                .then(|| rest.split_once('}'))
                .flatten()
                .ok_or_else(|| {
                    refuse(format!(
                        "has a lone `{brace}`; write `{brace}{brace}` for the character"
                    ))
                })?;
            let name = parser.placeholder(inner).map_err(refuse)?;
            if !fields.iter().any(|field| field == name) {
                return Err(refuse(format!(
                    "names field `{name}`; the fields are {}",
                    fields.join(", ")
                )));
            }
            rest = after;
        }
        parser.literal.push_str(rest);
        parser.end_literal();
        if let Some(open) = parser.section {
            return Err(refuse(format!(
                "does not close the section of `{}`",
                open.field
            )));
        }
        Ok(Self {
            source: source.to_owned(),
            parts: parser.parts,
        })
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Names of the fields whose text it shows.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match &part.text {
            Text::Field(name) => Some(name.as_str()),
            Text::Literal(_) => None,
        })
    }

    /// The text for an example; a field that the example lacks renders as nothing.
    pub fn render(&self, example: &Example) -> String {
        self.fill(|name| example.field(name))
    }

    /// The text for fields that `value` knows; any other renders as nothing.
    pub fn fill<'a>(&'a self, value: impl Fn(&str) -> Option<&'a str>) -> String {
        let has_text = |field: &str| value(field).is_some_and(|text| !text.trim().is_empty());
        let is_shown = |part: &&Part| {
            let section = part.section.as_ref();
            section.is_none_or(|section| has_text(&section.field) == section.has_text)
        };
        let text = |part: &'a Part| match &part.text {
            Text::Literal(text) => text.as_str(),
            Text::Field(name) => value(name).unwrap_or_default(),
        };
        self.parts.iter().filter(is_shown).map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Split;

    fn fields(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn render(source: &str, values: &[(&str, &str)]) -> String {
        let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
        let template = Template::parse(source, &fields(&names)).unwrap();
        let row = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        template.render(&Example::new(row.collect(), None, Split::train()))
    }

    #[test]
    fn fields_and_braces_are_rendered() {
        assert_eq!(
            render("{{{a}}} is {b}.", &[("a", "x"), ("b", "{y}")]),
            "{x} is {y}."
        );
    }

    #[test]
    fn sections_follow_whether_a_field_has_text() {
        let source = "{a}{?b}, with {b}{/b}{!b}, alone{/b}.";
        assert_eq!(render(source, &[("a", "x"), ("b", "y")]), "x, with y.");
        for blank in ["", " \n"] {
            assert_eq!(render(source, &[("a", "x"), ("b", blank)]), "x, alone.");
        }
    }

    #[test]
    fn what_cannot_be_rendered_is_refused() {
        for (source, problem) in [
            ("{c}", "names field `c`; the fields are a, b"),
            ("{?c}x{/c}", "names field `c`; the fields are a, b"),
            ("{a", "has a lone `{`; write `{{` for the character"),
            ("a}", "has a lone `}`; write `}}` for the character"),
            ("{}", "names field ``; the fields are a, b"),
            ("{?a}x", "does not close the section of `a`"),
            ("x{/a}", "closes `{/a}`, which is not open"),
            ("{?a}{/b}", "closes `{/b}`, which is not open"),
            (
                "{?a}{!b}x{/b}{/a}",
                "opens `{!b}` within the section of `a`",
            ),
        ] {
            assert_eq!(
                Template::parse(source, &fields(&["a", "b"])).unwrap_err(),
                format!("template `{source}` {problem}")
            );
        }
    }
}
