//! How packages change, whoever carries the plan out: the words that apt and dpkg are given.
//!
//! ```text
//! what was half done is finished ─► all in one transaction ─┐
//!     ┌──────────────────────────────── failed ─────────────┘
//!     └─► the same once more, new lists ─► fewer, down to the one that can't be had
//! ```
//!
//! Each transaction is simulated first, and left out where it would remove what no step of the plan
//! removes: a dependency must not take along what the twin needs for itself.

use super::step::Action;
use std::collections::BTreeSet;
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

/// A program and its words: a transaction that was cut off has left its work half done, and apt
/// refuses to go on.
pub const FINISH: (&str, &[&str]) =
    ("dpkg", &["--configure", "-a", "--force-confdef", "--force-confold"]);

/// What may help where a transaction failed: that, or a version is newer than the lists. New lists
/// are all of them: with less nothing can be said of what they do not have.
pub const REPAIR: [(&str, &[&str]); 2] =
    [FINISH, ("apt-get", &["--quiet", "--option=APT::Update::Error-Mode=any", "update"])];

/// Of apt-cache; the names of packages follow. It tells the versions that repositories have.
pub const VERSIONS: [&str; 2] = ["madison", "--"];

/// With what the reason begins why a step failed whose version no repository has.
pub const GONE: &str = "no repository has this version";

/// Before the words of a transaction: it only tells what it would do.
pub const SIMULATE: &str = "--simulate";

/// With what the lines of a simulated transaction begin that tell of a package that goes.
pub const GOES: [&str; 2] = ["Remv", "Purg"];

/// The packages that a simulated transaction removes; nothing where its lines do not say so
/// beyond doubt.
#[must_use]
pub fn removed<'t>(told: impl IntoIterator<Item = &'t str>) -> Option<BTreeSet<&'t str>> {
    let (mut names, mut number) = (BTreeSet::new(), None);
    for line in told {
        let mut words = line.split(' ');
        if words.next().is_some_and(|first| GOES.contains(&first)) {
            names.insert(words.next().filter(|name| !name.is_empty())?);
        } else if line.contains(" newly installed, ")
            && let Some((before, _)) = line.split_once(" to remove")
        {
            number = before.rsplit(' ').next()?.parse::<usize>().ok();
        }
    }
    (number == Some(names.len())).then_some(names)
}

/// The versions that apt-cache tells of, by package.
#[must_use]
pub fn versions<'t>(told: impl IntoIterator<Item = &'t str>) -> BTreeSet<(&'t str, &'t str)> {
    let line = |line: &'t str| {
        let mut fields = line.split(" | ").map(str::trim);
        Some((fields.next()?, fields.next()?))
    };
    told.into_iter().filter_map(line).collect()
}

/// Whether one of the versions that repositories have is that of a step.
#[must_use]
pub fn is_among(versions: &BTreeSet<(&str, &str)>, action: &Action) -> bool {
    let Action::PutPackage { name, version } = action else { return true };
    // Those of the machine's own architecture are told without it, whatever was asked for.
    let plain = name.as_str().split_once(':').map_or(name.as_str(), |(name, _)| name);
    [name.as_str(), plain].into_iter().any(|name| versions.contains(&(name, version.as_str())))
}

/// Whether a step failed for the reason that no repository has its version.
#[must_use]
pub fn is_gone(action: &Action, why: &str) -> bool {
    matches!(action, Action::PutPackage { .. }) && why.starts_with(GONE)
}

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
    fn what_a_simulated_transaction_removes() {
        let check = |told: &str, expected: Option<&[&str]>| {
            let removed = removed(told.lines()).map(Vec::from_iter);
            assert_eq!(removed.as_deref(), expected, "{told}");
        };
        let count = |n: &str| {
            format!(
                "0 upgraded, 0 newly installed, 1 downgraded, {n} to remove and 120 not upgraded."
            )
        };
        let lines =
            "Remv yq [3.1.0-3]\nInst a [1] (2 b [all])\nPurg libc6:i386 [1] [a b ]\nConf a (2)";
        check(
            &format!("The following:\n  Remv x\n{}\n{lines}", count("2")),
            Some(&["libc6:i386", "yq"]),
        );
        check(&format!("{lines}\n{}", count("3")), None);
        check(&format!("Remv \n{}", count("0")), None);
        check(lines, None);
        check("", None);
        check(&count("0"), Some(&[]));
        check(&count("-"), None);
    }

    #[test]
    fn versions_that_repositories_have() {
        let told = "     g++ | 4:12.2.0-3 | http://a.example/debian bookworm/main amd64 Packages\n\
                    \x20   soak |      1.0-1 | http://a.example ./ Packages\n\
                    only32:i386 |        2.0 | http://a.example ./ Packages\nN: Unable to locate";
        let versions = versions(told.lines());
        let expected = [("g++", "4:12.2.0-3"), ("only32:i386", "2.0"), ("soak", "1.0-1")];
        assert_eq!(versions, expected.into());
        let put = |name: &str, version: &str| Action::PutPackage {
            name: name.parse().unwrap(),
            version: version.parse().unwrap(),
        };
        assert!(is_among(&versions, &put("soak:amd64", "1.0-1")));
        assert!(is_among(&versions, &put("only32:i386", "2.0")));
        assert!(!is_among(&versions, &put("only32:i386", "2.1")));
        assert!(!is_among(&versions, &put("soak", "1.0-2")));
        assert!(is_among(&versions, &Action::RemovePackage("soak".parse().unwrap())));
        let why = format!("{GONE}: soak=1.0-2");
        assert!(is_gone(&put("soak", "1.0-2"), &why));
        assert!(!is_gone(&put("soak", "1.0-2"), "apt-get: E: no"));
        assert!(!is_gone(&Action::ReloadManager, &why));
    }

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
