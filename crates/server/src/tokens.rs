//! The tokens that let people and agents in: who has which role, kept in one small file.
//!
//! The file holds hashes, never a token's text, which is shown once when it is made. A server
//! and any number of `twin token` commands share it: writers take a lock and replace the file
//! whole, readers notice that it was replaced. What a role may do is decided elsewhere.
//!
//! # Invariants
//! - The file is readable by its owner alone, and always whole: it is written beside its place,
//!   synced and renamed.
//! - A file that can't be read or understood lets nobody in.
//! - How long a check takes does not depend on how much of a hash was guessed right.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::{HostId, Time};
use rustix::fs::{FlockOperation, Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What every token's text begins with, so that a leaked one is recognised as such.
pub const PREFIX: &str = "twt_";

/// Bytes the file may have: room for tens of thousands of tokens.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Bytes a name may have.
const MAX_NAME: usize = 200;

/// The recorded last use of a token is at most this much too old.
const USE_RECORDED_EVERY: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a list of tokens")]
    Form {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} is larger than {} MiB; it can't be a list of tokens", MAX_FILE >> 20)]
    TooLarge { path: PathBuf },
    #[error("there is no token {0}; see them with: twin token list")]
    Unknown(String),
    #[error("a token's name has at most {MAX_NAME} bytes and no control characters")]
    Name,
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
}

/// What the holder of a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Also acts on twins and runs.
    Operator,
    /// Also changes configuration and tokens.
    Admin,
    /// Writes the history of hosts, and reads nothing.
    Agent,
}

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Agent => "agent",
        }
    }
}

/// A token as it is known after it was made: without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub id: String,
    pub name: String,
    pub role: Role,
    /// Of an agent's token: the only host it may speak for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    pub created_at: Time,
    /// To the hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
}

/// A token just made; its text is nowhere else.
#[derive(Clone, PartialEq, Eq)]
pub struct Created {
    pub token: Token,
    pub text: String,
}

impl std::fmt::Debug for Created {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text stays out of every log.
        f.debug_struct("Created").field("token", &self.token).finish_non_exhaustive()
    }
}

/// A line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    token: Token,
    /// BLAKE3 of the text. Its 256 random bits need no slow hash.
    #[serde(with = "hex")]
    hash: blake3::Hash,
}

/// The file of tokens.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// Which file `records` came from; `None` when there was none.
    of: Option<Stamp>,
    records: Vec<Record>,
}

