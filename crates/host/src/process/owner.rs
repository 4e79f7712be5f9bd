//! Which unit and which container a process belongs to, by `/proc/PID/cgroup`. Pure, but for
//! the table of user names that [`Names`] keeps.
//!
//! Understands the unified hierarchy (`0::PATH`), systemd's own in version 1
//! (`name=systemd:PATH`), both side by side, and, where systemd has neither, the paths of the
//! other controllers. What is inside a container is the container's: a unit that a systemd
//! within it runs is no unit of this host.

use crate::Root;
use crate::text::{decimal, lines, printable};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::SystemTime;

/// Whose a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    /// `nginx.service`, or `notes.service` of a user manager.
    pub(crate) unit: Option<String>,
    /// The user whose manager has the unit.
    pub(crate) manager: Option<u32>,
    /// All 64 digits.
    pub(crate) container: Option<String>,
}

impl Owner {
    /// Reads the file's lines; the systemd hierarchies are believed before the controllers'.
    pub(crate) fn parse(cgroup: &[u8]) -> Self {
        let mut owner = Self::default();
        let mut rank = 0;
        for line in lines(cgroup).take(64) {
            let mut parts = line.splitn(3, |&b| b == b':');
            let (Some(_), Some(controllers), Some(path)) =
                (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let found = Self::of_path(path);
            owner.container = owner.container.or(found.container);
            let trust = match controllers {
                b"name=systemd" => 3,
                b"" => 2,
                _ => 1,
            };
            if found.unit.is_some() && trust > rank {
                (owner.unit, owner.manager, rank) = (found.unit, found.manager, trust);
            }
        }
        owner
    }

    fn of_path(path: &[u8]) -> Self {
        let mut owner = Self::default();
        for part in path.split(|&b| b == b'/').take(64) {
            if let Some(container) = container_id(part) {
                owner.container = Some(container);
                break;
            }
            // Below a user manager, its units; below any other unit, groups of its own making.
            let in_manager = owner.manager.is_some()
                && owner.unit.as_deref().is_some_and(|unit| unit.starts_with("user@"));
            if owner.unit.is_some() && !in_manager {
                continue;
            }
            let Some(unit) = unit_name(part) else { continue };
            if in_manager {
                // The manager itself sits in a scope of its own.
                if unit != "init.scope" {
                    owner.unit = Some(unit);
                }
            } else {
                owner.manager = manager_of(&unit);
                owner.unit = Some(unit);
            }
        }
        if owner.unit.as_deref().is_some_and(|unit| unit.starts_with("user@")) {
            owner.manager = None;
        }
        owner
    }

    /// The unit in the form of a unit's id: `nginx.service`, `alice/notes.service`.
    pub(crate) fn unit_id(&self, names: &Names) -> Option<String> {
        let unit = self.unit.as_ref()?;
        Some(match self.manager {
            None => unit.clone(),
            Some(uid) => match names.get(uid) {
                Some(name) => format!("{name}/{unit}"),
                None => format!("{uid}/{unit}"),
            },
        })
    }
}

/// A component of a path that is a unit with processes. Slices only hold other units.
fn unit_name(part: &[u8]) -> Option<String> {
    // systemd puts `_` before names that would look like a file of the kernel's.
    let part = part.strip_prefix(b"_").unwrap_or(part);
    let unit = [".service", ".scope", ".socket", ".mount", ".swap"]
        .iter()
        .any(|suffix| part.len() > suffix.len() && part.ends_with(suffix.as_bytes()));
    let name = std::str::from_utf8(part).ok()?;
    (unit && model::unit_name_is_valid(name)).then(|| name.to_owned())
}

/// The user of `user@1000.service`.
fn manager_of(unit: &str) -> Option<u32> {
    let uid = unit.strip_prefix("user@")?.strip_suffix(".service")?;
    u32::try_from(decimal(uid.as_bytes())?).ok()
}

/// The container of `docker-ID.scope`, `libpod-ID.scope`, `cri-containerd-ID.scope` and of
/// `ID` by itself, an id being 64 hexadecimal digits.
fn container_id(part: &[u8]) -> Option<String> {
    let part = part.strip_suffix(b".scope").unwrap_or(part);
    let id = part.rsplit(|&b| b == b'-').next()?;
    let hexadecimal =
        id.len() == 64 && id.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    hexadecimal.then(|| String::from_utf8_lossy(id).into_owned())
}

/// The names of the machine's own users, by id. Directory services are not asked: an id of
/// theirs has no name here.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_uid: HashMap<u32, String>,
    modified: Option<SystemTime>,
    /// Names of containers, by id.
    pub(crate) containers: BTreeMap<String, String>,
}

