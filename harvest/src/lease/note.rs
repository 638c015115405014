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
}

impl Note {
    pub(super) fn lifetime(&self) -> Duration {
        Duration::from_millis(self.lifetime_ms)
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