/// Says whether a file is still the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Tokens {
    /// The tokens kept under a data directory. No file there means no tokens.
    ///
    /// # Errors
    /// When there is a file that can't be read or understood.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let tokens = Self { path: dir.join("tokens.json"), cache: Mutex::new(Cache::default()) };
        tokens.list()?;
        Ok(tokens)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a token. Its text is in the answer and can't be had again.
    ///
    /// # Errors
    /// When the name is not one, or the file can't be written.
    pub fn create(
        &self,
        role: Role,
        name: &str,
        host: Option<HostId>,
        now: Time,
    ) -> Result<Created, Error> {
        if name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(Error::Name);
        }
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()?));
        let _lock = self.lock()?;
        let mut records = self.read()?;
        let id = loop {
            let id = id_of(random()?);
            if records.iter().all(|record| record.token.id != id) {
                break id;
            }
        };
        let name = name.to_owned();
        let token = Token { id, name, role, host, created_at: now, last_used_at: None };
        records.push(Record { token: token.clone(), hash: blake3::hash(text.as_bytes()) });
        self.write(&records)?;
        Ok(Created { token, text })
    }

    /// All tokens, the oldest first.
    ///
    /// # Errors
    /// When the file can't be read or understood.
    pub fn list(&self) -> Result<Vec<Token>, Error> {
        Ok(self.read()?.into_iter().map(|record| record.token).collect())
    }

    /// Takes a token back; from now on it lets nobody in.
    ///
    /// # Errors
    /// When there is none of this id, or the file can't be written.
    pub fn revoke(&self, id: &str) -> Result<Token, Error> {
        let _lock = self.lock()?;
        let mut records = self.read()?;
        let position = records
            .iter()
            .position(|record| record.token.id == id)
            .ok_or_else(|| Error::Unknown(id.chars().take(80).collect()))?;
        let revoked = records.remove(position).token;
        self.write(&records)?;
        Ok(revoked)
    }

    /// Whose token this is; `None` when it is nobody's.
    ///
    /// # Errors
    /// When the file can't be read: nobody is let in then.
    pub fn check(&self, text: &str) -> Result<Option<Token>, Error> {
        if !text.starts_with(PREFIX) {
            return Ok(None);
        }
        let hash = blake3::hash(text.as_bytes());
        let cache = self.fresh()?;
        // Every record is looked at, and `blake3::Hash` compares in constant time.
        let mut found = None;
        for record in &cache.records {
            if record.hash == hash {
                found = Some(&record.token);
            }
        }
        Ok(found.cloned())
    }

    /// Whether there is a token of this id: it was not revoked.
    ///
    /// # Errors
    /// When the file can't be read: nobody is let in then.
    pub fn has(&self, id: &str) -> Result<bool, Error> {
        Ok(self.fresh()?.records.iter().any(|record| record.token.id == id))
    }

    /// What the file has, read again if it was replaced.
    fn fresh(&self) -> Result<MutexGuard<'_, Cache>, Error> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.stamp()?;
        if cache.of != stamp {
            // The stamp is from before the reading: a file replaced meanwhile is read again.
            cache.records = self.read()?;
            cache.of = stamp;
        }
        Ok(cache)
    }

    /// Records that a token was used, at most once an hour.
    ///
    /// # Errors
    /// When the file can't be written; the token is as good as before.
    pub fn note_use(&self, id: &str, now: Time) -> Result<(), Error> {
        let due = |token: &Token| {
            token.id == id
                && token.last_used_at.is_none_or(|last| now.since(last) >= USE_RECORDED_EVERY)
        };
        let cached = || {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.records.iter().any(|record| due(&record.token))
        };
        if !cached() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut records = self.read()?;
        let Some(record) = records.iter_mut().find(|record| due(&record.token)) else {
            return Ok(());
        };
        record.token.last_used_at = Some(now);
        self.write(&records)
    }

    fn stamp(&self) -> Result<Option<Stamp>, Error> {
        match std::fs::metadata(&self.path) {
            Ok(file) => Ok(Some(Stamp {
                inode: file.ino(),
                size: file.len(),
                modified: (file.mtime(), file.mtime_nsec()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path: self.path.clone(), source }),
        }
    }

    fn read(&self) -> Result<Vec<Record>, Error> {
        let unreadable = |source| Error::Read { path: self.path.clone(), source };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(unreadable(source)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(Error::TooLarge { path: self.path.clone() });
        }
        serde_json::from_slice(&bytes)
            .map_err(|source| Error::Form { path: self.path.clone(), source })
    }

    /// Keeps other writers out until it is dropped.
    fn lock(&self) -> Result<File, Error> {
        let path = self.path.with_extension("lock");
        let lock = || -> io::Result<File> {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = File::from(rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))?);
            self.give_to_owner(&file);
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map_err(|source| Error::Write { path: path.clone(), source })
    }

    fn write(&self, records: &[Record]) -> Result<(), Error> {
        let next = self.path.with_extension("json.next");
        let replace = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(records)?;
            text.push(b'\n');
            // Left behind by a writer that was killed; the lock says that nobody writes now.
            match std::fs::remove_file(&next) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&next, flags, Mode::from_raw_mode(0o600))?;
            let mut file = File::from(fd);
            file.write_all(&text)?;
            self.give_to_owner(&file);
            file.sync_all()?;
            std::fs::rename(&next, &self.path)?;
            File::open(self.directory())?.sync_all()
        };
        replace().map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or_else(|| Path::new("."))
    }

    /// A token made by root must be readable for the server's own user, who owns the directory.
    fn give_to_owner(&self, file: &File) {
        let Ok(directory) = std::fs::metadata(self.directory()) else { return };
        if rustix::process::geteuid().is_root() && directory.uid() != 0 {
            let (uid, gid) = (Uid::from_raw(directory.uid()), Gid::from_raw(directory.gid()));
            // Where this fails, the server says that it can't read the file.
            let _kept = rustix::fs::fchown(file, Some(uid), Some(gid));
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(bytes)
}

/// Eight hexadecimal digits: short enough to type, and no part of the secret.
fn id_of(bytes: [u8; 4]) -> String {
    format!("{:08x}", u32::from_be_bytes(bytes))
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(hash: &blake3::Hash, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hash.to_hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<blake3::Hash, D::Error> {
        blake3::Hash::from_hex(String::deserialize(from)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn now() -> Time {
        Time::from_seconds(1_795_165_200)
    }

    #[test]
    fn a_token_lets_in_until_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        assert_eq!(tokens.list().unwrap(), []);
        let made = tokens.create(Role::Viewer, "laptop", None, now()).unwrap();
        assert_eq!(made.text.len(), PREFIX.len() + 43);
        assert!(!format!("{made:?}").contains(&made.text), "the text is in no log");

        // Another process, such as the server, which has the file open already.
        let server = Tokens::open(dir.path()).unwrap();
        assert_eq!(server.check(&made.text).unwrap(), Some(made.token.clone()));
        assert_eq!(server.check(&format!("{}x", made.text)).unwrap(), None);
        assert_eq!(server.check("").unwrap(), None);

        let host = HostId::new("web01").unwrap();
        let agent = tokens.create(Role::Agent, "", Some(host.clone()), now()).unwrap();
        assert_eq!(server.check(&agent.text).unwrap().unwrap().host, Some(host));

        assert_eq!(tokens.revoke(&made.token.id).unwrap(), made.token);
        assert_eq!(server.check(&made.text).unwrap(), None);
        assert_eq!(server.check(&agent.text).unwrap(), Some(agent.token));
        assert!(matches!(tokens.revoke(&made.token.id), Err(Error::Unknown(_))));
    }

    #[test]
    fn the_file_is_private_and_holds_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let made = tokens.create(Role::Admin, "root's", None, now()).unwrap();
        let mode = std::fs::metadata(tokens.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(tokens.path()).unwrap();
        assert!(!text.contains(&made.text));
        assert!(text.contains(&blake3::hash(made.text.as_bytes()).to_hex().to_string()));
    }

    #[test]
    fn a_broken_file_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let made = tokens.create(Role::Admin, "a", None, now()).unwrap();
        assert!(tokens.check(&made.text).unwrap().is_some());
        for broken in ["", "{}", "[{\"id\":1}]", "[", "\u{0}"] {
            std::fs::write(tokens.path(), broken).unwrap();
            assert!(tokens.check(&made.text).is_err(), "{broken:?}");
            assert!(matches!(tokens.list(), Err(Error::Form { .. })), "{broken:?}");
            assert!(tokens.create(Role::Viewer, "b", None, now()).is_err(), "{broken:?}");
        }
        std::fs::remove_file(tokens.path()).unwrap();
        assert_eq!(tokens.check(&made.text).unwrap(), None);
    }

    #[test]
    fn writers_do_not_lose_each_others_tokens() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let tokens = Tokens::open(dir.path()).unwrap();
                    for _ in 0..10 {
                        tokens.create(Role::Viewer, "n", None, now()).unwrap();
                    }
                });
            }
        });
        assert_eq!(Tokens::open(dir.path()).unwrap().list().unwrap().len(), 40);
    }

    #[test]
    fn use_is_recorded_once_an_hour() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let made = tokens.create(Role::Viewer, "n", None, now()).unwrap();
        let last = |at: Time| {
            let id = tokens.check(&made.text).unwrap().unwrap().id;
            tokens.note_use(&id, at).unwrap();
            tokens.check(&made.text).unwrap().unwrap().last_used_at.unwrap()
        };
        let later = now().plus(Duration::from_secs(60));
        let much_later = now().plus(Duration::from_secs(7200));
        assert_eq!(last(now()), now());
        assert_eq!(last(later), now());
        assert_eq!(last(much_later), much_later);
    }

    #[test]
    fn names_are_plain() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        for bad in ["a\x1b[2J", &"x".repeat(201)] {
            let made = tokens.create(Role::Viewer, bad, None, now());
            assert!(matches!(made, Err(Error::Name)), "{bad:?}");
        }
    }
}
