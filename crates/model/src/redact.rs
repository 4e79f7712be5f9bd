//! Keeps secrets on the host: what may be one is replaced by a keyed hash.
//!
//! The hash is keyed by the host, so that the same secret gives the same mark there, a
//! rotation shows, and nobody can look the mark up in a table. Rather one value too many is
//! hidden than one too few; the allow-list ([`Redactor::allow`]) names what must stay legible.
//!
//! What is hidden:
//! - environment values, always, except allow-listed names;
//! - arguments after or within an option whose name speaks of a secret (`--password X`,
//!   `--token=X`, `password=X`, `-pX` of the MySQL tools), credentials in URLs, and words
//!   that by shape (known token prefixes, PEM, JWT) or entropy look like a key;
//! - in configuration files: values of keys that speak of a secret, words that look like a
//!   key, credentials in URLs, and private key blocks whole.

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

/// Words that make the name of an option or key speak of a secret.
const SECRET_WORDS: [&str; 20] = [
    "password",
    "passwd",
    "passphrase",
    "pass",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api_key",
    "accesskey",
    "access_key",
    "privatekey",
    "private_key",
    "credential",
    "credentials",
    "auth",
    "bearer",
    "requirepass",
    "masterauth",
    "psk",
];

/// Beginnings of well-known tokens.
const TOKEN_PREFIXES: [&str; 16] = [
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "sk-",
    "sk_live_",
    "pk_live_",
    "AKIA",
    "ASIA",
    "AIza",
    "hf_",
    "npm_",
    "dop_v1_",
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
        let legible = LEGIBLE_ENVIRONMENT.contains(&name) || self.allowed(name);
        if legible && !looks_secret(value) || value.is_empty() {
            self.urls(value)
        } else {
            self.mark(value)
        }
    }

    /// A command line, word by word.
    #[must_use]
    pub fn arguments(&self, words: &[String]) -> Vec<String> {
        let mut hide_next = false;
        let mut hide_header = false;
        let program = words.first().map(|word| word.rsplit('/').next().unwrap_or(word));
        let mut out = Vec::with_capacity(words.len());
        for (position, word) in words.iter().enumerate() {
            let hidden = if position == 0 {
                self.urls(word)
            } else if hide_next && !word.starts_with("--") {
                hide_next = false;
                self.mark(word)
            } else if hide_header {
                hide_header = false;
                self.header(word)
            } else {
                hide_next = false;
                self.argument(program.unwrap_or_default(), word, &mut hide_next, &mut hide_header)
            };
            out.push(hidden);
        }
        out
    }

    fn argument(
        &self,
        program: &str,
        word: &str,
        hide_next: &mut bool,
        hide_header: &mut bool,
    ) -> String {
        if word.contains(['\n', ' ']) {
            // A script given as one word (`sh -c '…'`): its lines are treated like a file's.
            return self.text(word);
        }
        if let Some((name, value)) = word.split_once('=') {
            let bare = name.trim_start_matches('-');
            if !value.is_empty() && speaks_of_secret(bare) && !self.allowed(bare) {
                return format!("{name}={}", self.mark(value));
            }
            if looks_secret(value) && !self.allowed(bare) {
                return format!("{name}={}", self.mark(value));
            }
        } else if word.starts_with('-') {
            let bare = word.trim_start_matches('-');
            *hide_next = speaks_of_secret(bare) && !self.allowed(bare);
            *hide_header = matches!(word, "-H" | "--header");
            // `curl -u user:secret`, and `mysql -psecret`, `redis-cli -a secret`.
            *hide_next |= matches!(
                (program, word),
                ("curl" | "wget", "-u" | "--user") | ("redis-cli", "-a") | ("sshpass", "-p")
            );
            let glued = program.starts_with("mysql")
                || program.starts_with("mariadb")
                || program == "sshpass";
            let secret = word.strip_prefix("-p").filter(|secret| glued && !secret.is_empty());
            if let Some(secret) = secret {
                return format!("-p{}", self.mark(secret));
            }
        } else if looks_secret(word) {
            return self.mark(word);
        }
        self.urls(word)
    }

    /// `Authorization: Bearer …` and the like.
    fn header(&self, word: &str) -> String {
        match word.split_once(':') {
            Some((name, value))
                if speaks_of_secret(name)
                    || name.eq_ignore_ascii_case("cookie")
                    || name.eq_ignore_ascii_case("authorization") =>
            {
                format!("{name}: {}", self.mark(value.trim()))
            }
            _ => self.text(word),
        }
    }

    /// The text of a configuration file or script, its secrets replaced line by line.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut key_block: Option<String> = None;
        for line in text.split_inclusive('\n') {
            if let Some(block) = &mut key_block {
                block.push_str(line);
                if line.contains("-----END") {
                    out.push_str(&self.mark(block));
                    out.push('\n');
                    key_block = None;
                }
            } else if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
                key_block = Some(line.to_owned());
            } else {
                self.line(line, &mut out);
            }
        }
        if let Some(block) = key_block {
            out.push_str(&self.mark(&block));
        }
        out
    }

    fn line(&self, line: &str, out: &mut String) {
        let body = line.trim_end_matches(['\n', '\r']);
        let ending = line.get(body.len()..).unwrap_or_default();
        let mut rest = body;
        while let Some((start, end)) =
            secret_value(rest, rest.len() == body.len(), |name| self.allowed(name))
        {
            let (head, tail) = rest.split_at(end);
            let (before, secret) = head.split_at(start);
            self.words(before, out);
            out.push_str(&self.mark(secret));
            rest = tail;
        }
        self.words(rest, out);
        out.push_str(ending);
    }

    /// Text without assignments: only words that look like keys are hidden, and credentials
    /// in URLs.
    fn words(&self, text: &str, out: &mut String) {
        let boundary = |c: char| c.is_whitespace() || "\"'`=,;<>()[]{}".contains(c);
        let mut rest = text;
        while let Some(end) = rest.find(boundary) {
            let (word, tail) = rest.split_at(end);
            self.word(word, out);
            let mut separator = tail.chars();
            out.extend(separator.next());
            rest = separator.as_str();
        }
        self.word(rest, out);
    }

    fn word(&self, word: &str, out: &mut String) {
        if looks_secret(word) {
            out.push_str(&self.mark(word));
        } else {
            out.push_str(&self.urls(word));
        }
    }

    /// `scheme://user:secret@host` without the secret.
    fn urls(&self, word: &str) -> String {
        let Some(scheme) = word.find("://") else { return word.to_owned() };
        let (head, authority) = word.split_at(scheme + 3);
        let end = authority.find(['/', '?', '#', ' ']).unwrap_or(authority.len());
        let Some(at) = authority.get(..end).and_then(|a| a.rfind('@')) else {
            return word.to_owned();
        };
        let (user_info, tail) = authority.split_at(at);
        match user_info.split_once(':') {
            Some((user, secret)) if !secret.is_empty() => {
                format!("{head}{user}:{}{tail}", self.mark(secret))
            }
            _ => word.to_owned(),
        }
    }
}

