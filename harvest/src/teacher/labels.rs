//! Class logits from the words that a teacher says for each class.

use std::collections::BTreeMap;

use schemas::record::TopKPosition;
use schemas::{LabelKind, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::class::{ErrorClass, TeacherError};

/// Share of the classes' mass that tokens with which several classes begin may have.
const MAX_SHARED: f64 = 0.01;

/// `labels`: class -> the words that stand for it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct LabelsConfig(BTreeMap<String, Words>);

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Several(Vec<String>),
}

/// What the logit of a class is whose words none of the entries begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum MissingClass {
    /// There is none: the row fails.
    #[default]
    Fail,
    /// The most that one token outside the entries can have: the least probable entry's probability, or the mass left
    /// over where that is less.
    Bound,
}

/// How words are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scoring {
    /// By their first token, whatever white space is around them.
    FirstToken,
    /// As a whole, appended to the prompt as they are written.
    Whole,
}

impl LabelsConfig {
    /// What is wrong with the words whatever the task is.
    pub(super) fn problem(&self, scoring: Scoring) -> Option<String> {
        let words = self
            .0
            .iter()
            .map(|(class, words)| (class.clone(), words.list()));
        problem(&words.collect::<Vec<_>>(), scoring)
    }
}

impl Words {
    fn list(&self) -> Vec<String> {
        match self {
            Self::One(word) => vec![word.clone()],
            Self::Several(words) => words.clone(),
        }
    }
}

fn problem(classes: &[(String, Vec<String>)], scoring: Scoring) -> Option<String> {
    for (class, words) in classes {
        if words.is_empty() || words.iter().any(|word| word.trim().is_empty()) {
            return Some(format!("the class `{class}` has no word, or an empty one"));
        }
    }
    for (class, words) in classes {
        for (other, others) in classes.iter().filter(|(other, _)| other != class) {
            for (word, longer) in words
                .iter()
                .flat_map(|word| others.iter().map(move |o| (word, o)))
            {
                let clash = match scoring {
                    Scoring::FirstToken => longer.trim().starts_with(word.trim()),
                    Scoring::Whole => word == longer,
                };
                if clash {
                    return Some(format!(
                        "`{word}` of the class `{class}` begins `{longer}` of the class `{other}`, so no token tells \
                         them apart"
                    ));
                }
            }
        }
    }
    None
}

/// The words of a task's classes, in their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Labels {
    classes: Vec<(String, Vec<String>)>,
    missing: MissingClass,
}

impl Labels {
    /// The words as configured, or the names of the classes.
    ///
    /// # Errors
    /// A deterministic [`TeacherError`] where the task has no classes, the words are for others, or do not tell them
    /// apart.
    pub(super) fn new(
        config: &LabelsConfig,
        missing: MissingClass,
        task: &Task,
        scoring: Scoring,
    ) -> Result<Self, TeacherError> {
        let refuse = |problem: String| TeacherError::new(ErrorClass::Deterministic, problem);
        let LabelKind::Classes(names) = task.label() else {
            let problem = format!(
                "the task `{}` has no classes for `class_logits`",
                task.name()
            );
            return Err(refuse(problem).advise("leave \"class_logits\" out of `teacher.signals`"));
        };
        if let Some(other) = config.0.keys().find(|class| !names.contains(class)) {
            let problem =
                format!("`teacher.labels` names `{other}`, which is no class of the task");
            let advice = format!("the classes are {}", names.join(", "));
            return Err(refuse(problem).advise(advice));
        }
        let words = |name: &String| match config.0.get(name) {
            Some(words) => words.list(),
            None if scoring == Scoring::Whole => vec![format!(" {name}")],
            None => vec![name.clone()],
        };
        let classes = names
            .iter()
            .map(|name| (name.clone(), words(name)))
            .collect::<Vec<_>>();
        if let Some(problem) = problem(&classes, scoring) {
            return Err(refuse(format!("`teacher.labels`: {problem}"))
                .advise("give the classes words in `teacher.labels` that begin differently"));
        }
        let classes = match scoring {
            Scoring::Whole => classes,
            Scoring::FirstToken => classes
                .into_iter()
                .map(|(name, words)| {
                    (
                        name,
                        words.iter().map(|word| word.trim().to_owned()).collect(),
                    )
                })
                .collect(),
        };
        Ok(Self { classes, missing })
    }

    pub(super) fn num_classes(&self) -> u32 {
        self.classes.len() as u32
    }

    /// For the teacher's identity.
    pub(super) fn settings(&self) -> Value {
        let words = self.classes.iter();
        let words: Map<_, _> = words
            .map(|(class, words)| (class.clone(), json!(words)))
            .collect();
        words.into()
    }

