//! What a lease says.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The content of a lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) holder: Holder,
    pub(super) lifetime_ms: u64,
    pub(super) num_renewals: u64,
    /// Whether the holder gave it back.
    pub(super) released: bool,
    /// The shard that the holder writes, or wrote last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) writing: Option<String>,
    /// Shards that silent holders before this one wrote, from when it takes the lease over until they are barred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) barred: Vec<String>,
}

impl Note {
    pub(super) fn lifetime(&self) -> Duration {
        Duration::from_millis(self.lifetime_ms)
    }

    /// The shards that are to be barred once the lease is taken over.
    pub(super) fn to_bar(&self) -> Vec<String> {
        let writing = self.writing.iter().filter(|_| !self.released);
        self.barred.iter().chain(writing).cloned().collect()
    }
}

/// Who holds a lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Holder {
    host: String,
    process: u32,
    /// Drawn at random for each lease: a process number comes again, and machines share names.
    id: String,
}

impl Holder {
    /// This process, under a new id.
    pub(super) fn this() -> Self {
        Self {
            host: host(),
            process: std::process::id(),
            id: format!("{:032x}", rand::random::<u128>()),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of host {}", self.process, self.host)
    }
}

fn host() -> String {
    let read = |path| std::fs::read_to_string(path).ok();
    let name = read("/proc/sys/kernel/hostname").or_else(|| std::env::var("HOSTNAME").ok());
    match name.as_deref().map(str::trim) {
        None | Some("") => "unknown".to_owned(),
        Some(name) => name.to_owned(),
    }
}
