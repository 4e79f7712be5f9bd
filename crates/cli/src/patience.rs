//! Connecting again to a server that went away, ever more slowly.

use crate::failure::Failure;
use crate::session::note;
use std::time::Duration;

/// Waits between attempts double from the first to the second.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// How long to wait before the next attempt, and whether it was told that there are any.
#[derive(Debug)]
pub(crate) struct Patience {
    wait: Duration,
    told: bool,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { wait: WAITS.0, told: false }
    }

    /// Something came: the next attempt is made soon again.
    pub(crate) fn restore(&mut self) {
        self.wait = WAITS.0;
    }

    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(WAITS.1);
    }

    /// What an attempt means; nothing while the server is away, which is said once.
    pub(crate) fn judge(
        &mut self,
        url: &str,
        tried: Result<(), Failure>,
    ) -> Option<Result<(), Failure>> {
        if let Err(Failure::NoServer { reason, .. }) = &tried {
            if !std::mem::replace(&mut self.told, true) {
                note(&format!("lost {url} ({reason}); trying again"));
            }
            return None;
        }
        if std::mem::take(&mut self.told) && tried.is_ok() {
            note(&format!("back at {url}"));
        }
        Some(tried)
    }
}
