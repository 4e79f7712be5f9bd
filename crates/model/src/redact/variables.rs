//! Finds the values of variables in a text: those of `Environment=` in units and drop-ins, and
//! every assignment of a file that units name as `EnvironmentFile=`. Read as systemd reads them;
//! what it would take for no assignment is hidden, too.
//!
//! # Invariants
//! - Names, quotes, white space and what continues a line stay where they are: a text whose
//!   values were replaced is read as before.

use super::Redactor;
use super::shapes::looks_secret;
use std::ops::Range;

/// What a line has of variables.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) hidden: Vec<Range<usize>>,
    /// Values that stay, but for what is secret within them.
    pub(super) legible: Vec<Range<usize>>,
}

/// Goes through a text line by line.
#[derive(Debug)]
pub(super) struct Reader<'r> {
    redactor: &'r Redactor,
    /// Whether every assignment is one of a variable.
    is_environment: bool,
    open: Option<Open>,
}

/// What goes on in the next line, and within which quotes.
#[derive(Debug, Clone, Copy)]
enum Open {
    /// The words of `Environment=`.
    Words(Option<char>),
    /// A value in a file of environment.
    Value(Option<char>),
}

struct Word {
    /// Its parts between quotes.
    pieces: Vec<Range<usize>>,
    end: usize,
    /// The quote that was not closed.
    quote: Option<char>,
}

/// Whether this can be the name of a variable.
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        && !looks_secret(name)
}

impl<'r> Reader<'r> {
    pub(super) fn new(redactor: &'r Redactor, is_environment: bool) -> Self {
        Self { redactor, is_environment, open: None }
    }

    /// What the next line has; `None` where it is not about variables.
    pub(super) fn line(&mut self, line: &str) -> Option<Found> {
        super::work::spend(line.len());
        let mut found = Found::default();
        if let Some(Open::Value(quote)) = self.open {
            self.open = self.value(line, 0, (None, quote), &mut found);
            return Some(found);
        }
        let trimmed = line.trim_start();
        let is_comment = trimmed.starts_with(['#', ';']);
        let bare = trimmed.trim_start_matches(['#', ';', ' ', '\t']);
        let setting = bare.strip_prefix("Environment").map(str::trim_start);
        let open = if let Some(value) = setting.and_then(|rest| rest.strip_prefix('=')) {
            self.words(line, line.len() - value.len(), None, &mut found)
        } else if let (Some(Open::Words(quote)), false) = (self.open, is_comment) {
            self.words(line, 0, quote, &mut found)
        } else {
            let (name, value) = assignment(bare).filter(|_| self.is_environment)?;
            self.value(line, line.len() - value.len(), (Some(name), None), &mut found)
        };
        // A comment ends with its line, and what is around it goes on.
        if !is_comment {
            self.open = open;
        }
        Some(found)
    }

    /// The words from here on, parted at white space that is not within quotes.
    fn words(
        &self,
        line: &str,
        from: usize,
        within: Option<char>,
        found: &mut Found,
    ) -> Option<Open> {
        let (content, goes_on) = continued(line);
        let (mut position, mut quote) = (from, within);
        while position < content.len() {
            let is_rest = quote.is_some();
            let rest = content.get(position..).unwrap_or_default();
            if !is_rest {
                position += rest.len() - rest.trim_start().len();
            }
            let next = word(content, position, quote);
            self.judge(content, &next, is_rest, found);
            (position, quote) = (next.end, next.quote);
        }
        goes_on.then_some(Open::Words(quote))
    }

