//! A share of the requests for one worker of an array job.

use std::fmt;
use std::str::FromStr;

/// Slice `i` of `n`: slices of one `n` are disjoint, and together they are everything. Which slice a request belongs
/// to depends on its digest alone, so it stays there when the data set grows or is reordered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Slice {
    /// From 1.
    index: u32,
    total: u32,
}

impl Slice {
    /// Slice `index` (from 1) of `total`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn new(index: u32, total: u32) -> Result<Self, String> {
        match (index, total) {
            (_, 0) => Err(format!("{index}/{total}: there must be at least one slice")),
            (0, _) => Err(format!(
                "{index}/{total}: slices are counted from 1; add 1 to an index that starts at 0, such as JOB_COMPLETION_INDEX"
            )),
            _ if index > total => Err(format!(
                "{index}/{total}: the last slice is {total}/{total}"
            )),
            _ => Ok(Self { index, total }),
        }
    }

    /// The slice's number, from 1.
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many slices there are.
    pub fn total(self) -> u32 {
        self.total
    }

    /// Whether the request with this digest is in the slice. Digests are spread evenly, so slices are of like size.
    pub fn holds(self, digest: &[u8; 16]) -> bool {
        let (head, _) = digest.split_first_chunk().expect("16 bytes hold 8");
        let position = u64::from_be_bytes(*head);
        // The high word of the product: the 64-bit numbers in `total` ranges of equal size.
        let slice = (u128::from(position) * u128::from(self.total)) >> 64;
        slice == u128::from(self.index - 1)
    }

    /// Whether some request can be in both. Slices of different totals cut differently.
    pub fn overlaps(self, other: Self) -> bool {
        self.total != other.total || self.index == other.index
    }

    /// What names of shards, failures and leases of this slice carry: `slice-03-of-16`.
    pub fn label(self) -> String {
        let width = self.total.to_string().len();
        format!("slice-{:0width$}-of-{}", self.index, self.total)
    }

    /// The slice whose [`label`](Self::label) this is.
    pub fn from_label(label: &str) -> Option<Self> {
        let (index, total) = label.strip_prefix("slice-")?.split_once("-of-")?;
        let slice = Self::new(index.parse().ok()?, total.parse().ok()?).ok()?;
        (slice.label() == label).then_some(slice)
    }

    /// What the stems of this slice's shards start with: `slice-03-of-16-`.
    pub fn prefix(self) -> String {
        format!("{}-", self.label())
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.total)
    }
}

impl FromStr for Slice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u32>().ok();
        let (index, total) = text
            .split_once('/')
            .and_then(|(index, total)| Some((number(index)?, number(total)?)))
            .ok_or_else(|| {
                format!("`{text}` is not a slice: write 3/16 for the third of sixteen")
            })?;
        Self::new(index, total)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slice_is_read_as_it_is_written() {
        let slice: Slice = "3/16".parse().unwrap();
        assert_eq!((slice.index(), slice.total()), (3, 16));
        assert_eq!(slice.to_string(), "3/16");
        assert_eq!(slice.prefix(), "slice-03-of-16-");
        assert_eq!(Slice::from_label("slice-03-of-16"), Some(slice));
        for label in [
            "slice-3-of-16",
            "slice-17-of-16",
            "slice-03-of-16-",
            "whole",
        ] {
            assert_eq!(Slice::from_label(label), None, "{label}");
        }
    }

    #[test]
    fn what_is_no_slice_is_refused_with_what_to_write() {
        for (text, part) in [
            ("", "write 3/16"),
            ("3", "write 3/16"),
            ("3/", "write 3/16"),
            ("-1/4", "write 3/16"),
            ("3 / 4", "write 3/16"),
            ("1/4/2", "write 3/16"),
            ("0/4", "JOB_COMPLETION_INDEX"),
            ("1/0", "at least one"),
            ("5/4", "the last slice is 4/4"),
        ] {
            let refusal = text.parse::<Slice>().unwrap_err();
            assert!(refusal.contains(part), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_ends_of_the_digests_are_in_the_first_and_the_last_slice() {
        assert!(Slice::new(1, 7).unwrap().holds(&[0; 16]));
        assert!(Slice::new(7, 7).unwrap().holds(&[0xff; 16]));
        assert!(Slice::new(u32::MAX, u32::MAX).unwrap().holds(&[0xff; 16]));
    }

    #[test]
    fn slices_are_of_like_size() {
        let total = 16;
        let mut sizes = [0_u32; 16];
        for row in 0..16_000_u32 {
            let digest = schemas::Sha256Digest::of(&row.to_le_bytes()).hex();
            let digest: [u8; 16] = digest.as_bytes()[..32]
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect::<Vec<_>>()
                .try_into()
                .unwrap();
            for index in 1..=total {
                sizes[index as usize - 1] +=
                    u32::from(Slice::new(index, total).unwrap().holds(&digest));
            }
        }
        // 1000 expected, with a standard deviation of 31.
        assert!(
            sizes.iter().all(|size| (850..1150).contains(size)),
            "{sizes:?}"
        );
    }

    proptest! {
        #[test]
        fn every_request_is_in_exactly_one_slice(digest: [u8; 16], total in 1_u32..200) {
            let holders = (1..=total).filter(|index| Slice::new(*index, total).unwrap().holds(&digest));
            prop_assert_eq!(holders.count(), 1);
        }

        #[test]
        fn slices_overlap_where_a_request_is_in_both(digest: [u8; 16], a in 1_u32..40, b in 1_u32..40) {
            let slice = |total| (1..=total).map(|i| Slice::new(i, total).unwrap()).find(|s| s.holds(&digest)).unwrap();
            prop_assert!(slice(a).overlaps(slice(b)));
        }
    }
}
