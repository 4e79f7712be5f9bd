//! What is read of a process only when it is new or became another: command line, executable,
//! user, owner. Costs about ten times its `stat`.

use super::files::ProcDirectory;
use super::groups::Identity;
use super::owner::{Names, Owner};
use super::quiet::{GroupKey, group_in};
use super::stat::effective_uid;
use crate::text::{base_name, printable, printable_lines};
use model::redact::Redactor;
use xxhash_rust::xxh3::Xxh3;

/// Bytes of a command line that are looked at.
const COMMAND_LINE_MAX: usize = 16 * 1024;
/// Arguments that are kept.
const ARGUMENTS_MAX: usize = 256;
/// Length at which the kernel cuts a process's name.
const NAME_CUT: usize = 15;

/// The beginning of a file. Its space is kept, and not cleared.
#[derive(Debug)]
struct Text {
    space: Box<[u8]>,
    length: usize,
}

impl Text {
    fn of_at_most(bytes: usize) -> Self {
        Self { space: vec![0; bytes].into(), length: 0 }
    }

    /// `false`, and nothing in it, when there is no such file.
    fn read(&mut self, files: &ProcDirectory, pid: u32, name: &str) -> bool {
        let text = files.read(pid, name, &mut self.space);
        let is_there = text.is_some();
        self.length = text.map_or(0, <[u8]>::len);
        is_there
    }

    fn bytes(&self) -> &[u8] {
        self.space.get(..self.length).unwrap_or_default()
    }
}

/// Raw details, before the costlier work of naming and redacting.
#[derive(Debug)]
pub(super) struct Raw {
    command_line: Text,
    executable: Vec<u8>,
    cgroup: Text,
    uid: Option<u32>,
    /// We may not see its executable.
    pub(super) denied: bool,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            command_line: Text::of_at_most(COMMAND_LINE_MAX),
            executable: Vec::new(),
            cgroup: Text::of_at_most(4096),
            uid: None,
            denied: false,
        }
    }
}

impl Raw {
    /// Reads a process into reused buffers. `false` when it is gone or about to be.
    pub(super) fn read(&mut self, files: &mut ProcDirectory, pid: u32) -> bool {
        if !self.command_line.read(files, pid, "cmdline") {
            return false;
        }
        self.executable.clear();
        self.denied = false;
        match files.link(pid, "exe") {
            Ok(Some(target)) => self.executable.extend_from_slice(target),
            Ok(None) if self.command_line.length == 0 => return false,
            Ok(None) => {}
            Err(_) => self.denied = true,
        }
        self.cgroup.read(files, pid, "cgroup");
        let mut status = [0; 1024];
        self.uid = files.read(pid, "status", &mut status).and_then(effective_uid);
        true
    }

    /// Changes with anything that [`Raw::identity`] is made of.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        for part in [self.command_line.bytes(), &self.executable, self.cgroup.bytes()] {
            hash.update(&part.len().to_ne_bytes());
            hash.update(part);
        }
        hash.update(&self.uid.unwrap_or(u32::MAX).to_ne_bytes());
        hash.digest()
    }

    /// Of the unified hierarchy.
    pub(super) fn control_group(&self) -> Option<GroupKey> {
        group_in(self.cgroup.bytes())
    }

    /// What the process is, in words that may be stored.
    pub(super) fn identity(&self, name: &[u8], names: &Names, redactor: &Redactor) -> Identity {
        let executable = (!self.executable.is_empty()).then(|| executable(&self.executable));
        let words = arguments(self.command_line.bytes());
        let owner = Owner::parse(self.cgroup.bytes());
        Identity {
            name: full_name(name, executable.as_deref(), &words),
            arguments: redactor.arguments(&words),
            executable,
            uid: self.uid,
            unit: owner.unit_id(names),
            container: owner.container.map(|id| names.container(id)),
        }
    }
}

/// The path of an executable, also after an upgrade has replaced the file.
fn executable(target: &[u8]) -> String {
    printable(target.strip_suffix(b" (deleted)").unwrap_or(target))
}

/// The kernel keeps 15 bytes of a name; the rest may stand in the executable or a script.
fn full_name(name: &[u8], executable: Option<&str>, words: &[String]) -> String {
    let short = printable(name);
    if name.len() < NAME_CUT {
        return short;
    }
    let candidates = executable.into_iter().chain(words.iter().take(2).map(String::as_str));
    let full = candidates.map(base_name).find(|candidate| {
        candidate.starts_with(&short) && candidate.len() < 128 && !candidate.contains([' ', '\n'])
    });
    full.map_or(short, str::to_owned)
}

