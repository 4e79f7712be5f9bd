//! Reads one file, and decides what of it may leave the machine.
//!
//! # Invariants
//! - What is opened is what was looked at: same device and inode, a regular file.
//! - At most [`CONTENT_MAX`] bytes are held of any file.

use super::{Identity, Role};
use crate::bounded;
use crate::text::base_name;
use model::ContentId;
use model::redact::Redactor;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes a file may have for its content to be taken.
pub const CONTENT_MAX: u64 = 1024 * 1024;

pub(super) const UNREADABLE: &str = "unreadable";
/// A pipe, a socket, a device: reading it would do something.
const SPECIAL: &str = "not a regular file";
const PRIVATE: &str = "private";
const BINARY: &str = "binary";
const TOO_LARGE: &str = "too large";

#[derive(Debug)]
pub(super) struct Content {
    pub(super) id: ContentId,
    pub(super) bytes: Vec<u8>,
    pub(super) fingerprint: String,
    /// Secrets in it became marks.
    pub(super) redacted: bool,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Content(Content),
    Withheld { why: &'static str, fingerprint: Option<String> },
}

/// Reads a file of which `identity` was seen; `name` is its path on the machine.
pub(super) fn read(
    path: &Path,
    (name, role): (&str, Role),
    identity: Identity,
    redactor: &Redactor,
) -> Outcome {
    const REGULAR: u32 = 0o100_000;
    const FORMAT: u32 = 0o170_000;
    let unreadable = Outcome::Withheld { why: UNREADABLE, fingerprint: None };
    if identity.mode & FORMAT != REGULAR {
        return Outcome::Withheld { why: SPECIAL, fingerprint: None };
    }
    match bytes(path, identity) {
        Ok(bytes) => judge(bytes, (name, role), identity, redactor),
        Err(_denied) => unreadable,
    }
}

/// One byte more than fits tells a file that has grown since.
pub(super) fn bytes(path: &Path, identity: Identity) -> io::Result<Vec<u8>> {
    bounded::read_open(&open(path, identity)?, identity.size, CONTENT_MAX + 1)
}

fn open(path: &Path, identity: Identity) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let opened = Identity::of(&file.metadata()?);
    let same = (opened.device, opened.inode, opened.mode)
        == (identity.device, identity.inode, identity.mode);
    if same { Ok(file) } else { Err(io::ErrorKind::StaleNetworkFileHandle.into()) }
}

fn judge(
    bytes: Vec<u8>,
    (name, role): (&str, Role),
    identity: Identity,
    redactor: &Redactor,
) -> Outcome {
    const READABLE_BY_ALL: u32 = 0o004;
    let too_large = u64::try_from(bytes.len()).unwrap_or(u64::MAX) > CONTENT_MAX;
    let fingerprint = if too_large {
        // Of its beginning and its size: to read it all, whenever it changes, costs too much.
        let mut sized = bytes.clone();
        sized.extend_from_slice(&identity.size.to_le_bytes());
        redactor.fingerprint(&sized)
    } else {
        redactor.fingerprint(&bytes)
    };
    let withheld = |why| Outcome::Withheld { why, fingerprint: Some(fingerprint.clone()) };
    if identity.mode & READABLE_BY_ALL == 0 || is_private_name(name) || has_private_key(&bytes) {
        return withheld(PRIVATE);
    }
    if too_large {
        return withheld(TOO_LARGE);
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => {
            let shown = match role {
                Role::Environment => redactor.environment_file(&text),
                _ => redactor.text(&text),
            };
            let redacted = shown != text;
            let bytes = shown.into_bytes();
            Outcome::Content(Content { id: ContentId::of(&bytes), bytes, fingerprint, redacted })
        }
        _ => withheld(BINARY),
    }
}

/// Files that are secret by what they are, however somebody has set their mode.
fn is_private_name(path: &str) -> bool {
    const DIRECTORIES: [&str; 7] = [
        "/etc/credstore",
        "/etc/credstore.encrypted",
        "/etc/ssl/private",
        "/etc/letsencrypt/archive",
        "/etc/letsencrypt/keys",
        "/etc/wireguard",
        "/var/lib/systemd/credential.secret",
    ];
    const NAMES: [&str; 16] = [
        ".git-credentials",
        ".my.cnf",
        ".netrc",
        ".pgpass",
        ".vault-token",
        "credentials",
        "gshadow",
        "gshadow-",
        "id_dsa",
        "id_ecdsa",
        "id_ed25519",
        "id_rsa",
        "krb5.keytab",
        "opasswd",
        "shadow",
        "shadow-",
    ];
    const ENDINGS: [&str; 8] =
        [".gpg", ".jks", ".kdbx", ".key", ".keytab", ".p12", ".pfx", ".keystore"];
    let name = base_name(path);
    let below = |directory: &&str| {
        path.strip_prefix(*directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let host_key = name.starts_with("ssh_host_") && name.ends_with("_key");
    host_key
        || NAMES.contains(&name)
        || ENDINGS.iter().any(|ending| name.ends_with(ending))
        || DIRECTORIES.iter().any(below)
}

fn has_private_key(bytes: &[u8]) -> bool {
    let contains = |mark: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
    contains(b"-----BEGIN") && contains(b"PRIVATE KEY-----")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_names() {
        for private in [
            "/etc/shadow",
            "/etc/gshadow-",
            "/etc/ssh/ssh_host_ed25519_key",
            "/etc/ssl/private/x.pem",
            "/home/alice/.ssh/id_rsa",
            "/srv/tls/server.key",
            "/etc/wireguard/wg0.conf",
        ] {
            assert!(is_private_name(private), "{private}");
        }
        for public in [
            "/etc/ssh/ssh_host_ed25519_key.pub",
            "/etc/ssh/sshd_config",
            "/etc/ssl/private-notes.txt",
            "/etc/nginx/nginx.conf",
            "/etc/apt/keyrings.list",
        ] {
            assert!(!is_private_name(public), "{public}");
        }
    }
}
