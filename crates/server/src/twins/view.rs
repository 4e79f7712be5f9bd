//! Twins as outsiders see them.

use super::error::Error;
use super::record::Record;
use super::snapshots::{VERSION, WEIGHT};
use super::{Twins, settings};
use crate::runs::Subject;
use api::twin::{self, Origin, SnapshotKind, Ssh, TwinNetwork, TwinSnapshots, TwinState};
use std::net::Ipv4Addr;
use vm::image::{MachineName, SnapshotName};
use vm::machine::{Acceleration, Kind, Listed, Network, Seen, State};

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Here,
    Elsewhere,
    Lost,
}

impl Twins {
    /// All twins, and clones of them. One that can't be read holds up no other.
    ///
    /// # Errors
    /// When they can't be looked at.
    pub async fn list(&self) -> Result<twin::Twins, Error> {
        self.page(None, usize::MAX).await
    }

    /// As many of them as belong on a page, by name, from the one after `after` on.
    ///
    /// # Errors
    /// When they can't be looked at.
    pub(crate) async fn page(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<twin::Twins, Error> {
        let lost = self.all_lost().await?.into_iter().map(|name| (name, Place::Lost));
        let here = self.names().await?.into_iter().map(|name| (name, Place::Here));
        let elsewhere = self.elsewhere()?.into_keys().map(|name| (name, Place::Elsewhere));
        let mut names: Vec<(MachineName, Place)> = here.chain(elsewhere).chain(lost).collect();
        names.retain(|(name, _)| after.is_none_or(|after| name.as_str() > after));
        names.sort();
        let more = names.len() > limit;
        names.truncate(limit);
        let next = names.last().filter(|_| more).map(|(name, _)| name.to_string());
        let mut listed = twin::Twins { next, ..twin::Twins::default() };
        for (name, place) in names {
            let why_not = match place {
                Place::Here => None,
                Place::Elsewhere => Some((self.other_hypervisor(), self.of_the_other(&name))),
                Place::Lost => Some((self.own_hypervisor(), self.lost(&name))),
            };
            if let Some((hypervisor, why)) = why_not {
                listed.unusable.push(twin::UnusableTwin {
                    name: name.to_string(),
                    hypervisor: hypervisor.to_owned(),
                    reason: why.to_string(),
                });
                continue;
            }
            match self.seen(&name).await {
                Ok(Some(seen)) => listed.twins.push(self.describe(&name, seen).await?),
                // One that went meanwhile is not there.
                Ok(None) => {}
                Err(error) if error.is_damage() => {
                    let hypervisor = self.about().await?.hypervisor.to_owned();
                    let reason = model::with_causes(&error);
                    let name = name.to_string();
                    listed.unusable.push(twin::UnusableTwin { name, hypervisor, reason });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(listed)
    }

    /// One of them, and whether it answers.
    ///
    /// # Errors
    /// When there is none, or it can't be looked at.
    pub async fn show(&self, name: &MachineName) -> Result<twin::Twin, Error> {
        let seen = self.known(name).await?;
        let mut twin = self.describe(name, seen).await?;
        twin.answers = Some(self.answers(name).await);
        Ok(twin)
    }

    /// Whether there is one, as far as can be told.
    pub(crate) async fn is_there(&self, name: &MachineName) -> bool {
        matches!(self.seen(name).await, Ok(Some(_)))
    }

    pub(crate) async fn state(&self, name: &MachineName) -> Result<TwinState, Error> {
        Ok(state(&self.known(name).await?.state))
    }

    async fn describe(&self, name: &MachineName, seen: Seen) -> Result<twin::Twin, Error> {
        let called = name.clone();
        let record = self.off_thread(move |this| this.record(&called)).await?;
        let about = self.about().await?;
        let (state, reason) = (state(&seen.state), seen.state.why_stuck());
        let ssh = seen.ssh_port.zip(record).map(|(port, record)| self.way_in(name, port, &record));
        let origin = |(machine, snapshot): (MachineName, SnapshotName)| Origin {
            twin: machine.to_string(),
            snapshot: snapshot.to_string(),
        };
        let following = match &seen.origin {
            None => self.following(name).await?,
            Some(_) => None,
        };
        Ok(twin::Twin {
            name: name.to_string(),
            state,
            reason,
            answers: None,
            image: seen.image.to_string(),
            memory_bytes: seen.memory_bytes,
            processors: seen.processors,
            mac: seen.mac.to_string(),
            network: network(seen.network),
            hypervisor: about.hypervisor.to_owned(),
            acceleration: seen.acceleration.map(Acceleration::as_str).map(str::to_owned),
            origin: seen.origin.map(origin),
            current_snapshot: seen.current.map(String::from),
            used_bytes: seen.used_bytes,
            ssh,
            following,
            run: self.inner.runs.on(&Subject::twin(name)),
        })
    }

    fn way_in(&self, name: &MachineName, port: u16, record: &Record) -> Ssh {
        let access = &self.inner.access;
        Ssh {
            address: Ipv4Addr::LOCALHOST.to_string(),
            port,
            user: record.user.to_string(),
            host_keys: record.host_keys.iter().map(ToString::to_string).collect(),
            key: access.login_file().to_string_lossy().into_owned(),
            known_hosts: access.known_hosts_file(name).to_string_lossy().into_owned(),
        }
    }

    /// The snapshots of a twin, the oldest first.
    ///
    /// # Errors
    /// When there is no such twin, or it can't be looked at.
    pub async fn snapshots(&self, name: &MachineName) -> Result<TwinSnapshots, Error> {
        let current = self.known(name).await?.current;
        let listed = self.listed(name).await?.into_iter();
        let snapshots = listed.map(|one| snapshot(one, current.as_ref())).collect();
        let current = current.map(String::from);
        Ok(TwinSnapshots { twin: name.to_string(), current, snapshots })
    }

    /// # Errors
    /// When there is no such twin or snapshot.
    pub async fn snapshot(
        &self,
        name: &MachineName,
        wanted: &SnapshotName,
    ) -> Result<twin::Snapshot, Error> {
        let current = self.known(name).await?.current;
        Ok(snapshot(self.found(name, wanted).await?, current.as_ref()))
    }
}

fn state(state: &State) -> TwinState {
    match state {
        State::Running => TwinState::Running,
        State::Stopped => TwinState::Stopped,
        State::Stuck(_) | State::Starved => TwinState::Stuck,
    }
}

fn network(network: Network) -> TwinNetwork {
    let all = [TwinNetwork::Isolated, TwinNetwork::Nat, TwinNetwork::Open];
    let same = |one: &TwinNetwork| settings::network(*one) == network;
    all.into_iter().find(same).unwrap_or(TwinNetwork::Isolated)
}

fn snapshot(listed: Listed, current: Option<&SnapshotName>) -> twin::Snapshot {
    let is_current = current == Some(&listed.name);
    let name = listed.name.to_string();
    let empty = twin::Snapshot {
        name,
        kind: None,
        at: None,
        version: None,
        weight: None,
        pause_us: None,
        used_bytes: None,
        is_current,
        damage: None,
    };
    match listed.snapshot {
        Err(error) => twin::Snapshot { damage: Some(model::with_causes(&error)), ..empty },
        Ok(found) => twin::Snapshot {
            kind: Some(match found.kind {
                Kind::Live => SnapshotKind::Live,
                Kind::Disk => SnapshotKind::Disk,
            }),
            at: Some(found.at),
            version: found.labels.get(VERSION).and_then(|text| text.parse().ok()),
            weight: found.labels.get(WEIGHT).and_then(|text| text.parse().ok()),
            pause_us: u64::try_from(found.pause.as_micros()).ok(),
            used_bytes: Some(found.used_bytes),
            ..empty
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::runs::Cause;
    use crate::twins::Error;
    use crate::twins::fake::{Fake, known, over, twins};
    use crate::twins::record::Record;
    use api::twin::NewClones;
    use vm::machine::Hypervisor;

    #[tokio::test]
    async fn those_of_another_hypervisor_are_told_and_not_forgotten() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let twins = twins(dir.path(), &fake);
        let one = known(&twins, &fake, "one");
        let two = known(&twins, &fake, "two");
        fake.forget(&two).await.unwrap();
        std::fs::create_dir_all(dir.path().join("twins-libvirt/two")).unwrap();
        crate::twins::clones::sweep(&twins, fake.as_ref()).await;
        assert!(twins.record(&two).unwrap().is_some(), "it is that of the other one's");
        let listed = twins.list().await.unwrap();
        assert_eq!(listed.twins.len(), 1);
        assert_eq!(
            (&*listed.unusable[0].name, &*listed.unusable[0].hypervisor),
            ("two", "libvirt")
        );
        let wanted = || NewClones { name: Some("two".into()), ..NewClones::default() };
        let taken = twins.clone_twin(&one, wanted(), Cause::Local).await.unwrap_err();
        assert!(matches!(taken, Error::Taken { .. }), "{taken}");
        std::fs::remove_dir(dir.path().join("twins-libvirt/two")).unwrap();
        crate::twins::clones::sweep(&twins, fake.as_ref()).await;
        assert!(twins.record(&two).unwrap().is_some(), "its disk may not be mounted");
        twins.inner.runs.close().await;
    }

    #[tokio::test]
    async fn one_whose_machine_is_not_there_is_whole_when_it_is_back() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let twins = twins(dir.path(), &fake);
        let [one, two] = ["one", "two"].map(|name| known(&twins, &fake, name));
        let record = twins.record(&two).unwrap();
        fake.forget(&two).await.unwrap();
        crate::twins::clones::sweep(&twins, fake.as_ref()).await;
        let listed = twins.list().await.unwrap();
        assert_eq!((listed.twins.len(), listed.unusable.len()), (1, 1));
        assert!(listed.unusable[0].reason.contains("twin delete two"), "{:?}", listed.unusable);
        let unseen = twins.show(&two).await.unwrap_err();
        assert!(matches!(unseen, Error::Lost { .. }), "{unseen}");
        let anew = twins.start(&two, api::twin::NewTwin::default(), Cause::Local).await;
        assert!(matches!(anew, Err(Error::Lost { .. })), "{anew:?}");
        let wanted = || NewClones { name: Some("two".into()), ..NewClones::default() };
        let taken = twins.clone_twin(&one, wanted(), Cause::Local).await.unwrap_err();
        assert!(matches!(taken, Error::Taken { .. }), "{taken}");
        fake.put_back(&two);
        crate::twins::clones::sweep(&twins, fake.as_ref()).await;
        assert_eq!(twins.list().await.unwrap().twins.len(), 2);
        assert_eq!(twins.record(&two).unwrap(), record);
        fake.forget(&two).await.unwrap();
        let run = twins.delete(&two, Cause::Local).await.unwrap();
        assert_eq!(over(&twins, run).await, "succeeded");
        assert_eq!(twins.record(&two).unwrap(), None);
        assert!(twins.list().await.unwrap().unusable.is_empty());
        twins.inner.runs.close().await;
    }

    #[tokio::test]
    async fn what_was_cut_off_is_no_lost_one() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let twins = twins(dir.path(), &fake);
        let names = ["making", "made", "leaving", "left"].map(|name| known(&twins, &fake, name));
        let [making, made, leaving, left] = &names;
        for (name, half_made) in [(making, true), (made, true), (leaving, false), (left, false)] {
            let record = twins.record(name).unwrap().unwrap();
            let record = Record { half_made, leaving: !half_made, ..record };
            twins.inner.book.put(name, &record).unwrap();
        }
        fake.forget(making).await.unwrap();
        fake.forget(left).await.unwrap();
        assert!(twins.list().await.unwrap().unusable.is_empty());
        crate::twins::clones::sweep(&twins, fake.as_ref()).await;
        for name in [making, left] {
            assert_eq!((fake.has(name), twins.record(name).unwrap()), (false, None), "{name}");
        }
        for name in [made, leaving] {
            let stays = twins.record(name).unwrap().unwrap();
            assert!(fake.has(name) && !stays.leaving && !stays.half_made, "{name}: {stays:?}");
        }
        twins.inner.runs.close().await;
    }

    #[tokio::test]
    async fn one_that_can_not_be_read_holds_up_no_other() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let twins = twins(dir.path(), &fake);
        let [one, two] = ["one", "two"].map(|name| known(&twins, &fake, name));
        fake.damage(&two);
        let listed = twins.list().await.unwrap();
        assert_eq!(listed.twins.iter().map(|twin| &twin.name).collect::<Vec<_>>(), ["one"]);
        let unusable = &listed.unusable[0];
        assert_eq!((unusable.name.as_str(), unusable.hypervisor.as_str()), ("two", "qemu"));
        assert!(unusable.reason.contains("it ends; put its machine.json back"), "{unusable:?}");
        let page = twins.page(None, 1).await.unwrap();
        assert_eq!((page.twins.len(), page.unusable.len()), (1, 0));
        let page = twins.page(page.next.as_deref(), 1).await.unwrap();
        assert_eq!((page.twins.len(), page.unusable.len(), page.next), (0, 1, None));
        for name in [one, two] {
            let run = twins.delete(&name, Cause::Local).await.unwrap();
            assert_eq!(over(&twins, run).await, "succeeded");
            assert!(!fake.has(&name));
        }
        twins.inner.runs.close().await;
    }
}
