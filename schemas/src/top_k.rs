//! Token log-probabilities as a teacher gives them, and their packed form.

/// A token by its id, its bytes, or both: OpenAI gives no ids, other servers do. Two tokens may print the same text, and
/// a token may hold a part of a character, so text is no key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Token {
    /// Index into the teacher's vocabulary; below [`u32::MAX`].
    pub id: Option<u32>,
    /// What it stands for; at most 65,534 bytes.
    pub bytes: Option<Vec<u8>>,
}

/// A token with its probability.
#[derive(Clone, PartialEq, Debug)]
pub struct ScoredToken {
    /// The token.
    pub token: Token,
    /// Natural log-probability, finite.
    pub logprob: f32,
}

/// Tokens and their probabilities at one position.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TopKPosition {
    /// The token that stands here: the one that was generated, or the one of the prompt. `None` where it is unknown or
    /// was not scored, such as the first token of a prompt.
    pub chosen: Option<ScoredToken>,
    /// Probability mass outside `entries`, in [0, 1].
    pub remaining_mass: f32,
    /// The most probable tokens, most probable first; the chosen one is among them only where it is that probable.
    pub entries: Vec<ScoredToken>,
}

/// The chosen token and the `k` most probable ones at each position of a text.
///
/// Packed into one binary value a row, all little endian. With `n` positions, `e` entries in all of them, and `t = e`
/// tokens, or `t = n + e` where the chosen ones are stored, first, in the order of the positions:
///
/// | bytes | content |
/// |---|---|
/// | 1 | layout version, here 2 |
/// | 1 | flags: 1 tokens have ids, 2 tokens have bytes, 4 the chosen tokens are stored |
/// | 4 | `n`, u32 |
/// | 4 `n` | number of entries of each position, u32; their sum is `e` |
/// | 4 `n` | probability mass that the entries of each position leave over, f32 |
/// | 4 `t` | natural log-probabilities, f32; NaN where a position has no chosen token |
/// | 4 `t` | flag 1: ids, u32; 4,294,967,295 for none |
/// | 2 `t` | flag 2: number of bytes, u16; 65,535 for none |
/// | the rest | flag 2: the bytes of all tokens in the same order |
///
/// The entries of a position are ordered, most probable first. Log-probabilities, ids and lengths stand together, so
/// that a reader takes each part as one array, and equal things compress well.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TokenTopK {
    /// The positions in order.
    pub positions: Vec<TopKPosition>,
}

const LAYOUT: u8 = 2;
const HAS_IDS: u8 = 1;
const HAS_BYTES: u8 = 2;
const HAS_CHOSEN: u8 = 4;
const NO_ID: u32 = u32::MAX;
const NO_BYTES: u16 = u16::MAX;

impl TokenTopK {
    /// About the size of the packed bytes.
    pub fn num_bytes(&self) -> usize {
        let tokens = |position: &TopKPosition| position.entries.len() + 1;
        16 * self.positions.iter().map(tokens).sum::<usize>()
    }

    /// What there is of it, in words: the largest number of entries at a position, and whether tokens have ids and
    /// bytes.
    pub fn describe(&self) -> String {
        let tokens = || self.positions.iter().flat_map(|position| &position.entries);
        let all = |of: fn(&ScoredToken) -> bool| tokens().next().is_some() && tokens().all(of);
        let yes = |is_so: bool| if is_so { "yes" } else { "no" };
        format!(
            "{} positions, up to {} entries, ids {}, bytes {}",
            self.positions.len(),
            self.positions
                .iter()
                .map(|position| position.entries.len())
                .max()
                .unwrap_or(0),
            yes(all(|scored| scored.token.id.is_some())),
            yes(all(|scored| scored.token.bytes.is_some())),
        )
    }

    /// The packed bytes. What a signal refuses does not survive the way back.
    pub fn to_bytes(&self) -> Vec<u8> {
        let has_chosen = self
            .positions
            .iter()
            .any(|position| position.chosen.is_some());
        let chosen = self
            .positions
            .iter()
            .filter(|_| has_chosen)
            .map(|position| position.chosen.as_ref());
        let entries = self.positions.iter().flat_map(|position| &position.entries);
        let tokens: Vec<Option<&ScoredToken>> = chosen.chain(entries.map(Some)).collect();
        let ids = tokens
            .iter()
            .map(|token| token.and_then(|scored| scored.token.id));
        let texts = tokens
            .iter()
            .map(|token| token.and_then(|scored| scored.token.bytes.as_deref()));
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(ids.clone().any(|id| id.is_some()), HAS_IDS)
            | flag(texts.clone().any(|text| text.is_some()), HAS_BYTES)
            | flag(has_chosen, HAS_CHOSEN);

        let mut bytes = vec![LAYOUT, flags];
        bytes.extend((self.positions.len() as u32).to_le_bytes());
        for position in &self.positions {
            bytes.extend((position.entries.len() as u32).to_le_bytes());
        }
        for position in &self.positions {
            bytes.extend(position.remaining_mass.to_le_bytes());
        }
        for token in &tokens {
            bytes.extend(
                token
                    .map_or(f32::NAN, |scored| scored.logprob)
                    .to_le_bytes(),
            );
        }
        if flags & HAS_IDS != 0 {
            bytes.extend(ids.flat_map(|id| id.unwrap_or(NO_ID).to_le_bytes()));
        }
        if flags & HAS_BYTES != 0 {
            let length = |text: Option<&[u8]>| text.map_or(NO_BYTES, |text| text.len() as u16);
            bytes.extend(texts.clone().flat_map(|text| length(text).to_le_bytes()));
            bytes.extend(texts.flatten().flatten());
        }
        bytes
    }

