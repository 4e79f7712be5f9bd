//! Finds where a line gives a value to a name that speaks of a secret.
//!
//! A name is joined to its value by `=` or `:` and their kin, or by white space alone where
//! that is how values are given: near the beginning of a line (`requirepass x`) and after an
//! option (`--password x`). Comments are prose: there only `=` and `:` count.

use super::Redactor;
use super::lines::Open;
use super::names::{Strength, is_credible, is_scheme, says_nothing, strength};
use std::ops::Range;

/// What stands between a name and its value.
#[derive(Debug, Default)]
struct Joint {
    length: usize,
    assigned: bool,
    equals: bool,
    spaced: bool,
    quote: Option<char>,
    triple: bool,
}

struct Name<'l> {
    line: &'l str,
    range: Range<usize>,
    index: usize,
    spaced_allowed: bool,
    strength: Strength,
    comment: bool,
}

fn boundary(c: char) -> bool {
    c.is_whitespace() || "=:\"'`,;{}()[]&|<>?\\".contains(c)
}

/// The values in a line, and the secret it leaves open for the next.
pub(super) fn scan(redactor: &Redactor, line: &str, spans: &mut Vec<Range<usize>>) -> Option<Open> {
    super::work::spend(line.len());
    let trimmed = line.trim_start();
    let comment = trimmed.starts_with(['#', ';', '/', '*']);
    let pam = is_pam(trimmed);
    let mut before = ["", ""];
    let mut open = None;
    let mut position = 0;
    let mut first = "";
    for index in 0.. {
        let Some(skip) = line.get(position..).and_then(|tail| tail.find(|c| !boundary(c))) else {
            break;
        };
        let start = position + skip;
        let tail = line.get(start..).unwrap_or_default();
        let name = tail.get(..tail.find(boundary).unwrap_or(tail.len())).unwrap_or_default();
        position = start + name.len();
        if index == 0 {
            first = name;
        }
        let bare = name.trim_start_matches(['-', '#', '$', '/', '@', '!']);
        let mut strength = if redactor.allowed(bare) { Strength::None } else { strength(bare) };
        let named = matches!(first, "machine" | "default" | "login");
        let community = before == ["", "snmp-server"] && name == "community";
        if community || bare.eq_ignore_ascii_case("by") && before.contains(&"identified") {
            strength = Strength::Strong;
        }
        before =
            [before[1], if name.eq_ignore_ascii_case("identified") { "identified" } else { name }];
        if strength == Strength::None {
            continue;
        }
        let near = index < 3 && !name.starts_with('$') && !name.starts_with('/') || named;
        let spaced_allowed = !comment && !pam && (near || name.starts_with('-'));
        let name = Name { line, range: start..position, index, spaced_allowed, strength, comment };
        if let Some(found) = name.value(&mut open) {
            position = position.max(found.end);
            if !found.is_empty() {
                spans.push(found);
            }
        }
    }
    open
}

fn is_pam(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let kind = words.next().unwrap_or_default().trim_start_matches('-');
    let control = words.next().unwrap_or_default();
    matches!(kind, "auth" | "account" | "password" | "session")
        && (control.starts_with('[')
            || matches!(
                control,
                "required" | "requisite" | "sufficient" | "optional" | "include" | "substack"
            ))
}

impl Name<'_> {
    fn value(&self, open: &mut Option<Open>) -> Option<Range<usize>> {
        let rest = self.line.get(self.range.end..)?;
        if self.line.get(..self.range.start)?.ends_with('<') {
            return self.element(rest);
        }
        let joint = joint(rest, self.line.get(..self.range.start)?);
        let begin = self.range.end + joint.length;
        let value = self.line.get(begin..)?;
        let spaced =
            joint.spaced && (self.spaced_allowed || joint.quote.is_some() && !self.comment);
        if !joint.assigned && !spaced {
            return None;
        }
        if self.strength == Strength::Weak {
            let text = value.split(['"', '\'', ';', ',']).next()?.trim();
            let scheme = text.split_whitespace().next().is_some_and(is_scheme);
            if !is_credible(text) || !joint.assigned && !scheme {
                return None;
            }
        }
        if self.strength == Strength::Strong && joint.assigned && !self.comment {
            *open = self.opens(&joint, value);
        }
        if !joint.assigned && !self.comment && value.trim() == "\\" {
            *open = Some(Open::Next { whole: false });
        }
        if let (None, Some(bracket), true) =
            (joint.quote, value.chars().next().filter(|c| "[{".contains(*c)), joint.assigned)
        {
            return Some(bracketed(value, bracket, begin, open));
        }
        let length = self.length(value, &joint);
        let secret = value.get(..length)?;
        let secret = secret.trim_end();
        let continued = joint.quote.is_none() && secret.ends_with('\\');
        let secret = if continued { secret.trim_end_matches('\\').trim_end() } else { secret };
        if continued && begin + length == self.line.len() {
            *open = Some(Open::Next { whole: self.index == 0 });
        }
        if secret.is_empty() || says_nothing(secret) {
            let marked = super::is_mark(secret);
            return marked.then_some(begin + secret.len()..begin + secret.len());
        }
        Some(begin..begin + secret.len())
    }

    fn opens(&self, joint: &Joint, value: &str) -> Option<Open> {
        let indent = self.line.len() - self.line.trim_start().len();
        let rest = value.trim();
        if let Some(quote) = joint.quote {
            let close = if joint.triple { quote.to_string().repeat(3) } else { quote.to_string() };
            let begins = !value.contains(&close) && (joint.triple || self.index < 3);
            return begins.then_some(Open::Quote { close, left: 32 });
        }
        let block = rest.starts_with(['|', '>']) && rest.len() <= 4;
        let tagged = rest.starts_with(['!', '&']) && !rest.contains(' ') && rest.len() < 32;
        if !joint.equals && (rest.is_empty() || block || tagged) {
            return Some(Open::Indented { indent, left: 64, first: true });
        }
        None
    }

    /// `<password>x</password>`
    fn element(&self, rest: &str) -> Option<Range<usize>> {
        let head = rest.get(..rest.len().min(256)).unwrap_or(rest);
        let start = head.find('>')? + 1;
        let value = rest.get(start..)?;
        let length = value.find('<').unwrap_or(value.len());
        let secret = value.get(..length)?.trim_end();
        let begin = self.range.end + start;
        (!secret.trim().is_empty() && !says_nothing(secret)).then_some(begin..begin + secret.len())
    }

    fn length(&self, value: &str, joint: &Joint) -> usize {
        let ends = |c: char| c.is_whitespace() || "\"'`,;&|)}]<".contains(c);
        if let Some(quote) = joint.quote {
            let mut escaped = false;
            let close = value.find(|c| {
                let closes = c == quote && !escaped;
                escaped = c == '\\' && !escaped;
                closes
            });
            let close = close.or_else(|| value.find(quote)).unwrap_or(value.len());
            // What is glued to the closing quote belongs to the value.
            let after = value.get(close + 1..).unwrap_or_default();
            let glued = after.find(|c: char| c.is_whitespace() || ";,)}]>&|<:=/".contains(c));
            return match glued.unwrap_or(after.len()) {
                0 => close,
                more if after.starts_with(['"', '\'', '`', '\\']) && more == 1 => close,
                more => close + 1 + more,
            };
        }
        if self.index == 0 && !self.comment {
            return value
                .trim_end_matches(|c: char| ";,\"'".contains(c) || c.is_whitespace())
                .len();
        }
        let mut length = value.find(ends).unwrap_or(value.len());
        if value.get(..length).is_some_and(is_scheme) {
            let rest = value.get(length..).unwrap_or_default();
            let gap = rest.len() - rest.trim_start().len();
            let next = rest.trim_start();
            length += gap + next.find(ends).unwrap_or(next.len());
        }
        length
    }
}