/// Where a line gives a value to a name that speaks of a secret: the byte range of the value.
///
/// A name is joined to its value by `=` or `:`, or by white space alone where that is how
/// values are given: near the beginning of a line (`requirepass x`, `set password x`) and
/// after an option (`--password x`). Comments are prose: there only `=` and `:` count.
fn secret_value(
    line: &str,
    at_start: bool,
    allowed: impl Fn(&str) -> bool,
) -> Option<(usize, usize)> {
    let boundary = |c: char| c.is_whitespace() || "=:\"'`,;{}()[]&|<>".contains(c);
    let comment = line.trim_start().starts_with(['#', ';', '/', '*']);
    let mut position = 0;
    for word in 0.. {
        let tail = line.get(position..)?;
        position += tail.find(|c| !boundary(c))?;
        let start = position;
        let tail = line.get(position..)?;
        position += tail.find(boundary).unwrap_or(tail.len());
        let name = line.get(start..position)?;
        let bare = name.trim_start_matches(['-', '#', '$']);
        if !speaks_of_secret(bare) || allowed(bare) || bare.eq_ignore_ascii_case("auth") {
            continue;
        }
        let rest = line.get(position..)?;
        let joint = rest.len()
            - rest.trim_start_matches(|c: char| c.is_whitespace() || "=:\"'".contains(c)).len();
        let joint_text = rest.get(..joint)?;
        let assigned = joint_text.contains(['=', ':']);
        let spaced = !comment && (at_start && word < 3 || name.starts_with('-')) && joint > 0;
        if !assigned && !spaced {
            continue;
        }
        // A quote that opens the value closes it; one before the name may close it, too.
        let begin = position + joint;
        let value = line.get(begin..)?;
        let joined =
            joint_text.rfind(['=', ':']).map_or(joint_text, |at| joint_text.split_at(at).1);
        let quote = joined.chars().rfind(|c| "\"'".contains(*c));
        let length = match quote {
            Some(quote) => value.find(quote).unwrap_or(value.len()),
            None if at_start && word == 0 => {
                value.trim_end_matches(|c: char| ";,\"'".contains(c) || c.is_whitespace()).len()
            }
            None => value
                .find(|c: char| c.is_whitespace() || "\"'`,;&|)}]".contains(c))
                .unwrap_or(value.len()),
        };
        let secret = value.get(..length)?;
        if !secret.is_empty() && !says_nothing(secret) {
            return Some((begin, begin + length));
        }
    }
    None
}

