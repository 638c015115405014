//! `harvest status`: what a cache holds.

use schemas::shard::list_shards;
use schemas::{CacheState, Manifest};

use super::{Target, describe_signal, warn_of_skipped};
use crate::audit::num_journalled;
use crate::cache::keys_of;
use crate::cli::{TargetArgs, print};
use crate::error::{Error, Status};
use crate::progress::human_bytes;

/// Prints rows, shards and state, without reading a signal.
///
/// # Errors
/// [`Error`].
pub fn run(args: &TargetArgs) -> Result<Status, Error> {
    let Target { folder, plan } = Target::find(args)?;
    let manifest = Manifest::open(&folder)?;
    let shards = list_shards(&folder)?;
    let keys = keys_of(&shards)?;
    let sizes = shards.iter().map(|path| {
        std::fs::metadata(path).map_err(|source| schemas::Error::io(path, "read", source))
    });
    let num_bytes = sizes
        .collect::<Result<Vec<_>, _>>()?
        .iter()
        .map(std::fs::Metadata::len)
        .sum::<u64>();
    let (state, digest) = match manifest.state() {
        CacheState::Open => ("open", None),
        CacheState::Frozen { digest, .. } => ("frozen", Some(digest)),
    };
    let mut lines = vec![
        ("cache", folder.display().to_string()),
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
        ("rows", keys.len().to_string()),
        ("journalled", num_journalled(&folder, &keys)?.to_string()),
        ("shards", shards.len().to_string()),
        ("bytes", format!("{num_bytes} ({})", human_bytes(num_bytes))),
        ("state", state.to_owned()),
    ]);
    lines.extend(digest.map(|digest| ("digest", digest.to_string())));
    if let Some(plan) = plan {
        let survey = plan.survey(&keys)?;
        warn_of_skipped(&survey);
        lines.push(("missing", survey.num_missing.to_string()));
        lines.push(("extra", survey.num_extra.to_string()));
    }
    print(&lines)?;
    Ok(Status::Done)
}
