//! Parts of a reply that were paid for before the whole is there.

use super::{Reply, Request, TeacherError};

/// Keeps the parts of replies that need several requests, so that none is paid for again when a later one fails or
/// the process dies in between.
pub trait Paid: Send + Sync {
    /// The part of this name, kept for the request's example and draw, by this run or an earlier one.
    fn find(&self, part: &str, request: &Request) -> Option<Reply>;

    /// Keeps a part; on return the operating system has it.
    ///
    /// # Errors
    /// A [`TeacherError`] of class `interrupted` where it cannot be written.
    fn keep(&self, part: &str, request: &Request, reply: &Reply) -> Result<(), TeacherError>;
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
