//! How a twin stands towards its host, as it is written down, and as it is told.
//!
//! ```text
//! unknown ──looked──► behind ◄──host changed── current
//!                        │                        ▲
//!                        ├── all came true ───────┤
//!                        └── did not ─► degraded ─┘        held, from any of them and back
//! ```

use super::pace::retry_after;
use crate::twins::error::Error;
use crate::twins::record::Book;
use api::following::{FollowFailure, FollowState, Following};
use model::{Time, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vm::image::MachineName;

const UNREADABLE: &str = "what was decided about it can't be read";

/// What was decided about following.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mode {
    /// Nobody decided anything: it follows where that is safe.
    #[default]
    Unset,
    Follows,
    /// And why.
    Held(String),
}

/// A version of the host that was seen to be in the twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reached {
    pub(super) version: Version,
    /// From the host's change until then, where the twin was brought there.
    pub(super) took: Option<Duration>,
}

/// What a comparison came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Compared {
    pub(super) at: Time,
    pub(super) fidelity_per_mille: u32,
    pub(super) steps_left: usize,
    pub(super) gaps: usize,
}

/// What did not come true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failed {
    pub(super) at: Time,
    pub(super) step: Option<String>,
    pub(super) output: Vec<String>,
    pub(super) tries: u32,
}

/// All that is known of how a twin follows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::twins) struct Standing {
    pub(super) mode: Mode,
    pub(super) reached: Option<Reached>,
    pub(super) compared: Option<Compared>,
    pub(super) failure: Option<Failed>,
    /// A plan that is being carried out in the guest, by its name there.
    pub(super) under_way: Option<String>,
    /// Something of a newer version was brought to it since it was last seen to be at one.
    pub(super) is_mixed: bool,
    /// Why it does not follow though nobody decided so.
    #[serde(skip)]
    pub(super) unsafe_because: Option<String>,
}

impl Failed {
    pub(super) fn retry_at(&self) -> Time {
        self.at.plus(retry_after(self.tries, self.step.is_some()))
    }
}

impl Standing {
    /// Why it is held, if it is.
    pub(in crate::twins) fn held_because(&self) -> Option<&str> {
        match &self.mode {
            Mode::Held(why) => Some(why),
            Mode::Unset => self.unsafe_because.as_deref(),
            Mode::Follows => None,
        }
    }

    /// That of a twin that was put back, to a version if one is known.
    pub(in crate::twins) fn put_back(why: String, version: Option<Version>) -> Self {
        Self {
            mode: Mode::Held(why),
            reached: version.map(|version| Reached { version, took: None }),
            ..Self::default()
        }
    }

    /// Of one that is put back from now on nobody knows what it is until that is done. How it
    /// stood before.
    pub(in crate::twins) fn is_put_back(&mut self, why: String) -> Self {
        let under_way = self.under_way.clone();
        std::mem::replace(self, Self { under_way, ..Self::put_back(why, None) })
    }

    fn state(&self, head: Version) -> FollowState {
        match &self.reached {
            _ if self.held_because().is_some() => FollowState::Held,
            _ if self.failure.is_some() => FollowState::Degraded,
            None => FollowState::Unknown,
            Some(reached) if reached.version < head => FollowState::Behind,
            Some(_) => FollowState::Current,
        }
    }

    /// As outsiders are told. `first` is when the first version began that is not in the twin.
    pub(super) fn told(&self, head: Version, first: Option<Time>, now: Time) -> Following {
        let is_held = self.held_because().is_some();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let lag = self.reached.as_ref().map(|_| first.map_or(0, |first| millis(now.since(first))));
        let compared = self.compared.as_ref();
        Following {
            state: self.state(head),
            reason: self.held_because().map(str::to_owned),
            version: self.reached.as_ref().map(|reached| reached.version.0),
            host_version: head.0,
            lag_ms: lag,
            took_ms: self.reached.as_ref().and_then(|reached| reached.took).map(millis),
            looked_at: compared.map(|compared| compared.at),
            fidelity_per_mille: compared.map(|compared| compared.fidelity_per_mille),
            steps_left: compared.map(|compared| compared.steps_left),
            gaps: compared.map(|compared| compared.gaps),
            failure: self.failure.as_ref().map(|failed| FollowFailure {
                at: failed.at,
                step: failed.step.clone(),
                output: failed.output.clone(),
                tries: failed.tries,
                retry_at: (!is_held).then(|| failed.retry_at()),
            }),
            run: None,
        }
    }
}

/// The standings of all twins, changed by one at a time. Calls block.
#[derive(Debug, Clone)]
pub(in crate::twins) struct Standings {
    book: Book,
    known: Arc<Mutex<BTreeMap<MachineName, Known>>>,
}

#[derive(Debug)]
struct Known {
    standing: Standing,
    /// The disk has it, too.
    is_written: bool,
}

impl Standings {
    pub(in crate::twins) fn new(book: Book) -> Self {
        Self { book, known: Arc::default() }
    }

