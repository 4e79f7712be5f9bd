//! Saved moments of a twin: taken, gone back to, let go of.

use super::error::Error;
use super::follow::Standing;
use super::retention::{Saved, superfluous};
use super::{Twins, nearest};
use crate::clock;
use crate::runs::{self, Cause, Failure, Handle, Kind, RunId, Stream as Says, Subject};
use crate::snapshots::{BASE, stamp};
use api::twin::{BegunRevert, Nearest, SnapshotKind, SnapshotWeight};
use futures_util::future::try_join;
use model::{Significance, Time, Version};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;
use store::Filter;
use vm::image::{MachineName, SnapshotName};
use vm::machine::{self, Kind as Holds, Listed, Seen, Snapshot, State};

/// For one operation with a snapshot, merging layers included.
pub(super) const DEADLINE: Duration = Duration::from_secs(1800);
pub(super) const VERSION: &str = "version";
pub(super) const WEIGHT: &str = "weight";
/// The version was seen in the twin, and is not only its host's.
pub(super) const REACHED: &str = "reached";

/// A snapshot to take, checked.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) name: SnapshotName,
    pub(super) kind: Holds,
    pub(super) is_named: bool,
}

impl Twins {
    /// The oldest first.
    pub(super) async fn listed(&self, name: &MachineName) -> Result<Vec<Listed>, Error> {
        self.known(name).await?;
        Ok(self.hypervisor().await?.snapshots(name).await?)
    }

    /// The snapshot of this name.
    pub(super) async fn found(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
    ) -> Result<Listed, Error> {
        let unknown = || {
            let (name, snapshot) = (name.clone(), snapshot.clone());
            machine::Error::UnknownSnapshot { name, snapshot }
        };
        let found = self.listed(name).await?.into_iter().find(|one| one.name == *snapshot);
        Ok(found.ok_or_else(unknown)?)
    }

    /// Saves a twin as it is now.
    ///
    /// # Errors
    /// When there is no such twin, the name is taken, or its memory is asked for and it has none.
    pub async fn save(
        &self,
        name: &MachineName,
        called: Option<SnapshotName>,
        kind: Option<SnapshotKind>,
        cause: Cause,
    ) -> Result<(RunId, SnapshotName), Error> {
        let seen = self.known(name).await?;
        let wish = self.wish(name, &seen, called, kind).await?;
        let (subject, chosen) = (name.clone(), wish.name.clone());
        let work = async move |this: Self, handle: Handle| {
            this.take(&subject, wish, &handle).await?;
            this.prune_after(&subject, &handle).await;
            Ok(())
        };
        Ok((self.begin((Kind::SnapshotCreate, name), cause, work).await?, chosen))
    }

    pub(super) async fn wish(
        &self,
        name: &MachineName,
        seen: &Seen,
        called: Option<SnapshotName>,
        kind: Option<SnapshotKind>,
    ) -> Result<Wish, Error> {
        let runs = seen.state == State::Running;
        let kind = match kind {
            Some(SnapshotKind::Live) if !runs => {
                let doing = "save its memory, or save its disk alone: --disk";
                return Err(machine::Error::NotRunning { name: name.clone(), doing }.into());
            }
            Some(SnapshotKind::Live) => Holds::Live,
            None if runs => Holds::Live,
            Some(SnapshotKind::Disk) | None => Holds::Disk,
        };
        let taken: Vec<SnapshotName> =
            self.listed(name).await?.into_iter().map(|one| one.name).collect();
        let is_named = called.is_some();
        let name = match called {
            Some(snapshot) if taken.contains(&snapshot) => {
                let name = name.clone();
                return Err(machine::Error::SnapshotExists { name, snapshot }.into());
            }
            Some(snapshot) => snapshot,
            None => free_name(clock::now(), &taken),
        };
        Ok(Wish { name, kind, is_named })
    }

    pub(super) async fn take(
        &self,
        name: &MachineName,
        wish: Wish,
        handle: &Handle,
    ) -> Result<Snapshot, Failure> {
        handle.step(&format!("Saving {name} as {}", wish.name));
        let hypervisor = self.hypervisor().await?;
        let newest = hypervisor.snapshots(name).await?.into_iter();
        let newest = newest.filter_map(|one| one.snapshot.ok()).next_back();
        let (subject, wished) = (name.clone(), wish.clone());
        let labels =
            self.off_thread(move |this| this.labels(&subject, newest.as_ref(), &wished)).await?;
        let new =
            machine::NewSnapshot { name: wish.name, kind: wish.kind, at: clock::now(), labels };
        let saved = hypervisor.snapshot(name, new, &handle.job(DEADLINE)).await?;
        let text = format!(
            "the guest stood still for {} ms; {} MiB",
            saved.pause.as_millis(),
            saved.used_bytes >> 20
        );
        handle.line(Says::Stdout, &text);
        Ok(saved)
    }

