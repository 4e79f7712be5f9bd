//! Who works with a machine: one at a time.
//!
//! # Invariants
//! - A turn that a job has lasts until the job's blocking work is over, too: that goes on when
//!   its future is dropped.

use crate::image::MachineName;
use crate::job::Job;
use crate::machine::Error;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The machines that are worked with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns {
    busy: Arc<Mutex<BTreeSet<MachineName>>>,
}

/// The right to work with a machine; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    name: MachineName,
}

impl Turns {
    /// # Errors
    /// When somebody works with the machine.
    pub(crate) fn take(&self, name: &MachineName) -> Result<Turn, Error> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(name.clone()) {
            return Err(Error::Busy { name: name.clone() });
        }
        Ok(Turn { turns: self.clone(), name: name.clone() })
    }

    /// Whether somebody works with the machine.
    pub(crate) fn is_taken(&self, name: &MachineName) -> bool {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

impl Turn {
    /// The same job, with this turn.
    pub(crate) fn over(self, job: &Job) -> Job {
        job.with(self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_that_outlives_its_run_keeps_the_turn() {
        let (turns, name) = (Turns::default(), "web01".parse().unwrap());
        let job = turns.take(&name).unwrap().over(&job::tests::quiet());
        let (begun, has_begun) = oneshot::channel();
        let (ended, may_end) = std::sync::mpsc::channel::<()>();
        {
            let work = job.block(move || {
                begun.send(()).ok();
                may_end.recv().ok();
                Ok::<_, Error>(())
            });
            tokio::pin!(work);
            tokio::select! {
                done = &mut work => panic!("it does not wait: {done:?}"),
                has_begun = has_begun => has_begun.unwrap(),
            }
        }
        drop(job);
        assert!(matches!(turns.take(&name), Err(Error::Busy { .. })));
        drop(ended);
        while turns.take(&name).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
