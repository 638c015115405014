//! Rows compared by what the teacher said.

use std::collections::{BTreeMap, HashMap};

use schemas::SignalValue;
use sha2::{Digest as _, Sha256};

use crate::cache::Key;
use crate::error::Error;
use crate::store::Store;

/// The digest of the signals of each row; how a reply came to be is not part of it.
pub(super) type Digests = HashMap<Key, [u8; 16]>;

/// Reads a whole shard, checked against its digest.
pub(super) fn digests_of(store: &Store, name: &str) -> Result<Digests, Error> {
    let reader = store.open_shard_verified(name)?;
    let mut digests = Digests::with_capacity(reader.num_rows() as usize);
    for record in reader.records()? {
        let record = record?;
        digests.insert((record.id, record.draw), digest(&record.signals));
    }
    Ok(digests)
}

fn digest(signals: &BTreeMap<String, SignalValue>) -> [u8; 16] {
    let mut bytes = Vec::new();
    for value in signals.values() {
        let start = bytes.len();
        bytes.extend([0; 8]);
        match value {
            SignalValue::Vector(values) => {
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            SignalValue::TokenTopK(tokens) => bytes.extend(tokens.to_bytes()),
            SignalValue::Text(text) => bytes.extend(text.as_bytes()),
            SignalValue::Image(image) => bytes.extend(image),
        }
        // The length before each value, so that no two rows run together to the same bytes.
        let length = (bytes.len() - start - 8) as u64;
        bytes[start..start + 8].copy_from_slice(&length.to_le_bytes());
    }
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    *digest
        .first_chunk()
        .expect("a SHA-256 has more than 16 bytes")
}
