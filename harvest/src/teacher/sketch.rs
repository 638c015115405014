//! The built-in teacher: draws the scene that a text describes. Needs neither network nor weights.

use std::collections::BTreeMap;

use std::sync::Arc;

use futures::future::{self, BoxFuture};
use schemas::{Provenance, SignalValue, TeacherIdentity};
use serde::Deserialize;

use super::{
    Answers, BatchLimits, Description, ErrorClass, Offer, OfferKind, OpenContext, Paid, Reply,
    Request, Teacher, TeacherError, TeacherKind, Usage,
};
use crate::config::{ConfigError, Section};
use crate::sketch;

/// `[teacher]` with `kind = "sketch"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SketchConfig {
    /// Whether the picture is kept as PNG besides the feature.
    #[serde(default)]
    pub(super) image: bool,
}

pub(super) fn read(section: Section<'_>) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    Ok(Arc::new(section.rest::<SketchConfig>()?))
}

impl TeacherKind for SketchConfig {
    fn open(&self, _context: &OpenContext<'_>) -> Result<Arc<dyn Teacher>, TeacherError> {
        Ok(Arc::new(Sketch::new(self)))
    }
}

/// Draws scenes with [`crate::sketch`].
#[derive(Debug)]
pub(super) struct Sketch {
    description: Description,
    keeps_image: bool,
}

impl Sketch {
    /// The teacher as configured.
    pub(super) fn new(config: &SketchConfig) -> Self {
        let mut offers = vec![Offer {
            name: "feature".into(),
            kind: OfferKind::Feature,
            meaning: "the picture's 32 by 32 greys in [0, 1], row by row from the top left".into(),
        }];
        if config.image {
            offers.push(Offer {
                name: "image".into(),
                kind: OfferKind::Image,
                meaning: "the picture as PNG, 8-bit grey".into(),
            });
        }
        let identity = TeacherIdentity {
            kind: "sketch".into(),
            model: "sketch-1".into(),
            settings: serde_json::json!({"image": config.image}),
        };
        // Drawing is work for a processor: more drawings at once than processors gain nothing.
        let max_in_flight = std::thread::available_parallelism()
            .ok()
            .map(std::num::NonZero::get);
        Self {
            description: Description {
                identity,
                offers,
                batch: BatchLimits::SINGLE,
                max_in_flight,
            },
            keeps_image: config.image,
        }
    }

    fn draw(&self, prompt: &str) -> Result<Reply, TeacherError> {
        let picture = sketch::draw(prompt).map_err(|error| {
            let refusal = TeacherError::new(ErrorClass::Deterministic, error.to_string());
            error.hint().into_iter().fold(refusal, TeacherError::advise)
        })?;
        let mut signals =
            BTreeMap::from([("feature".to_owned(), SignalValue::Vector(picture.feature()))]);
        if self.keeps_image {
            signals.insert("image".to_owned(), SignalValue::Image(picture.png()));
        }
        Ok(Reply {
            signals,
            provenance: Provenance::default(),
        })
    }
}

impl Teacher for Sketch {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn most(&self, _requests: &[Request]) -> Usage {
        Usage::default()
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        _paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        let replies: Vec<_> = requests
            .iter()
            .map(|request| self.draw(&request.prompt))
            .collect();
        Box::pin(future::ready(Ok(replies.into())))
    }
}
