//! Judges names: does one speak of a secret? And values: may one be a secret at all?

/// How much a name says about its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strength {
    /// Nothing secret.
    None,
    /// A secret, if the value is given by `=` or `:` and looks like one: `auth: x`.
    Weak,
    /// A secret, whatever the value.
    Strong,
}

/// A word that ends so speaks of a secret: `PGPASSWORD`, `bindpw`, `authtoken`.
const SECRET_ENDINGS: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pass",
    "pwd",
    "pw",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "privatekey",
    "secretkey",
    "credential",
];

/// Words that are secrets' names only as they stand.
const SECRET_WORDS: [&str; 20] = [
    "api_key",
    "access_key",
    "private_key",
    "secret_key",
    "encryption_key",
    "account_key",
    "hmac_key",
    "signing_key",
    "session_key",
    "master_key",
    "shared_key",
    "pass_word",
    "pass_phrase",
    "cred",
    "bearer",
    "masterauth",
    "psk",
    "rocommunity",
    "rwcommunity",
    "trapcommunity",
];

/// End like a secret's name, and are none.
const INNOCENT: [&str; 20] = [
    "bypass",
    "sshpass",
    "askpass",
    "compass",
    "encompass",
    "overpass",
    "surpass",
    "trespass",
    "underpass",
    "lowpass",
    "highpass",
    "bandpass",
    "allpass",
    "multipass",
    "subpass",
    "nopasswd",
    "nopassword",
    "nopass",
    "oldpwd",
    "keypass",
];

/// A name that ends in one of these names a place or a property of a secret.
const PROPERTIES: [&str; 52] = [
    "file",
    "files",
    "path",
    "dir",
    "directory",
    "length",
    "size",
    "ttl",
    "timeout",
    "type",
    "method",
    "methods",
    "policy",
    "url",
    "uri",
    "name",
    "names",
    "id",
    "expiry",
    "expires",
    "lifetime",
    "count",
    "limit",
    "env",
    "format",
    "location",
    "endpoint",
    "issuer",
    "algorithm",
    "encoding",
    "scheme",
    "prompt",
    "provider",
    "authentication",
    "required",
    "enabled",
    "disabled",
    "tries",
    "retries",
    "age",
    "days",
    "class",
    "plugin",
    "mode",
    "stdin",
    "helper",
    "fd",
    "field",
    "header",
    "external",
    "driver",
    "command",
];

/// With one of these, `tokens` are those of a language model.
const COUNTING: [&str; 14] = [
    "max",
    "min",
    "num",
    "number",
    "batched",
    "new",
    "total",
    "input",
    "output",
    "prompt",
    "completion",
    "context",
    "per",
    "special",
];

pub(super) fn strength(name: &str) -> Strength {
    super::work::spend(name.len());
    // No name is that long; what is, is data.
    if name.is_empty() || name.len() > 256 {
        return Strength::None;
    }
    let words = words(name);
    let Some(last) = words.last() else { return Strength::None };
    let loads = matches!(words.first().map(String::as_str), Some("load" | "import"));
    if PROPERTIES.contains(&last.as_str()) || loads && last.starts_with("credential") {
        return Strength::None;
    }
    let final_pair = words.iter().rev().nth(1).map(|word| format!("{word}_{last}"));
    let forwards =
        ["proxy_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "memcached_pass"];
    if final_pair.is_some_and(|pair| forwards.contains(&pair.as_str())) {
        return Strength::Weak;
    }
    let counts = words.iter().any(|word| COUNTING.contains(&word.as_str()));
    for (position, word) in words.iter().enumerate() {
        let is_last = position + 1 == words.len();
        let pair = words.get(position + 1).map(|next| format!("{word}_{next}"));
        let whole = SECRET_WORDS.contains(&singular(word))
            || pair.is_some_and(|pair| SECRET_WORDS.contains(&singular(&pair)));
        if whole || speaks(word, is_last) && !(counts && word == "tokens") {
            return Strength::Strong;
        }
    }
    if matches!(last.as_str(), "auth" | "authorization" | "cookie") {
        return Strength::Weak;
    }
    Strength::None
}

/// Whether a variable or option of this name may hold a secret, be it a short or plain one.
pub(super) fn speaks_of_secret(name: &str) -> bool {
    const KEYS: [&str; 9] = ["key", "keys", "pin", "code", "codes", "otp", "salt", "seed", "login"];
    strength(name) != Strength::None || words(name).iter().any(|word| KEYS.contains(&word.as_str()))
}

/// Lower-case words of a name: split at punctuation and where case rises, numbers cut off.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = vec![String::new()];
    let mut previous_lower = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || c.is_ascii_uppercase() && previous_lower {
            words.push(String::new());
        }
        previous_lower = c.is_ascii_lowercase();
        if let Some(word) = words.last_mut().filter(|_| c.is_ascii_alphanumeric()) {
            word.push(c.to_ascii_lowercase());
        }
    }
    for word in &mut words {
        let length = word.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        word.truncate(length);
    }
    words.retain(|word| !word.is_empty());
    words
}

