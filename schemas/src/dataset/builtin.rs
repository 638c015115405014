//! The tasks that are known by name: the twelve understanding tasks of GLUE and SuperGLUE.

use super::delimited::Headerless;
use super::layout::{Layout, Shape};
use super::row::Column;
use super::{glue, superglue};
use crate::error::Error;
use crate::task::{Metric, Task, TaskConfig, TemplateConfig};

/// A field and the other names that its column has in published files.
type NamedField = (&'static str, &'static [&'static str]);

/// A built-in task and how it was published.
#[derive(Debug)]
pub(super) struct Builtin {
    pub(super) name: &'static str,
    pub(super) fields: &'static [NamedField],
    /// Other names of the column `label`.
    pub(super) label: &'static [&'static str],
    /// No classes: the label is a number.
    pub(super) classes: &'static [&'static str],
    pub(super) metric: Metric,
    pub(super) first: &'static str,
    pub(super) second: Option<&'static str>,
    pub(super) headerless: Option<Headerless>,
    pub(super) word_in_context: bool,
}

impl Builtin {
    /// A task of one segment, scored by accuracy, whose columns are called as its fields are.
    pub(super) const fn new(
        name: &'static str,
        fields: &'static [NamedField],
        first: &'static str,
    ) -> Self {
        Self {
            name,
            fields,
            label: &[],
            classes: &[],
            metric: Metric::Accuracy,
            first,
            second: None,
            headerless: None,
            word_in_context: false,
        }
    }

    fn task(&self) -> Task {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let config = TaskConfig {
            name: self.name.to_owned(),
            fields: self
                .fields
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect(),
            teacher_fields: Vec::new(),
            label: Some("label".to_owned()),
            response: None,
            classes: (!self.classes.is_empty()).then(|| owned(self.classes)),
            choices: None,
            choice_names: Vec::new(),
            metric: self.metric,
            template: TemplateConfig {
                first: self.first.to_owned(),
                second: self.second.map(str::to_owned),
                ..TemplateConfig::default()
            },
        };
        Task::try_from(config).expect("a built-in task is consistent")
    }

    fn layout(&self) -> Layout {
        let column = |name, others: &[&str], required| {
            Column::new(name, &[&[name], others].concat(), required)
        };
        Layout {
            fields: self
                .fields
                .iter()
                .map(|(name, others)| column(name, others, true))
                .collect(),
            label: column("label", self.label, false),
            headerless: self.headerless,
            shape: if self.word_in_context {
                Shape::WordInContext
            } else {
                Shape::Plain
            },
            minus_one_is_none: true,
        }
    }
}

const ALL: [Builtin; 12] = [
    glue::COLA,
    glue::SST2,
    glue::MRPC,
    glue::QQP,
    glue::STSB,
    glue::MNLI,
    glue::QNLI,
    glue::RTE,
    superglue::BOOLQ,
    superglue::CB,
    superglue::COPA,
    superglue::WIC,
];

/// The task of this name and the layout of its published files.
pub(super) fn find(name: &str) -> Option<(Task, Layout)> {
    let builtin = ALL.iter().find(|builtin| builtin.name == name)?;
    Some((builtin.task(), builtin.layout()))
}

impl Task {
    /// Names of the built-in tasks, as the configurations of `nyu-mll/glue` and `aps/super_glue` are called.
    pub fn builtin_names() -> Vec<&'static str> {
        ALL.iter().map(|builtin| builtin.name).collect()
    }

    /// A built-in task.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], which lists the names there are.
    pub fn builtin(name: &str) -> Result<Self, Error> {
        match find(name) {
            Some((task, _)) => Ok(task),
            None => Err(Error::UnknownTask {
                name: name.to_owned(),
                known: Self::builtin_names(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_task_is_consistent() {
        let names = Task::builtin_names();
        assert_eq!(names.len(), 12);
        for name in names {
            assert_eq!(Task::builtin(name).unwrap().name(), name);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        let error = Task::builtin("sst3").unwrap_err();
        assert_eq!(error.to_string(), "there is no built-in task `sst3`");
        assert!(error.hint().unwrap().contains("cola, sst2, mrpc"));
    }
}
