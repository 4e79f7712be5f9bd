//! Keeps secrets on the host: what may be one is replaced by a keyed hash.
//!
//! The hash is keyed by the host, so that the same secret gives the same mark there, a
//! rotation shows, and nobody can look the mark up in a table. Rather one value too many is
//! hidden than one too few; the allow-list ([`Redactor::allow`]) names what must stay legible.
//!
//! What is hidden:
//! - environment values, always, except those of allow-listed names;
//! - the same in what gives them, except values that by their form say nothing secret:
//!   `Environment=` of a unit, a file that a unit names as `EnvironmentFile=`,
//!   `docker run -e X=value`;
//! - arguments after or within an option whose name speaks of a secret (`--password X`,
//!   `--token=X`, `password=X`, `-pX` of the MySQL tools), credentials in URLs, and words
//!   that by shape (known token prefixes, PEM, JWT) or entropy look like a key;
//! - in scripts and the like: the same, in the lines that are commands;
//! - in configuration files: values of keys that speak of a secret, words that look like a
//!   key, credentials in URLs, hashes of passwords, and private key blocks whole.
//!
//! # Invariants
//! - A text is read in time linear in its length, whatever is in it.
//! - What was redacted stays as it is when it is redacted again.

mod assignments;
mod commands;
mod lines;
mod names;
mod plain;
mod shapes;
#[cfg(test)]
mod tests;
mod variables;
mod work;

/// Replaces secrets.
#[derive(Clone)]
pub struct Redactor {
    key: [u8; 32],
    allow: Vec<String>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of every log.
        f.debug_struct("Redactor").field("allow", &self.allow).finish_non_exhaustive()
    }
}

/// What stands before the hash of a replaced value.
pub const MARK: &str = "redacted:";

/// Environment variables whose values say nothing secret and much about a service.
const LEGIBLE_ENVIRONMENT: [&str; 24] = [
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TERM",
    "PWD",
    "LC_ALL",
    "LC_CTYPE",
    "HOSTNAME",
    "container",
    "DEBIAN_FRONTEND",
    "JAVA_HOME",
    "GOMAXPROCS",
    "GOGC",
    "NODE_ENV",
    "RUST_LOG",
    "PYTHONUNBUFFERED",
    "XDG_RUNTIME_DIR",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
];

impl Redactor {
    /// `key` is the host's own, kept with the agent's state. `allow` names environment
    /// variables, options and configuration keys whose values stay legible.
    #[must_use]
    pub fn new(key: [u8; 32], allow: Vec<String>) -> Self {
        Self { key, allow }
    }

    /// The mark of a value.
    #[must_use]
    pub fn mark(&self, value: &str) -> String {
        format!("{MARK}{}", self.fingerprint(value.as_bytes()))
    }

    /// 16 hexadecimal digits that change with the bytes and mean nothing without the key.
    #[must_use]
    pub fn fingerprint(&self, bytes: &[u8]) -> String {
        let hash = blake3::keyed_hash(&self.key, bytes).to_hex();
        hash.get(..16).unwrap_or_default().to_owned()
    }

    fn allowed(&self, name: &str) -> bool {
        self.allow.iter().any(|allowed| allowed == name)
    }

    /// The value of an environment variable as it may be stored.
    #[must_use]
    pub fn environment(&self, name: &str, value: &str) -> String {
        let hidden = !value.is_empty() && (!self.legible(name) || shapes::looks_secret(value));
        if hidden { self.mark(value) } else { self.text(value) }
    }

    /// Whether the value of a variable is replaced in what gives it: a file, a command.
    fn hides(&self, name: &str, value: &str) -> bool {
        if value.is_empty() {
            return false;
        }
        if self.legible(name) {
            return shapes::looks_secret(value);
        }
        names::speaks_of_secret(name) || !plain::is_plain(value)
    }

    fn legible(&self, name: &str) -> bool {
        LEGIBLE_ENVIRONMENT.contains(&name) || self.allowed(name)
    }

    /// A command line, word by word.
    #[must_use]
    pub fn arguments(&self, words: &[String]) -> Vec<String> {
        let mut command = commands::Command::new(self);
        let argument = |word: &String| match command.word(word) {
            Some(range) => {
                let secret = word.get(range.clone()).unwrap_or_default();
                let before = word.get(..range.start).unwrap_or_default();
                let after = word.get(range.end..).unwrap_or_default();
                let kept = is_mark(secret) || secret.is_empty();
                let mark = if kept { secret.to_owned() } else { self.mark(secret) };
                format!("{before}{mark}{after}")
            }
            // Also a script given as one word (`sh -c '…'`).
            None => self.text(word),
        };
        words.iter().map(argument).collect()
    }

    /// The text of a configuration file, unit or script, its secrets replaced line by line.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        self.redacted(text, false)
    }

    /// The text of a file that a unit names as `EnvironmentFile=`: of every assignment the value
    /// is one of an environment.
    #[must_use]
    pub fn environment_file(&self, text: &str) -> String {
        self.redacted(text, true)
    }

    fn redacted(&self, text: &str, is_environment: bool) -> String {
        let mut seen = lines::pass(self, text, is_environment);
        // A mark may make its surroundings read differently: until nothing changes any more.
        for _ in 0..PASSES {
            let next = lines::pass(self, &seen, is_environment);
            if next == seen {
                break;
            }
            seen = next;
        }
        seen
    }
}

/// After these a text is taken as it is; three are more than any known one needs.
const PASSES: usize = 8;

/// Whether a value is a mark already.
fn is_mark(value: &str) -> bool {
    value.strip_prefix(MARK).is_some_and(|hash| {
        hash.len() == 16 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}
