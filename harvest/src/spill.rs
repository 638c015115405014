//! Fixed-size records that go to a temporary file once they are many.
//!
//! Records are parted by the first byte of their key, which is a hash: sets that must meet are parted alike, and one
//! part of each is in memory at a time. Memory is one buffer, whatever the number of records, and four bytes for each
//! piece of two kilobytes that was written out. The buffer is one allocation and not one for each part, so that the
//! system gets it back: nothing that lives longer can stand between its pieces.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

/// Parts of a set.
pub(crate) const NUM_PARTS: usize = 256;

/// The share of the buffer that a part has; it is written out when it is full.
const PIECE_BYTES: usize = 2 << 10;

/// Records of `N` bytes whose first byte parts them.
#[derive(Debug)]
pub(crate) struct Spill<const N: usize> {
    parts: Vec<Part>,
    /// A piece for each part.
    buffer: Vec<u8>,
    file: Option<File>,
    num_pieces: u32,
}

#[derive(Clone, Debug, Default)]
struct Part {
    /// Bytes of its piece of the buffer that hold records.
    num_bytes: usize,
    /// Which pieces of the file are its own.
    written: Vec<u32>,
}

impl<const N: usize> Default for Spill<N> {
    fn default() -> Self {
        Self {
            parts: vec![Part::default(); NUM_PARTS],
            buffer: vec![0; NUM_PARTS * PIECE_BYTES],
            file: None,
            num_pieces: 0,
        }
    }
}

impl<const N: usize> Spill<N> {
    /// Bytes of a piece that is full.
    const FULL: usize = PIECE_BYTES / N * N;

    /// Adds a record.
    ///
    /// # Errors
    /// [`schemas::Error::Io`] about the temporary folder.
    pub(crate) fn push(&mut self, record: [u8; N]) -> Result<(), schemas::Error> {
        let index = usize::from(record[0]);
        if self.parts[index].num_bytes == Self::FULL {
            self.flush(index).map_err(temporary)?;
        }
        let part = &mut self.parts[index];
        let start = index * PIECE_BYTES + part.num_bytes;
        self.buffer[start..start + N].copy_from_slice(&record);
        part.num_bytes += N;
        Ok(())
    }

    /// Puts the records of one part into `records`, whatever it held, in the order in which they were added.
    ///
    /// # Errors
    /// [`schemas::Error::Io`] about the temporary folder.
    pub(crate) fn part(
        &mut self,
        index: usize,
        records: &mut Vec<[u8; N]>,
    ) -> Result<(), schemas::Error> {
        let part = &self.parts[index];
        let num_bytes = part.written.len() * Self::FULL + part.num_bytes;
        records.resize(num_bytes / N, [0; N]);
        let bytes = records.as_flattened_mut();
        let (written, rest) = bytes.split_at_mut(num_bytes - part.num_bytes);
        if let Some(file) = &mut self.file {
            for (piece, bytes) in part
                .written
                .iter()
                .zip(written.chunks_exact_mut(Self::FULL))
            {
                file.seek(SeekFrom::Start(Self::offset(*piece)))
                    .and_then(|_| file.read_exact(bytes))
                    .map_err(temporary)?;
            }
        }
        rest.copy_from_slice(&self.buffer[index * PIECE_BYTES..][..part.num_bytes]);
        Ok(())
    }

    fn flush(&mut self, index: usize) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        file.seek(SeekFrom::Start(Self::offset(self.num_pieces)))?;
        file.write_all(&self.buffer[index * PIECE_BYTES..][..Self::FULL])?;
        let part = &mut self.parts[index];
        part.written.push(self.num_pieces);
        part.num_bytes = 0;
        self.num_pieces += 1;
        Ok(())
    }

    fn offset(piece: u32) -> u64 {
        u64::from(piece) * Self::FULL as u64
    }
}

fn temporary(source: std::io::Error) -> schemas::Error {
    schemas::Error::io(&std::env::temp_dir(), "write a temporary file in", source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_comes_back_in_its_part_and_order() {
        let mut spill = Spill::<4>::default();
        let num = 3 * NUM_PARTS * PIECE_BYTES / 4;
        for index in 0..num as u32 {
            let [a, b, c, d] = index.to_le_bytes();
            spill.push([a, b, c, d]).unwrap();
        }
        assert!(spill.file.is_some(), "nothing was written out");
        let (mut total, mut records) = (0, Vec::new());
        for part in 0..NUM_PARTS {
            spill.part(part, &mut records).unwrap();
            assert!(records.iter().all(|record| usize::from(record[0]) == part));
            assert!(records.is_sorted_by_key(|record| u32::from_le_bytes(*record)));
            total += records.len();
        }
        assert_eq!(total, num);
    }
}