/// Values that a secret's name may have without there being a secret.
fn says_nothing(value: &str) -> bool {
    const PLAIN: [&str; 12] = [
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
        "none",
        "null",
        "{",
        "[",
        "required",
        "sufficient",
    ];
    PLAIN.contains(&value.to_ascii_lowercase().as_str()) || value.starts_with(MARK)
}

/// Whether the name of an option, key or variable speaks of a secret: judged by its words,
/// so that `--passthrough` and `author` are not.
fn speaks_of_secret(name: &str) -> bool {
    let mut words: Vec<String> = vec![String::new()];
    let mut previous_lower = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() {
            words.push(String::new());
            previous_lower = false;
            continue;
        }
        if c.is_ascii_uppercase() && previous_lower {
            words.push(String::new());
        }
        previous_lower = c.is_ascii_lowercase();
        if let Some(word) = words.last_mut() {
            word.push(c.to_ascii_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    // What names a place or a property of a secret is not the secret.
    if words.last().is_some_and(|last| {
        [
            "file", "path", "dir", "length", "size", "ttl", "timeout", "type", "method", "policy",
            "url", "uri", "name", "id", "expiry", "lifetime",
        ]
        .contains(&last.as_str())
    }) {
        return false;
    }
    let pairs = words.windows(2).filter_map(|pair| match pair {
        [a, b] => Some(format!("{a}_{b}")),
        _ => None,
    });
    words.iter().cloned().chain(pairs).any(|word| SECRET_WORDS.contains(&word.as_str()))
}

/// Whether a word by itself looks like a key or token.
fn looks_secret(word: &str) -> bool {
    if word.starts_with(MARK) {
        return false;
    }
    if TOKEN_PREFIXES.iter().any(|prefix| word.starts_with(prefix)) && word.len() >= 20 {
        return true;
    }
    let jwt = word.starts_with("eyJ") && word.matches('.').count() == 2;
    if jwt || word.contains("-----BEGIN") && word.contains("PRIVATE KEY") {
        return true;
    }
    // A key is long, of one alphabet, mixed, and without the structure of paths and versions.
    let alphabet = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=_-".contains(&b));
    if !alphabet
        || word.len() < 24
        || word.len() > 512
        || word.starts_with('/')
        || word.matches('/').count() > 2
    {
        return false;
    }
    let has = |test: fn(&u8) -> bool| word.as_bytes().iter().any(test);
    let mixed =
        has(u8::is_ascii_digit) && (has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase));
    let segments = word.split(['-', '_']).count();
    mixed && segments <= 3 && entropy_bits(word) > 4.0
}

/// Shannon entropy per character.
fn entropy_bits(word: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in word.bytes() {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let total = f64::from(u32::try_from(word.len()).unwrap_or(u32::MAX));
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| f64::from(count) / total)
        .map(|share| -share * share.log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor() -> Redactor {
        Redactor::new([7; 32], vec!["MODE".into(), "token-count".into()])
    }

    /// `«»` around a part says that it must be hidden; everything else must stay.
    fn check(marked: &str, run: impl Fn(&str) -> String) {
        let plain = marked.replace(['«', '»'], "");
        let mut expected = String::new();
        for (position, part) in marked.split(['«', '»']).enumerate() {
            if position % 2 == 0 {
                expected.push_str(part);
            } else {
                expected.push_str(&redactor().mark(part));
            }
        }
        assert_eq!(run(&plain), expected);
    }

    #[test]
    fn arguments() {
        let run = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            redactor().arguments(&words).join(" ")
        };
        check("app --password «hunter2» --port 80", run);
        check("app --db-password=«hunter2»", run);
        check("app --dbPassword=«hunter2»", run);
        check("app --password-file /etc/secret --verbose", run);
        check("app --author someone --passthrough yes", run);
        check("app --token-count=5", run);
        check("mysqldump -u root -p«hunter2» db", run);
        check("curl -u «me:hunter2» https://x/", run);
        check("curl https://me:«hunter2»@host/path?x=1", run);
        check("redis-cli -a «hunter2» ping", run);
        check("run «ghp_abcdefghijklmnopqrstuvwxyz0123456789» now", run);
        check("run --key=«wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY»", run);
        check("/usr/lib/jvm/java-17-openjdk-amd64/bin/java -Xmx2G -jar /opt/App-1.2.3.jar", run);
        check("/usr/sbin/nginx -g daemon on; master_process on;", run);
        check("dockerd --host=unix:///var/run/docker.sock", run);
    }

    #[test]
    fn scripts_as_one_word_are_read_too() {
        let words =
            vec!["sh".to_owned(), "-c".to_owned(), "export TOKEN=hunter2\nexec app".to_owned()];
        let redacted = redactor().arguments(&words);
        assert!(!redacted.join(" ").contains("hunter2"), "{redacted:?}");
        assert!(redacted.join(" ").contains("exec app"));
    }

    #[test]
    fn environment() {
        let redactor = redactor();
        assert_eq!(redactor.environment("PATH", "/bin"), "/bin");
        assert_eq!(redactor.environment("MODE", "fast"), "fast");
        assert_eq!(redactor.environment("ANYTHING", "x"), redactor.mark("x"));
        assert_ne!(redactor.mark("x"), redactor.mark("y"));
        assert_ne!(redactor.mark("x"), Redactor::new([8; 32], Vec::new()).mark("x"));
        let token = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";
        assert_eq!(redactor.environment("PATH", token), redactor.mark(token));
    }

    #[test]
    fn configuration() {
        let run = |text: &str| redactor().text(text);
        check("requirepass «hunter2»\nport 6379\n", run);
        check("password = \"«hunter 2»\"  # comment\n", run);
        check("  db_password: «hunter2»\n  name: x\n", run);
        check("Environment=DB_PASSWORD=«hunter2»\n", run);
        check("Environment=\"API_TOKEN=«hunter2»\"\n", run);
        check("PasswordAuthentication no\nauth required pam_unix.so\n", run);
        check("server_name example.org;\nroot /var/www/html;\n", run);
        check("A=1 DB_PASSWORD=«x» SECRET=«y» exec app --token «z» --port 1\n", run);
        check("# the password is kept elsewhere\n", run);
        check("{\"password\": \"«hunter2»\", \"name\": \"x\"}\n", run);
        check("url = postgres://app:«hunter2»@db/app\n", run);
        let key = "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\n";
        assert_eq!(run(&format!("a\n{key}b\n")), format!("a\n{}\nb\n", redactor().mark(key)));
        assert!(!run("-----BEGIN PRIVATE KEY-----\nabc").contains("abc"));
    }
}