    /// Every word with the index of its class.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        let classes = self.classes.iter().enumerate();
        classes.flat_map(|(index, (_, words))| words.iter().map(move |word| (index, word.as_str())))
    }

    /// The logit of each class: the log of the mass of those entries that begin its words and no other class's.
    ///
    /// # Errors
    /// A deterministic [`TeacherError`] where the entries do not say it.
    pub(super) fn logits(&self, first: &TopKPosition) -> Result<Vec<f32>, TeacherError> {
        let mut masses = vec![0_f64; self.classes.len()];
        let mut shared: (f64, String) = (0.0, String::new());
        let mut has_text = false;
        for entry in &first.entries {
            let Some(bytes) = &entry.token.bytes else {
                continue;
            };
            has_text = true;
            let begins = self.begun_by(bytes.trim_ascii_start());
            let probability = f64::from(entry.logprob).exp();
            match begins[..] {
                [] => {}
                [class] => masses[class] += probability,
                _ => {
                    if shared.1.is_empty() {
                        shared.1 = String::from_utf8_lossy(bytes).into_owned();
                    }
                    shared.0 += probability;
                }
            }
        }
        if !has_text {
            return Err(refusal("the server gives no text of its tokens").advise(
                "have it give text: leave `return_tokens_as_token_ids` out of `teacher.options`",
            ));
        }
        if shared.0 > MAX_SHARED * masses.iter().sum::<f64>() {
            let problem = format!("several classes begin with the token `{}`", shared.1);
            return Err(refusal(&problem)
                .advise("give the classes words in `teacher.labels` whose first tokens differ"));
        }
        self.with_missing(&masses, first)
    }

    fn begun_by(&self, bytes: &[u8]) -> Vec<usize> {
        if bytes.is_empty() {
            return Vec::new();
        }
        let begins = |words: &[String]| words.iter().any(|word| word.as_bytes().starts_with(bytes));
        let classes = self.classes.iter().enumerate();
        classes
            .filter(|(_, (_, words))| begins(words))
            .map(|(index, _)| index)
            .collect()
    }

    fn with_missing(&self, masses: &[f64], first: &TopKPosition) -> Result<Vec<f32>, TeacherError> {
        let num_entries = first.entries.len();
        if masses.iter().all(|mass| *mass == 0.0) {
            let problem =
                format!("no class begins with any of the {num_entries} most probable tokens");
            return Err(refusal(&problem).advise(
                "have the prompt ask for one of the words of `teacher.labels` and nothing else",
            ));
        }
        if let (MissingClass::Fail, Some(index)) =
            (self.missing, masses.iter().position(|mass| *mass == 0.0))
        {
            let class = &self.classes[index].0;
            let problem = format!(
                "the class `{class}` begins with none of the {num_entries} most probable tokens"
            );
            return Err(refusal(&problem).advise(
                "raise `teacher.top_logprobs`, or set `missing_class = \"bound\"` to store an upper bound",
            ));
        }
        let least = first
            .entries
            .last()
            .map_or(f64::NEG_INFINITY, |entry| f64::from(entry.logprob));
        // The mass left over is the rest of a sum of floats: below their resolution it says nothing.
        let left = f64::from(first.remaining_mass.max(f32::EPSILON)).ln();
        let bound = least.min(left);
        let logit = |mass: &f64| if *mass == 0.0 { bound } else { mass.ln() };
        Ok(masses.iter().map(|mass| logit(mass) as f32).collect())
    }

    /// The logit of each class from the log-probability of each of [`Self::words`]: the log of the sum of their
    /// probabilities.
    pub(super) fn logits_of_words(&self, logprobs: &[f64]) -> Vec<f32> {
        let mut logits = vec![f64::NEG_INFINITY; self.classes.len()];
        for ((class, _), logprob) in self.words().zip(logprobs) {
            let (high, low) = if logits[class] > *logprob {
                (logits[class], *logprob)
            } else {
                (*logprob, logits[class])
            };
            logits[class] = high + (low - high).exp().ln_1p();
        }
        logits.into_iter().map(|logit| logit as f32).collect()
    }
}

