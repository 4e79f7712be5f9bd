//! Values that say nothing secret by their form: switches, small numbers, paths, addresses and
//! the like. They stay legible in what gives variables their values, so that a twin can have it.
//!
//! # Invariants
//! - What could be a key by its letters is none of these, also where it begins like a path.

use super::names::speaks_of_secret;
use super::shapes::looks_secret;
use std::net::{IpAddr, SocketAddr};

/// Switches, levels of logs, and kinds of installations.
const WORDS: [&str; 32] = [
    "true",
    "false",
    "yes",
    "no",
    "on",
    "off",
    "none",
    "auto",
    "default",
    "always",
    "never",
    "enabled",
    "disabled",
    "trace",
    "debug",
    "info",
    "notice",
    "warn",
    "warning",
    "error",
    "err",
    "crit",
    "critical",
    "fatal",
    "production",
    "prod",
    "staging",
    "development",
    "dev",
    "test",
    "noninteractive",
    "localhost",
];

/// Of sizes, durations and shares.
const UNITS: [&str; 22] = [
    "", "%", "b", "k", "m", "g", "t", "kb", "mb", "gb", "ki", "mi", "gi", "kib", "mib", "gib",
    "us", "ms", "s", "min", "h", "d",
];

/// Directories below which a path is one.
const TOPS: [&str; 23] = [
    "app", "bin", "boot", "data", "dev", "etc", "home", "lib", "lib32", "lib64", "media", "mnt",
    "opt", "proc", "root", "run", "sbin", "snap", "srv", "sys", "tmp", "usr", "var",
];

/// Whether a value is of such a form: one word, or the options of a command.
pub(super) fn is_plain(value: &str) -> bool {
    const MAX: usize = 512;
    if value.len() > MAX {
        return false;
    }
    super::work::spend(value.len());
    if value.starts_with('-') {
        return value.split_whitespace().all(|word| is_option(word) || is_word(word));
    }
    is_word(value)
}

fn is_word(word: &str) -> bool {
    WORDS.contains(&word.to_ascii_lowercase().as_str())
        || is_number(word)
        || is_reference(word)
        || is_address(word)
        || is_locale(word)
        || word == "/"
        || word.split(':').all(is_path)
}

/// `-v`, `-vvv`, `--log-level`, `--log-level=info`; not `-psecret`, nor `--token`.
fn is_option(word: &str) -> bool {
    let (name, value) = word.split_once('=').map_or((word, None), |(name, v)| (name, Some(v)));
    let Some(bare) = name.strip_prefix('-') else { return false };
    let is_name = match bare.strip_prefix('-') {
        Some(long) => {
            let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            !long.is_empty() && long.bytes().all(is_letter) && !is_opaque(long)
        }
        None => {
            let letter = bare.bytes().next().filter(u8::is_ascii_alphanumeric);
            bare.len() <= 4 && letter.is_some() && bare.bytes().all(|b| Some(b) == letter)
        }
    };
    is_name && !speaks_of_secret(bare) && value.is_none_or(is_word)
}

/// At most five digits: a port, a size, a number of seconds.
fn is_number(word: &str) -> bool {
    let unsigned = word.strip_prefix('-').unwrap_or(word);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, unit) = unsigned.split_at(end);
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    (1..=5).contains(&digits)
        && number.len() - digits <= 1
        && UNITS.contains(&unit.to_ascii_lowercase().as_str())
}

