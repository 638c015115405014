//! Parts of a reply that were paid for before the whole is there.

use std::collections::BTreeMap;

use schemas::Provenance;

use super::{Reply, Request, TeacherError};

/// Keeps the parts of replies that need several requests, so that none is paid for again when a later one fails or
/// the process dies in between.
pub trait Paid: Send + Sync {
    /// The part of this name, kept for the request's example and draw, by this run or an earlier one. One without any
    /// signal is none.
    fn find(&self, part: &str, request: &Request) -> Option<Reply>;

    /// Keeps a part; on return the operating system has it.
    ///
    /// # Errors
    /// A [`TeacherError`] of class `interrupted` where it cannot be written.
    fn keep(&self, part: &str, request: &Request, reply: &Reply) -> Result<(), TeacherError>;

    /// Forgets a part that is of no use, so that it is asked for anew.
    ///
    /// # Errors
    /// As [`keep`](Self::keep): that it is gone outlives the process.
    fn forget(&self, part: &str, request: &Request) -> Result<(), TeacherError> {
        let nothing = Reply {
            signals: BTreeMap::new(),
            provenance: Provenance::default(),
        };
        self.keep(part, request, &nothing)
    }
}

/// Keeps nothing: for requests whose replies are thrown away.
#[derive(Clone, Copy, Debug)]
pub struct NotKept;

impl Paid for NotKept {
    fn find(&self, _part: &str, _request: &Request) -> Option<Reply> {
        None
    }

    fn keep(&self, _part: &str, _request: &Request, _reply: &Reply) -> Result<(), TeacherError> {
        Ok(())
    }
}
