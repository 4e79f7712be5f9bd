//! YAML for Ansible, in which what comes from outside is data: tagged `!unsafe`, so that Ansible
//! never takes it for a template, and in plain ASCII, so that every reader reads the same.
//!
//! # Invariants
//! - Keys, and texts that Ansible may read as expressions, are ours.
//! - Whatever a text holds, it stays one scalar on one line.

use std::fmt::Write;

/// A value of a playbook or an inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Yaml {
    /// A text from outside.
    Data(String),
    /// A text of ours, which may be an expression.
    Own(String),
    Number(u64),
    Truth(bool),
    List(Vec<Self>),
    Map(Vec<(&'static str, Self)>),
}

impl Yaml {
    pub(super) fn own(text: &str) -> Self {
        Self::Own(text.to_owned())
    }

    pub(super) fn data(text: &str) -> Self {
        Self::Data(text.to_owned())
    }

    /// A document of this.
    pub(super) fn document(&self) -> String {
        let mut text = String::from("---\n");
        match self {
            Self::List(items) if !items.is_empty() => list(&mut text, items, 0),
            Self::Map(entries) if !entries.is_empty() => map(&mut text, entries, 0),
            _ => {
                text.push_str(&self.scalar());
                text.push('\n');
            }
        }
        text
    }

    fn scalar(&self) -> String {
        match self {
            Self::Data(text) => format!("!unsafe {}", quoted(text)),
            Self::Own(text) => quoted(text),
            Self::Number(number) => number.to_string(),
            Self::Truth(truth) => truth.to_string(),
            Self::List(_) => "[]".to_owned(),
            Self::Map(_) => "{}".to_owned(),
        }
    }
}

fn list(text: &mut String, items: &[Yaml], indent: usize) {
    for item in items {
        pad(text, indent);
        text.push('-');
        match item {
            Yaml::Map(entries) if !entries.is_empty() => {
                // The first entry stands beside the dash.
                let from = text.len();
                map(text, entries, indent + 2);
                text.replace_range(from..from + indent + 2, " ");
            }
            other => value(text, other, indent),
        }
    }
}

fn map(text: &mut String, entries: &[(&'static str, Yaml)], indent: usize) {
    for (key, entry) in entries {
        pad(text, indent);
        text.push_str(key);
        text.push(':');
        value(text, entry, indent);
    }
}

/// What comes after a dash or a colon.
fn value(text: &mut String, value: &Yaml, indent: usize) {
    match value {
        Yaml::List(items) if !items.is_empty() => {
            text.push('\n');
            list(text, items, indent + 2);
        }
        Yaml::Map(entries) if !entries.is_empty() => {
            text.push('\n');
            map(text, entries, indent + 2);
        }
        scalar => {
            text.push(' ');
            text.push_str(&scalar.scalar());
            text.push('\n');
        }
    }
}

fn pad(text: &mut String, indent: usize) {
    text.extend(std::iter::repeat_n(' ', indent));
}

/// A scalar in double quotes, with all but plain ASCII escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        let code = u32::from(c);
        let written = match c {
            '"' | '\\' => write!(quoted, "\\{c}"),
            ' '..='~' => write!(quoted, "{c}"),
            _ if code <= 0xff => write!(quoted, "\\x{code:02x}"),
            _ if code <= 0xffff => write!(quoted, "\\u{code:04x}"),
            _ => write!(quoted, "\\U{code:08x}"),
        };
        written.expect("a text takes whatever is written");
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn check(value: &Yaml, expected: &Expect) {
        expected.assert_eq(&value.document());
    }

    #[test]
    fn documents() {
        check(&Yaml::List(vec![]), &expect!["---\n[]\n"]);
        let inner = vec![("b", Yaml::Number(1)), ("c", Yaml::List(vec![Yaml::own("{{ x }}")]))];
        let list = vec![
            Yaml::Map(vec![("a", Yaml::Map(inner)), ("d", Yaml::Truth(true))]),
            Yaml::List(vec![Yaml::data("x: [1]\n\"\\\u{7f}\u{2028}\u{1f600}{{ y }}")]),
            Yaml::Map(vec![]),
        ];
        check(
            &Yaml::List(list),
            &expect![[r#"
                ---
                - a:
                    b: 1
                    c:
                      - "{{ x }}"
                  d: true
                -
                  - !unsafe "x: [1]\x0a\"\\\x7f\u2028\U0001f600{{ y }}"
                - {}
            "#]],
        );
    }

    proptest! {
        #[test]
        fn a_text_is_read_back_as_it_was(text in any::<String>()) {
            let document = Yaml::Map(vec![("a", Yaml::own(&text))]).document();
            prop_assert!(document.is_ascii() && document.lines().count() == 2);
            let read: std::collections::BTreeMap<String, String> =
                serde_saphyr::from_str(&document).unwrap();
            prop_assert_eq!(&read["a"], &text);
        }
    }
}
