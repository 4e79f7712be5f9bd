//! Finds secrets among the words of a command. The words are those of a process or unit, or
//! of a line of a script ([`in_line`]): the rules are the same.

use super::names::{Strength, is_credible, is_key, strength};
use super::variables::is_name;
use super::{MARK, Redactor};
use std::ops::Range;

/// What the word after this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Anything,
    Secret,
    Credible,
    Key,
    Header,
    Cookie,
    AfterPercent,
    /// `NAME=value`, or a name alone.
    Variable,
    /// What an option of `env` is about, and no command.
    Operand,
}

/// Goes through a command, word by word.
#[derive(Debug)]
pub(super) struct Command<'r> {
    redactor: &'r Redactor,
    program: String,
    next: Next,
    /// The letter of the option that gives a variable to what the program runs.
    gives: Option<char>,
    /// Behind `env`, and before the command that it runs.
    assigns: bool,
}

/// Short options whose value is a secret: of which programs (a trailing `*`: that begin so),
/// whether the value may be glued on, and whether it may be the next word.
const SHORT: [(&[&str], &str, bool, bool); 16] = [
    (&["mysql*", "mariadb*", "7z", "7za", "7zz"], "-p", true, false),
    (&["sshpass", "login"], "-p", true, true),
    (&["mongo*"], "-p", false, true),
    (&["redis-cli"], "-a", false, true),
    (&["curl"], "-u", true, true),
    (&["curl"], "-U", true, true),
    (&["curl", "wget"], "--user", false, true),
    (&["wget"], "-u", false, true),
    (&["curl"], "--proxy-user", false, true),
    (&["ldap*"], "-w", true, true),
    (&["mosquitto_*", "ipmitool", "zip", "unzip", "sqlcmd", "tsql", "bcp"], "-P", true, true),
    (&["openssl"], "-k", false, true),
    (&["openssl"], "-K", false, true),
    (&["snmp*"], "-c", false, true),
    (&["snmp*"], "-A", false, true),
    (&["snmp*"], "-X", false, true),
];

fn is_program(program: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => program.starts_with(start),
        None => program == pattern,
    }
}

fn is_known(program: &str) -> bool {
    SHORT.iter().any(|(programs, ..)| programs.iter().any(|one| is_program(program, one)))
        || matches!(program, "smbclient" | "rpcclient" | "http" | "helm" | "env")
        || giving(program).is_some()
}

/// The letter of the option by which this program gives a variable to what it runs.
fn giving(program: &str) -> Option<char> {
    match program {
        "docker" | "docker-compose" | "podman" | "nerdctl" => Some('e'),
        "systemd-run" => Some('E'),
        _ => None,
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| is_name(name))
}

fn base(word: &str) -> &str {
    word.rsplit(['/', '=', '(', '`', '@', ':', '"', '\'']).next().unwrap_or(word)
}

impl<'r> Command<'r> {
    pub(super) fn new(redactor: &'r Redactor) -> Self {
        let program = String::new();
        Self { redactor, program, next: Next::Anything, gives: None, assigns: false }
    }

    /// Which part of the next word is a secret.
    pub(super) fn word(&mut self, word: &str) -> Option<Range<usize>> {
        super::work::spend(word.len());
        let next = std::mem::replace(&mut self.next, Next::Anything);
        let whole = match next {
            Next::Secret => !word.is_empty(),
            Next::Credible => is_credible(word) && !word.starts_with("--"),
            Next::Key => is_key(word),
            Next::Cookie => word.contains('='),
            Next::Anything | Next::Header | Next::AfterPercent | Next::Variable | Next::Operand => {
                false
            }
        };
        if whole {
            // Where the option before it was a flag, this is an option, with a value of its own.
            if word.starts_with('-') {
                let _hidden_anyway = self.option(word);
            }
            return Some(0..word.len());
        }
        match next {
            Next::Header if word.contains(':') => return header(word),
            Next::AfterPercent if word.contains('%') => {
                return word.find('%').map(|at| at + 1..word.len());
            }
            Next::Variable if is_assignment(word) => return self.variable(word),
            // What was expected did not come: it is a word like any other.
            _ => {}
        }
        if word.starts_with('-') {
            return self.option(word);
        }
        if self.assigns && is_assignment(word) {
            return self.variable(word);
        }
        self.assigns &= next == Next::Operand;
        if word.len() < 256 && is_known(base(word)) {
            base(word).clone_into(&mut self.program);
            // What an engine runs may be known, too; its own options come before or after.
            self.gives = giving(&self.program).or(self.gives);
            self.assigns |= self.program == "env";
        }
        match (self.program.as_str(), word) {
            ("docker" | "podman" | "helm", "login") => "login".clone_into(&mut self.program),
            ("mysqladmin" | "mariadb-admin", "password") => self.next = Next::Secret,
            _ => {}
        }
        self.assigned(word)
    }

