//! Users and groups: before packages and files, which want them.

use super::draft::{At, Draft};
use super::step::Action;
use crate::entity::{self, Entity};
use crate::spec::{AccountName, Cause, FIRST_PERSON, Group, User, user};
use crate::{Kind, Subject};
use std::collections::{BTreeMap, BTreeSet};

/// Steps by the number that is free after them.
#[derive(Debug, Default)]
struct Freed {
    uids: BTreeMap<u32, At>,
    gids: BTreeMap<u32, At>,
    /// Who goes.
    users: BTreeSet<AccountName>,
}

/// Those below have their numbers from the distribution.
const FIRST_SYSTEM: u32 = 100;
/// Numbers above this are nobody's.
const LAST_PERSON: u32 = 60_000;
const NAMES: &str = "nothing, where names are enough";
const TAKEN_NUMBER: &str = "its number is somebody else's in the twin, so it gets another";
const OTHER_NUMBER: &str = "it has another number in the twin, and its files there have it, too";

/// Which numbers of accounts can be given.
struct Numbers {
    used: BTreeSet<u32>,
    /// Whose they are to be.
    wanted: BTreeSet<u32>,
}

impl Numbers {
    fn new(
        used: impl Iterator<Item = u32>,
        freed: impl Iterator<Item = u32>,
        wanted: impl Iterator<Item = u32>,
    ) -> Self {
        let mut used: BTreeSet<u32> = used.collect();
        for number in freed {
            used.remove(&number);
        }
        Self { used, wanted: wanted.collect() }
    }

    /// This one, or one that is nobody's; this one after all where there is none.
    fn take(&mut self, wanted: u32) -> u32 {
        let is_free = |number: &u32| !self.used.contains(number) && !self.wanted.contains(number);
        let number = match self.used.contains(&wanted) {
            false => wanted,
            true if wanted < FIRST_PERSON => {
                (FIRST_SYSTEM..FIRST_PERSON).rev().find(is_free).unwrap_or(wanted)
            }
            true => (FIRST_PERSON..LAST_PERSON).find(is_free).unwrap_or(wanted),
        };
        self.used.insert(number);
        number
    }
}

