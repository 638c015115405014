//! A random choice of rows that depends on the seed and on which rows there are, and on nothing else.

use std::collections::BinaryHeap;

use schemas::Sha256Digest;

use crate::cache::Key;

/// Chooses up to `num` of `keys`, which must differ from one another: those whose SHA-256 with the seed is least. The
/// order of the keys and how they lie in shards change nothing. Memory is that of the chosen ones.
pub fn choose(keys: impl IntoIterator<Item = Key>, num: usize, seed: u64) -> Vec<Key> {
    let mut least: BinaryHeap<(Sha256Digest, Key)> = BinaryHeap::new();
    for key in keys {
        let digest = Sha256Digest::of(format!("{seed} {} {}", key.0, key.1).as_bytes());
        if least.len() < num {
            least.push((digest, key));
        } else if least.peek().is_some_and(|(largest, _)| digest < *largest) {
            least.pop();
            least.push((digest, key));
        }
    }
    least
        .into_sorted_vec()
        .into_iter()
        .map(|(_, key)| key)
        .collect()
}