impl Names {
    /// Users beyond this many have no name.
    const MAX: usize = 10_000;

    /// Reads `/etc/passwd` again if it changed. Says whether it did.
    pub(crate) fn refresh(&mut self, root: &Root) -> bool {
        let path = root.path("/etc/passwd");
        let modified = fs::metadata(&path).and_then(|meta| meta.modified()).ok();
        if modified == self.modified && modified.is_some() {
            return false;
        }
        self.modified = modified;
        let by_uid = fs::read(&path).map(|bytes| Self::parse(&bytes)).unwrap_or_default();
        let changed = by_uid != self.by_uid;
        self.by_uid = by_uid;
        changed
    }

    fn parse(passwd: &[u8]) -> HashMap<u32, String> {
        let mut by_uid = HashMap::new();
        for line in lines(passwd).take(Self::MAX) {
            let mut fields = line.split(|&b| b == b':');
            let (Some(name), Some(uid)) = (fields.next(), fields.nth(1).and_then(decimal)) else {
                continue;
            };
            if let (Ok(uid), false) = (u32::try_from(uid), name.is_empty()) {
                by_uid.entry(uid).or_insert_with(|| printable(name));
            }
        }
        by_uid
    }

    /// The name of a container, or its id while nobody told us.
    pub(crate) fn container(&self, id: String) -> String {
        self.containers.get(&id).cloned().unwrap_or(id)
    }

    pub(crate) fn get(&self, uid: u32) -> Option<&str> {
        self.by_uid.get(&uid).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn check(cgroup: &str, unit: Option<&str>, container: bool) {
        let names = Names {
            by_uid: Names::parse(b"root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n"),
            ..Names::default()
        };
        let owner = Owner::parse(cgroup.replace("ID", ID).as_bytes());
        assert_eq!(owner.unit_id(&names).as_deref(), unit, "{cgroup}");
        assert_eq!(owner.container.is_some(), container, "{cgroup}");
    }

    #[test]
    fn units() {
        check("0::/system.slice/nginx.service\n", Some("nginx.service"), false);
        check("0::/init.scope", Some("init.scope"), false);
        check(
            "0::/system.slice/system-getty.slice/getty@tty1.service",
            Some("getty@tty1.service"),
            false,
        );
        check("0::/system.slice/foo.service/sub/bar.service", Some("foo.service"), false);
        check("0::/system.slice/_cpu.service", Some("cpu.service"), false);
        check("0::/user.slice/user-1000.slice/session-3.scope", Some("session-3.scope"), false);
        check("0::/", None, false);
        check("0::/../../evil service.service", None, false);
        check("0::/.service", None, false);
        check("", None, false);
    }

    #[test]
    fn user_units() {
        let manager = "0::/user.slice/user-1000.slice/user@1000.service";
        check(&format!("{manager}/app.slice/notes.service"), Some("alice/notes.service"), false);
        check(
            &format!("{manager}/app.slice/notes.service/deep.service"),
            Some("alice/notes.service"),
            false,
        );
        check(&format!("{manager}/init.scope"), Some("user@1000.service"), false);
        check(manager, Some("user@1000.service"), false);
        check("0::/user.slice/user-7.slice/user@7.service/a.service", Some("7/a.service"), false);
    }

    #[test]
    fn version_one() {
        check(
            "5:cpu,cpuacct:/\n1:name=systemd:/system.slice/cron.service\n",
            Some("cron.service"),
            false,
        );
        check(
            "4:memory:/x\n1:name=systemd:/\n0::/system.slice/a.service",
            Some("a.service"),
            false,
        );
        check("8:pids:/system.slice/b.service\n", Some("b.service"), false);
        check(
            "8:pids:/b.service\n1:name=systemd:/a.service\n0::/c.service",
            Some("a.service"),
            false,
        );
    }

    #[test]
    fn containers() {
        check("0::/system.slice/docker-ID.scope\n", None, true);
        check("0::/docker/ID\n", None, true);
        check("4:memory:/docker/ID\n1:name=systemd:/docker/ID\n", None, true);
        check("0::/system.slice/docker-ID.scope/system.slice/nginx.service", None, true);
        check("0::/system.slice/web.service/libpod-payload-ID", Some("web.service"), true);
        check("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope", None, true);
        check("0::/docker/1234", None, false);
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>, path in "[0-9]:[a-z=]{0,4}:(/[_.a-z@0-9]{0,12}){0,5}") {
            Owner::parse(&bytes);
            Owner::parse(path.as_bytes());
            Names::parse(&bytes);
        }
    }
}