/// `%i` of systemd, and another variable: `$NAME`, `${NAME}`.
fn is_reference(word: &str) -> bool {
    if let Some(specifier) = word.strip_prefix('%') {
        return specifier.len() == 1 && specifier.bytes().all(|b| b.is_ascii_alphabetic());
    }
    let Some(name) = word.strip_prefix('$') else { return false };
    let braced = name.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
    let name = braced.unwrap_or(name);
    name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// An IP address, also with a port; a port; a URL that has nothing but a host.
fn is_address(word: &str) -> bool {
    let is_port =
        |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.parse::<IpAddr>().is_ok()
            || word.parse::<SocketAddr>().is_ok()
            || ["localhost:", "*:", ":"]
                .iter()
                .any(|host| word.strip_prefix(host).is_some_and(is_port));
    };
    if matches!(scheme, "unix" | "file") {
        return is_path(rest);
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b);
    matches!(scheme, "http" | "https" | "tcp" | "udp" | "grpc")
        && is_port(port)
        && !host.is_empty()
        && host.bytes().all(is_letter)
        && !is_opaque(host)
}

/// `C.UTF-8`, `de_DE`, `en_US.UTF-8`.
fn is_locale(word: &str) -> bool {
    let (language, encoding) = word.split_once('.').unwrap_or((word, "UTF-8"));
    let is_encoding = ["utf-8", "utf8", "iso-8859-1", "iso-8859-15"]
        .iter()
        .any(|e| encoding.eq_ignore_ascii_case(e));
    let is_area = language.split_once('_').is_some_and(|(language, area)| {
        (2..=3).contains(&language.len())
            && language.bytes().all(|b| b.is_ascii_lowercase())
            && area.len() == 2
            && area.bytes().all(|b| b.is_ascii_uppercase())
    });
    is_encoding && (is_area || matches!(language, "C" | "POSIX"))
}

/// An absolute path below a directory that machines have, or below one of systemd's: `%h/x`.
fn is_path(path: &str) -> bool {
    let is_name = |name: &str| {
        let is_letter = |b: u8| b.is_ascii_alphanumeric() || b"._@%+-".contains(&b);
        name.bytes().all(is_letter) && !is_opaque(name)
    };
    let mut names = path.split('/');
    let is_placed = match (names.next(), names.next()) {
        (Some(""), Some(top)) => TOPS.contains(&top),
        (Some(first), Some(second)) => {
            first.starts_with('%') && is_reference(first) && is_name(second)
        }
        _ => false,
    };
    is_placed && names.all(is_name)
}

/// Whether it could be a key: letters and digits mixed over a length that no word has.
fn is_opaque(text: &str) -> bool {
    const WORD_MAX: usize = 15;
    let is_key = |run: &str| {
        run.len() > WORD_MAX
            && run.bytes().any(|b| b.is_ascii_digit())
            && run.bytes().any(|b| b.is_ascii_alphabetic())
    };
    looks_secret(text) || text.split(|c: char| !c.is_ascii_alphanumeric()).any(is_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_say_nothing_secret() {
        for plain in [
            "true",
            "INFO",
            "8080",
            "0.5",
            "512M",
            "30s",
            "-1",
            "%i",
            "%h/.config",
            "$HOME",
            "${HTTP_PROXY}",
            "127.0.0.1",
            "[::1]:8470",
            "0.0.0.0:80",
            "localhost:5432",
            ":9100",
            "http://proxy.example:3128/",
            "unix:///run/app.sock",
            "C.UTF-8",
            "de_DE.UTF-8",
            "/",
            "/usr",
            "/var/lib/app-2.1/data",
            "/usr/bin:/bin",
            "/run/secrets/db_password",
            "-l",
            "-F 1",
            "--run-startup-triggers --log-level=info -vvv",
        ] {
            assert!(is_plain(plain), "{plain}");
        }
        for hidden in [
            "",
            "hunter2",
            "471100",
            "swordfish",
            "1.2.3",
            "/hunter2",
            "/wJalrXUtnFEMI/K7MDENG",
            "/var/0a1b2c3d4e5f60718293a4b5",
            "/etc/app:hunter2",
            "http://user@host/",
            "https://host/hooks/1",
            "postgres://db/app",
            "$ecret",
            "p4$$",
            "-phunter2",
            "--token 1",
            "--token=1",
            "-l hunter2",
            "true hunter2",
        ] {
            assert!(!is_plain(hidden), "{hidden}");
        }
    }
}
