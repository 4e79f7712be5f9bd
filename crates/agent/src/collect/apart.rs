//! Blocking looks, each on a thread apart, with a deadline.

use std::time::Duration;
use tokio::task::JoinHandle;

/// A state that is looked at on other threads. A look that does not end in time keeps its
/// thread and the state; until it ends, further looks are refused at once.
#[derive(Debug)]
pub(crate) struct Apart<S> {
    state: Option<S>,
    stuck: Option<JoinHandle<S>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the look did not end within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("an earlier look still hangs")]
    Stuck,
    /// Without what it failed with, which may show what nobody redacted. The program's log has it.
    #[error("the look failed inside")]
    Panic,
    #[error("an earlier look failed inside; restart the agent")]
    Lost,
}

impl<S: Send + 'static> Apart<S> {
    pub(crate) fn new(state: S) -> Self {
        Self { state: Some(state), stuck: None }
    }

    pub(crate) async fn look<R: Send + 'static>(
        &mut self,
        deadline: Duration,
        look: impl FnOnce(&mut S) -> R + Send + 'static,
    ) -> Result<R, Error> {
        if let Some(stuck) = self.stuck.take() {
            if !stuck.is_finished() {
                self.stuck = Some(stuck);
                return Err(Error::Stuck);
            }
            self.state = Some(stuck.await.map_err(|_panic| Error::Panic)?);
        }
        let mut state = self.state.take().ok_or(Error::Lost)?;
        let (sender, result) = tokio::sync::oneshot::channel();
        let handle = tokio::task::spawn_blocking(move || {
            let found = look(&mut state);
            // Nobody waits any more when the deadline is over.
            let _late = sender.send(found);
            state
        });
        match tokio::time::timeout(deadline, result).await {
            Ok(found) => {
                self.state = Some(handle.await.map_err(|_panic| Error::Panic)?);
                found.map_err(|_closed| Error::Lost)
            }
            Err(_) => {
                self.stuck = Some(handle);
                Err(Error::Deadline(deadline))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_look_that_hangs_is_left_behind_and_taken_up_again() {
        let mut apart = Apart::new(1);
        let (release, gate) = mpsc::channel::<()>();
        let hung = apart.look(Duration::from_millis(10), move |n| {
            *n += 1;
            gate.recv().ok()
        });
        assert!(matches!(hung.await, Err(Error::Deadline(_))));
        assert!(matches!(apart.look(DEADLINE, |_| ()).await, Err(Error::Stuck)));
        release.send(()).unwrap();
        loop {
            match apart.look(DEADLINE, |n| *n).await {
                Ok(n) => break assert_eq!(n, 2),
                Err(Error::Stuck) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test]
    async fn what_a_look_failed_with_is_not_told() {
        let mut apart = Apart::new(());
        let failed = apart.look(DEADLINE, |()| panic!("secret")).await;
        let error = failed.expect_err("it panics");
        assert_eq!(model::with_causes(&error), "the look failed inside");
    }

    const DEADLINE: Duration = Duration::from_secs(5);
}
