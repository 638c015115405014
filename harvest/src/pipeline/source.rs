//! Reads the data set ahead and packs requests into batches.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::cache::Key;
use crate::error::Error;
use crate::plan::Plan;
use crate::survey::{Pending, Survey};
use crate::teacher::BatchLimits;

/// Requests that are sent together.
pub(crate) type Batch = Vec<Pending>;

pub(super) type Queue = mpsc::Receiver<Result<Batch, Error>>;

/// Reads on a thread of its own, `room` batches ahead; leaves out what is `settled`.
pub(super) fn start(
    runtime: &Handle,
    plan: Arc<Plan>,
    survey: Survey,
    settled: Vec<Key>,
    limits: BatchLimits,
    room: usize,
) -> Queue {
    let (sender, receiver) = mpsc::channel(room);
    runtime.spawn_blocking(move || {
        let mut packer = Packer::new(limits);
        let sent = plan.each_pending(&survey, &settled, |pending| match packer.add(pending) {
            None => true,
            Some(batch) => sender.blocking_send(Ok(batch)).is_ok(),
        });
        // Nobody listens any more where the run has ended already.
        let _ = match sent {
            Err(error) => sender.blocking_send(Err(error)),
            Ok(()) if packer.batch.is_empty() => Ok(()),
            Ok(()) => sender.blocking_send(Ok(packer.batch)),
        };
    });
    receiver
}

/// Fills batches up to their limits.
pub(crate) struct Packer {
    limits: BatchLimits,
    batch: Batch,
    num_bytes: usize,
}

impl Packer {
    pub(crate) fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            batch: Vec::new(),
            num_bytes: 0,
        }
    }

    /// Adds a request; returns the batch that it made full.
    pub(crate) fn add(&mut self, pending: Pending) -> Option<Batch> {
        let num_bytes = pending.request.longest_prompt();
        let is_over = !self.batch.is_empty() && self.num_bytes + num_bytes > self.limits.max_bytes;
        let mut full = is_over.then(|| self.take());
        self.num_bytes += num_bytes;
        self.batch.push(pending);
        if full.is_none() && self.batch.len() >= self.limits.max_requests {
            full = Some(self.take());
        }
        full
    }

    /// What does not make a full batch.
    pub(crate) fn take(&mut self) -> Batch {
        self.num_bytes = 0;
        std::mem::take(&mut self.batch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::ExampleId;

    use super::*;
    use crate::teacher::Request;

    proptest! {
        #[test]
        fn batches_keep_the_order_and_the_limits(
            lengths in proptest::collection::vec((0_usize..40, 0_usize..40), 0..60),
            max_requests in 1_usize..8,
            max_bytes in 1_usize..100,
        ) {
            let mut packer = Packer::new(BatchLimits { max_requests, max_bytes });
            let mut batches = Vec::new();
            for (position, (length, further)) in (0..).zip(&lengths) {
                let mut request = Request::text(ExampleId::from([0; 16]), 0, "x".repeat(*length));
                request.further.push(("y".repeat(*further), None));
                batches.extend(packer.add(Pending { position, request }));
            }
            batches.push(packer.take());
            for batch in &batches {
                let requests = || batch.iter().map(|pending| &pending.request);
                let bytes: usize = requests().map(|request| request.prompt.len()).sum();
                let further: usize = requests().map(|request| request.further[0].0.len()).sum();
                prop_assert!(batch.len() <= max_requests);
                prop_assert!(bytes.max(further) <= max_bytes || batch.len() == 1);
            }
            let positions: Vec<u64> = batches.iter().flatten().map(|pending| pending.position).collect();
            prop_assert_eq!(positions, (0..lengths.len() as u64).collect::<Vec<_>>());
        }
    }
}
