//! Users and groups, as `/etc/passwd` and `/etc/group` have them. Password fields are never
//! looked at, and users of a directory service are not listed.
//!
//! # Invariants
//! - A line without its form is skipped; the rest of the file still counts.
//! - The first of several lines with the same name is the one that holds, as for the C library.

use crate::Root;
use crate::bounded;
use crate::text::{lines, printable};
use model::entity::{Group, User};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

/// Bytes read of each file: about 100,000 users.
const FILE_MAX: u64 = 8 * 1024 * 1024;

/// Everybody whom the machine's own files know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// In order of name.
    pub users: Vec<User>,
    /// In order of name.
    pub groups: Vec<Group>,
    user_names: BTreeMap<u32, String>,
    group_names: BTreeMap<u32, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Accounts {
    /// Reads both files. A missing one holds nobody.
    ///
    /// # Errors
    /// When a file is there and can't be read.
    pub fn read(root: &Root) -> Result<Self, Error> {
        let passwd = read_or_empty(root.path("/etc/passwd"))?;
        let group = read_or_empty(root.path("/etc/group"))?;
        Ok(Self::parse(&passwd, &group))
    }

    fn parse(passwd: &[u8], group: &[u8]) -> Self {
        let users = by_name(lines(passwd).filter_map(user), |user| user.name.clone());
        let groups = by_name(lines(group).filter_map(self::group), |group| group.name.clone());
        // Several names may share a number; what the C library answers is the first line.
        let user_names = first_names(lines(passwd).filter_map(user), |u| (u.uid, u.name));
        let group_names = first_names(lines(group).filter_map(self::group), |g| (g.gid, g.name));
        Self { users, groups, user_names, group_names }
    }

    /// The name of a user, or the number as text where there is none.
    #[must_use]
    pub fn user_name(&self, uid: u32) -> String {
        self.user_names.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// The name of a group, or the number as text where there is none.
    #[must_use]
    pub fn group_name(&self, gid: u32) -> String {
        self.group_names.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

fn read_or_empty(path: PathBuf) -> Result<Vec<u8>, Error> {
    match bounded::read(&path, FILE_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|source| Error::Read { path, source }),
    }
}

fn by_name<T>(all: impl Iterator<Item = T>, name: impl Fn(&T) -> String) -> Vec<T> {
    let mut named = BTreeMap::new();
    for item in all {
        named.entry(name(&item)).or_insert(item);
    }
    named.into_values().collect()
}

fn first_names<T>(
    all: impl Iterator<Item = T>,
    entry: impl Fn(T) -> (Option<i64>, String),
) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for (number, name) in all.map(entry) {
        if let Some(number) = number.and_then(|number| u32::try_from(number).ok()) {
            names.entry(number).or_insert(name);
        }
    }
    names
}

/// `name:x:1000:1000:comment:/home/name:/bin/sh`.
fn user(line: &[u8]) -> Option<User> {
    let mut fields = line.split(|&b| b == b':');
    let name = name(fields.next()?)?;
    let _password = fields.next()?;
    let uid = number(fields.next()?)?;
    let gid = number(fields.next()?)?;
    let [comment, home, shell] = [fields.next()?, fields.next()?, fields.next()?].map(text);
    Some(User { name, uid: Some(uid), gid: Some(gid), home, shell, comment })
}

/// `name:x:1000:member,member`.
fn group(line: &[u8]) -> Option<Group> {
    let mut fields = line.split(|&b| b == b':');
    let name = name(fields.next()?)?;
    let _password = fields.next()?;
    let gid = number(fields.next()?)?;
    let members = fields.next()?.split(|&b| b == b',').filter_map(text);
    let mut members: Vec<String> = members.collect();
    members.sort();
    members.dedup();
    Some(Group { name, gid: Some(gid), members })
}

/// `+` and `-` begin the lines that include a directory service.
fn name(field: &[u8]) -> Option<String> {
    let plain = !field.is_empty() && !field.starts_with(b"+") && !field.starts_with(b"-");
    (plain && !field.starts_with(b"#")).then(|| printable(field))
}

fn number(field: &[u8]) -> Option<i64> {
    crate::text::decimal(field).and_then(|n| u32::try_from(n).ok()).map(i64::from)
}

fn text(field: &[u8]) -> Option<String> {
    let field = field.trim_ascii();
    (!field.is_empty()).then(|| printable(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_lines_are_skipped_and_passwords_never_kept() {
        let passwd = b"root:$6$secret:0:0:root:/root:/bin/bash\n\
            toor:x:0:0::/root:/bin/sh\n\
            short:x:1\n+::::::\n#c:x:1:1:::\n\
            big:x:4294967296:1:::\nneg:x:-1:1:::\n\
            e\x1bvil:x:7:7:a\x07b:/x:/bin/sh\n\
            root:x:9:9:::\nweb:x:33:33:www,,,:/var/www:/usr/sbin/nologin";
        let group = b"root:x:0:\nadm:*:4:web,root,,web\nbroken:x\n";
        let accounts = Accounts::parse(passwd, group);
        let names: Vec<&str> = accounts.users.iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["e\\x1bvil", "root", "toor", "web"]);
        assert!(!format!("{accounts:?}").contains("secret"));
        assert_eq!(accounts.users[1].uid, Some(0));
        assert_eq!(accounts.users[2].comment, None);
        assert_eq!(accounts.groups[0].members, ["root", "web"]);
        assert_eq!(accounts.user_name(0), "root");
        assert_eq!(accounts.user_name(12345), "12345");
        assert_eq!(accounts.group_name(4), "adm");
    }

    #[test]
    fn missing_files_hold_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let accounts = Accounts::read(&Root::at(directory.path())).unwrap();
        assert_eq!(accounts, Accounts::default());
    }

    proptest! {
        #[test]
        fn anything_goes_in(passwd: Vec<u8>, group in "[a-z:,0-9\n]*") {
            Accounts::parse(&passwd, group.as_bytes());
            Accounts::parse(group.as_bytes(), &passwd);
        }
    }
}