    /// Reads the packed bytes; `None` where they do not follow the layout to the last byte.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let ([LAYOUT, flags], rest) = bytes.split_first_chunk::<2>()? else {
            return None;
        };
        if flags & !(HAS_IDS | HAS_BYTES | HAS_CHOSEN) != 0 {
            return None;
        }
        let has = |flag| flags & flag != 0;
        let mut rest = rest;
        let num_positions = u32::from_le_bytes(take::<4>(&mut rest, 1)?[0]) as usize;
        let counts = take::<4>(&mut rest, num_positions)?;
        let counts = counts
            .iter()
            .map(|count| u32::from_le_bytes(*count) as usize);
        let masses = take::<4>(&mut rest, num_positions)?;
        let num_chosen = if has(HAS_CHOSEN) { num_positions } else { 0 };
        let num_tokens = counts.clone().try_fold(num_chosen, usize::checked_add)?;
        let logprobs = take::<4>(&mut rest, num_tokens)?;
        let ids = take::<4>(&mut rest, if has(HAS_IDS) { num_tokens } else { 0 })?;
        let lengths = take::<2>(&mut rest, if has(HAS_BYTES) { num_tokens } else { 0 })?;

        // Every token has four bytes of its own at least, so this allocates no more than a few times what was given.
        let mut tokens = Vec::with_capacity(num_tokens);
        for (index, logprob) in logprobs.iter().enumerate() {
            let id = ids.get(index).map(|id| u32::from_le_bytes(*id));
            let length = lengths.get(index).map(|length| u16::from_le_bytes(*length));
            let text = match length.filter(|length| *length != NO_BYTES) {
                None => None,
                Some(length) => {
                    let (text, tail) = rest.split_at_checked(usize::from(length))?;
                    rest = tail;
                    Some(text.to_vec())
                }
            };
            tokens.push(ScoredToken {
                token: Token {
                    id: id.filter(|id| *id != NO_ID),
                    bytes: text,
                },
                logprob: f32::from_le_bytes(*logprob),
            });
        }
        if !rest.is_empty() {
            return None;
        }
        let mut entries = tokens.split_off(num_chosen).into_iter();
        let mut chosen = tokens.into_iter();
        let position = |(count, mass): (usize, &[u8; 4])| TopKPosition {
            chosen: chosen.next().filter(|scored| !scored.logprob.is_nan()),
            remaining_mass: f32::from_le_bytes(*mass),
            entries: entries.by_ref().take(count).collect(),
        };
        let positions = counts.zip(masses).map(position).collect();
        Some(Self { positions })
    }

    /// What keeps the value from being stored in a signal of `k` entries a position.
    pub(crate) fn problem(&self, k: u32) -> Option<String> {
        for (index, position) in self.positions.iter().enumerate() {
            let num_entries = position.entries.len();
            if num_entries > k as usize {
                return Some(format!(
                    "{num_entries} entries at a position, where k is {k}"
                ));
            }
            let mass = position.remaining_mass;
            if !(0.0..=1.0).contains(&mass) {
                return Some(format!("position {index}: the mass left over is {mass}"));
            }
            for scored in position.chosen.iter().chain(&position.entries) {
                if let Some(problem) = scored.problem() {
                    return Some(format!("position {index}: {problem}"));
                }
            }
        }
        None
    }
}

impl ScoredToken {
    fn problem(&self) -> Option<String> {
        let Token { id, bytes } = &self.token;
        let num_bytes = bytes.as_ref().map_or(0, Vec::len);
        if !self.logprob.is_finite() {
            Some(format!("a log-probability is {}", self.logprob))
        } else if id.is_none() && bytes.is_none() {
            Some("a token has neither id nor bytes".into())
        } else if *id == Some(NO_ID) {
            Some(format!("a token has the id {NO_ID}, which stands for none"))
        } else if num_bytes >= usize::from(NO_BYTES) {
            Some(format!("a token has {num_bytes} bytes"))
        } else {
            None
        }
    }
}