fn refusal(problem: &str) -> TeacherError {
    TeacherError::new(
        ErrorClass::Deterministic,
        format!("signal `class_logits`: {problem}"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tokens::position;
    use super::super::tokens::tests::scored;
    use super::*;

    fn config(toml: &str) -> LabelsConfig {
        toml::from_str(toml).unwrap()
    }

    fn labels(toml: &str, missing: MissingClass) -> Labels {
        let task = Task::builtin("sst2").unwrap();
        Labels::new(&config(toml), missing, &task, Scoring::FirstToken).unwrap()
    }

    fn first(entries: &[(&str, f64)]) -> TopKPosition {
        let entries = entries.iter().enumerate();
        let entries = entries.map(|(id, (text, p))| scored(id as u32, text, p.ln() as f32));
        position(None, entries.collect(), 100).unwrap()
    }

    fn near(found: &[f32], expected: &[f64]) -> bool {
        let pairs = found.iter().zip(expected);
        found.len() == expected.len()
            && pairs
                .into_iter()
                .all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5)
    }

    #[test]
    fn a_class_has_the_mass_of_the_tokens_that_begin_its_words() {
        let labels = labels(
            "negative = [\"no\", \"No\"]\npositive = \"yes\"",
            MissingClass::Fail,
        );
        let tokens = [
            ("yes", 0.4),
            ("no", 0.2),
            ("No", 0.1),
            (" n", 0.05),
            ("maybe", 0.05),
            ("\n", 0.02),
            ("yesterday", 0.01),
        ];
        let logits = labels.logits(&first(&tokens)).unwrap();
        assert!(near(&logits, &[0.35_f64.ln(), 0.4_f64.ln()]), "{logits:?}");
    }

    #[test]
    fn two_tokens_of_the_same_text_both_count() {
        let labels = labels("negative = \"no\"\npositive = \"yes\"", MissingClass::Fail);
        let logits = labels.logits(&first(&[("yes", 0.4), ("no", 0.2), ("no", 0.1)]));
        assert!(near(&logits.unwrap(), &[0.3_f64.ln(), 0.4_f64.ln()]));
    }

    #[test]
    fn a_class_outside_the_entries_fails_the_row_or_is_bounded() {
        let words = "negative = \"no\"\npositive = \"yes\"";
        let confident = first(&[("yes", 0.9), ("Yes", 0.05), ("ja", 0.01)]);
        let error = labels(words, MissingClass::Fail)
            .logits(&confident)
            .unwrap_err();
        assert_eq!(
            error.message,
            "signal `class_logits`: the class `negative` begins with none of the 3 most probable tokens"
        );
        assert!(error.advice.unwrap().contains("missing_class"));
        let bound = labels(words, MissingClass::Bound);
        let logits = bound.logits(&confident).unwrap();
        // One token outside has no more than the last entry, nor than all that is left.
        assert!(near(&logits, &[0.01_f64.ln(), 0.9_f64.ln()]), "{logits:?}");
        let logits = bound
            .logits(&first(&[("yes", 0.9), ("ja", 0.098)]))
            .unwrap();
        assert!((logits[0] - 0.002_f32.ln()).abs() < 1e-3, "{logits:?}");
        let error = bound.logits(&first(&[("ja", 0.9)])).unwrap_err();
        assert!(error.message.contains("no class begins"), "{error}");
    }

    #[test]
    fn a_token_that_begins_several_classes_fails_the_row_unless_it_is_rare() {
        let labels = labels(
            "negative = \"bad\"\npositive = \"bold\"",
            MissingClass::Fail,
        );
        let error = labels
            .logits(&first(&[("b", 0.8), ("bad", 0.1)]))
            .unwrap_err();
        assert_eq!(
            error.message,
            "signal `class_logits`: several classes begin with the token `b`"
        );
        let rare = first(&[("bold", 0.6), ("bad", 0.3), ("b", 0.001)]);
        assert!(near(
            &labels.logits(&rare).unwrap(),
            &[0.3_f64.ln(), 0.6_f64.ln()]
        ));
    }

    #[test]
    fn words_that_cannot_be_told_apart_are_refused() {
        let refused = |toml: &str, scoring| config(toml).problem(scoring);
        let same = "a = \"Yes\"\nb = [\"no\", \" Yes\"]";
        assert!(refused(same, Scoring::FirstToken).is_some());
        assert!(refused(same, Scoring::Whole).is_none());
        assert!(refused("a = \"no\"\nb = \"not\"", Scoring::FirstToken).is_some());
        assert!(refused("a = \"x\"\nb = \"x\"", Scoring::Whole).is_some());
        assert!(refused("a = \" \"", Scoring::Whole).is_some());
        assert!(refused("a = []", Scoring::Whole).is_some());
        assert!(refused("a = \"no\"\nb = \"yes\"", Scoring::FirstToken).is_none());

        let task = Task::builtin("sst2").unwrap();
        let other = Labels::new(
            &config("neutral = \"x\""),
            MissingClass::Fail,
            &task,
            Scoring::Whole,
        );
        assert_eq!(
            other.unwrap_err().message,
            "`teacher.labels` names `neutral`, which is no class of the task"
        );
        let number = Labels::new(
            &LabelsConfig::default(),
            MissingClass::Fail,
            &Task::builtin("stsb").unwrap(),
            Scoring::Whole,
        );
        assert!(number.unwrap_err().message.contains("has no classes"));
    }

    #[test]
    fn words_of_a_class_add_up() {
        let labels = labels(
            "negative = [\"no\", \"No\"]\npositive = \"yes\"",
            MissingClass::Fail,
        );
        let logits = labels.logits_of_words(&[0.2_f64.ln(), 0.1_f64.ln(), 0.4_f64.ln()]);
        assert!(near(&logits, &[0.3_f64.ln(), 0.4_f64.ln()]), "{logits:?}");
    }
}