/// The words of a command line. A process that wrote a title over it has one word, kept
/// without what changes from moment to moment.
fn arguments(command_line: &[u8]) -> Vec<String> {
    let cut = command_line.len() >= COMMAND_LINE_MAX;
    let mut line = command_line;
    while let Some((&0 | &b' ', rest)) = line.split_last() {
        line = rest;
    }
    if line.is_empty() {
        return Vec::new();
    }
    if !line.contains(&0) && line.windows(2).any(|pair| pair == b": ") {
        return vec![stable_title(&printable(line))];
    }
    let mut words: Vec<&[u8]> = line.split(|&b| b == 0).collect();
    if cut && words.len() > 1 {
        // Half a secret is not recognised as one.
        words.pop();
    }
    let left_out = words.len().saturating_sub(ARGUMENTS_MAX);
    words.truncate(ARGUMENTS_MAX);
    let mut words: Vec<String> = words.into_iter().map(printable_lines).collect();
    if cut {
        words.push("… (more than can be kept)".to_owned());
    } else if left_out > 0 {
        words.push(format!("… ({left_out} more)"));
    }
    words
}

/// `postgres: app shop 10.0.0.7(5432) SELECT` is the same process as when it was idle: a
/// title counts up to its first word with a digit, bracket or address in it.
fn stable_title(title: &str) -> String {
    let volatile = |word: &&str| word.contains(|c: char| c.is_ascii_digit() || "([@".contains(c));
    let mut words = title.split_ascii_whitespace();
    let mut stable = words.next().unwrap_or_default().to_owned();
    for word in words.take_while(|word| !volatile(word)) {
        stable.push(' ');
        stable.push_str(word);
    }
    stable
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn command_lines() {
        let check = |raw: &str, expected: &[&str]| assert_eq!(arguments(raw.as_bytes()), expected);
        check("nginx\0-g\0daemon off;\0", &["nginx", "-g", "daemon off;"]);
        check("a\0\0b\0", &["a", "", "b"]);
        check("", &[]);
        check("\0\0", &[]);
        check("sh\0-c\0one\ntwo\0", &["sh", "-c", "one\ntwo"]);
        check("e\u{1b}[2J\0", &["e\\x1b[2J"]);
        check("/usr/bin/redis-server *:6379        ", &["/usr/bin/redis-server *:6379"]);
    }

    #[test]
    fn titles_keep_what_stays() {
        let check = |raw: &str, expected: &str| assert_eq!(arguments(raw.as_bytes()), [expected]);
        check("nginx: worker process\0\0\0", "nginx: worker process");
        check(
            "nginx: master process /usr/sbin/nginx -g daemon on;",
            "nginx: master process /usr/sbin/nginx -g daemon on;",
        );
        check("postgres: app shop 10.0.0.7(5432) SELECT", "postgres: app shop");
        check("postgres: app shop [local] idle", "postgres: app shop");
        check("postgres: walwriter ", "postgres: walwriter");
        check("sshd: alice@pts/0", "sshd:");
        check("sshd: /usr/sbin/sshd -D [listener] 3 of 10-100 startups", "sshd: /usr/sbin/sshd -D");
        check("php-fpm: master process (/etc/php/8.2/fpm.conf)", "php-fpm: master process");
    }

    #[test]
    fn long_command_lines_lose_their_torn_end() {
        let raw = [b"java\0".repeat(2), vec![b'x'; COMMAND_LINE_MAX]].concat();
        assert_eq!(
            arguments(&raw[..COMMAND_LINE_MAX]),
            ["java", "java", "… (more than can be kept)"]
        );
        let many = arguments(&b"a\0".repeat(4000));
        assert_eq!(many.len(), ARGUMENTS_MAX + 1);
        assert_eq!(many.last().map(String::as_str), Some("… (3744 more)"));
    }

    #[test]
    fn names_are_completed() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let check = |name: &str, executable: Option<&str>, line: &str, expected: &str| {
            assert_eq!(full_name(name.as_bytes(), executable, &words(line)), expected);
        };
        check("systemd-resolve", Some("/lib/systemd/systemd-resolved"), "x", "systemd-resolved");
        check(
            "unattended-upgr",
            Some("/usr/bin/python3"),
            "python3 /usr/bin/unattended-upgrade-shutdown",
            "unattended-upgrade-shutdown",
        );
        check("nginx", Some("/usr/sbin/nginx-debug"), "nginx", "nginx");
        check("fifteen-letters", None, "", "fifteen-letters");
        assert_eq!(executable(b"/usr/sbin/nginx (deleted)"), "/usr/sbin/nginx");
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>) {
            for word in arguments(&bytes) {
                prop_assert!(word.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
            }
            full_name(&bytes, None, &[]);
            executable(&bytes);
        }
    }
}