/// The next `count` values of `N` bytes; `None` where there are fewer.
fn take<'a, const N: usize>(rest: &mut &'a [u8], count: usize) -> Option<&'a [[u8; N]]> {
    let (head, tail) = rest.split_at_checked(count.checked_mul(N)?)?;
    *rest = tail;
    Some(head.as_chunks::<N>().0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_token() -> impl Strategy<Value = ScoredToken> {
        let id = prop::option::of(0..u32::MAX);
        let bytes = prop::option::of(prop::collection::vec(any::<u8>(), 0..6));
        (id, bytes, -1e4_f32..=0.0).prop_map(|(id, bytes, logprob)| ScoredToken {
            token: Token { id, bytes },
            logprob,
        })
    }

    fn any_position() -> impl Strategy<Value = TopKPosition> {
        let chosen = prop::option::of(any_token());
        let entries = prop::collection::vec(any_token(), 0..5);
        (chosen, 0_f32..=1.0, entries).prop_map(|(chosen, remaining_mass, entries)| TopKPosition {
            chosen,
            remaining_mass,
            entries,
        })
    }

    proptest! {
        #[test]
        fn packed_values_read_back(positions in prop::collection::vec(any_position(), 0..6)) {
            let top_k = TokenTopK { positions };
            prop_assert_eq!(TokenTopK::from_bytes(&top_k.to_bytes()), Some(top_k));
        }

        #[test]
        fn no_prefix_and_no_longer_value_reads(
            positions in prop::collection::vec(any_position(), 0..4),
            cut in any::<prop::sample::Index>(),
            more in any::<u8>(),
        ) {
            let mut bytes = TokenTopK { positions }.to_bytes();
            prop_assert_eq!(TokenTopK::from_bytes(&bytes[..cut.index(bytes.len())]), None);
            bytes.push(more);
            prop_assert_eq!(TokenTopK::from_bytes(&bytes), None);
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            flags in 0_u8..8,
            num_positions in prop_oneof![0_u32..4, any::<u32>()],
            tail in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..80),
        ) {
            let bytes = [[LAYOUT, flags].as_slice(), &num_positions.to_le_bytes(), &tail].concat();
            if let Some(top_k) = TokenTopK::from_bytes(&bytes) {
                prop_assert_eq!(top_k.positions.len(), num_positions as usize);
            }
        }
    }

    #[test]
    fn headers_that_promise_too_much_are_refused() {
        let most = u32::MAX.to_le_bytes();
        for bytes in [
            [[LAYOUT, 0].as_slice(), &most].concat(),
            [[LAYOUT, 7].as_slice(), &1_u32.to_le_bytes(), &most, &[0; 8]].concat(),
            vec![LAYOUT, 8, 0, 0, 0, 0],
            vec![1, 0, 0, 0, 0],
            vec![LAYOUT],
            vec![],
        ] {
            assert_eq!(TokenTopK::from_bytes(&bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn tokens_that_print_alike_stay_apart() {
        let scored = |id, logprob| ScoredToken {
            token: Token {
                id: Some(id),
                bytes: Some(b"a".to_vec()),
            },
            logprob,
        };
        let position = TopKPosition {
            chosen: Some(scored(2, -1.5)),
            remaining_mass: 0.5,
            entries: vec![scored(1, -1.0), scored(2, -1.5)],
        };
        let top_k = TokenTopK {
            positions: vec![position],
        };
        assert_eq!(TokenTopK::from_bytes(&top_k.to_bytes()), Some(top_k));
    }

    #[test]
    fn what_cannot_be_stored_is_named() {
        let token = |id, bytes, logprob| ScoredToken {
            token: Token { id, bytes },
            logprob,
        };
        let whole = token(Some(1), None, -1.0);
        for (chosen, remaining_mass, entries, problem) in [
            (
                None,
                0.5,
                vec![whole.clone(), whole.clone()],
                "2 entries at a position, where k is 1",
            ),
            (
                None,
                f32::NAN,
                vec![],
                "position 0: the mass left over is NaN",
            ),
            (None, 1.5, vec![], "position 0: the mass left over is 1.5"),
            (
                Some(token(Some(1), None, f32::NAN)),
                0.0,
                vec![],
                "position 0: a log-probability is NaN",
            ),
            (
                None,
                0.0,
                vec![token(None, None, -1.0)],
                "position 0: a token has neither id nor bytes",
            ),
            (
                None,
                0.0,
                vec![token(Some(NO_ID), None, -1.0)],
                "position 0: a token has the id 4294967295, which stands for none",
            ),
            (
                None,
                0.0,
                vec![token(None, Some(vec![0; 65_535]), -1.0)],
                "position 0: a token has 65535 bytes",
            ),
        ] {
            let position = TopKPosition {
                chosen,
                remaining_mass,
                entries,
            };
            let top_k = TokenTopK {
                positions: vec![position],
            };
            assert_eq!(top_k.problem(1).as_deref(), Some(problem));
        }
    }
}
