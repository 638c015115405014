//! The built-in teacher: draws the scene that a text describes. Needs neither network nor weights.

use std::collections::BTreeMap;

use futures::future::{self, BoxFuture};
use schemas::{Provenance, SignalValue, TeacherIdentity};

use super::{Description, ErrorClass, Offer, OfferKind, Reply, Request, Teacher, TeacherError};
use crate::config::SketchConfig;
use crate::sketch;

/// Draws scenes with [`crate::sketch`].
#[derive(Debug)]
pub struct Sketch {
    description: Description,
    keeps_image: bool,
}

impl Sketch {
    /// The teacher as configured.
    pub fn new(config: &SketchConfig) -> Self {
        let mut offers = vec![Offer {
            name: "feature",
            kind: OfferKind::Feature,
            meaning: "the picture's 32 by 32 greys in [0, 1], row by row from the top left".into(),
        }];
        if config.image {
            offers.push(Offer {
                name: "image",
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

    fn query<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Reply, TeacherError>> {
        Box::pin(future::ready(self.draw(&request.prompt)))
    }
}