    /// Of one that nobody wrote down anything about, an empty one.
    pub(super) fn get(&self, name: &MachineName) -> Result<Standing, Error> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(name) {
            Some(known) => Ok(known.standing.clone()),
            None => Ok(self.book.standing(name)?.unwrap_or_default()),
        }
    }

    /// Changes one, durably where that makes a difference after a restart; else not at all.
    pub(in crate::twins) fn change(
        &self,
        name: &MachineName,
        change: impl FnOnce(&mut Standing),
    ) -> Result<(), Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, is_written) = match known.get(name) {
            Some(known) => (known.standing.clone(), known.is_written),
            None => (self.book.standing(name)?.unwrap_or_default(), true),
        };
        let mut standing = before.clone();
        change(&mut standing);
        if !is_written || !is_same_after_a_restart(&before, &standing) {
            self.book.put_standing(name, &standing)?;
        }
        known.insert(name.clone(), Known { standing, is_written: true });
        Ok(())
    }

    /// Changes one to what is so already. Where the disk takes nothing that is known all the
    /// same, and written with the next change.
    pub(in crate::twins) fn settle(&self, name: &MachineName, change: impl FnOnce(&mut Standing)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut standing = match known.get(name) {
            Some(known) => known.standing.clone(),
            None => {
                self.book.standing(name).map(Option::unwrap_or_default).unwrap_or_else(|error| {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(twin = %name, error, "how it follows can't be read; it is held");
                    Standing { mode: Mode::Held(UNREADABLE.to_owned()), ..Standing::default() }
                })
            }
        };
        change(&mut standing);
        let written = self.book.put_standing(name, &standing);
        if let Err(error) = &written {
            let error: &dyn std::error::Error = error;
            tracing::warn!(twin = %name, error, "how it follows can't be written; tried again");
        }
        known.insert(name.clone(), Known { standing, is_written: written.is_ok() });
    }

    pub(in crate::twins) fn forget(&self, name: &MachineName) -> Result<(), Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(name);
        self.book.delete_standing(name)
    }
}

/// After a restart the guest is looked at anyway, so a version that changed nothing of the twin
/// needs no write.
fn is_same_after_a_restart(before: &Standing, after: &Standing) -> bool {
    let took = |standing: &Standing| standing.reached.as_ref().map(|reached| reached.took);
    before.mode == after.mode
        && took(before) == took(after)
        && before.compared == after.compared
        && before.failure == after.failure
        && before.under_way == after.under_way
        && before.is_mixed == after.is_mixed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twins::record::FOLLOWING;

    fn at(version: u64) -> Standing {
        let reached = Reached { version: Version(version), took: None };
        Standing { reached: Some(reached), ..Standing::default() }
    }

    fn check(standing: &Standing, first_s: Option<i64>, expected: &str) {
        let now = Time::from_seconds(1000);
        let told = standing.told(Version(7), first_s.map(Time::from_seconds), now);
        let shown = format!("{} lag {:?}", told.state, told.lag_ms);
        assert_eq!(shown, expected);
    }

    #[test]
    fn states_and_lags() {
        check(&Standing::default(), None, "unknown lag None");
        check(&at(7), None, "current lag Some(0)");
        check(&at(5), Some(990), "behind lag Some(10000)");
        // Its clock is ahead of ours.
        check(&at(5), Some(1001), "behind lag Some(0)");
        let failed = Failed { at: Time::from_seconds(900), step: None, output: vec![], tries: 2 };
        let degraded = Standing { failure: Some(failed.clone()), ..at(5) };
        check(&degraded, Some(880), "degraded lag Some(120000)");
        let told = degraded.told(Version(7), None, Time(0)).failure.unwrap();
        assert_eq!(told.retry_at, Some(Time::from_seconds(910)));
        let held = Standing { mode: Mode::Held("so".into()), ..degraded };
        check(&held, Some(880), "held lag Some(120000)");
        let told = held.told(Version(7), None, Time(0));
        assert_eq!((told.reason.as_deref(), told.failure.unwrap().retry_at), (Some("so"), None));
        let unsafe_because = Some("of another kind".to_owned());
        let unset = Standing { unsafe_because: unsafe_because.clone(), ..at(7) };
        check(&unset, None, "held lag Some(0)");
        check(&Standing { mode: Mode::Follows, ..unset }, None, "current lag Some(0)");
    }

    #[test]
    fn what_is_so_is_known_also_where_it_can_not_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let history = store::History::open(dir.path(), store::Options::default()).unwrap();
        let book = Book::new(history.records());
        let (standings, name) = (Standings::new(book.clone()), "web01".parse().unwrap());
        // More than any record may have.
        let held = || Mode::Held("x".repeat(1 << 20));
        assert!(standings.change(&name, |standing| standing.mode = held()).is_err());
        assert_eq!(standings.get(&name).unwrap().mode, Mode::Unset);
        standings.settle(&name, |standing| standing.mode = held());
        assert_eq!(standings.get(&name).unwrap().mode, held());
        assert_eq!(book.standing(&name).unwrap(), None);
        // Whatever is changed next, all of it is written.
        assert!(standings.change(&name, |_standing| {}).is_err());
        standings.settle(&name, |standing| standing.mode = Mode::Held("so".into()));
        let written = book.standing(&name).unwrap().unwrap();
        assert_eq!(written.mode, Mode::Held("so".into()));
    }

    #[test]
    fn one_about_which_nothing_can_be_read_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let history = store::History::open(dir.path(), store::Options::default()).unwrap();
        let (records, name) = (history.records(), "web01".parse().unwrap());
        records.put(FOLLOWING, "web01", &"of another form").unwrap();
        let standings = Standings::new(Book::new(records));
        assert!(standings.get(&name).is_err());
        standings.settle(&name, |standing| standing.reached = None);
        assert_eq!(standings.get(&name).unwrap().mode, Mode::Held(UNREADABLE.to_owned()));
    }

    #[test]
    fn only_what_a_restart_would_lose_is_written() {
        assert!(is_same_after_a_restart(&at(5), &at(6)));
        assert!(!is_same_after_a_restart(&Standing::default(), &at(6)));
        assert!(!is_same_after_a_restart(&at(5), &Standing { mode: Mode::Follows, ..at(5) }));
    }
}
