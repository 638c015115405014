//! Whether the configured teachers look at the pictures that they are sent.

use std::path::Path;

use crate::config::{CommonConfig, RunConfig, TeacherEntry};
use crate::error::Error;
use crate::plan::Plan;
use crate::reporter::Watch;
use crate::stop::Stop;
use crate::teacher::sight::{look, test_picture};
use crate::teacher::{OpenContext, Reply, Request, Several};

use super::super::throwaway_folder;

/// What it takes to open a teacher a second time, for requests with pictures of our own.
pub(super) struct Opening<'a> {
    pub(super) plan: &'a Plan,
    pub(super) run: &'a RunConfig,
    pub(super) watch: &'a Watch,
    pub(super) stop: &'a Stop,
}

impl Opening<'_> {
    /// A line for each teacher that is sent pictures. `sample` has the rows that were answered.
    ///
    /// # Errors
    /// [`Error::Teacher`] where a teacher drops them, or nothing can be asked.
    pub(super) async fn lines(
        &self,
        teachers: &[TeacherEntry],
        sample: &[(Request, Reply)],
    ) -> Result<Vec<(&'static str, String)>, Error> {
        let mut lines = Vec::new();
        for (index, entry) in teachers.iter().enumerate() {
            // A teacher may keep the folder of its state to itself.
            let state = throwaway_folder()?;
            if let Some(text) = self.line(index, entry, sample, state.path()).await? {
                let name = entry.name.iter().map(|name| format!("{name}: "));
                lines.push(("pictures", name.chain([text]).collect()));
            }
        }
        Ok(lines)
    }

    async fn line(
        &self,
        index: usize,
        entry: &TeacherEntry,
        sample: &[(Request, Reply)],
        state: &Path,
    ) -> Result<Option<String>, Error> {
        let common = CommonConfig {
            inline_images: true,
            ..entry.common.clone()
        };
        let context = OpenContext {
            common: &common,
            run: self.run,
            task: self.plan.task(),
            data_folder: self.plan.data_folder(),
            state_folder: state.to_owned(),
            watch: self.watch.clone(),
            stop: self.stop.clone(),
        };
        if let Some(encoder) = entry.kind.encoder(&context)? {
            let Some((request, _)) = sample.first() else {
                return Ok(None);
            };
            let mut asked = Request::text(request.id, request.draw, "");
            asked.image = Some(test_picture(false));
            return Ok(Some(
                look(encoder.as_ref(), &asked, None).await?.to_string(),
            ));
        }
        if common.image_field.is_none() {
            return Ok(None);
        }
        let shown = sample.iter().map(|(request, reply)| {
            // Of several teachers, the reply says only what all of them took together.
            let known = entry.name.is_none().then_some(reply);
            (Several::part_of(request, index), known)
        });
        let Some((asked, known)) = shown.into_iter().find(|(asked, _)| asked.image.is_some())
        else {
            let text = "unknown whether they are looked at: no row of the sample has one";
            return Ok(Some(text.to_owned()));
        };
        let teacher = entry.kind.open(&context)?;
        Ok(Some(
            look(teacher.as_ref(), &asked, known).await?.to_string(),
        ))
    }
}
