//! Recognises secrets by their form, whatever their name: keys, tokens, hashes of passwords,
//! and credentials in URLs.

use std::ops::Range;

/// Beginnings of well-known tokens.
const TOKEN_PREFIXES: [&str; 22] = [
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xapp-",
    "sk-",
    "sk_live_",
    "pk_live_",
    "rk_live_",
    "AKIA",
    "ASIA",
    "AIza",
    "hf_",
    "npm_",
    "dop_v1_",
    "hvs.",
];

/// Beginnings of hashed passwords, as in `.htpasswd` and `shadow`.
const HASHES: [&str; 17] = [
    "$apr1$",
    "$2y$",
    "$2a$",
    "$2b$",
    "$1$",
    "$5$",
    "$6$",
    "$7$",
    "$y$",
    "$gy$",
    "$argon2",
    "$pbkdf2",
    "{SHA}",
    "{SSHA}",
    "{CRYPT}",
    "{SSHA512}",
    "SCRAM-SHA-256$",
];

/// Addresses that are themselves the secret, from here on.
const SECRET_PATHS: [&str; 4] = [
    "hooks.slack.com/services/",
    "discord.com/api/webhooks/",
    "discordapp.com/api/webhooks/",
    "api.telegram.org/bot",
];

/// Whether a word by itself looks like a key or token.
pub(super) fn looks_secret(word: &str) -> bool {
    if super::is_mark(word) {
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

/// Words of a line that look like keys.
pub(super) fn words(line: &str, spans: &mut Vec<Range<usize>>) {
    super::work::spend(line.len());
    let boundary = |c: char| c.is_whitespace() || "\"'`=,;<>()[]{}".contains(c);
    let mut start = 0;
    for word in line.split(boundary) {
        if looks_secret(word) {
            spans.push(start..start + word.len());
        }
        start += word.len();
        start += line.get(start..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
    }
}

/// Hashes of passwords, and the lines of `.pgpass`.
pub(super) fn hashes(line: &str, spans: &mut Vec<Range<usize>>) {
    super::work::spend(line.len());
    let end = |c: char| c.is_whitespace() || "\"'`:;<>".contains(c);
    let mut start = 0;
    for word in line.split(end) {
        let inner = start + word.rfind("={").map_or(0, |at| at + 1);
        let inner =
            word.find("=$").filter(|_| !word.starts_with('$')).map_or(inner, |at| start + at + 1);
        let hash = line.get(inner..start + word.len()).unwrap_or_default();
        let known = HASHES.iter().find(|prefix| hash.starts_with(*prefix));
        if known.is_some_and(|prefix| hash.len() >= prefix.len() + 8) {
            spans.push(inner..start + word.len());
        }
        start += word.len();
        start += line.get(start..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
    }
    let body = line.trim_end();
    let mut fields = body.splitn(6, ':');
    let five = (fields.next(), fields.next(), fields.next(), fields.next(), fields.next());
    let (Some(host), Some(port), Some(base), Some(user), Some(secret)) = five else { return };
    let whole = [host, base, user].iter().all(|field| {
        !field.is_empty() && !field.starts_with('#') && !field.contains([' ', '\t', '"', '{', '='])
    });
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) || port == "*";
    if whole && digits && !secret.is_empty() && fields.next().is_none() {
        spans.push(body.len() - secret.len()..body.len());
    }
}

/// `scheme://user:secret@host`, `scheme://token@host`, and addresses that are secrets.
pub(super) fn urls(line: &str, spans: &mut Vec<Range<usize>>) {
    super::work::spend(line.len());
    let mut position = 0;
    while let Some(at) = line.get(position..).and_then(|rest| rest.find("://")) {
        let start = position + at + 3;
        let rest = line.get(start..).unwrap_or_default();
        let stop = |c: char| c.is_whitespace() || "/?#\"'`<>".contains(c);
        let end = rest.find(stop).unwrap_or(rest.len());
        let authority = rest.get(..end).unwrap_or_default();
        position = start + end;
        let Some(user_info) = authority.rfind('@').and_then(|at| authority.get(..at)) else {
            continue;
        };
        if super::is_mark(user_info) {
            continue;
        }
        match user_info.split_once(':') {
            Some((user, secret)) if !secret.is_empty() => {
                spans.push(start + user.len() + 1..start + user_info.len());
                if is_token(user) {
                    spans.push(start..start + user.len());
                }
            }
            _ if is_token(user_info.trim_end_matches(':')) => {
                spans.push(start..start + user_info.trim_end_matches(':').len());
            }
            _ => {}
        }
    }
    for place in SECRET_PATHS {
        for (at, _) in line.match_indices(place) {
            let start = at + place.len();
            let rest = line.get(start..).unwrap_or_default();
            let stop = |c: char| c.is_whitespace() || "?#\"'`<>,;)".contains(c);
            let secret = rest.get(..rest.find(stop).unwrap_or(rest.len())).unwrap_or_default();
            if !secret.is_empty() {
                spans.push(start..start + secret.len());
            }
        }
    }
}

/// User-info that is a token and not somebody's name.
fn is_token(user: &str) -> bool {
    let key = user.len() >= 20
        && user.bytes().any(|b| b.is_ascii_digit())
        && user.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.~+".contains(&b));
    key || looks_secret(user)
}
