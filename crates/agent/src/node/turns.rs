//! Who may be at work at a time: a VM that hangs takes no turns from others, and restarts do not
//! wait behind checks.
//!
//! # Invariants
//! - What waited too long is not done at all: the server gave it up, or will ask again.

use api::node::{Task, Work};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Checks under way.
pub(super) const AT_ONCE: usize = 16;
/// Of these, of one VM.
const OF_ONE: usize = 2;
const RESTARTS: usize = 4;
/// The server waits 30 s longer than a check takes, and outcomes take a way.
const PATIENCE: Duration = Duration::from_secs(25);
/// After this time the VM that was to be started anew may be another.
const YOUNG: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Turns {
    checks: Arc<Semaphore>,
    restarts: Arc<Semaphore>,
    units: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

/// Ends when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _of_unit: Option<OwnedSemaphorePermit>,
    _of_node: OwnedSemaphorePermit,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self {
            checks: Arc::new(Semaphore::new(AT_ONCE)),
            restarts: Arc::new(Semaphore::new(RESTARTS)),
            units: Mutex::default(),
        }
    }

    /// Waits for a turn of a task that has just come; nothing where that takes too long.
    pub(super) async fn take(&self, task: &Task) -> Option<Turn> {
        let is_restart = matches!(task.work, Work::Restart);
        let limit = if is_restart { YOUNG } else { PATIENCE };
        let turn = async {
            if is_restart {
                let of_node = Arc::clone(&self.restarts).acquire_owned().await.ok()?;
                return Some(Turn { _of_unit: None, _of_node: of_node });
            }
            // The unit's first: who waits for that keeps nobody else waiting.
            let of_unit = self.of(&task.unit).acquire_owned().await.ok()?;
            let of_node = Arc::clone(&self.checks).acquire_owned().await.ok()?;
            Some(Turn { _of_unit: Some(of_unit), _of_node: of_node })
        };
        timeout(limit, turn).await.ok().flatten()
    }

    fn of(&self, unit: &str) -> Arc<Semaphore> {
        let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody uses or waits for.
        units.retain(|_, turns| Arc::strong_count(turns) > 1);
        let turns = units.entry(unit.to_owned());
        Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(OF_ONE))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn task(unit: &str, work: Work) -> Task {
        Task { id: 1, name: "web".parse().unwrap(), unit: unit.into(), timeout_seconds: 5, work }
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_takes_no_turns_of_others() {
        let (turns, begin) = (Turns::new(), Instant::now());
        let check = |unit: &str| task(unit, Work::Guest { port: None });
        let hung = [turns.take(&check("hung")).await, turns.take(&check("hung")).await];
        assert!(hung.iter().all(Option::is_some));
        let others: Vec<String> = (2..AT_ONCE).map(|number| format!("vm{number}")).collect();
        let mut under_way = Vec::new();
        for unit in &others {
            under_way.push(turns.take(&check(unit)).await.unwrap());
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
        // A third of the VM that hangs waits, and is dropped.
        assert!(turns.take(&check("hung")).await.is_none());
        let soon = PATIENCE..PATIENCE + Duration::from_secs(1);
        assert!(soon.contains(&begin.elapsed()));
        // All turns are taken, and a restart has one.
        let restart = task("hung", Work::Restart);
        assert!(turns.take(&restart).await.is_some());
        assert!(soon.contains(&begin.elapsed()));
        drop(under_way);
        assert!(turns.take(&check("late")).await.is_some());
        assert_eq!(turns.units.lock().unwrap().len(), 2, "nobody uses the others any more");
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_restart_is_none() {
        let (turns, begin) = (Turns::new(), Instant::now());
        let restart = task("web", Work::Restart);
        let mut under_way = Vec::new();
        for _ in 0..RESTARTS {
            under_way.push(turns.take(&restart).await.unwrap());
        }
        assert!(turns.take(&restart).await.is_none());
        assert!((YOUNG..PATIENCE).contains(&begin.elapsed()));
    }
}
