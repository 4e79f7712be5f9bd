//! Names that come from outside, parsed once. What has one of these types can't leave its
//! directory, become an option of a program, or end a line.

use model::checked;
pub use model::{HostName, MacAddress, TextError as NameError};

checked!(
    /// What people call an image. Lower case, so that a directory listing sorts as people read.
    ImageName,
    "an image name (a-z, 0-9, '.', '_', '-'; at most 63, the first a letter or digit)",
    is_image_name
);
checked!(
    /// A machine, called as the host it is the twin of. A path segment, and no option.
    MachineName,
    "a machine's name (a-z, 0-9, '.', '_', '-'; at most 253, the first a letter or digit, no '..')",
    is_machine_name
);
checked!(
    /// A saved moment of a machine.
    SnapshotName,
    "a snapshot's name (a-z, 0-9, '.', '_', '-'; at most 63, the first a letter or digit)",
    is_image_name
);
checked!(
    /// The identity of an image: 64 hexadecimal digits over its inputs and files.
    ImageId,
    "an image digest (64 hexadecimal digits)",
    is_digest
);
checked!(
    /// A release of a distribution: `bookworm`.
    Suite,
    "a suite (a-z, 0-9, '-'; the first a letter)",
    is_suite
);
checked!(
    /// A package, never an option and never apt's `name-`, which removes.
    PackageName,
    "a package name",
    is_package
);
checked!(
    /// Where packages come from: one URI, without spaces and brackets, which apt would read.
    Mirror,
    "a mirror (http://, https:// or file:/, without spaces)",
    is_mirror
);
checked!(
    /// A user of the guest, as `useradd` takes it.
    UserName,
    "a user name (a-z, 0-9, '_', '-'; at most 32, the first a letter or '_')",
    is_user
);
checked!(
    /// A public key in one line, with no options before it.
    PublicKey,
    "an SSH public key in one line",
    is_public_key
);
checked!(
    /// A password as crypt(5) stores it; the password itself never gets here.
    PasswordHash,
    "a password hash of crypt(5): $6$…, $5$…, $y$… or $2b$…",
    is_password_hash
);
checked!(
    /// An absolute path in a guest, without `.` and `..`.
    GuestPath,
    "an absolute path without '.', '..' and control characters",
    is_guest_path
);

fn is_machine_name(text: &str) -> bool {
    model::HostId::new(text).is_ok_and(|host| host.as_str() == text)
}

fn all(text: &str, more: &str) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c))
}

fn starts(text: &str, first: fn(&char) -> bool) -> bool {
    text.chars().next().as_ref().is_some_and(first)
}

fn is_image_name(text: &str) -> bool {
    text.len() <= 63
        && all(text, "._-")
        && starts(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

pub(super) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_suite(text: &str) -> bool {
    text.len() <= 32 && all(text, "-") && starts(text, char::is_ascii_lowercase)
}

fn is_package(text: &str) -> bool {
    (2..=128).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+._-".contains(c))
        && starts(text, char::is_ascii_alphanumeric)
        && !text.ends_with('-')
}

fn is_mirror(text: &str) -> bool {
    let scheme = ["http://", "https://", "file:/"]
        .iter()
        .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    scheme
        && text.len() <= 1000
        && text.chars().all(|c| c.is_ascii_graphic() && !"[]\"'\\".contains(c))
}

fn is_user(text: &str) -> bool {
    text.len() <= 32 && all(text, "_-") && starts(text, |c| c.is_ascii_lowercase() || *c == '_')
}

fn is_public_key(text: &str) -> bool {
    let mut words = text.split(' ');
    let kind = words.next().is_some_and(|kind| {
        ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|start| kind.starts_with(start))
            && all(kind, "-@.")
    });
    let body = words.next().is_some_and(|body| {
        body.starts_with("AAAA")
            && body.chars().all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c))
    });
    kind && body && text.len() <= 16_384 && text.chars().all(is_printable)
}

fn is_password_hash(text: &str) -> bool {
    text.len() <= 255
        && ["$6$", "$5$", "$y$", "$2b$"]
            .iter()
            .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| rest.len() >= 20))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "./$=,".contains(c))
}

fn is_guest_path(text: &str) -> bool {
    text.len() <= 1024
        && text.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        })
        && text.chars().all(is_printable)
}

/// What every reader of YAML takes as it stands: no control characters, no byte order marks.
pub(super) fn is_printable(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_aim_elsewhere_are_refused() {
        for text in ["", ".", "..", "../x", "a/b", "-rf", ".hidden", "A", "a b", "a\n", "ä", "a\0"]
        {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
            assert!(text.parse::<ImageId>().is_err(), "{text:?}");
            assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
            assert!(text.parse::<GuestPath>().is_err(), "{text:?}");
        }
        for text in ["nginx-", "--include", "a", "x y", "x,y", "x;y", "x=1", "x/y"] {
            assert!(text.parse::<PackageName>().is_err(), "{text:?}");
        }
        for text in ["ftp://x", "http://", "http://x y", "http://x\ny", "[trusted=yes] http://x"] {
            assert!(text.parse::<Mirror>().is_err(), "{text:?}");
        }
        for text in ["/etc/../x", "/", "//", "/a/./b", "etc", "/a\nb"] {
            assert!(text.parse::<GuestPath>().is_err(), "{text:?}");
        }
        for text in
            ["command=\"x\" ssh-rsa AAAA", "ssh-rsa", "ssh-rsa AAAA\nssh-rsa AAAA", "ssh-rsa B"]
        {
            assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn good_names_are_taken() {
        assert!("debian-12.4_base".parse::<ImageName>().is_ok());
        assert!("libstdc++6".parse::<PackageName>().is_ok());
        assert!("ssh-ed25519 AAAAC3Nza+/= someone at home".parse::<PublicKey>().is_ok());
        assert!("/opt/x/y.z".parse::<GuestPath>().is_ok());
        assert!("$6$rounds=5000$abcdefgh$ABCDEFGHIJKLMNOPQRST./".parse::<PasswordHash>().is_ok());
    }

    proptest! {
        #[test]
        fn an_image_name_is_one_plain_file_name(text in ".{0,70}") {
            if let Ok(name) = text.parse::<ImageName>() {
                let path = std::path::Path::new(name.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert_eq!(path.file_name().unwrap(), name.as_str());
                prop_assert!(!name.as_str().starts_with(['.', '-']));
            }
        }

        #[test]
        fn no_checked_name_holds_a_line_end(text in "[ -~\n\r\t\u{85}\u{2028}]{0,40}") {
            let taken = [
                text.parse::<HostName>().is_ok(), text.parse::<UserName>().is_ok(),
                text.parse::<PackageName>().is_ok(), text.parse::<Mirror>().is_ok(),
                text.parse::<Suite>().is_ok(), text.parse::<GuestPath>().is_ok(),
            ];
            if taken.contains(&true) {
                prop_assert!(text.chars().all(is_printable));
            }
        }
    }
}