    /// What a snapshot belongs to, and how much it matters. Blocks.
    fn labels(
        &self,
        name: &MachineName,
        newest: Option<&Snapshot>,
        wish: &Wish,
    ) -> Result<BTreeMap<String, String>, Error> {
        let mut labels = BTreeMap::new();
        let mut weight = if wish.is_named { SnapshotWeight::Named } else { SnapshotWeight::Minor };
        if let Some(info) = self.host(name).and_then(|host| self.inner.history.host(&host)) {
            // What is in the twin, where that is known; else its host's newest.
            let reached = self.reached(name);
            let is_mixed = self.is_mixed(name);
            if reached.is_some() && !is_mixed {
                labels.insert(REACHED.to_owned(), true.to_string());
            }
            // What a twin began as is no version of its host, nor is what is between two.
            if !is_mixed && (wish.name.as_str() != BASE || reached.is_some()) {
                let version = reached.unwrap_or(info.head);
                labels.insert(VERSION.to_owned(), version.0.to_string());
            }
            if !wish.is_named {
                let significance = Some(Significance::Major);
                let since = newest.map(|newest| newest.at);
                let filter = Filter { since, significance, ..Filter::default() };
                if !self.inner.history.log(&info.host, &filter, None, 1)?.is_empty() {
                    weight = SnapshotWeight::Major;
                }
            }
        }
        labels.insert(WEIGHT.to_owned(), weight.to_string());
        Ok(labels)
    }

    /// Puts a twin back to a snapshot.
    ///
    /// # Errors
    /// When there is no such twin or snapshot.
    pub async fn revert(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        cause: Cause,
    ) -> Result<RunId, Error> {
        self.go_back(name, snapshot.clone(), None, cause).await
    }

    /// Puts a twin back to the snapshot that is meant, or to the current one.
    ///
    /// # Errors
    /// When there is no such twin, or nothing to go back to.
    pub async fn revert_to(
        &self,
        name: &MachineName,
        wanted: Option<&str>,
        cause: Cause,
    ) -> Result<BegunRevert, Error> {
        let current = self.known(name).await?.current;
        let (to, nearest) = match wanted {
            None => (current.ok_or_else(|| Error::NoSnapshot { name: name.clone() })?, None),
            Some(text) => match self.meant(name, text).await? {
                Some(meant) => (meant.snapshot.name, meant.nearest),
                None => {
                    let what = "a twin is as it is now; name a moment before".to_owned();
                    return Err(Error::Value { key: "snapshot", what });
                }
            },
        };
        let snapshot = to.to_string();
        let run = self.go_back(name, to, nearest.clone(), cause).await?;
        Ok(BegunRevert { run, snapshot, nearest })
    }

    async fn go_back(
        &self,
        name: &MachineName,
        to: SnapshotName,
        nearest: Option<Nearest>,
        cause: Cause,
    ) -> Result<RunId, Error> {
        let found = self.found(name, &to).await?.snapshot;
        let version = found.as_ref().ok().and_then(nearest::version);
        let is_live = found.is_ok_and(|found| found.kind == Holds::Live);
        let (subject, rest) = (name.clone(), nearest.as_ref().and_then(nearest::rest));
        let work = async move |this: Self, handle: Handle| {
            if let Some(nearest) = nearest {
                handle.step(&nearest::told(&nearest));
            }
            let hypervisor = this.hypervisor().await?;
            // First: whatever becomes of it, it does not follow.
            let (before, why) = this.is_put_back(&subject, &to).await?;
            let was = hypervisor.show(&subject).await?.current;
            if let Err(error) = hypervisor.revert(&subject, &to, &handle.job(DEADLINE)).await {
                if error.is_refusal()
                    || may_be_still(&error) && this.is_still(&subject, was, &to).await
                {
                    let as_before = move |standing: &mut Standing| {
                        // Somebody may have decided otherwise.
                        if standing.held_because() == Some(why.as_str()) {
                            *standing = before;
                        }
                    };
                    this.settle_standing(&subject, as_before).await?;
                }
                return Err(error.into());
            }
            this.stays_at(&subject, &to, version).await?;
            if is_live || hypervisor.show(&subject).await?.state != State::Stopped {
                let answered = this.await_guest(&subject, &handle);
                runs::aside(Box::pin(try_join(answered, this.refresh(&subject, &handle)))).await?;
            }
            handle.step(&format!("{subject} is as it was at {to}"));
            if let Some(rest) = rest
                && this.seen(&subject).await?.is_some_and(|seen| seen.state == State::Running)
                && this.lead_to(&subject, &subject, rest, &handle).await?
            {
                this.stays_at(&subject, &format!("version {rest}"), Some(rest)).await?;
            }
            Ok(())
        };
        self.begin((Kind::SnapshotRevert, name), cause, work).await
    }

