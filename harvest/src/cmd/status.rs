//! `harvest status`: what a cache holds.

use schemas::CacheState;

use super::{Target, describe_signal, warn_of_skipped};
use crate::audit::Unsettled;
use crate::cache::each_key;
use crate::cli::{TargetArgs, print};
use crate::error::{Error, Status};
use crate::progress::human_bytes;
use crate::survey::Known;

/// Prints rows, shards and state, without reading a signal.
///
/// # Errors
/// [`Error`].
pub fn run(args: &TargetArgs) -> Result<Status, Error> {
    let Target { place, plan, .. } = Target::find(args)?;
    let manifest = place.store.manifest()?;
    let mut known = Known::default();
    let mut unsettled = Unsettled::read(&place)?;
    each_key(&place, |key| {
        unsettled.committed(&key);
        known.committed(key)
    })?;
    for key in &unsettled.failed {
        known.failed(*key)?;
    }
    let names = place.store.shards()?;
    let entries = place.store.list()?;
    let shards = entries.iter().filter(|entry| names.contains(&entry.name));
    let num_bytes = shards.map(|entry| entry.num_bytes).sum::<u64>();
    let (state, digest) = match manifest.state() {
        CacheState::Open => ("open", None),
        CacheState::Frozen { digest, .. } => ("frozen", Some(digest)),
    };
    let mut lines = vec![
        ("cache", place.store.location()),
        (
            "teacher",
            format!("{} {}", manifest.teacher.kind, manifest.teacher.model),
        ),
    ];
    lines.extend(
        manifest
            .signals
            .iter()
            .map(|signal| ("signal", describe_signal(signal))),
    );
    lines.extend([
        ("rows", known.num_committed().to_string()),
        ("failed", unsettled.failed.len().to_string()),
        ("journalled", unsettled.journalled.len().to_string()),
        ("shards", names.len().to_string()),
        ("bytes", format!("{num_bytes} ({})", human_bytes(num_bytes))),
        ("state", state.to_owned()),
    ]);
    lines.extend(digest.map(|digest| ("digest", digest.to_string())));
    if let Some(plan) = plan {
        let survey = plan.survey(&mut known)?;
        warn_of_skipped(&survey);
        lines.push(("missing", survey.num_missing.to_string()));
        lines.push(("extra", survey.num_extra.to_string()));
    }
    print(&lines)?;
    Ok(Status::Done)
}
