//! An object that is read at offsets, in few and large requests.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use object_store::ObjectStoreExt as _;
use object_store::path::Path as ObjectPath;
use schemas::ReadAt;

use super::remote::{Remote, io_error};

/// What is fetched at least. A request takes some 50 ms, in which a data centre's network carries several times this.
const BLOCK_BYTES: u64 = 1 << 20;

/// Blocks that are fetched at once where the block before them was read too.
const NUM_AHEAD: u64 = 8;

/// Blocks that are kept: a row group, whose columns are read side by side, is of about this size.
const NUM_KEPT: usize = 64;

/// An object of a remote store. It does not change: its name carries the digest of its content.
pub(super) struct Object {
    remote: Remote,
    path: ObjectPath,
    num_bytes: u64,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    /// By number: bytes from `number * BLOCK_BYTES` on, and when they were last used.
    kept: BTreeMap<u64, (Vec<u8>, u64)>,
    clock: u64,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({})", self.path)
    }
}

impl Object {
    pub(super) fn new(remote: Remote, path: ObjectPath, num_bytes: u64) -> Self {
        Self {
            remote,
            path,
            num_bytes,
            blocks: Mutex::default(),
        }
    }

    /// The blocks to fetch where `number` is needed: more where reading goes on from the block before.
    fn wanted(&self, blocks: &Blocks, number: u64) -> Range<u64> {
        let goes_on = number > 0 && blocks.kept.contains_key(&(number - 1));
        let most = if goes_on { NUM_AHEAD } else { 1 };
        let end = self.num_bytes.div_ceil(BLOCK_BYTES).min(number + most);
        let known = blocks.kept.range(number..end).next();
        number..known.map_or(end, |(known, _)| *known)
    }

    /// Fetches blocks and keeps them.
    fn fetch(&self, blocks: &mut Blocks, numbers: Range<u64>) -> io::Result<()> {
        let path = self.path.clone();
        let start = numbers.start * BLOCK_BYTES;
        let range = start..self.num_bytes.min(numbers.end * BLOCK_BYTES);
        let num_bytes = range.end - range.start;
        let fetched = self
            .remote
            .wait(|objects| async move { objects.get_range(&path, range).await });
        let bytes = fetched.map_err(|error| io_error(&error))?;
        if bytes.len() as u64 != num_bytes {
            let problem = format!("{} bytes came instead of {num_bytes}", bytes.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        blocks.keep(numbers.start, &bytes);
        Ok(())
    }
}

impl Blocks {
    /// The bytes from `offset` on that lie in one block.
    fn get(&mut self, offset: u64) -> Option<&[u8]> {
        self.clock += 1;
        let (bytes, used) = self.kept.get_mut(&(offset / BLOCK_BYTES))?;
        *used = self.clock;
        bytes.get((offset % BLOCK_BYTES) as usize..)
    }

    fn keep(&mut self, first: u64, bytes: &[u8]) {
        for (number, block) in (first..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
            self.kept.insert(number, (block.to_vec(), self.clock));
        }
        while self.kept.len() > NUM_KEPT {
            let oldest = self.kept.iter().min_by_key(|(_, (_, used))| *used);
            let oldest = *oldest.expect("more than none are kept").0;
            self.kept.remove(&oldest);
        }
    }
}

impl ReadAt for Object {
    fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if offset >= self.num_bytes || buffer.is_empty() {
            return Ok(0);
        }
        // Held while fetching, so that two threads do not ask for the same block.
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.get(offset).is_none() {
            let wanted = self.wanted(&blocks, offset / BLOCK_BYTES);
            self.fetch(&mut blocks, wanted)?;
        }
        let rest = blocks
            .get(offset)
            .expect("it was fetched and is the newest");
        let num_read = rest.len().min(buffer.len());
        buffer[..num_read].copy_from_slice(&rest[..num_read]);
        Ok(num_read)
    }
}