    /// Parts a word into its name, which stays, and its value.
    fn judge(&self, content: &str, word: &Word, is_rest: bool, found: &mut Found) {
        let text = |piece: &Range<usize>| content.get(piece.clone()).unwrap_or_default();
        let mut pieces = word.pieces.clone();
        let name = pieces.first().and_then(|first| Some(text(first).split_once('=')?.0));
        let Some(name) = name.filter(|name| !is_rest && is_name(name)) else {
            // Of a value that began before, or what systemd would not take.
            found.hidden.extend(pieces);
            return;
        };
        if let Some(first) = pieces.first_mut() {
            first.start += name.len() + 1;
        }
        let value: String = pieces.iter().map(text).collect();
        if word.quote.is_some() || self.redactor.hides(name, &value) {
            found.hidden.extend(pieces);
        } else {
            found.legible.extend(pieces);
        }
    }

    /// All that is given to a name: up to the end of the line, in quotes or not.
    fn value(
        &self,
        line: &str,
        from: usize,
        (name, within): (Option<&str>, Option<char>),
        found: &mut Found,
    ) -> Option<Open> {
        let (content, goes_on) = continued(line);
        let (mut position, mut quote) = (from, within);
        let (mut pieces, mut value) = (Vec::new(), String::new());
        loop {
            let rest = content.get(position..).unwrap_or_default();
            if let Some(open) = quote {
                let close = closing(rest, open);
                let inside = rest.get(..close.unwrap_or(rest.len())).unwrap_or_default();
                pieces.push(position..position + inside.len());
                value.push_str(inside);
                if close.is_none() {
                    break;
                }
                position += inside.len() + 1;
                quote = None;
                continue;
            }
            let bare = rest.trim_start();
            position += rest.len() - bare.len();
            quote = bare.chars().next().filter(|c| matches!(c, '"' | '\''));
            if quote.is_none() {
                // Quotes within are letters like any other, and so is a comment behind it.
                let bare = bare.trim_end();
                value.push_str(without_comment(bare, !pieces.is_empty()));
                pieces.push(position..position + bare.len());
                break;
            }
            position += 1;
        }
        let is_cut = goes_on || quote.is_some();
        match name.filter(|name| !is_cut && !self.redactor.hides(name, &value)) {
            Some(_) => found.legible.extend(pieces),
            None => found.hidden.extend(pieces),
        }
        is_cut.then_some(Open::Value(quote))
    }
}

/// Name and value of a line of a file of environment; of one for shells, too.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let exported = line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t']));
    let (name, value) = exported.map_or(line, str::trim_start).split_once('=')?;
    Some((name.trim_end(), value)).filter(|(name, _)| is_name(name))
}

/// A line without the backslash by which it goes on in the next, and whether it does.
fn continued(line: &str) -> (&str, bool) {
    let backslashes = line.len() - line.trim_end_matches('\\').len();
    match line.strip_suffix('\\').filter(|_| backslashes % 2 == 1) {
        Some(content) => (content, true),
        None => (line, false),
    }
}

fn without_comment(text: &str, is_behind_quote: bool) -> &str {
    if is_behind_quote && text.starts_with('#') {
        return "";
    }
    text.split_once(" #").map_or(text, |(value, _)| value.trim_end())
}

fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    text.find(|c| {
        let closes = c == quote && !escaped;
        escaped = c == '\\' && !escaped && quote == '"';
        closes
    })
}

/// The word that begins here, or goes on here within quotes.
fn word(content: &str, from: usize, within: Option<char>) -> Word {
    let (mut pieces, mut begin, mut end) = (Vec::new(), from, content.len());
    let (mut quote, mut escaped) = (within, false);
    for (at, c) in content.get(from..).unwrap_or_default().char_indices() {
        let at = from + at;
        let is_quote = match quote {
            _ if std::mem::take(&mut escaped) => false,
            Some(open) => c == open,
            None if c.is_whitespace() => {
                end = at;
                break;
            }
            None => matches!(c, '"' | '\''),
        };
        if is_quote {
            pieces.push(begin..at);
            begin = at + 1;
            quote = if quote.is_some() { None } else { Some(c) };
        } else {
            escaped = c == '\\';
        }
    }
    pieces.push(begin..end);
    pieces.retain(|piece| !piece.is_empty());
    Word { pieces, end, quote }
}