    fn option(&mut self, word: &str) -> Option<Range<usize>> {
        if let Some(at) = self.given(word) {
            if at == word.len() {
                self.next = Next::Variable;
                return None;
            }
            let range = self.variable(word.get(at..)?)?;
            return Some(at + range.start..at + range.end);
        }
        let program = self.program.as_str();
        for (programs, option, glued, apart) in SHORT {
            let Some(rest) = word.strip_prefix(option) else { continue };
            if !programs.iter().any(|one| is_program(program, one)) {
                continue;
            }
            if rest.is_empty() {
                self.next = if apart { Next::Secret } else { Next::Anything };
                return None;
            }
            let equals = option.starts_with("--") && rest.starts_with('=');
            if equals || glued && !option.starts_with("--") {
                return Some(option.len() + usize::from(equals)..word.len());
            }
        }
        self.next = match (program, word) {
            (_, "-H" | "--header") => Next::Header,
            ("curl", "-b" | "--cookie") => Next::Cookie,
            ("smbclient" | "rpcclient", "-U") => Next::AfterPercent,
            ("env", "-u" | "--unset" | "-C" | "--chdir") => Next::Operand,
            _ => Next::Anything,
        };
        let before = ["--header=", "-H"].iter().find(|start| word.starts_with(*start));
        if let Some(before) = before.filter(|before| word.len() > before.len()) {
            let range = header(word.get(before.len()..)?)?;
            return Some(range.start + before.len()..range.end + before.len());
        }
        let bare = word.trim_start_matches('-');
        if self.redactor.allowed(bare) || word.contains('=') {
            return self.assigned(word);
        }
        // Those of MySQL ask when no value is glued on; a flag has no value.
        let asks = program.starts_with("mysql") || program.starts_with("mariadb");
        let flag = ["no-", "use-", "with-", "enable-", "disable-", "require-", "ask-", "show-"]
            .iter()
            .any(|start| bare.starts_with(start));
        match strength(bare) {
            Strength::Strong if flag || asks => self.next = Next::Credible,
            Strength::Strong => self.next = Next::Secret,
            Strength::Weak => self.next = Next::Credible,
            Strength::None if is_key_option(bare) => self.next = Next::Key,
            Strength::None => {}
        }
        None
    }

    /// Where an option's variable begins: within the word, or at its end where it is the next.
    fn given(&self, word: &str) -> Option<usize> {
        let long = ["--env", "--setenv"].iter().find_map(|option| word.strip_prefix(*option));
        let long = long.filter(|rest| rest.is_empty() || rest.starts_with('='));
        // Behind flags without a value, too: `-ite X=value`.
        let short = || {
            let flags = word.strip_prefix('-')?;
            flags.trim_start_matches(['d', 'i', 'q', 't']).strip_prefix(self.gives?)
        };
        let rest = long.or_else(short)?;
        let variable = rest.strip_prefix('=').unwrap_or(rest);
        (rest.is_empty() || is_assignment(variable)).then_some(word.len() - variable.len())
    }

    /// The value of `NAME=value`, if environments hide it.
    fn variable(&self, word: &str) -> Option<Range<usize>> {
        let (name, value) = word.split_once('=')?;
        let bare = value.trim_matches(['"', '\'']);
        self.redactor.hides(name, bare).then_some(name.len() + 1..word.len())
    }

    /// `name=value`, the value to the end of the word.
    fn assigned(&self, word: &str) -> Option<Range<usize>> {
        let (name, value) = word.split_once('=')?;
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
        let bare = name.trim_start_matches('-');
        let secret = plain
            && !word.contains(char::is_whitespace)
            && !value.is_empty()
            && !self.redactor.allowed(bare)
            && (strength(bare) == Strength::Strong || is_key_option(bare) && is_key(value));
        secret.then_some(name.len() + 1..word.len())
    }
}

fn is_key_option(bare: &str) -> bool {
    matches!(bare, "key" | "pin")
}

