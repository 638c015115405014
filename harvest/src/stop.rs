//! A request to stop: no new requests, what is in flight is finished and committed.

use tokio::sync::watch;

/// A flag that is raised once and that any number of tasks can wait for.
#[derive(Clone, Debug)]
pub struct Stop(watch::Sender<bool>);

impl Default for Stop {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Stop {
    /// Raises the flag.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Whether the flag is up.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the flag is up.
    pub async fn requested(&self) {
        let mut receiver = self.0.subscribe();
        receiver
            .wait_for(|raised| *raised)
            .await
            .expect("`self` keeps the channel open");
    }

    /// A flag that the first Ctrl-C or SIGTERM raises; the second one ends the process at once with status 3, which
    /// loses nothing: every completed reply is in the journal.
    pub fn on_signals() -> Self {
        let stop = Self::default();
        let raised = stop.clone();
        tokio::spawn(async move {
            signal().await;
            tracing::warn!(
                "stopping: waiting for the requests in flight; once more to stop at once"
            );
            raised.request();
            signal().await;
            tracing::warn!("stopped at once; the next run starts from the journal");
            std::process::exit(3);
        });
        stop
    }
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("the runtime has signal handling");
    tokio::select! {
        result = tokio::signal::ctrl_c() => result.expect("the runtime has signal handling"),
        _ = terminate.recv() => {}
    }
}

#[cfg(not(unix))]
async fn signal() {
    tokio::signal::ctrl_c()
        .await
        .expect("the runtime has signal handling");
}
