//! Draws that cost as often as they are many and tell nothing more.

use schemas::TeacherIdentity;

use crate::plan::Plan;
use crate::teacher::{Description, Offer, OfferKind};

/// Says once where several draws are asked of a teacher that gives the same reply each time.
pub(super) fn warn_of_equal_draws(plan: &Plan, teacher: &Description) {
    if plan.draws() > 1
        && let Some(why) = why_equal(&teacher.identity, &teacher.offers)
    {
        tracing::warn!(
            "`run.draws` is {}, and {why}: the draws are paid for one by one and say the same",
            plan.draws()
        );
    }
}

/// Why all replies to a request are the same, where they are.
fn why_equal(teacher: &TeacherIdentity, offers: &[Offer]) -> Option<String> {
    let TeacherIdentity {
        kind,
        model,
        settings,
    } = teacher;
    let is_scored = |offer: &Offer| {
        matches!(
            offer.kind,
            OfferKind::Feature | OfferKind::ClassLogits { .. }
        )
    };
    match kind.as_str() {
        // A picture is drawn anew, nobody knows what a program does, and the built-in teacher costs nothing.
        "images" | "command" | "sketch" => None,
        "several" => settings.as_object()?.iter().find_map(|(name, part)| {
            let part: TeacherIdentity = serde_json::from_value(part.clone()).ok()?;
            let start = format!("{name}_");
            let own = offers.iter().filter(|offer| offer.name.starts_with(&start));
            why_equal(&part, &own.cloned().collect::<Vec<_>>())
        }),
        _ if settings["temperature"] == 0.0 => Some(format!("`temperature` of `{model}` is 0")),
        _ if offers.iter().all(is_scored) => Some(format!("`{model}` draws nothing at random")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn why(kind: &str, settings: Value, offered: &[(&str, OfferKind)]) -> Option<String> {
        let teacher = TeacherIdentity {
            kind: kind.into(),
            model: "m".into(),
            settings,
        };
        let offers = offered
            .iter()
            .map(|(name, kind)| Offer::new(*name, *kind, ""));
        why_equal(&teacher, &offers.collect::<Vec<_>>())
    }

    #[test]
    fn vectors_and_a_temperature_of_zero_are_the_same_each_time() {
        let (feature, text) = (OfferKind::Feature, OfferKind::Text);
        assert!(why("embeddings", json!({}), &[("feature", feature)]).is_some());
        assert!(why("images", json!({}), &[("feature", feature)]).is_none());
        for (temperature, is_equal) in [
            (json!(0.0), true),
            (json!(0.7), false),
            (json!(null), false),
        ] {
            let settings = json!({"temperature": temperature});
            let found = why("chat", settings.clone(), &[("text", text)]);
            assert_eq!(found.is_some(), is_equal, "{temperature}");
            let chat = json!({"kind": "chat", "model": "c", "settings": settings});
            let images = json!({"kind": "images", "model": "i", "settings": {}});
            let offers = [("a_text", text), ("b_feature", feature)];
            let found = why("several", json!({"a": chat, "b": images}), &offers);
            assert_eq!(found.is_some(), is_equal, "{temperature}");
        }
    }
}
