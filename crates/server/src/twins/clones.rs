//! Clones: further machines that begin in one moment of a twin, cut off from everything, each
//! made itself before anybody is told of it.
//!
//! ```text
//! record: half made ─► clone_at ─► answers ─► Renew, Identity ─► its SSH keys are pinned ─► record: made
//!        ─► for a moment that no snapshot holds: led to it
//! ```
//!
//! # Invariants
//! - A run removes only what it made itself: its names are its own from before it begins.
//! - What is half made when the run ends, or when the server starts, is removed.

use super::create::{hexadecimal, host_name, mac, random};
use super::error::Error;
use super::names::Reserved;
use super::nearest::Meant;
use super::record::Record;
use super::snapshots::Wish;
use super::{Twins, nearest, snapshots};
use crate::runs::{self, Cause, Failure, Handle, Kind, Stream as Says};
use api::twin::{BegunClones, MAX_CLONES, NewClones};
use futures_util::future::join_all;
use model::Identity;
use std::collections::BTreeSet;
use vm::image::{MachineName, SnapshotName};
use vm::machine::{self, Hypervisor, Kind as Holds, NewClone};

/// The moment that clones begin in.
enum Moment {
    Saved(Box<Meant>),
    /// The present one, which is saved for it.
    Now(Wish),
}

impl Twins {
    /// Makes clones of a twin. They have their names at once, and the moment they begin in.
    ///
    /// # Errors
    /// When there is no such twin or snapshot, a name is taken, or too many are asked for.
    pub async fn clone_twin(
        &self,
        name: &MachineName,
        wanted: NewClones,
        cause: Cause,
    ) -> Result<BegunClones, Error> {
        let seen = self.known(name).await?;
        let names = self.clone_names(name, wanted.name, wanted.count.unwrap_or(1)).await?;
        let twins = names.iter().map(|reserved| reserved.name().to_string()).collect();
        let meant = match &wanted.snapshot {
            Some(text) => self.meant(name, text).await?,
            None => None,
        };
        let nearest = meant.as_ref().and_then(|meant| meant.nearest.clone());
        let moment = match meant {
            Some(meant) => Moment::Saved(Box::new(meant)),
            None => Moment::Now(self.wish(name, &seen, None, None).await?),
        };
        let clones: Vec<MachineName> = names.iter().map(|own| own.name().clone()).collect();
        let (subject, all) = (name.clone(), clones.clone());
        let work = async move |this: Self, handle: Handle| {
            this.branch_off(&subject, moment, &all, &handle).await
        };
        let then = async move |this: Self, _end| {
            for clone in &clones {
                this.undo(clone).await;
            }
            drop(names);
        };
        let run = self.begin_then((Kind::Clone, name), cause, work, then).await?;
        Ok(BegunClones { run, twins, nearest })
    }

    /// Names for so many clones, none of which is another machine's or a host's, or is about to be
    /// another machine's.
    async fn clone_names(
        &self,
        of: &MachineName,
        called: Option<String>,
        count: u32,
    ) -> Result<Vec<Reserved>, Error> {
        if !(1..=MAX_CLONES).contains(&count) {
            let what = format!("is between 1 and {MAX_CLONES}");
            return Err(Error::Value { key: "count", what });
        }
        let parse = |text: String| {
            text.parse::<MachineName>()
                .map_err(|error| Error::Value { key: "name", what: error.to_string() })
        };
        let Some(called) = called else { return self.free_names(of, count as usize).await };
        let names = match count {
            1 => vec![parse(called)?],
            _ => (1..=count).map(|n| parse(format!("{called}-{n}"))).collect::<Result<_, _>>()?,
        };
        let taken = |name: MachineName, by| Error::Taken { name, by };
        let mut reserved = Vec::new();
        for name in names {
            match self.inner.names.reserve(&name) {
                Some(own) => reserved.push(own),
                None => return Err(taken(name, "a machine of this name is being made")),
            }
        }
        let there = self.taken_names().await?;
        for name in reserved.iter().map(|own| own.name().clone()) {
            if there.contains(&name) {
                return Err(taken(name, "another twin is called so"));
            }
            if self.host(&name).is_some() {
                return Err(taken(name, "a host is called so"));
            }
            self.hypervisor().await?.refuse_foreign(&name).await?;
        }
        Ok(reserved)
    }

