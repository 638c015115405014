//! Lines of a command.

use super::protocol::{Answer, check_hello};
use crate::teacher::fuzz::{check_error, check_reply, requests};
use crate::teacher::{BatchLimits, Description, Offer, OfferKind};

/// A first line, or an answer.
pub(crate) fn line(data: &[u8]) {
    if let Err(error) = check_hello(data) {
        check_error(&error);
    }
    let offers = [
        ("feature", OfferKind::Feature),
        ("logits", OfferKind::ClassLogits { width: 2 }),
        ("text", OfferKind::Text),
        ("image", OfferKind::Image),
        ("tokens", OfferKind::TokenTopK { k: 2 }),
    ]
    .map(|(name, kind)| Offer::new(name, kind, "what it is"));
    let request = requests(1).remove(0);
    // An answer that has one signal is one to a configuration of one.
    for offers in std::iter::once(&offers[..]).chain(offers.chunks(1)) {
        let answer = Answer::parse(data, &request).and_then(|answer| answer.reply(offers));
        match answer {
            Err(error) => check_error(&error),
            Ok(reply) => {
                let description = Description {
                    identity: schemas::TeacherIdentity {
                        kind: "command".into(),
                        model: "m".into(),
                        settings: serde_json::Value::Null,
                    },
                    offers: offers.to_vec(),
                    batch: BatchLimits::SINGLE,
                    max_in_flight: None,
                };
                check_reply(&description, &request, &reply);
            }
        }
    }
}
