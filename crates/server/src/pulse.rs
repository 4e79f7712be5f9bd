//! Whether the history's writer works: asks it, and waits for its answer.
//!
//! # Invariants
//! - However many ask, one question at most waits with the writer.
//! - A writer that has ended is told at once, one that hangs after the patience of who asks.

use std::time::Duration;
use store::{Error, History};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex, oneshot};

/// Until a full queue is tried again.
const RETRY: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// The answer to the question that waits with the writer.
    asked: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Pulse {
    /// Whether the writer answers in time.
    pub(crate) async fn beats(&self, history: &History, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.answers(history)).await.unwrap_or(false)
    }

    /// The same without a limit. Who stops waiting leaves the question to the next.
    async fn answers(&self, history: &History) -> bool {
        let mut asked = self.asked.lock().await;
        // What was answered meanwhile says nothing of now.
        if asked.as_mut().is_some_and(|answer| answer.try_recv() != Err(TryRecvError::Empty)) {
            *asked = None;
        }
        if asked.is_none() {
            *asked = ask(history).await;
        }
        let Some(answer) = asked.as_mut() else { return false };
        let answered = answer.await.is_ok();
        *asked = None;
        answered
    }
}

/// `None` when the writer has ended.
async fn ask(history: &History) -> Option<oneshot::Receiver<()>> {
    loop {
        let (reply, answer) = oneshot::channel();
        let asked = history.ask(move || {
            // Nobody may wait for it any more.
            let _gone = reply.send(());
        });
        match asked {
            Ok(()) => return Some(answer),
            Err(Error::Busy) => tokio::time::sleep(RETRY).await,
            Err(_ended) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::sync::mpsc;
    use store::Options;

    /// Has the writer do nothing until what is returned is dropped.
    fn hang(history: &History) -> mpsc::Sender<()> {
        let (begun, has_begun) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let wait = move || {
            begun.send(()).unwrap();
            may_go.recv().unwrap_err();
        };
        history.ask(wait).unwrap();
        has_begun.recv().unwrap();
        go
    }

    #[tokio::test]
    async fn a_writer_that_hangs_is_asked_once_and_has_a_pulse_when_it_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(directory.path(), Options::default()).unwrap();
        let go = hang(&history);
        let pulse = Pulse::default();
        for _ in 0..3 {
            assert_eq!(pulse.answers(&history).now_or_never(), None);
        }
        assert_eq!(history.stats().queue, 1);
        assert!(!pulse.beats(&history, Duration::ZERO).await);
        drop(go);
        assert!(pulse.answers(&history).await);
        assert!(pulse.answers(&history).await);
    }

    #[tokio::test]
    async fn a_full_queue_is_no_end() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options { queue: 1, ..Options::default() };
        let history = History::open(directory.path(), options).unwrap();
        let go = hang(&history);
        history.ask(|| {}).unwrap();
        let pulse = Pulse::default();
        assert_eq!(pulse.answers(&history).now_or_never(), None);
        drop(go);
        assert!(pulse.answers(&history).await);
    }
}
