//! What a step reads, prepared on the host on a thread of its own.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use burn::tensor::TensorData;

use super::batch::{HostTargets, HostTokens};
use super::{Padding, Rows, TeacherFeatures, tokens_per_row};
use crate::schedule::Trained;
use crate::student::Encoding;

/// Steps that wait ready while one is computed.
const STEPS_AHEAD: usize = 4;

/// Rows that one device computes at once, on the host.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Place within the step: dropout is keyed with it.
    pub index: u64,
    /// Share of the step's rows: mean losses weighted with it add up to the mean over the step.
    pub share: f32,
    /// Token ids, where the student is trained.
    pub tokens: Option<HostTokens>,
    /// Labels.
    pub targets: HostTargets,
    /// The teacher's features `[b, D]`, where there is a teacher.
    pub features: Option<TensorData>,
}

/// What one step reads.
#[derive(Clone, Debug)]
pub struct Step {
    /// Number of its rows.
    pub num_rows: usize,
    /// For each device the shards that it computes one after the other. The first device always has one.
    pub shards: Vec<Vec<Shard>>,
}

/// Prepares steps. Holds no tensor and calls no device, so that what it does on another thread changes no result.
#[derive(Clone, Debug)]
pub struct Feed<'a> {
    /// The training rows.
    pub rows: &'a Rows,
    /// Their features, where there is a teacher.
    pub features: Option<TeacherFeatures>,
    /// Id of padding.
    pub pad_id: u32,
    /// How batches are padded.
    pub padding: Padding,
    /// Parts of a step.
    pub gradient_accumulation: usize,
    /// Devices over which each part is split.
    pub num_devices: usize,
}

impl Feed<'_> {
    /// Prepares the step that reads `rows`.
    pub fn step(&self, trained: Trained, rows: &[usize]) -> Step {
        let mut shards = vec![Vec::new(); self.num_devices];
        let writings = rows.iter().filter_map(|&row| self.rows.writings.get(row));
        let tokens_per_row = tokens_per_row(writings);
        for (part_index, part) in split(rows, self.gradient_accumulation).enumerate() {
            for (device, shard) in split(part, self.num_devices).enumerate() {
                let index = part_index * self.num_devices + device;
                let share = shard.len() as f32 / rows.len() as f32;
                let targets = HostTargets::new(self.rows, shard, tokens_per_row, self.padding);
                shards[device].push(self.shard(trained, shard, targets, index as u64, share));
            }
        }
        Step {
            num_rows: rows.len(),
            shards,
        }
    }

    fn shard(
        &self,
        trained: Trained,
        rows: &[usize],
        targets: HostTargets,
        index: u64,
        share: f32,
    ) -> Shard {
        let tokens = || {
            let encodings: Vec<&Encoding> =
                rows.iter().map(|&row| &self.rows.encodings[row]).collect();
            HostTokens::new(&encodings, self.pad_id, self.padding)
        };
        Shard {
            index,
            share,
            tokens: trained.has_student().then(tokens),
            targets,
            features: self
                .features
                .as_ref()
                .map(|features| features.host_batch(rows)),
        }
    }

    /// The steps of these batches, prepared a few steps ahead. The thread ends when all are read or the receiver is
    /// dropped.
    pub fn prefetched<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        trained: Trained,
        batches: &'scope [Vec<usize>],
    ) -> Receiver<Step> {
        let (sender, receiver) = sync_channel(STEPS_AHEAD);
        scope.spawn(move || {
            for rows in batches {
                if sender.send(self.step(trained, rows)).is_err() {
                    return;
                }
            }
        });
        receiver
    }
}

/// At most `num_parts` parts of about equal size, none of them empty.
fn split(rows: &[usize], num_parts: usize) -> std::slice::Chunks<'_, usize> {
    rows.chunks(rows.len().div_ceil(num_parts).max(1))
}