/// The value of `Authorization: Bearer …` and the like.
fn header(word: &str) -> Option<Range<usize>> {
    let (name, value) = word.split_once(':')?;
    // A mark has a colon, too.
    let is_hidden = name.len().checked_sub(MARK.len() - 1).and_then(|at| word.get(at..));
    if strength(name.trim()) == Strength::None || is_hidden.is_some_and(super::is_mark) {
        return None;
    }
    let start = word.len() - value.trim_start().len();
    Some(start..start + value.trim().len())
}

/// The secrets of the commands in a line of a script. `begun` is the command that a line before
/// began and that goes on in this one; what is returned goes on in the next.
pub(super) fn in_line<'r>(
    redactor: &'r Redactor,
    line: &str,
    begun: Option<Command<'r>>,
    spans: &mut Vec<Range<usize>>,
) -> Option<Command<'r>> {
    within(redactor, line, (0, 0), begun, spans).filter(|_| line.ends_with('\\'))
}

/// The same of a part of a line at this offset, so many quotes deep.
fn within<'r>(
    redactor: &'r Redactor,
    line: &str,
    (offset, depth): (usize, usize),
    begun: Option<Command<'r>>,
    spans: &mut Vec<Range<usize>>,
) -> Option<Command<'r>> {
    super::work::spend(line.len());
    let mut known = begun.is_some();
    let mut command = begun.unwrap_or_else(|| Command::new(redactor));
    for raw in shell_words(line) {
        let Some(word) = line.get(raw.clone()).filter(|word| *word != "\\") else { continue };
        if matches!(word, "|" | "||" | "&&" | ";" | "&") {
            command = Command::new(redactor);
            known = false;
            continue;
        }
        let inner = unquoted(word);
        let start = raw.start + inner.start;
        let text = word.get(inner).unwrap_or_default();
        if !(known || text.len() < 256 && is_known(base(text))) {
            if depth < 2 && text.contains(char::is_whitespace) {
                within(redactor, text, (offset + start, depth + 1), None, spans);
            }
            continue;
        }
        known = true;
        let ends = text.ends_with(';') && text.len() == word.len();
        let text = if ends { text.trim_end_matches(';') } else { text };
        if let Some(range) = command.word(text) {
            let secret = text.get(range.clone()).unwrap_or_default();
            let bare = unquoted(secret);
            let from = offset + start + range.start;
            spans.push(from + bare.start..from + bare.end);
        } else if depth < 2 && text.contains(char::is_whitespace) {
            within(redactor, text, (offset + start, depth + 1), None, spans);
        }
        if ends {
            command = Command::new(redactor);
            known = false;
        }
    }
    known.then_some(command)
}

/// The range within a pair of quotes, or all; without a stray bracket or quote at the end.
fn unquoted(word: &str) -> Range<usize> {
    for quote in ['"', '\''] {
        if word.len() >= 2 && word.starts_with(quote) && word.ends_with(quote) {
            return 1..word.len() - 1;
        }
    }
    let balanced = |open: char, close: char| word.contains(open) || !word.ends_with(close);
    let odd = |quote: char| word.matches(quote).count() % 2 == 1 && word.ends_with(quote);
    let stray = !balanced('(', ')') || !balanced('`', '`') || odd('"') || odd('\'');
    0..word.len() - usize::from(stray)
}

/// The ranges of the words of a line, a quoted part being of one word.
fn shell_words(line: &str) -> Vec<Range<usize>> {
    let bytes = line.as_bytes();
    let mut words = Vec::new();
    let mut start = None;
    let mut position = 0;
    // Once a quote was not closed, no later one of its kind opens anything.
    let mut unclosed = [false; 2];
    while let Some(&byte) = bytes.get(position) {
        if byte.is_ascii_whitespace() {
            words.extend(start.take().map(|start| start..position));
        } else {
            start.get_or_insert(position);
            let kind = usize::from(byte == b'"');
            let closed = unclosed.get(kind).copied().unwrap_or(true);
            if (byte == b'"' || byte == b'\'') && !closed {
                match bytes.iter().skip(position + 1).position(|b| *b == byte) {
                    Some(length) => position += length + 1,
                    None => unclosed.iter_mut().skip(kind).take(1).for_each(|one| *one = true),
                }
            } else if byte == b'\\' {
                position +=
                    usize::from(bytes.get(position + 1).is_some_and(|b| !b.is_ascii_whitespace()));
            }
        }
        position += 1;
    }
    words.extend(start.map(|start| start..line.len()));
    words
}
