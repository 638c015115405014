//! A set of numbers below a bound, one bit each.

/// The set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
    num_set: u64,
}

impl Bits {
    /// The empty set of numbers below `len`.
    pub(crate) fn new(len: u64) -> Self {
        Self {
            words: vec![
                0;
                usize::try_from(len.div_ceil(64)).expect("rows fit into memory as bits")
            ],
            num_set: 0,
        }
    }

    pub(crate) fn get(&self, index: u64) -> bool {
        let word = self.words.get((index / 64) as usize).copied().unwrap_or(0);
        word >> (index % 64) & 1 == 1
    }

    pub(crate) fn set(&mut self, index: u64) {
        self.num_set += u64::from(!self.get(index));
        self.words[(index / 64) as usize] |= 1 << (index % 64);
    }

    pub(crate) fn clear(&mut self, index: u64) {
        self.num_set -= u64::from(self.get(index));
        self.words[(index / 64) as usize] &= !(1 << (index % 64));
    }

    /// Numbers in the set.
    pub(crate) fn num_set(&self) -> u64 {
        self.num_set
    }

    /// The numbers in the set, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut word = *word;
            std::iter::from_fn(move || {
                let low = word.trailing_zeros();
                (word != 0).then(|| {
                    word &= word - 1;
                    at as u64 * 64 + u64::from(low)
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_set_cleared_and_listed() {
        let mut bits = Bits::new(130);
        for index in [0, 63, 64, 129, 129] {
            bits.set(index);
        }
        bits.clear(63);
        bits.clear(63);
        assert_eq!(bits.num_set(), 3);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 64, 129]);
        assert!(bits.get(64) && !bits.get(63) && !bits.get(10_000));
    }
}
