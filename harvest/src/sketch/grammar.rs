//! Sentences: what the language can say, how it is read and how it is written. EBNF in `docs/teachers/sketch.md`.

use std::fmt;

use super::error::SketchError;
use super::words::{Colour, Extreme, Relation, Shape, Size};

/// What a noun phrase says of a thing: `the big red circle`, `the small shape`, `the blue shape`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Description {
    /// The size, when said.
    pub size: Option<Size>,
    /// The colour, when said.
    pub colour: Option<Colour>,
    /// The form; `None` is the word `shape`, which leaves it open.
    pub shape: Option<Shape>,
}

/// What a sentence is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A thing named by its attributes.
    Described(Description),
    /// The outermost thing on one side: `the leftmost shape`.
    Extreme(Extreme),
}

/// What a sentence says of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Predicate {
    /// `is left of the blue square`
    Related(Relation, Description),
    /// `is red`
    Coloured(Colour),
    /// `is big`
    Sized(Size),
}

/// One sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sentence {
    /// What it is about.
    pub subject: Subject,
    /// What it says.
    pub predicate: Predicate,
}

impl fmt::Display for Description {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the")?;
        for word in [self.size.map(Size::words), self.colour.map(Colour::words)]
            .into_iter()
            .flatten()
        {
            write!(formatter, " {word}")?;
        }
        write!(formatter, " {}", self.shape.map_or("shape", Shape::words))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Described(description) => description.fmt(formatter),
            Self::Extreme(extreme) => write!(formatter, "the {} shape", extreme.words()),
        }
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Related(relation, landmark) => {
                write!(formatter, "is {} {landmark}", relation.words())
            }
            Self::Coloured(colour) => write!(formatter, "is {}", colour.words()),
            Self::Sized(size) => write!(formatter, "is {}", size.words()),
        }
    }
}

/// Writes the sentence as it stands in a text: `The red circle is left of the big square.`
impl fmt::Display for Sentence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = self.subject.to_string();
        let rest = subject
            .strip_prefix('t')
            .expect("a noun phrase begins with `the`");
        write!(formatter, "T{rest} {}.", self.predicate)
    }
}

/// Reads a text of one or more sentences. Case and the amount of white space carry no meaning.
///
/// # Errors
/// [`SketchError::Empty`] or [`SketchError::Grammar`].
pub fn parse(text: &str) -> Result<Vec<Sentence>, SketchError> {
    let mut sentences = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find('.').map_or(rest.len(), |period| period + 1);
        let (sentence, after) = rest.split_at(end);
        sentences.push(Reader::new(sentence).sentence()?);
        rest = after.trim_start();
    }
    if sentences.is_empty() {
        Err(SketchError::Empty)
    } else {
        Ok(sentences)
    }
}

/// Reads one sentence from left to right with one word of lookahead.
struct Reader<'text> {
    sentence: &'text str,
    words: std::iter::Peekable<std::vec::IntoIter<String>>,
}

impl<'text> Reader<'text> {
    fn new(sentence: &'text str) -> Self {
        let lower = sentence.to_lowercase().replace('.', " . ");
        let words: Vec<String> = lower.split_whitespace().map(str::to_owned).collect();
        Self {
            sentence,
            words: words.into_iter().peekable(),
        }
    }

    fn sentence(mut self) -> Result<Sentence, SketchError> {
        self.expect("the", "`the`")?;
        let subject = match self.member(Extreme::ALL, Extreme::words) {
            Some(extreme) => {
                self.expect("shape", "`shape`")?;
                Subject::Extreme(extreme)
            }
            None => Subject::Described(
                self.attributes("a size, a colour, a form, `shape` or a word such as `leftmost`")?,
            ),
        };
        self.expect("is", "`is`")?;
        let predicate = self.predicate()?;
        self.expect(".", "`.`")?;
        Ok(Sentence { subject, predicate })
    }

    fn predicate(&mut self) -> Result<Predicate, SketchError> {
        if let Some(colour) = self.member(Colour::ALL, Colour::words) {
            return Ok(Predicate::Coloured(colour));
        }
        if let Some(size) = self.member(Size::ALL, Size::words) {
            return Ok(Predicate::Sized(size));
        }
        let first_word =
            |relation: Relation| relation.words().split(' ').next().unwrap_or_default();
        let Some(relation) = self.member(Relation::ALL, first_word) else {
            return Err(
                self.error("`left of`, `right of`, `above`, `below`, `inside`, a colour or a size")
            );
        };
        if matches!(relation, Relation::LeftOf | Relation::RightOf) {
            self.expect("of", "`of`")?;
        }
        self.expect("the", "`the`")?;
        Ok(Predicate::Related(
            relation,
            self.attributes("a size, a colour, a form or `shape`")?,
        ))
    }

    /// What follows `the`, up to and with the form.
    fn attributes(&mut self, expected: &'static str) -> Result<Description, SketchError> {
        let size = self.member(Size::ALL, Size::words);
        let colour = self.member(Colour::ALL, Colour::words);
        let shape = self.member(Shape::ALL, Shape::words);
        if shape.is_none() {
            let expected = match (size, colour) {
                (None, None) => expected,
                (Some(_), None) => "a colour, a form or `shape`",
                (_, Some(_)) => "a form (`circle`, `square`, `triangle`, `cross`) or `shape`",
            };
            self.expect("shape", expected)?;
        }
        Ok(Description {
            size,
            colour,
            shape,
        })
    }

    /// Takes the next word if it names a member of the class.
    fn member<M: Copy>(&mut self, class: &[M], word: impl Fn(M) -> &'static str) -> Option<M> {
        let next = self.words.peek()?;
        let found = class.iter().copied().find(|&member| word(member) == next)?;
        self.words.next();
        Some(found)
    }

    fn expect(&mut self, word: &str, expected: &'static str) -> Result<(), SketchError> {
        match self.words.next_if(|next| next == word) {
            Some(_) => Ok(()),
            None => Err(self.error(expected)),
        }
    }

    fn error(&mut self, expected: &'static str) -> SketchError {
        SketchError::Grammar {
            sentence: self.sentence.trim().to_owned(),
            expected,
            found: self.words.peek().map_or_else(
                || "the end of the text".to_owned(),
                |word| format!("`{word}`"),
            ),
        }
    }
}
