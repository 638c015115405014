//! What a cache knows of its rows: those that are committed, and those that failed.

use schemas::ExampleId;

use crate::cache::Key;
use crate::spill::{NUM_PARTS, Spill};

/// Id, draw, and whether the row is committed.
pub(super) const BYTES: usize = 16 + 4 + 1;

/// Keys of rows, on disk where they are many.
#[derive(Debug, Default)]
pub struct Known {
    pub(super) keys: Spill<BYTES>,
    num_committed: u64,
}

impl Known {
    /// Adds a row that a shard has.
    ///
    /// # Errors
    /// [`schemas::Error::Io`] about the temporary folder.
    pub fn committed(&mut self, key: Key) -> Result<(), schemas::Error> {
        self.num_committed += 1;
        self.keys.push(pack(key, true))
    }

    /// Adds a row that failed and is not to be asked about.
    ///
    /// # Errors
    /// [`schemas::Error::Io`] about the temporary folder.
    pub fn failed(&mut self, key: Key) -> Result<(), schemas::Error> {
        self.keys.push(pack(key, false))
    }

    /// Committed rows.
    pub fn num_committed(&self) -> u64 {
        self.num_committed
    }

    /// Rows that are committed more than once: how many, and the first few.
    ///
    /// # Errors
    /// [`schemas::Error::Io`] about the temporary folder.
    pub fn repeated(&mut self) -> Result<(u64, Vec<Key>), schemas::Error> {
        const NUM_SHOWN: usize = 3;
        let (mut num, mut first) = (0, Vec::new());
        let mut keys = Vec::new();
        for part in 0..NUM_PARTS {
            self.keys.part(part, &mut keys)?;
            keys.retain(|key| key[20] == 1);
            keys.sort_unstable();
            for pair in keys.windows(2).filter(|pair| pair[0] == pair[1]) {
                num += 1;
                if first.len() < NUM_SHOWN {
                    first.push(unpack(&pair[0]).0);
                }
            }
        }
        Ok((num, first))
    }
}

/// Draws are big endian, so that packed keys sort as keys do.
fn pack((id, draw): Key, committed: bool) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..16].copy_from_slice(id.as_bytes());
    bytes[16..20].copy_from_slice(&draw.to_be_bytes());
    bytes[20] = u8::from(committed);
    bytes
}

pub(super) fn unpack(bytes: &[u8; BYTES]) -> (Key, bool) {
    let (id, rest) = bytes.split_first_chunk::<16>().expect("21 bytes");
    let (draw, rest) = rest.split_first_chunk::<4>().expect("5 bytes");
    let key = (ExampleId::from(*id), u32::from_be_bytes(*draw));
    (key, rest[0] == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_rows_are_counted_once_for_each_repeat() {
        let id = |byte| ExampleId::from([byte; 16]);
        let mut known = Known::default();
        for key in [(id(1), 0), (id(2), 0), (id(1), 1), (id(1), 0), (id(1), 0)] {
            known.committed(key).unwrap();
        }
        known.failed((id(2), 0)).unwrap();
        assert_eq!(known.num_committed(), 5);
        assert_eq!(known.repeated().unwrap(), (2, vec![(id(1), 0); 2]));
    }
}