    /// A twin that is about to be put back is not changed any more, since that may be cut off.
    /// How it stood before, and why it is held meanwhile.
    async fn is_put_back(
        &self,
        name: &MachineName,
        to: &SnapshotName,
    ) -> Result<(Standing, String), Error> {
        let (name, why) = (name.clone(), format!("it was being put back to {to}"));
        self.off_thread(move |this| {
            let mut before = Standing::default();
            let change = |standing: &mut Standing| before = standing.is_put_back(why.clone());
            this.inner.standings.change(&name, change)?;
            Ok((before, why))
        })
        .await
    }

    /// Whether a twin that could not be put back is what it was. Of one that stood at this snapshot
    /// before, that can't be told.
    async fn is_still(
        &self,
        name: &MachineName,
        was: Option<SnapshotName>,
        to: &SnapshotName,
    ) -> bool {
        was.as_ref() != Some(to)
            && matches!(self.seen(name).await, Ok(Some(seen)) if seen.current == was)
    }

    /// A twin that was put back stays there, until somebody lets it follow.
    async fn stays_at(
        &self,
        name: &MachineName,
        to: &impl Display,
        version: Option<Version>,
    ) -> Result<(), Error> {
        let why = format!("it was put back to {to}");
        self.settle_standing(name, move |standing| {
            *standing = Standing::put_back(why, version);
        })
        .await
    }

    /// # Errors
    /// When there is no such twin or snapshot, or it is the base or the current one.
    pub async fn delete_snapshot(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        cause: Cause,
    ) -> Result<RunId, Error> {
        self.found(name, snapshot).await?;
        let kept = |why| Error::Kept { snapshot: snapshot.to_string(), why };
        if snapshot.as_str() == BASE {
            return Err(kept("what the twin began as"));
        }
        if self.known(name).await?.current.as_ref() == Some(snapshot) {
            return Err(kept("the current one; take or go back to another one first"));
        }
        let (subject, gone) = (name.clone(), snapshot.clone());
        let work =
            async move |this: Self, handle: Handle| this.let_go(&subject, &gone, &handle).await;
        self.begin((Kind::SnapshotDelete, name), cause, work).await
    }

    async fn let_go(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        handle: &Handle,
    ) -> Result<(), Failure> {
        handle.step(&format!("Deleting {snapshot} of {name}"));
        let job = handle.job(DEADLINE);
        Ok(self.hypervisor().await?.delete_snapshot(name, snapshot, &job).await?)
    }

    /// Lets go of the snapshots that are too many or too old.
    pub(super) async fn prune(&self, name: &MachineName, handle: &Handle) -> Result<(), Failure> {
        for snapshot in self.too_many(name).await? {
            self.let_go(name, &snapshot, handle).await?;
        }
        Ok(())
    }

    /// The same after a snapshot was taken, which is there whatever becomes of older ones.
    pub(super) async fn prune_after(&self, name: &MachineName, handle: &Handle) {
        if let Err(failure) = self.prune(name, handle).await {
            handle.line(Says::Stderr, &format!("older snapshots were not all deleted, which is tried again after the next one: {}", failure.message()));
            tracing::warn!(twin = %name, failure = failure.message(), "older snapshots were not all deleted");
        }
    }

    async fn too_many(&self, name: &MachineName) -> Result<Vec<SnapshotName>, Error> {
        let current = self.known(name).await?.current;
        let listed = self.listed(name).await?;
        let saved: Vec<Saved> =
            listed.into_iter().filter_map(|one| Some(saved(&one.snapshot.ok()?))).collect();
        Ok(superfluous(&saved, current.as_ref(), self.inner.settings.keep, clock::now()))
    }

    /// Begins to let go of what is too old, of each twin on which nothing else is done.
    pub(crate) async fn expire(&self) {
        if self.inner.settings.keep.age.is_none() || self.is_untouched() {
            return;
        }
        let names = self.names().await.unwrap_or_default();
        for name in names {
            let is_on = self.inner.runs.on(&Subject::twin(&name)).is_some();
            let superfluous = self.too_many(&name).await.unwrap_or_default();
            if is_on || superfluous.is_empty() {
                continue;
            }
            let subject = name.clone();
            let work = async move |this: Self, handle: Handle| this.prune(&subject, &handle).await;
            let begun = self.begin((Kind::SnapshotDelete, &name), Cause::Schedule, work).await;
            if let Err(error) = begun {
                tracing::warn!(twin = %name, error = &error as &dyn std::error::Error, "old snapshots were not deleted; tried again at the next pass");
            }
        }
    }
}

