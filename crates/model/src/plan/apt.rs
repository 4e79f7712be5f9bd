//! How packages change, whoever carries the plan out: the words that apt and dpkg are given.
//!
//! ```text
//! all in one transaction ─► what was half done is finished, new lists ─► fewer, down to the one that can't be had
//! ```

use super::step::Action;
use std::time::Duration;

/// For one transaction.
pub const WITHIN: Duration = Duration::from_secs(1800);

/// What keeps packages from starting what they bring: which units run is decided by the plan.
pub const POLICY_PATH: &str = "/usr/sbin/policy-rc.d";
pub const POLICY: &str = "#!/bin/sh\n# Written by SafetyTwin while packages change.\nexit 101\n";

/// Of apt-get; the packages follow, as [`word`] has them.
pub const TRANSACTION: [&str; 10] = [
    "--quiet",
    "--yes",
    "--no-install-recommends",
    "--allow-downgrades",
    "--allow-change-held-packages",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
    "--option=Dpkg::Use-Pty=0",
    "install",
    "--",
];

/// What makes apt-get ask for packages at a port of its own machine; this comes before all other
/// words. Nothing for another program, and where repositories are reached without it.
#[must_use]
pub fn through(program: &str, relay: Option<u16>) -> Option<String> {
    let port = relay.filter(|_| program == "apt-get")?;
    Some(format!("--option=Acquire::http::Proxy=http://127.0.0.1:{port}/"))
}

/// Programs and their words. A transaction that was cut off has left its work half done, and apt
/// refuses to go on; or a version is newer than the lists.
pub const REPAIR: [(&str, &[&str]); 2] = [
    ("dpkg", &["--configure", "-a", "--force-confdef", "--force-confold"]),
    ("apt-get", &["--quiet", "update"]),
];

/// What a transaction is told of a step; nothing of one that changes no package.
#[must_use]
pub fn word(action: &Action) -> Option<String> {
    match action {
        Action::PutPackage { name, version } => Some(format!("{name}={version}")),
        // apt's own way to remove in a transaction that installs.
        Action::RemovePackage(name) => Some(format!("{name}-")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_packages() {
        let check = |action: Action, expected: Option<&str>| {
            assert_eq!(word(&action).as_deref(), expected);
        };
        let (name, version) = ("g++".parse().unwrap(), "4:12.2.0-3".parse().unwrap());
        check(Action::PutPackage { name, version }, Some("g++=4:12.2.0-3"));
        check(Action::RemovePackage("libc6:i386".parse().unwrap()), Some("libc6:i386-"));
        check(Action::ReloadManager, None);
    }
}
