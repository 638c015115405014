//! Space that is given up when the disk is full, so that replies which are on their way can still be journalled.
//!
//! They are paid for. A run that meets a full disk sends nothing more, but what is in flight then has to go somewhere.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use schemas::Error;

use crate::teacher::{Description, OfferKind};

/// Name of the file in the work folder.
pub(crate) const FILE: &str = ".reserve";

/// Bytes in a journal that a vector of a common width takes, and a text.
const PER_SIGNAL: usize = 16 << 10;
/// Bytes in a journal that an entry of a position takes.
const PER_ENTRY: usize = 64;
/// Positions of a long reply.
const NUM_POSITIONS: usize = 512;
/// Bytes in a journal that a picture takes.
const PER_IMAGE: usize = 2 << 20;
const MAX_BYTES: usize = 256 << 20;

/// Waits for space that a shard which is being written gives back when it, too, meets the end of the disk.
const NUM_WAITS: u32 = 100;
const WAIT: Duration = Duration::from_millis(20);

/// A file that takes up space until it is given up or dropped.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    is_given_up: AtomicBool,
}

impl Reserve {
    /// Bytes for the replies of so many rows, on the large side of what is common.
    pub(crate) fn bytes_for(teacher: &Description, num_rows: usize) -> usize {
        let of_signals = teacher.offers.iter().map(|offer| match offer.kind {
            OfferKind::Feature | OfferKind::ClassLogits { .. } | OfferKind::Text => PER_SIGNAL,
            OfferKind::TokenTopK { k } => k as usize * PER_ENTRY * NUM_POSITIONS,
            OfferKind::Image => PER_IMAGE,
        });
        of_signals
            .sum::<usize>()
            .saturating_mul(num_rows)
            .min(MAX_BYTES)
    }

    /// Takes `num_bytes` in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`], also where there are not as many.
    pub(crate) fn take(folder: &Path, num_bytes: usize) -> Result<Self, Error> {
        let reserve = Self {
            path: folder.join(FILE),
            is_given_up: AtomicBool::new(false),
        };
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&reserve.path)?;
            // Noise, since some file systems compress.
            let mut noise = ChaCha8Rng::seed_from_u64(0);
            let mut block = vec![0; 64 << 10];
            for start in (0..num_bytes).step_by(block.len()) {
                noise.fill_bytes(&mut block);
                file.write_all(&block[..block.len().min(num_bytes - start)])?;
            }
            Ok(())
        };
        write().map_err(|source| Error::io(&reserve.path, "set space aside in", source))?;
        Ok(reserve)
    }

    /// Whether the disk was full.
    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Writes with `write`; where the disk is full, gives the space up and writes again.
    ///
    /// # Errors
    /// That of `write`.
    pub(crate) fn write<T>(&self, write: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
        let mut outcome = write();
        for _ in 0..NUM_WAITS {
            match &outcome {
                Err(error) if is_full(error) => {}
                _ => break,
            }
            if self.is_given_up.swap(true, Ordering::AcqRel) {
                std::thread::sleep(WAIT);
            } else {
                tracing::warn!(
                    "`{}`: the disk is full; what is in flight is kept and nothing more is sent",
                    self.path.display()
                );
                self.remove();
            }
            outcome = write();
        }
        outcome
    }

    fn remove(&self) {
        // It is missing where it was removed before.
        let _ = std::fs::remove_file(&self.path);
    }

    /// The error that ends a run whose reserve is given up.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_given_up() {
            let source = ErrorKind::StorageFull.into();
            return Err(Error::io(&self.path, "write beside", source));
        }
        Ok(())
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.remove();
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_full_disk_costs_the_reserve_and_no_write() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::take(folder.path(), 100_000).unwrap();
        let file = folder.path().join(FILE);
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 100_000);
        reserve.write(|| Ok(())).unwrap();
        reserve.check().unwrap();
        let tries = Cell::new(0);
        let write = || {
            tries.set(tries.get() + 1);
            if file.exists() || tries.get() < 4 {
                return Err(ErrorKind::StorageFull.into());
            }
            Ok(())
        };
        reserve.write(write).unwrap();
        assert_eq!(tries.get(), 4);
        assert!(reserve.is_given_up() && reserve.check().is_err());
        let other = reserve.write(|| Err::<(), _>(ErrorKind::PermissionDenied.into()));
        assert_eq!(other.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn it_goes_with_the_run() {
        let folder = tempfile::tempdir().unwrap();
        drop(Reserve::take(folder.path(), 10).unwrap());
        assert!(!folder.path().join(FILE).exists());
    }
}
