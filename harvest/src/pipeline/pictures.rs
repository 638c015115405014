//! Whether the configured teachers look at the pictures that they are sent.

use std::fmt;
use std::path::Path;

use crate::config::{CommonConfig, RunConfig, TeacherEntry};
use crate::error::Error;
use crate::place::throwaway_folder;
use crate::plan::Plan;
use crate::reporter::Watch;
use crate::stop::Stop;
use crate::teacher::sight::{Sight, look, test_picture};
use crate::teacher::{OpenContext, Reply, Request, Several};

/// What it takes to open a teacher a second time, for requests with pictures of our own.
pub(crate) struct Opening<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) run: &'a RunConfig,
    pub(crate) watch: &'a Watch,
    pub(crate) stop: &'a Stop,
}

/// What was found out of one teacher.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its name where there are several.
    name: Option<String>,
    pub(crate) sight: Sight,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}: ")?;
        }
        self.sight.fmt(f)
    }
}

impl Opening<'_> {
    /// What is found out of each server that is sent pictures. `sample` has rows, and what was replied to them so far.
    ///
    /// # Errors
    /// [`Error::Teacher`] where a teacher drops them, or nothing can be asked.
    pub(crate) async fn look(
        &self,
        teachers: &[TeacherEntry],
        sample: &[(Request, Option<Reply>)],
    ) -> Result<Vec<Found>, Error> {
        let mut found = Vec::new();
        for (index, entry) in teachers.iter().enumerate() {
            // A teacher may keep the folder of its state to itself.
            let state = throwaway_folder()?;
            if let Some(sight) = self.look_of(index, entry, sample, state.path()).await? {
                found.push(Found {
                    name: entry.name.clone(),
                    sight,
                });
            }
        }
        Ok(found)
    }

    async fn look_of(
        &self,
        index: usize,
        entry: &TeacherEntry,
        sample: &[(Request, Option<Reply>)],
        state: &Path,
    ) -> Result<Option<Sight>, Error> {
        // It would load its model beside the copy that is there, and takes no picture of our own.
        if entry.kind.starts_a_program() {
            return Ok(None);
        }
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
            return Ok(Some(look(encoder.as_ref(), &asked, None).await?));
        }
        if common.image_field.is_none() {
            return Ok(None);
        }
        let shown = sample.iter().map(|(request, reply)| {
            // Of several teachers, the reply says only what all of them took together.
            let known = reply.as_ref().filter(|_| entry.name.is_none());
            (Several::part_of(request, index), known)
        });
        let Some((asked, known)) = shown.into_iter().find(|(asked, _)| asked.image.is_some())
        else {
            let why = "no row of the sample has one";
            return Ok(Some(Sight::Unknown(why.into())));
        };
        let teacher = entry.kind.open(&context)?;
        Ok(Some(look(teacher.as_ref(), &asked, known).await?))
    }
}
