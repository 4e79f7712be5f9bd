//! Users and groups. Passwords are never seen, so they are not here.

use super::{AccountName, Cause, Field, Spec};
use crate::entity::{self, Entity};
use crate::{Facts, Subject, TextError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub gid: u32,
    /// Those who are in it beside those whose own it is.
    pub members: BTreeSet<AccountName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub home: Field,
    pub shell: Field,
    pub comment: Field,
}

/// Numbers below this are the system's: packages make and own them.
pub(crate) const FIRST_PERSON: u32 = 1000;

impl Spec {
    pub(super) fn take_accounts(&mut self, facts: &Facts) {
        for group in facts.entities::<entity::Group>() {
            let (subject, _) = group.to_item();
            let Some(gid) = group.gid.and_then(|gid| u32::try_from(gid).ok()) else {
                self.numberless(&subject);
                continue;
            };
            let taken = || -> Result<_, TextError> {
                let members = group.members.iter().map(|name| name.parse());
                Ok((
                    group.name.parse()?,
                    Group { gid, members: members.collect::<Result<_, _>>()? },
                ))
            };
            match taken() {
                Ok((name, group)) => {
                    self.groups.insert(name, group);
                }
                Err(error) => self.unsafe_gap(&subject, &error),
            }
        }
        for user in facts.entities::<entity::User>() {
            let (subject, _) = user.to_item();
            match self::user(&user) {
                Some(Ok((name, user))) => {
                    self.users.insert(name, user);
                }
                Some(Err(error)) => self.unsafe_gap(&subject, &error),
                None => self.numberless(&subject),
            }
        }
    }
}

impl Spec {
    fn numberless(&mut self, subject: &Subject) {
        let what = "its number is not known, or is none";
        self.gap(subject, Cause::Unseen, what, "look at it on the host");
    }
}

/// `None` where a number is missing.
pub(crate) fn user(user: &entity::User) -> Option<Result<(AccountName, User), TextError>> {
    let number = |number: Option<i64>| u32::try_from(number?).ok();
    let (uid, gid) = (number(user.uid)?, number(user.gid)?);
    let field = |text: &Option<String>| text.clone().unwrap_or_default().try_into();
    let taken = || -> Result<_, TextError> {
        let home = field(&user.home)?;
        let (shell, comment) = (field(&user.shell)?, field(&user.comment)?);
        Ok((user.name.parse()?, User { uid, gid, home, shell, comment }))
    };
    Some(taken())
}