/// Whether this may have come before a twin was put back, as well as after it.
fn may_be_still(error: &machine::Error) -> bool {
    use machine::Error::{Full, Image, Job};
    matches!(error, Full { .. } | Image(_) | Job(_))
}

fn saved(snapshot: &Snapshot) -> Saved {
    let weight = snapshot.labels.get(WEIGHT).and_then(|text| text.parse().ok());
    Saved {
        name: snapshot.name.clone(),
        at: snapshot.at,
        weight: weight.unwrap_or(SnapshotWeight::Named),
    }
}

/// `state_YYYYMMDD_HHMMSS`; several within a second are told apart by a number.
pub(super) fn free_name(now: Time, taken: &[SnapshotName]) -> SnapshotName {
    let name = stamp(now);
    let others = (2..).map(|n: u32| format!("{name}_{n}"));
    let mut names = std::iter::once(name.clone()).chain(others).flat_map(|name| name.parse());
    names.find(|name| !taken.contains(name)).expect("numbers do not end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::Limits;
    use crate::twins::fake::{Fake, Fate, Guest, called, known, limited, over, tell, twins};
    use api::following::FollowState;

    /// How a twin that was current stands after a revert that met with this.
    async fn check(fate: Fate, expected_run: &str, expected: &str) {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let limits = Limits { grace: Duration::from_millis(1), ..Limits::default() };
        let twins = limited(dir.path(), &fake, limits);
        let name = known(&twins, &fake, "web01");
        tell(&twins, "web01", "old");
        tell(&twins, "web01", "web01");
        fake.inhabit(&name, &Guest::new(called("web01"), []));
        fake.has_saved("a", Some(1));
        twins.follow(&name).await.unwrap();
        let before = twins.verify(&name).await.unwrap().following;
        assert_eq!((before.state, before.version), (FollowState::Current, Some(2)));
        *fake.fate.lock().unwrap() = fate;
        let run = twins.revert(&name, &"a".parse().unwrap(), Cause::Local).await.unwrap();
        if fate == Fate::NeverEnds {
            let met = async {
                while *fake.fate.lock().unwrap() == fate {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(crate::twins::fake::LONG, met).await.unwrap();
            twins.inner.runs.cancel(run).unwrap();
        }
        let ended = over(&twins, run).await;
        assert!(ended.starts_with(expected_run), "{ended}");
        let after = twins.following(&name).await.unwrap().unwrap();
        let reason = after.reason.unwrap_or_default();
        assert_eq!(format!("{} at {:?}: {reason}", after.state, after.version), expected);
        twins.inner.runs.close().await;
    }

    #[tokio::test]
    async fn a_twin_that_goes_back_does_not_follow_whatever_becomes_of_it() {
        // This guest's agent of QEMU never answers.
        let done = "held at Some(1): it was put back to a";
        check(Fate::Done, "failed web01 does not run", done).await;
        let unknown = "held at None: it was being put back to a";
        check(Fate::Fails, "failed web01 went away", unknown).await;
        check(Fate::NeverEnds, "cancelled", unknown).await;
        check(Fate::Panics, "failed the server made a mistake", unknown).await;
        check(Fate::Refused, "failed web01 is busy", "current at Some(2): ").await;
        check(Fate::NoRoom, "failed 1 bytes are free", "current at Some(2): ").await;
    }

    #[tokio::test]
    async fn one_that_was_taken_is_told_so_whatever_becomes_of_older_ones() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let twins = twins(dir.path(), &fake);
        let one = known(&twins, &fake, "one");
        // One more than are kept.
        for number in 0..=10 {
            let called = Some(format!("s{number}").parse().unwrap());
            let (run, _) = twins.save(&one, called, None, Cause::Local).await.unwrap();
            assert_eq!(over(&twins, run).await, "succeeded");
        }
        assert_eq!(twins.too_many(&one).await.unwrap().len(), 1);
        twins.inner.runs.close().await;
    }

    #[test]
    fn two_within_a_second_have_two_names() {
        let now = Time(1_795_165_200_999_999);
        let first = free_name(now, &[]);
        assert_eq!(first.as_str(), "state_20261120_090000");
        let second = free_name(now, std::slice::from_ref(&first));
        assert_eq!(second.as_str(), "state_20261120_090000_2");
    }
}
