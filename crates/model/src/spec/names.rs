//! The names and values of a spec: what is in them is safe in a path, as an argument of a
//! program, and in a line of a configuration file.

use crate::checked;
use crate::{TextError, unit_name_is_valid};
use serde::{Deserialize, Serialize};

checked!(
    /// The full name of a unit of the system's manager.
    UnitName,
    "the name of a unit",
    is_unit
);
checked!(
    /// A package as dpkg has it, `name:arch` for a foreign architecture.
    PackageName,
    "the name of a package",
    is_package
);
checked!(
    /// A package's version as dpkg has it.
    PackageVersion,
    "the version of a package",
    is_version
);
checked!(
    /// A user or a group.
    AccountName,
    "the name of a user or group",
    is_account
);
checked!(
    /// A plain absolute path outside of what the kernel and the running system make up.
    FilePath,
    "an absolute path of a file",
    is_path
);
checked!(
    /// Where a symbolic link leads.
    LinkTarget,
    "the target of a symbolic link",
    is_target
);
checked!(
    /// A field of `/etc/passwd`.
    Field,
    "a field without colons and control characters",
    is_field
);
checked!(
    /// As below `/usr/share/zoneinfo`.
    TimeZone,
    "the name of a time zone",
    is_zone
);

/// Permission bits of a file, written in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(u32);

impl Mode {
    pub const PLAIN: Self = Self(0o644);

    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl TryFrom<String> for Mode {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        let digits = (3..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let bits = digits.then(|| u32::from_str_radix(&text, 8).ok()).flatten();
        let bits = bits.filter(|bits| *bits <= 0o7777);
        bits.map(Self).ok_or_else(|| TextError::new(&text, "the mode of a file, in octal"))
    }
}

impl std::str::FromStr for Mode {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        text.to_owned().try_into()
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        mode.to_string()
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl UnitName {
    /// What comes after the last dot.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.as_str().rsplit('.').next().unwrap_or_default()
    }

    /// Without what comes after the last dot, and without the instance.
    #[must_use]
    pub fn stem(&self) -> &str {
        let name = self.as_str().rsplit_once('.').map_or("", |(name, _)| name);
        name.split('@').next().unwrap_or(name)
    }
}

impl FilePath {
    /// The directory it is in.
    #[must_use]
    pub fn directory(&self) -> &str {
        self.as_str().rsplit_once('/').map_or("", |(directory, _)| directory)
    }

    /// What comes after the last slash.
    #[must_use]
    pub fn name(&self) -> &str {
        self.as_str().rsplit('/').next().unwrap_or_default()
    }
}

fn is_unit(text: &str) -> bool {
    unit_name_is_valid(text) && !text.starts_with(['-', '.'])
}

fn is_package(text: &str) -> bool {
    let (name, architecture) = text.split_once(':').unwrap_or((text, "any"));
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    let plain = |word: &str| {
        word.bytes().all(legal) && word.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
    };
    // A last + or - would tell apt to install or remove it.
    text.len() <= 200 && plain(name) && plain(architecture) && !text.ends_with(['-'])
}

fn is_version(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"+-.:~".contains(&b);
    (1..=200).contains(&text.len())
        && text.bytes().all(legal)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn is_account(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    (1..=32).contains(&text.len())
        && text.bytes().all(legal)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
}

fn is_path(text: &str) -> bool {
    let Some(relative) = text.strip_prefix('/') else { return false };
    let plain = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255;
    text.len() <= 1024
        && !text.chars().any(char::is_control)
        && relative.split('/').all(plain)
        && !["proc", "sys", "dev", "run"].contains(&relative.split('/').next().unwrap_or_default())
}

fn is_target(text: &str) -> bool {
    (1..=1024).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn is_field(text: &str) -> bool {
    text.len() <= 256 && !text.contains(':') && !text.chars().any(char::is_control)
}

fn is_zone(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_+-".contains(&b);
    let plain = |part: &str| !part.is_empty() && part.bytes().all(legal);
    text.len() <= 64 && text.split('/').all(plain) && !text.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check<T: std::str::FromStr>(good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(text.parse::<T>().is_ok(), "{text:?}");
        }
        for text in bad {
            assert!(text.parse::<T>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn names() {
        check::<UnitName>(
            &["nginx.service", "worker@a.service", "foo-\\x2dbar.mount"],
            &["", "-.mount", "../x.service", "a b.service", "$(x).service", "x;y.service"],
        );
        check::<PackageName>(
            &["nginx", "libc6:i386", "g++"],
            &["", "-y", "a b", "../x.deb", "x.deb/", "A", "nginx-", ":x"],
        );
        check::<PackageVersion>(&["1:2.3~rc1-4+b1"], &["", "-1", "1 2", "1;x", "$(x)"]);
        check::<AccountName>(&["alice", "_apt", "www-data"], &["", "-x", "a:b", "a b", "a\n"]);
        check::<FilePath>(
            &["/etc/nginx/nginx.conf", "/opt/a b/{{ x }}"],
            &["", "/", "etc", "/etc/../x", "/etc//x", "/etc/", "/proc/1/mem", "/a\nb", "/run/x"],
        );
        check::<LinkTarget>(&["/dev/null", "../x"], &["", "a\0b"]);
        check::<Field>(&["", "Alice, Room 1"], &["a:b", "a\nroot::0:0"]);
        check::<TimeZone>(&["Europe/Warsaw", "UTC", "Etc/GMT+1"], &["", "../x", "/etc", "a//b"]);
        check::<Mode>(&["0644", "4755"], &["", "-1", "0o644", "99999", "17777", "abc"]);
        assert_eq!("0644".parse::<Mode>().unwrap(), Mode::PLAIN);
        assert_eq!(Mode::PLAIN.to_string(), "0644");
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_no_option_and_no_other_directory(text in "[-./a-z:$; \n@]{0,12}") {
            let words = [
                text.parse::<UnitName>().is_ok(),
                text.parse::<PackageName>().is_ok(),
                text.parse::<PackageVersion>().is_ok(),
                text.parse::<AccountName>().is_ok(),
            ];
            if words.contains(&true) {
                prop_assert!(!text.starts_with('-') && !text.contains(['/', ' ', '$', ';', '\n']));
            }
            if text.parse::<FilePath>().is_ok() {
                prop_assert!(text.starts_with('/') && !text.split('/').any(|part| part == ".."));
            }
        }
    }
}