fn singular(word: &str) -> &str {
    match word.strip_suffix('s') {
        Some(one) if !one.ends_with('s') => one,
        _ => word,
    }
}

fn speaks(word: &str, is_last: bool) -> bool {
    let one = singular(word);
    if INNOCENT.contains(&one) {
        return false;
    }
    SECRET_ENDINGS.iter().any(|ending| {
        // Short ones mean something else in front: `pass_environment`, `pw_dir`.
        one.ends_with(ending) && (is_last || ending.len() > 4)
    })
}

/// Whether what a key holds says where or what kind, such as `file` below `secrets:`.
pub(super) fn is_property(name: &str) -> bool {
    words(name).last().is_some_and(|last| PROPERTIES.contains(&last.as_str()))
}

/// Values that a secret's name may have without there being a secret.
pub(super) fn says_nothing(value: &str) -> bool {
    const PLAIN: [&str; 26] = [
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
        "none",
        "null",
        "nil",
        "~",
        "{",
        "[",
        "(",
        "{}",
        "[]",
        "|",
        ">",
        "\\",
        "required",
        "requisite",
        "sufficient",
        "optional",
        "enabled",
        "disabled",
        "prompt",
        "=",
    ];
    const SOURCES: [&str; 12] = [
        "files",
        "systemd",
        "compat",
        "sss",
        "ldap",
        "db",
        "nis",
        "winbind",
        "cache",
        "extrausers",
        "mymachines",
        "altfiles",
    ];
    if value.len() > 64 {
        return false;
    }
    PLAIN.contains(&value.to_ascii_lowercase().as_str())
        || super::is_mark(value)
        // nsswitch.conf gives `passwd:` to these.
        || value.split_whitespace().all(|word| SOURCES.contains(&word))
}

/// Whether what follows `--key` or `--pin` is one, and not what to sort by or where to look.
pub(super) fn is_key(value: &str) -> bool {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let word = value.bytes().all(|byte| byte.is_ascii_lowercase() || b"-_".contains(&byte));
    let long = value.len() >= if digits { 4 } else { 8 };
    long && !word && is_credible(value) && !value.contains(['/', '.', ':', ','])
}

/// Whether the value of a weak name is a credential, not a method or a switch.
pub(super) fn is_credible(value: &str) -> bool {
    const METHODS: [&str; 29] = [
        "basic",
        "digest",
        "plain",
        "login",
        "md5",
        "cram-md5",
        "scram-sha-256",
        "trust",
        "peer",
        "ident",
        "ldap",
        "pam",
        "oauth",
        "oauth2",
        "oidc",
        "saml",
        "jwt",
        "token",
        "bearer",
        "password",
        "certificate",
        "cert",
        "tls",
        "mtls",
        "krb5",
        "kerberos",
        "gssapi",
        "include",
        "substack",
    ];
    let first = value.split_whitespace().next().unwrap_or_default();
    let lower = first.to_ascii_lowercase();
    if is_scheme(&lower) && value.len() > first.len() {
        return true;
    }
    let lone = METHODS.contains(&lower.as_str()) || says_nothing(first);
    !(lone
        || value.is_empty()
        || super::is_mark(value)
        || value.starts_with(['/', '$', '{', '[', '@', '<', '('])
        || value.starts_with("http")
        || value.starts_with("unix:"))
}

/// What stands before the credential in an `Authorization` header.
pub(super) fn is_scheme(word: &str) -> bool {
    ["basic", "bearer", "token", "digest", "negotiate", "apikey", "splunk"]
        .iter()
        .any(|scheme| word.eq_ignore_ascii_case(scheme))
}
