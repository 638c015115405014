//! Token top-k.

use std::collections::BTreeMap;

use schemas::record::TokenTopK;
use serde::Serialize;

use super::spread::{Spread, SpreadSummary};

/// What is known of a token top-k signal.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TopKStats {
    /// The largest number of entries at a position, as the manifest says.
    pub k: u32,
    /// Positions of all rows.
    pub num_positions: u64,
    /// Positions of a row.
    pub positions: Option<SpreadSummary>,
    /// Rows without a position.
    pub num_empty: u64,
    /// Entries at a position.
    pub entries: Option<SpreadSummary>,
    /// Mean probability mass that the most probable 1, 2, 4, ... k entries of a position have together.
    pub retained_mass: BTreeMap<u32, f64>,
    /// Mean mass that is stored as left over.
    pub remaining_mass: Option<f64>,
    /// Positions where the entries and what is left over do not add up to 1 within 0.01.
    pub num_unbalanced: u64,
    /// Positions where a token id stands twice, as happens where ids are looked up by text.
    pub num_repeated_ids: u64,
    /// Share of the entries that have a token id.
    pub share_with_ids: Option<f64>,
}

#[derive(Debug)]
pub(super) struct Collector {
    k: u32,
    positions: Spread,
    entries: Spread,
    num_empty: u64,
    cuts: Vec<u32>,
    mass: Vec<f64>,
    remaining: f64,
    num_unbalanced: u64,
    num_repeated_ids: u64,
    num_entries: u64,
    num_ids: u64,
}

impl Collector {
    pub(super) fn new(k: u32) -> Self {
        let mut cuts: Vec<u32> = (0..32)
            .map(|power| 1 << power)
            .take_while(|cut| *cut < k)
            .collect();
        cuts.push(k);
        Self {
            k,
            positions: Spread::default(),
            entries: Spread::default(),
            num_empty: 0,
            mass: vec![0.0; cuts.len()],
            cuts,
            remaining: 0.0,
            num_unbalanced: 0,
            num_repeated_ids: 0,
            num_entries: 0,
            num_ids: 0,
        }
    }

    pub(super) fn add(&mut self, value: &TokenTopK) {
        self.positions.add(value.positions.len() as f64);
        if value.positions.is_empty() {
            self.num_empty += 1;
        }
        for position in &value.positions {
            self.entries.add(position.entries.len() as f64);
            let mut probabilities: Vec<f64> = position
                .entries
                .iter()
                .map(|entry| f64::from(entry.logprob).exp())
                .collect();
            probabilities.sort_by(|a, b| b.total_cmp(a));
            for (mass, cut) in self.mass.iter_mut().zip(&self.cuts) {
                *mass += probabilities.iter().take(*cut as usize).sum::<f64>();
            }
            let remaining = f64::from(position.remaining_mass);
            self.remaining += remaining;
            let total = probabilities.iter().sum::<f64>() + remaining;
            self.num_unbalanced += u64::from((total - 1.0).abs() > 0.01);
            let mut ids: Vec<u32> = position
                .entries
                .iter()
                .filter_map(|entry| entry.token.id)
                .collect();
            self.num_entries += position.entries.len() as u64;
            self.num_ids += ids.len() as u64;
            ids.sort_unstable();
            self.num_repeated_ids += u64::from(ids.windows(2).any(|pair| pair[0] == pair[1]));
        }
    }

    pub(super) fn finish(self) -> TopKStats {
        let entries = self.entries.summary();
        let num_positions = entries.map_or(0, |entries| entries.count);
        let mean = |sum: f64| sum / num_positions as f64;
        let retained = self.cuts.iter().zip(&self.mass);
        TopKStats {
            k: self.k,
            num_positions,
            positions: self.positions.summary(),
            num_empty: self.num_empty,
            entries,
            retained_mass: retained
                .filter(|_| num_positions > 0)
                .map(|(cut, mass)| (*cut, mean(*mass)))
                .collect(),
            remaining_mass: (num_positions > 0).then(|| mean(self.remaining)),
            num_unbalanced: self.num_unbalanced,
            num_repeated_ids: self.num_repeated_ids,
            share_with_ids: (self.num_entries > 0)
                .then(|| self.num_ids as f64 / self.num_entries as f64),
        }
    }
}

impl TopKStats {
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.num_empty > 0 {
            warnings.push(format!("{} rows have no position", self.num_empty));
        }
        if self.num_unbalanced > 0 {
            warnings.push(format!(
                "at {} positions the entries and what is left over do not add up to 1",
                self.num_unbalanced
            ));
        }
        if self.num_repeated_ids > 0 {
            warnings.push(format!(
                "at {} positions a token id stands twice",
                self.num_repeated_ids
            ));
        }
        warnings
    }
}