impl Draft<'_> {
    pub(super) fn accounts(&mut self) {
        if !self.sees(Kind::USER) {
            return;
        }
        let groups: BTreeMap<String, entity::Group> =
            self.twin.entities::<entity::Group>().map(|g| (g.name.clone(), g)).collect();
        let users: BTreeMap<String, entity::User> =
            self.twin.entities::<entity::User>().map(|u| (u.name.clone(), u)).collect();
        let freed = self.remove_accounts(&users, &groups);
        let gids = self.put_groups(&groups, &freed);
        self.put_users(&users, &freed, &gids);
        let staying: BTreeMap<String, entity::User> = users
            .into_iter()
            .filter(|(name, _)| !freed.users.iter().any(|gone| gone.as_str() == name))
            .collect();
        self.set_members(&groups, &staying);
    }

    /// The numbers that the host's groups have in the twin, where they are others.
    fn put_groups(
        &mut self,
        there: &BTreeMap<String, entity::Group>,
        freed: &Freed,
    ) -> BTreeMap<u32, u32> {
        let spec = self.spec;
        let used = there.values().filter_map(|group| u32::try_from(group.gid?).ok());
        let wanted = spec.groups.values().map(|group| group.gid);
        let mut numbers = Numbers::new(used, freed.gids.keys().copied(), wanted);
        let mut others = BTreeMap::new();
        for (name, group) in &spec.groups {
            let subject = Subject::escaped(Kind::GROUP, name.as_str());
            match there.get(name.as_str()) {
                None => {
                    let gid = numbers.take(group.gid);
                    if gid != group.gid {
                        self.gap(&subject, Cause::Own, TAKEN_NUMBER, NAMES);
                        others.insert(group.gid, gid);
                    }
                    let action = Action::PutGroup { name: name.clone(), gid };
                    let at = self.add(&subject, action, "the host has this group");
                    self.need(at, freed.gids.get(&gid).copied());
                    self.groups.insert(name.clone(), at);
                }
                Some(twin) if twin.gid != Some(i64::from(group.gid)) => {
                    self.gap(&subject, Cause::Own, OTHER_NUMBER, NAMES);
                    let here = twin.gid.and_then(|gid| u32::try_from(gid).ok());
                    others.extend(here.map(|here| (group.gid, here)));
                }
                Some(_) => {}
            }
        }
        others
    }

    fn put_users(
        &mut self,
        there: &BTreeMap<String, entity::User>,
        freed: &Freed,
        gids: &BTreeMap<u32, u32>,
    ) {
        let spec = self.spec;
        let used = there.values().filter_map(|user| u32::try_from(user.uid?).ok());
        let wanted = spec.users.values().map(|user| user.uid);
        let mut numbers = Numbers::new(used, freed.uids.keys().copied(), wanted);
        let by_gid: BTreeMap<u32, &AccountName> =
            spec.groups.iter().rev().map(|(name, group)| (group.gid, name)).collect();
        for (name, wanted) in &spec.users {
            let subject = Subject::escaped(Kind::USER, name.as_str());
            let twin = there.get(name.as_str());
            if twin.is_some_and(|twin| twin.uid != Some(i64::from(wanted.uid))) {
                self.gap(&subject, Cause::Own, OTHER_NUMBER, NAMES);
                continue;
            }
            let group = by_gid.get(&wanted.gid).and_then(|group| self.groups.get(*group)).copied();
            let gid = gids.get(&wanted.gid).copied().unwrap_or(wanted.gid);
            let mut wanted = User { gid, ..wanted.clone() };
            let is_same = twin.and_then(user).is_some_and(|twin| {
                twin.is_ok_and(|(_, twin)| is_as(&twin, &wanted, name.as_str()))
            });
            if is_same {
                continue;
            }
            let why = match twin {
                None => "the host has this user",
                Some(_) => "the host has this user with another group, home, shell or comment",
            };
            if twin.is_none() {
                let uid = numbers.take(wanted.uid);
                if uid != wanted.uid {
                    self.gap(&subject, Cause::Own, TAKEN_NUMBER, NAMES);
                    wanted.uid = uid;
                }
            }
            let freeing = freed.uids.get(&wanted.uid).copied();
            let action = Action::PutUser { name: name.clone(), user: wanted };
            let at = self.add(&subject, action, why);
            self.need(at, freeing);
            self.users.insert(name.clone(), at);
            self.need(at, group);
        }
    }

    fn set_members(
        &mut self,
        there: &BTreeMap<String, entity::Group>,
        users: &BTreeMap<String, entity::User>,
    ) {
        let spec = self.spec;
        for (name, group) in &spec.groups {
            let twin = there.get(name.as_str()).map(|group| group.members.as_slice());
            // Names that are nobody's in a list mean nothing.
            let twin: BTreeSet<AccountName> = twin
                .into_iter()
                .flatten()
                .filter_map(|member| member.parse().ok())
                .filter(|m: &AccountName| {
                    spec.users.contains_key(m) || users.contains_key(m.as_str())
                })
                .collect();
            let wanted = group.members.iter().filter(|m| spec.users.contains_key(*m));
            // The twin's own people stay where they are.
            let own = twin.iter().filter(|m| !spec.users.contains_key(*m));
            let members: BTreeSet<AccountName> = wanted.chain(own).cloned().collect();
            if members == twin {
                continue;
            }
            let subject = Subject::escaped(Kind::GROUP, name.as_str());
            let users: Vec<_> = members.iter().map(|m| self.users.get(m).copied()).collect();
            let group = Group { gid: group.gid, members };
            let action = Action::SetMembers { name: name.clone(), group };
            let at = self.add(&subject, action, "others are in this group on the host");
            let group = self.groups.get(name).copied();
            self.need(at, group);
            for user in users {
                self.need(at, user);
            }
        }
    }

    /// What goes, goes first: its number may be another's.
    fn remove_accounts(
        &mut self,
        users: &BTreeMap<String, entity::User>,
        groups: &BTreeMap<String, entity::Group>,
    ) -> Freed {
        let spec = self.spec;
        let persons = |number: Option<i64>| {
            let number = u32::try_from(number?).ok()?;
            (FIRST_PERSON..LAST_PERSON).contains(&number).then_some(number)
        };
        let mut freed = Freed::default();
        for user in users.values() {
            let (subject, _) = user.to_item();
            let Some((name, uid)) = user.name.parse::<AccountName>().ok().zip(persons(user.uid))
            else {
                continue;
            };
            let is_kept = spec.users.contains_key(&name) || self.stays(&subject);
            if !is_kept && self.may_remove(Kind::USER) {
                let why = "the host has no such user";
                let at = self.add(&subject, Action::RemoveUser(name.clone()), why);
                freed.users.insert(name);
                self.leaving.push(at);
                freed.uids.insert(uid, at);
            }
        }
        for group in groups.values() {
            let (subject, _) = group.to_item();
            let Some((name, gid)) = group.name.parse::<AccountName>().ok().zip(persons(group.gid))
            else {
                continue;
            };
            let is_kept = spec.groups.contains_key(&name) || self.stays(&subject);
            if !is_kept && self.may_remove(Kind::GROUP) {
                let why = "the host has no such group";
                let at = self.add(&subject, Action::RemoveGroup(name), why);
                for user in freed.uids.values() {
                    self.follow(at, Some(*user));
                }
                freed.gids.insert(gid, at);
            }
        }
        freed
    }
}

/// Whether nothing that is set differs. Who root is, is never changed.
fn is_as(twin: &User, wanted: &User, name: &str) -> bool {
    name == "root" || twin == wanted
}
