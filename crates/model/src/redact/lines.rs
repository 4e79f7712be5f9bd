//! Goes through a text line by line, and carries what a line leaves open to the next ones.

use super::names::{Strength, is_property, says_nothing, strength};
use super::variables::Reader;
use super::{MARK, Redactor, assignments, commands, shapes};
use std::ops::Range;

/// A secret whose value goes on in the next line. Each is bounded in lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Open {
    /// Lines indented more than the key.
    Indented { indent: usize, left: usize, first: bool },
    /// Until the closing quote.
    Quote { close: String, left: usize },
    /// Until the bracket closes.
    Bracket { bracket: char, close: char, depth: usize, left: usize },
    /// After a backslash.
    Next { whole: bool },
    /// `name: PASSWORD`, and then `value: …`.
    Pair,
}

/// What a line leaves to the next.
#[derive(Debug, Default)]
struct Carried<'r> {
    open: Option<Open>,
    /// A command that goes on behind a backslash.
    command: Option<commands::Command<'r>>,
}

/// One pass over a text; whether every assignment in it is one of a variable.
pub(super) fn pass(redactor: &Redactor, text: &str, is_environment: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut key_block: Option<String> = None;
    let mut carried = Carried::default();
    let mut variables = Reader::new(redactor, is_environment);
    for line in text.split_inclusive('\n') {
        if let Some(block) = &mut key_block {
            block.push_str(line);
            if line.contains("-----END") {
                out.push_str(&redactor.mark(block));
                out.push('\n');
                key_block = None;
            }
            continue;
        }
        let begins = line.find("-----BEGIN").filter(|_| line.contains("PRIVATE KEY"));
        let closed = begins.and_then(|at| line.get(at..)?.rfind("-----END"));
        if begins.is_some() && closed.is_none() {
            key_block = Some(line.to_owned());
            continue;
        }
        let body = line.trim_end_matches(['\n', '\r']);
        let mut spans = Vec::new();
        if let (Some(at), Some(end)) = (begins, closed) {
            let rest = body.get(at + end + 5..).unwrap_or_default();
            let stop = rest.find("-----").map_or(rest.len(), |stop| stop + 5);
            spans.push(at..at + end + 5 + stop);
        }
        match variables.line(body) {
            Some(found) => {
                spans.extend(found.hidden);
                for value in found.legible {
                    inner_spans(redactor, body, value, &mut spans);
                }
            }
            None => body_spans(redactor, body, &mut carried, &mut spans),
        }
        render(redactor, body, spans, &mut out);
        out.push_str(line.get(body.len()..).unwrap_or_default());
    }
    if let Some(block) = key_block {
        out.push_str(&redactor.mark(&block));
    }
    out
}

/// What is secret within a part of a line that is read by itself.
fn inner_spans(redactor: &Redactor, body: &str, part: Range<usize>, spans: &mut Vec<Range<usize>>) {
    let mut inner = Vec::new();
    let text = body.get(part.clone()).unwrap_or_default();
    body_spans(redactor, text, &mut Carried::default(), &mut inner);
    let moved = inner.into_iter().map(|span| part.start + span.start..part.start + span.end);
    spans.extend(moved);
}

fn body_spans<'r>(
    redactor: &'r Redactor,
    body: &str,
    carried: &mut Carried<'r>,
    spans: &mut Vec<Range<usize>>,
) {
    shapes::words(body, spans);
    shapes::hashes(body, spans);
    shapes::urls(body, spans);
    let kept = carried.open.take().and_then(|open| belonging(open, body, spans));
    // Behind what belongs to a secret, or within it, others may be.
    let open = assignments::scan(redactor, body, spans);
    carried.command = commands::in_line(redactor, body, carried.command.take(), spans);
    carried.open = match kept {
        None if names_secret(redactor, body) => Some(Open::Pair),
        None => open,
        kept => kept,
    };
}

/// `name: PASSWORD`, whose value is in the next line.
fn names_secret(redactor: &Redactor, body: &str) -> bool {
    let key = body.trim_start_matches([' ', '\t', '-', '{', '"']);
    let name = key
        .strip_prefix("name")
        .or_else(|| key.strip_prefix("key"))
        .map(|rest| rest.trim_start_matches(['"', ' ']))
        .and_then(|rest| rest.strip_prefix(':'))
        .map(|name| name.trim_matches([' ', '"', '\'', ',']));
    name.is_some_and(|name| !redactor.allowed(name) && strength(name) == Strength::Strong)
}

