//! Files in memory without a copy of them.

use std::fs::File;

use memmap2::Mmap;

/// Maps a file. Its pages come from the disk when they are read, and the system may take them back.
#[expect(
    unsafe_code,
    reason = "a mapped file that another process cuts short ends this one with a signal; weights are written once, \
              renamed into place and not written again, and a copy of an 8B checkpoint would take 16 GB"
)]
pub(crate) fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read, as bytes without invariants.
    unsafe { Mmap::map(file) }
}
