//! What the VMMs of microVMs say at their API sockets, asked again and again while there are units
//! of such. It rides along with the load.
//!
//! # Invariants
//! - Each VMM is asked by itself, with a deadline, and not again before that is over: one that
//!   ignores its socket is a fault of its own VM, and holds up no other.

use super::Context;
use crate::clock;
use host::vmm::{Asker, Error};
use model::entity::Unit;
use model::load::VmmLoad;
use model::vm::{Layer, may_be_microvm};
use model::{Time, with_causes};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// For all that is asked of one VMM.
const DEADLINE: Duration = Duration::from_secs(2);
/// VMMs that are asked at the same time.
const AT_ONCE: usize = 32;
/// Of the agent's rhythm: what they say seldom changes.
const EVERY: u32 = 3;

/// What one VMM said; nothing where the unit has none that can be asked.
type Said = (String, Option<Result<VmmLoad, Error>>);

pub(crate) async fn run(context: Context) {
    if context.once {
        return;
    }
    let sink = context.sink("vmms");
    let units = context.units.subscribe();
    let asker = Asker::new(context.root.clone());
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked: JoinSet<Said> = JoinSet::new();
    let mut under_way = BTreeSet::new();
    let mut look = tokio::time::interval(context.config.interval * EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_known = false;
    loop {
        tokio::select! {
            _ = look.tick() => {
                let running = {
                    let (units, user_vms) = (units.borrow(), context.user_vms.borrow());
                    let units = units.iter().flat_map(|units| units.iter());
                    running(units.chain(user_vms.values().flatten()))
                };
                if running.is_empty() && !is_known {
                    // Where there are no VMs there is nothing to tell of.
                    continue;
                }
                match std::mem::replace(&mut is_known, true) {
                    false => sink.all(Vec::new(), Vec::new(), Vec::new()).await,
                    true => sink.unchanged().await,
                }
                keep(&context, &running);
                for (unit, group) in running {
                    if under_way.insert(unit.clone()) {
                        asked.spawn(ask(asker.clone(), unit, group, Arc::clone(&turns)));
                    }
                }
            }
            Some(said) = asked.join_next() => {
                if let Ok((unit, said)) = said {
                    under_way.remove(&unit);
                    take(&context, unit, said);
                }
            }
            () = context.shutdown.cancelled() => return,
        }
    }
}

/// Units that run a microVM now, with their control groups.
fn running<'u>(units: impl Iterator<Item = &'u Unit>) -> Vec<(String, String)> {
    let runs = |unit: &&Unit| may_be_microvm(&unit.id) && unit.active_state == "active";
    units.filter(runs).filter_map(|unit| Some((unit.id.clone(), unit.cgroup.clone()?))).collect()
}

async fn ask(asker: Asker, unit: String, group: String, turns: Arc<Semaphore>) -> Said {
    let Ok(_turn) = turns.acquire().await else { return (unit, None) };
    let finds = asker.clone();
    let found = tokio::task::spawn_blocking(move || finds.find(&group));
    let found = tokio::time::timeout(DEADLINE, found).await;
    let Ok(Ok(Some(monitor))) = found else { return (unit, None) };
    if !monitor.can_be_asked() {
        return (unit, None);
    }
    let said = monitor.ask(&asker, DEADLINE).await;
    (unit, Some(said))
}

/// Forgets those that do not run any more.
fn keep(context: &Context, running: &[(String, String)]) {
    let running: BTreeSet<&str> = running.iter().map(|(unit, _)| unit.as_str()).collect();
    let mut vmms = context.vmms.lock().unwrap_or_else(PoisonError::into_inner);
    vmms.retain(|unit, _| running.contains(unit.as_str()));
}

fn take(context: &Context, unit: String, said: Option<Result<VmmLoad, Error>>) {
    let mut vmms = context.vmms.lock().unwrap_or_else(PoisonError::into_inner);
    let before = vmms.remove(&unit);
    let now = said.and_then(|said| known(before, said, clock::now()));
    vmms.extend(now.map(|now| (unit, now)));
}

/// What is known of a VMM after it was asked.
fn known(before: Option<VmmLoad>, said: Result<VmmLoad, Error>, at: Time) -> Option<VmmLoad> {
    match said {
        Ok(said) => Some(VmmLoad { at: Some(at), ..said }),
        // It serves another, or us still, whom it let in and then forgot: as it was before.
        Err(Error::Taken { .. }) => before,
        Err(error) if error.layer() == Layer::Vmm => {
            Some(VmmLoad { fault: Some(with_causes(&error)), ..before.unwrap_or_default() })
        }
        Err(error) => {
            tracing::debug!(error = with_causes(&error), "a VMM could not be asked");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_known() {
        let path = || "/run/q".into();
        let said = VmmLoad { vcpus: Some(2), ..VmmLoad::default() };
        let at = Time::from_seconds(7);
        let fresh = known(None, Ok(said.clone()), at).unwrap();
        assert_eq!((fresh.at, fresh.vcpus), (Some(at), Some(2)));
        let silent = || Error::Silent { path: path(), limit: DEADLINE };
        let hangs = known(Some(fresh.clone()), Err(silent()), Time::from_seconds(9)).unwrap();
        assert_eq!((hangs.at, hangs.vcpus), (Some(at), Some(2)), "with its age");
        assert!(hangs.fault.as_deref().is_some_and(|fault| fault.contains("does not answer")));
        let taken = || Err(Error::Taken { path: path() });
        assert_eq!(known(Some(hangs.clone()), taken(), at), Some(hangs.clone()));
        assert_eq!(known(None, taken(), at), None);
        let again = known(Some(hangs), Ok(said), at).unwrap();
        assert_eq!(again.fault, None);
        assert_eq!(known(Some(again), Err(Error::Foreign { path: path() }), at), None);
    }
}