/// What of this line belongs to an open secret, and what stays open behind it.
fn belonging(open: Open, line: &str, spans: &mut Vec<Range<usize>>) -> Option<Open> {
    let content = line.trim_start();
    let start = line.len() - content.len();
    match open {
        Open::Indented { indent, left, first } => {
            if content.is_empty() && left > 0 {
                return Some(Open::Indented { indent, left: left - 1, first });
            }
            let quoted = first && content.starts_with(['"', '\'']) && !content.contains(':');
            let listed = content.starts_with("- ") && start >= indent;
            if left == 0 || !(start > indent || quoted || listed) {
                return None;
            }
            spans.extend(nested(line));
            Some(Open::Indented { indent, left: left - 1, first: false })
        }
        Open::Quote { close, left } => {
            let end = line.find(&close);
            let until = end.unwrap_or(line.trim_end().len());
            if until > start {
                spans.push(start..until);
            }
            let goes_on = end.is_none() && left > 0;
            goes_on.then(|| Open::Quote { close, left: left.saturating_sub(1) })
        }
        Open::Bracket { bracket, close, depth, left } => {
            let opened = depth + line.matches(bracket).count();
            let depth = opened.saturating_sub(line.matches(close).count());
            if !content.starts_with(close) {
                spans.extend(nested(line));
            }
            let goes_on = depth > 0 && left > 0;
            goes_on.then(|| Open::Bracket { bracket, close, depth, left: left.saturating_sub(1) })
        }
        Open::Next { whole } => {
            let end = if whole {
                content.len()
            } else {
                content.find(char::is_whitespace).unwrap_or(content.len())
            };
            let all = content.get(..end)?;
            let secret = all.trim_end_matches(['\\', ' ', '\t']);
            if !secret.is_empty() {
                spans.push(start..start + secret.len());
            }
            (whole && all.ends_with('\\')).then_some(Open::Next { whole })
        }
        Open::Pair => {
            let rest = content.trim_start_matches(['"', '\'']).strip_prefix("value")?;
            let value = rest.trim_start_matches(['"', '\'', ' ']).strip_prefix([':', '='])?;
            spans.extend(scalar(line, line.len() - value.len()));
            None
        }
    }
}

/// The value in a line below a secret's key; all of it, if it has no key of its own.
fn nested(line: &str) -> Option<Range<usize>> {
    let content = line.trim_start_matches([' ', '\t', '-', '"', '\'']);
    let start = line.len() - content.len();
    let key = content.find([':', '=']).filter(|at| {
        let name = content.get(..*at).unwrap_or_default().trim_end_matches(['"', '\'', ' ']);
        let after = content.get(at + 1..).unwrap_or_default();
        !name.contains(|c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c)))
            && !super::is_mark(content.get(..MARK.len() + 16).unwrap_or_default())
            && (after.is_empty() || after.starts_with([' ', '"', '\'']))
    });
    match key {
        Some(at) if is_property(content.get(..at)?) => None,
        Some(at) => scalar(line, start + at + 1),
        None => scalar(line, start),
    }
}

fn scalar(line: &str, from: usize) -> Option<Range<usize>> {
    let quotes = |c: char| c.is_whitespace() || "\"',[]{}".contains(c);
    let value = line.get(from..)?;
    let secret = value.trim_matches(quotes);
    let start = from + value.len() - value.trim_start_matches(quotes).len();
    (!secret.is_empty() && !says_nothing(secret)).then_some(start..start + secret.len())
}

/// The line with each span replaced by its mark; marks stay.
fn render(redactor: &Redactor, line: &str, mut spans: Vec<Range<usize>>, out: &mut String) {
    spans.sort_by_key(|span| span.start);
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    for span in spans.into_iter().filter(|span| !span.is_empty()) {
        match merged.last_mut().filter(|last| span.start < last.end) {
            Some(last) => last.end = last.end.max(span.end),
            None => merged.push(span),
        }
    }
    let mut position = 0;
    for span in merged {
        out.push_str(line.get(position..span.start).unwrap_or_default());
        let secret = line.get(span.clone()).unwrap_or_default();
        if super::is_mark(secret) {
            out.push_str(secret);
        } else {
            out.push_str(&redactor.mark(secret));
        }
        position = span.end;
    }
    out.push_str(line.get(position..).unwrap_or_default());
}
