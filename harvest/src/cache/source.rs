//! Whether two manifests are of one source.

use schemas::Manifest;

use crate::error::Error;

/// Checks that what stands at `location` came from the source that `configured` describes.
///
/// # Errors
/// [`Error::DifferentSource`], which names the first key that differs.
pub fn check_same_source(
    location: &str,
    cached: &Manifest,
    configured: &Manifest,
) -> Result<(), Error> {
    if cached.same_source(configured) {
        return Ok(());
    }
    let sides = [cached, configured].map(|manifest| {
        serde_json::json!({
            "teacher": manifest.teacher, "dataset": manifest.dataset, "draws": manifest.draws, "signals": manifest.signals,
        })
    });
    let (key, cached, configured) =
        difference(String::new(), &sides[0], &sides[1]).unwrap_or_default();
    Err(Error::DifferentSource {
        location: location.to_owned(),
        key,
        cached,
        configured,
    })
}

/// The first place where two JSON values differ, and what stands there.
fn difference(
    key: String,
    one: &serde_json::Value,
    two: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value;
    if one == two {
        return None;
    }
    let join = |part: &str| {
        if key.is_empty() {
            part.to_owned()
        } else {
            format!("{key}.{part}")
        }
    };
    match (one, two) {
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            let null = Value::Null;
            names.into_iter().find_map(|name| {
                difference(
                    join(name),
                    a.get(name).unwrap_or(&null),
                    b.get(name).unwrap_or(&null),
                )
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => (0..a.len())
            .find_map(|index| difference(join(&index.to_string()), &a[index], &b[index])),
        _ => Some((key, one.to_string(), two.to_string())),
    }
}
