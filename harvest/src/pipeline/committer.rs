//! The thread that writes shards.
//!
//! It is one and the same for all shards of a run: allocators keep for each thread what it needed once, and a shard
//! needs megabytes. What two threads of a pool have by turns is held twice.

use std::sync::Arc;

use schemas::Manifest;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::open_shard::{Committed, OpenShard};
use crate::error::Error;
use crate::parts::Parts;
use crate::place::Place;

/// Commits shards one after the other, in the order in which they come.
#[derive(Debug)]
pub(super) struct Committer {
    shards: mpsc::UnboundedSender<OpenShard>,
    committed: mpsc::UnboundedReceiver<Result<Committed, Error>>,
    /// Until it is known to have ended.
    thread: Option<JoinHandle<()>>,
    num_waiting: usize,
}

impl Committer {
    /// Starts the thread, which ends when this value is dropped and what waits is done.
    pub(super) fn start(
        runtime: &Handle,
        place: Place,
        manifest: Arc<Manifest>,
        parts: Arc<Parts>,
    ) -> Self {
        let (shards, mut waiting) = mpsc::unbounded_channel::<OpenShard>();
        let (done, committed) = mpsc::unbounded_channel();
        let thread = runtime.spawn_blocking(move || {
            while let Some(shard) = waiting.blocking_recv() {
                // Nobody listens any more where the run has ended already.
                let _ = done.send(shard.commit(&place, &manifest, &parts));
            }
        });
        Self {
            shards,
            committed,
            thread: Some(thread),
            num_waiting: 0,
        }
    }

    /// Hands a shard over.
    pub(super) fn commit(&mut self, shard: OpenShard) {
        // A thread that is gone is what `next` tells, or has told.
        if self.shards.send(shard).is_ok() || self.thread.is_some() {
            self.num_waiting += 1;
        }
    }

    /// Shards that were handed over and not yet come back from [`next`](Self::next).
    pub(super) fn num_waiting(&self) -> usize {
        self.num_waiting
    }

    /// What became of the next shard; `None` where none waits. Nothing is lost where the future is dropped.
    pub(super) async fn next(&mut self) -> Option<Result<Committed, Error>> {
        if self.num_waiting == 0 {
            return None;
        }
        if let Some(committed) = self.committed.recv().await {
            self.num_waiting -= 1;
            return Some(committed);
        }
        let ended = self.thread.as_mut()?.await;
        self.thread = None;
        self.num_waiting = 0;
        Some(Err(ended.err()?.into()))
    }
}