    /// The first so many of the names that clones of this machine are given.
    async fn free_names(&self, of: &MachineName, count: usize) -> Result<Vec<Reserved>, Error> {
        let mut numbers = 1_u64..;
        let mut reserved: Vec<Reserved> = Vec::new();
        while reserved.len() < count {
            for number in numbers.by_ref().take(count - reserved.len()) {
                let name = format!("{of}-clone-{number}").parse();
                let name = name.map_err(|error: vm::image::NameError| Error::Value {
                    key: "name",
                    what: error.to_string(),
                });
                reserved.extend(self.inner.names.reserve(&name?));
            }
            let there = self.taken_names().await?;
            reserved.retain(|own| !there.contains(own.name()) && self.host(own.name()).is_none());
            let mut free = Vec::new();
            for own in reserved.drain(..) {
                match self.hypervisor().await?.refuse_foreign(own.name()).await {
                    Ok(()) => free.push(own),
                    Err(machine::Error::Foreign { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            reserved = free;
        }
        Ok(reserved)
    }

    /// Those of all machines, also of those that the other hypervisor has, or that are not there.
    async fn taken_names(&self) -> Result<BTreeSet<MachineName>, Error> {
        let mut there: BTreeSet<MachineName> = self.names().await?.into_iter().collect();
        there.extend(self.elsewhere()?.into_keys());
        there.extend(self.all_lost().await?);
        Ok(there)
    }

    async fn branch_off(
        &self,
        of: &MachineName,
        moment: Moment,
        clones: &[MachineName],
        handle: &Handle,
    ) -> Result<(), Failure> {
        let is_new = matches!(moment, Moment::Now(_));
        let (snapshot, holds, rest) = match moment {
            Moment::Saved(meant) => {
                if let Some(nearest) = &meant.nearest {
                    handle.step(&nearest::told(nearest));
                }
                let rest = meant.nearest.as_ref().and_then(nearest::rest);
                (meant.snapshot.name, meant.snapshot.kind, rest)
            }
            Moment::Now(wish) => {
                let saved = self.take(of, wish, handle).await?;
                (saved.name, saved.kind, None)
            }
        };
        let done = self.all_of_them(of, (&snapshot, holds), clones, handle).await;
        if is_new {
            self.prune_after(of, handle).await;
        }
        done?;
        if let Some(rest) = rest {
            let all = clones.iter().map(|clone| self.lead_to(clone, of, rest, handle));
            join_all(all).await.into_iter().collect::<Result<Vec<bool>, Failure>>()?;
        }
        Ok(())
    }

    async fn all_of_them(
        &self,
        of: &MachineName,
        (snapshot, holds): (&SnapshotName, Holds),
        clones: &[MachineName],
        handle: &Handle,
    ) -> Result<(), Failure> {
        let hypervisor = self.hypervisor().await?;
        let mut identities = Vec::new();
        for name in clones {
            let (from, called) = (of.clone(), name.clone());
            let (new, identity) =
                self.off_thread(move |this| this.introduce_clone(&from, &called)).await?;
            let job = handle.job(snapshots::DEADLINE);
            if let Err(error) = hypervisor.clone_at(of, snapshot, new, &job).await {
                if matches!(error, machine::Error::Exists { .. }) {
                    // Whosever it is, it is no half-made clone.
                    self.forget_record(name).await?;
                }
                return Err(error.into());
            }
            identities.push(identity);
        }
        if holds == Holds::Disk {
            for name in clones {
                hypervisor.start(name, &handle.job(snapshots::DEADLINE)).await?;
            }
        }
        let mut all = Vec::new();
        for (name, identity) in clones.iter().zip(identities) {
            all.push(self.settle(name, identity, holds, handle));
        }
        runs::aside(join_all(all)).await.into_iter().collect()
    }

    /// Writes down that a clone is on its way, and who it will be. Blocks.
    fn introduce_clone(
        &self,
        of: &MachineName,
        name: &MachineName,
    ) -> Result<(NewClone, Identity), Error> {
        let record = self.record(of)?.ok_or_else(|| Error::Unknown { name: of.clone() })?;
        let record = Record { host_keys: Vec::new(), half_made: true, leaving: false, ..record };
        self.inner.access.pin(name, &record.host_keys)?;
        self.inner.book.put(name, &record)?;
        let id = hexadecimal(&random::<16>()?);
        let identity = Identity {
            hostname: host_name(name),
            machine_id: id.parse().map_err(|error: model::TextError| Error::Value {
                key: "machine id",
                what: error.to_string(),
            })?,
            mac: Some(mac()?),
        };
        let seed = self.seed(name, &record)?.iso()?;
        let mac = identity.mac.clone().map_or_else(mac, Ok)?;
        Ok((NewClone { name: name.clone(), mac, seed }, identity))
    }

    async fn settle(
        &self,
        name: &MachineName,
        identity: Identity,
        holds: Holds,
        handle: &Handle,
    ) -> Result<(), Failure> {
        match holds {
            Holds::Live => self.await_guest(name, handle).await?,
            Holds::Disk => self.await_boot(name, handle).await?,
        }
        handle.line(Says::Stdout, &format!("{name} answers"));
        let standing = self.become_itself(name, identity, handle).await?;
        let keys = standing.host_keys.unwrap_or_default();
        let keys: Vec<_> = keys.iter().filter_map(|key| key.trim().parse().ok()).collect();
        let called = name.clone();
        self.off_thread(move |this| {
            this.inner.access.pin(&called, &keys)?;
            let Some(record) = this.record(&called)? else { return Ok(()) };
            let record = Record { host_keys: keys, half_made: false, ..record };
            this.inner.book.put(&called, &record)
        })
        .await?;
        handle.line(Says::Stdout, &format!("{name} is itself"));
        Ok(())
    }

    /// Removes a clone that did not become itself, however its run ended. One that did stays.
    async fn undo(&self, name: &MachineName) {
        let called = name.clone();
        let record = self.off_thread(move |this| this.record(&called)).await;
        if !matches!(record, Ok(Some(Record { half_made: true, .. }))) {
            return;
        }
        let removed = match self.is_made(name).await {
            Ok(true) => self.remove(name).await,
            _ => self.forget_record(name).await.map_err(Failure::from),
        };
        if let Err(failure) = removed {
            tracing::warn!(clone = %name, ?failure, "a half-made clone stays until the next start");
        }
    }
}

/// Removes what the last server left half made: machines that are not themselves, and what is
/// known of machines that never were, or that it was removing. Those of the other hypervisor are
/// its own. What is known of a machine that was made stays, wherever that is now: its disk may not
/// be mounted. One that can't be removed holds up no other.
pub(super) async fn sweep(twins: &Twins, hypervisor: &dyn Hypervisor) {
    let found = async {
        let records = twins.off_thread(|this| this.inner.book.all()).await?;
        let elsewhere = twins.elsewhere()?;
        Ok::<_, Error>((records, hypervisor.list().await?, elsewhere))
    };
    let (records, there, elsewhere) = match found.await {
        Ok(found) => found,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "what is half made can't be looked for");
            return;
        }
    };
    for (name, record) in records {
        let is_there = there.contains(&name);
        if elsewhere.contains_key(&name) {
            continue;
        }
        // A machine that is no clone is whole as soon as it is there.
        let is_made =
            async { matches!(hypervisor.show(&name).await, Ok(seen) if seen.origin.is_none()) };
        let stays = match record.half_made {
            true => is_there && is_made.await,
            false => is_there || !record.leaving,
        };
        if stays {
            let settled = Record { half_made: false, leaving: false, ..record.clone() };
            let (called, changed) = (name.clone(), settled != record);
            let put = move |this: &Twins| this.inner.book.put(&called, &settled);
            if changed && let Err(error) = twins.off_thread(put).await {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(twin = %name, error, "a twin is taken for a half-made one");
            }
            continue;
        }
        let removed = async {
            if is_there {
                tracing::warn!(twin = %name, "a machine that did not become itself is removed");
                hypervisor.power_off(&name).await?;
                hypervisor.forget(&name).await?;
            }
            twins.forget_record(&name).await
        };
        if let Err(error) = removed.await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(twin = %name, error, "a half-made machine stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::Limits;
    use crate::twins::fake::{Fake, Fate, LONG, known, limited, name, over, twins};
    use std::time::Duration;

    async fn until(what: impl Fn() -> bool) {
        let met = async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LONG, met).await.unwrap();
    }

    #[tokio::test]
    async fn a_half_made_clone_goes_however_its_run_ends() {
        for (fate, expected) in [
            (Fate::Fails, "failed web01 went away"),
            (Fate::Panics, "failed the server made a mistake"),
            (Fate::NeverEnds, "cancelled"),
        ] {
            let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
            let limits = Limits { grace: Duration::from_millis(1), ..Limits::default() };
            let twins = limited(dir.path(), &fake, limits);
            let (of, clone) = (known(&twins, &fake, "web01"), name("try"));
            let wanted = NewClones { name: Some(clone.to_string()), ..NewClones::default() };
            let begun = twins.clone_twin(&of, wanted, Cause::Local).await.unwrap();
            until(|| fake.has(&clone)).await;
            *fake.fate.lock().unwrap() = fate;
            fake.clones.add_permits(1);
            until(|| *fake.fate.lock().unwrap() == Fate::Done).await;
            if fate == Fate::NeverEnds {
                twins.inner.runs.cancel(begun.run).unwrap();
            }
            let ended = over(&twins, begun.run).await;
            assert!(ended.starts_with(expected), "{ended}");
            assert!(!fake.has(&clone), "{fate:?}");
            assert!(twins.record(&clone).unwrap().is_none(), "{fate:?}");
            assert!(twins.inner.names.reserve(&clone).is_some(), "{fate:?}");
            twins.inner.runs.close().await;
        }
    }

    #[tokio::test]
    async fn a_name_is_one_runs_own() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let twins = twins(dir.path(), &fake);
        let [one, two] = ["one", "two"].map(|name| known(&twins, &fake, name));
        let wanted = |name: &str| NewClones { name: Some(name.to_owned()), ..NewClones::default() };
        let first = twins.clone_twin(&one, wanted("try"), Cause::Local).await.unwrap();
        until(|| fake.has(&name("try"))).await;
        // The first is not at its end: its clone is half made still.
        for (of, text) in [(&two, "try"), (&two, "one")] {
            let taken = twins.clone_twin(of, wanted(text), Cause::Local).await.unwrap_err();
            assert!(matches!(taken, Error::Taken { .. }), "{taken}");
        }
        let begun = twins.clone_twin(&two, NewClones::default(), Cause::Local).await.unwrap();
        assert_eq!(begun.twins, ["two-clone-1"]);
        assert!(fake.has(&name("try")), "nobody else removed it");
        let being_made =
            twins.plan(&name("try"), api::twin::NewTwin::default(), Cause::Local).await;
        assert!(matches!(being_made, Err(Error::BeingMade { .. })), "{being_made:?}");
        fake.clones.add_permits(2);
        assert!(over(&twins, first.run).await.starts_with("failed"), "nothing boots here");
        assert!(!fake.has(&name("try")), "who began it removed it");
        twins.inner.runs.close().await;
        assert!(twins.inner.names.reserve(&name("try")).is_some(), "it is let go");
    }
}
