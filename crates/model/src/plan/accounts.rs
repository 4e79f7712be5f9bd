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

/// Numbers above this are nobody's.
const LAST_PERSON: u32 = 60_000;
const OTHER_NUMBER: &str = "it has another number in the twin, and its files there have it, too";

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
        self.put_groups(&groups, &freed);
        self.put_users(&users, &freed);
        let staying: BTreeMap<String, entity::User> = users
            .into_iter()
            .filter(|(name, _)| !freed.users.iter().any(|gone| gone.as_str() == name))
            .collect();
        self.set_members(&groups, &staying);
    }

    fn put_groups(&mut self, there: &BTreeMap<String, entity::Group>, freed: &Freed) {
        let spec = self.spec;
        for (name, group) in &spec.groups {
            let subject = Subject::escaped(Kind::GROUP, name.as_str());
            match there.get(name.as_str()) {
                None => {
                    let action = Action::PutGroup { name: name.clone(), gid: group.gid };
                    let at = self.add(&subject, action, "the host has this group");
                    self.need(at, freed.gids.get(&group.gid).copied());
                    self.groups.insert(name.clone(), at);
                }
                Some(twin) if twin.gid != Some(i64::from(group.gid)) => {
                    self.gap(&subject, Cause::Own, OTHER_NUMBER, "nothing, where names are enough");
                }
                Some(_) => {}
            }
        }
    }

    fn put_users(&mut self, there: &BTreeMap<String, entity::User>, freed: &Freed) {
        let spec = self.spec;
        let by_gid: BTreeMap<u32, &AccountName> =
            spec.groups.iter().rev().map(|(name, group)| (group.gid, name)).collect();
        for (name, wanted) in &spec.users {
            let subject = Subject::escaped(Kind::USER, name.as_str());
            let twin = there.get(name.as_str());
            if twin.is_some_and(|twin| twin.uid != Some(i64::from(wanted.uid))) {
                self.gap(&subject, Cause::Own, OTHER_NUMBER, "nothing, where names are enough");
                continue;
            }
            let is_same = twin.and_then(user).is_some_and(|twin| {
                twin.is_ok_and(|(_, twin)| is_as(&twin, wanted, name.as_str()))
            });
            if is_same {
                continue;
            }
            let why = match twin {
                None => "the host has this user",
                Some(_) => "the host has this user with another group, home, shell or comment",
            };
            let action = Action::PutUser { name: name.clone(), user: wanted.clone() };
            let at = self.add(&subject, action, why);
            self.need(at, freed.uids.get(&wanted.uid).copied());
            self.users.insert(name.clone(), at);
            let group = by_gid.get(&wanted.gid).and_then(|group| self.groups.get(*group)).copied();
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
