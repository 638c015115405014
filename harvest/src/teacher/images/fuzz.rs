//! Replies of servers that make pictures, and the pictures themselves.

use std::num::NonZeroU32;

use schemas::SignalValue;

use super::generator::{ADDRESS, IMAGE, REVISED_PROMPT, automatic1111, openai};
use super::grid::Grid;
use crate::teacher::fuzz::check_error;
use crate::teacher::media::Picture;

/// A reply of either protocol.
pub(crate) fn reply(data: &[u8]) {
    for outcome in [openai(data), automatic1111(data)] {
        let reply = match outcome {
            Err(error) => {
                check_error(&error);
                continue;
            }
            Ok(reply) => reply,
        };
        for (name, value) in reply.signals {
            match value {
                SignalValue::Image(bytes) if name == IMAGE => {
                    Picture::new(bytes, "generated").expect("a picture was checked");
                }
                SignalValue::Text(_) if name == ADDRESS || name == REVISED_PROMPT => {}
                other => unreachable!("`{name}` is {other:?}"),
            }
        }
    }
}

/// The feature of a picture.
pub(crate) fn encode(data: &[u8]) {
    for (side, colour) in [(1, true), (3, false), (32, false)] {
        let side = NonZeroU32::new(side).expect("not zero");
        match Grid::new(side, colour).encode(data) {
            Err(error) => check_error(&error),
            Ok(values) => {
                let num_cells = (side.get() * side.get()) as usize;
                assert_eq!(values.len(), if colour { 3 * num_cells } else { num_cells });
                assert!(values.iter().all(|value| (0.0..=1.0001).contains(value)));
            }
        }
    }
}