/// The inside of a list or map that is the value of a secret's name.
fn bracketed(value: &str, bracket: char, begin: usize, open: &mut Option<Open>) -> Range<usize> {
    let close = if bracket == '[' { ']' } else { '}' };
    let mut depth = 0_usize;
    let end = value.char_indices().find_map(|(at, c)| {
        depth += usize::from(c == bracket);
        depth -= usize::from(c == close).min(depth);
        (depth == 0).then_some(at)
    });
    if end.is_none() {
        *open = Some(Open::Bracket { bracket, close, depth, left: 64 });
    }
    let inside = value.get(1..end.unwrap_or(value.len())).unwrap_or_default();
    let quotes = |c: char| c.is_whitespace() || "\"'".contains(c);
    let from = begin + 1 + inside.len() - inside.trim_start_matches(quotes).len();
    let secret = inside.trim_matches(quotes);
    if secret.is_empty() || says_nothing(secret) {
        from + secret.len()..from + secret.len()
    } else {
        from..from + secret.len()
    }
}

fn joint(rest: &str, before: &str) -> Joint {
    let bytes = rest.as_bytes();
    let at = |position: usize| bytes.get(position).copied().unwrap_or_default();
    let quote = |position: usize| matches!(at(position), b'"' | b'\'' | b'`');
    let spaces = |from: usize| {
        from + bytes.iter().skip(from).take_while(|b| b.is_ascii_whitespace()).count()
    };
    let mut joint = Joint::default();
    let mut position = usize::from(at(0) == b'\\' && quote(1));
    let quoted = quote(position);
    position += usize::from(quoted);
    position += usize::from(at(position) == b']');
    let gap = spaces(position);
    joint.spaced = gap > position;
    position = gap;
    let operator = bytes.iter().skip(position).take_while(|b| b"=:?+>!~".contains(b)).count();
    let signs = rest.get(position..position + operator).unwrap_or_default();
    if signs.contains(['=', ':']) {
        joint.assigned = true;
        joint.equals = signs.contains('=');
        position += operator;
    } else if quoted
        && at(position) == b','
        && before.ends_with(['"', '\''])
        && before.trim_end_matches(['"', '\'']).trim_end().ends_with('(')
    {
        joint.assigned = true;
        position += 1;
    } else if let Some(length) =
        attribute(rest.get(position..).unwrap_or_default()).filter(|_| quoted)
    {
        joint.assigned = true;
        joint.equals = true;
        position += length;
    }
    position = spaces(position);
    let escaped = usize::from(at(position) == b'\\' && quote(position + 1));
    if quote(position + escaped) {
        position += escaped;
        joint.quote = Some(char::from(at(position)));
        joint.triple = at(position) == at(position + 1) && at(position) == at(position + 2);
        position += if joint.triple { 3 } else { 1 };
    }
    joint.length = position;
    joint
}

/// `, "value":` and ` value=` after the name in `name="password"`.
fn attribute(rest: &str) -> Option<usize> {
    let name = rest.trim_start_matches([' ', '\t', ',', '"', '\'']);
    let after = name.strip_prefix("value")?.trim_start_matches(['"', '\'', ' ']);
    let value = after.strip_prefix(['=', ':'])?;
    (rest.len() - value.len() < 64).then_some(rest.len() - value.len())
}
