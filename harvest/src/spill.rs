//! Fixed-size records that go to temporary files once they are many.
//!
//! Records are parted by the first byte of their key, which is a hash: sets that must meet are parted alike, and one
//! part of each is in memory at a time. Memory is bounded by [`NUM_PARTS`] buffers, whatever the number of records.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

/// Parts of a set.
pub(crate) const NUM_PARTS: usize = 256;

/// A part is written out when its buffer has this many bytes.
const BUFFER_BYTES: usize = 2 << 10;

/// Records of `N` bytes whose first byte parts them.
#[derive(Debug)]
pub(crate) struct Spill<const N: usize> {
    parts: Vec<Part>,
    file: Option<File>,
    num_bytes: u64,
}

#[derive(Debug, Default)]
struct Part {
    buffer: Vec<u8>,
    /// Where in the file earlier buffers stand.
    written: Vec<(u64, usize)>,
}

impl<const N: usize> Default for Spill<N> {
    fn default() -> Self {
        Self {
            parts: (0..NUM_PARTS).map(|_| Part::default()).collect(),
            file: None,
            num_bytes: 0,
        }
    }
}

impl<const N: usize> Spill<N> {
    /// Adds a record.
    ///
    /// # Errors
    /// [`schemas::Error::Io`] about the temporary folder.
    pub(crate) fn push(&mut self, record: [u8; N]) -> Result<(), schemas::Error> {
        let part = usize::from(record[0]);
        if self.parts[part].buffer.len() + N > BUFFER_BYTES {
            self.flush(part).map_err(temporary)?;
        }
        self.parts[part].buffer.extend_from_slice(&record);
        Ok(())
    }

    /// The records of one part, in the order in which they were added.
    ///
    /// # Errors
    /// [`schemas::Error::Io`] about the temporary folder.
    pub(crate) fn part(&mut self, index: usize) -> Result<Vec<[u8; N]>, schemas::Error> {
        let bytes = self.read(index).map_err(temporary)?;
        let (records, rest) = bytes.as_chunks::<N>();
        assert!(rest.is_empty(), "records are written whole");
        Ok(records.to_vec())
    }

    fn flush(&mut self, index: usize) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        let part = &mut self.parts[index];
        file.seek(SeekFrom::Start(self.num_bytes))?;
        file.write_all(&part.buffer)?;
        part.written.push((self.num_bytes, part.buffer.len()));
        self.num_bytes += part.buffer.len() as u64;
        part.buffer.clear();
        Ok(())
    }

    fn read(&mut self, index: usize) -> std::io::Result<Vec<u8>> {
        let part = &self.parts[index];
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            for (offset, num_bytes) in &part.written {
                let start = bytes.len();
                bytes.resize(start + num_bytes, 0);
                file.seek(SeekFrom::Start(*offset))?;
                file.read_exact(&mut bytes[start..])?;
            }
        }
        bytes.extend_from_slice(&part.buffer);
        Ok(bytes)
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
        let num = 3 * NUM_PARTS * BUFFER_BYTES / 4;
        for index in 0..num as u32 {
            let [a, b, c, d] = index.to_le_bytes();
            spill.push([a, b, c, d]).unwrap();
        }
        assert!(spill.file.is_some(), "nothing was written out");
        let mut total = 0;
        for part in 0..NUM_PARTS {
            let records = spill.part(part).unwrap();
            assert!(records.iter().all(|record| usize::from(record[0]) == part));
            assert!(records.is_sorted_by_key(|record| u32::from_le_bytes(*record)));
            total += records.len();
        }
        assert_eq!(total, num);
    }
}
