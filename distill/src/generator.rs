//! The random numbers that devices draw.

use std::sync::{Mutex, PoisonError};

use burn::tensor::Device;

/// burn has one generator in a process, whatever the number of devices: whoever draws from it seeds it first and holds
/// this until everything is drawn.
static TURN: Mutex<()> = Mutex::new(());

/// Whether other devices draw while a computation's operations wait to be launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Others {
    /// This device alone draws; seeding it again launches what waits.
    None,
    /// Others may draw as soon as the computation returns.
    Draw,
}

/// What `compute` computes with the random numbers of `seed`, whatever other threads do meanwhile.
///
/// Seeding hands all operations that wait to be fused to the device, so it is for whole passes, not for single tensors. It
/// does not wait for the device.
#[expect(
    clippy::disallowed_methods,
    reason = "once a pass: launches what waits, and reads nothing"
)]
pub(crate) fn drawing<T>(
    device: &Device,
    seed: u64,
    others: Others,
    compute: impl FnOnce() -> T,
) -> T {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(seed);
    let result = compute();
    if others == Others::Draw {
        // Operations that wait to be fused draw when they are launched.
        device.flush().expect("the device takes what is launched");
    }
    result
}
