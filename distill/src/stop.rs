//! A request to stop: the step under way is finished and a checkpoint written.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A flag that a signal, the end of standard input or a number of steps raises.
#[derive(Clone, Debug)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    steps_left: Arc<AtomicU64>,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            requested: Arc::default(),
            steps_left: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }
}

impl Stop {
    /// A flag that goes up after `num_steps` steps.
    pub fn after_steps(num_steps: u64) -> Self {
        let stop = Self::default();
        stop.steps_left.store(num_steps, Ordering::Relaxed);
        stop
    }

    /// Raises the flag.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    /// Whether the flag is up.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed) || self.steps_left.load(Ordering::Relaxed) == 0
    }

    /// Counts a step that was done.
    pub fn count_step(&self) {
        let left = self.steps_left.load(Ordering::Relaxed);
        if left != u64::MAX {
            self.steps_left
                .store(left.saturating_sub(1), Ordering::Relaxed);
        }
    }

    /// The first Ctrl-C or SIGTERM raises the flag; the second one ends the process at once with status 3, and the next
    /// run goes on from the last checkpoint.
    pub fn on_signals(&self) {
        let stop = self.clone();
        // There is one handler in a process, and it is set once.
        let set = ctrlc::set_handler(move || {
            if stop.is_requested() {
                std::process::exit(3);
            }
            tracing::warn!("stopping after this step; once more to stop at once");
            stop.request();
        });
        if let Err(error) = set {
            tracing::warn!("Ctrl-C will not save the state: {error}");
        }
    }

    /// Raises the flag when standard input ends: when the process that started this one is gone, or wants it to stop.
    pub fn on_end_of_input(&self) {
        let stop = self.clone();
        std::thread::spawn(move || {
            let mut rest = [0; 64];
            while matches!(std::io::stdin().read(&mut rest), Ok(1..)) {}
            stop.request();
        });
    }
}
