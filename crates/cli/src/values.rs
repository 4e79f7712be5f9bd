//! Single values and their edits, as people read them: sizes with units, times in the
//! reader's zone, command lines as a shell takes them, lists by what came and went.
//!
//! What is returned is not yet plain: whoever prints it passes it through [`model::terminal`].

use crate::view::{View, signed_bytes};
use model::terminal::shorten;
use model::{Fields, Time, Value};
use std::collections::BTreeMap;

/// Fields that hold a time as text.
const TIMES: [&str; 6] =
    ["since", "started_at", "created_at", "booted_at", "fault_since", "modified_at"];

/// Fields whose lists are words of one command line.
const COMMAND_LINES: [&str; 3] = ["arguments", "command", "entrypoint"];

/// Entries of a list or map that are shown of each kind.
const MAX_ENTRIES: usize = 8;

/// Characters of one value.
const MAX_VALUE: usize = 160;

/// What stands for an absent value.
pub(crate) const NONE: &str = "none";

pub(crate) fn text<'f>(fields: &'f Fields, name: &str) -> Option<&'f str> {
    fields.get(name).and_then(Value::as_text).filter(|text| !text.is_empty())
}

pub(crate) fn int(fields: &Fields, name: &str) -> Option<i64> {
    fields.get(name).and_then(Value::as_int)
}

/// The entries of a list; nothing when there is none.
pub(crate) fn list<'f>(fields: &'f Fields, name: &str) -> &'f [Value] {
    if let Some(Value::List(list)) = fields.get(name) { list } else { &[] }
}

pub(crate) fn texts<'f>(fields: &'f Fields, name: &str) -> impl Iterator<Item = &'f str> {
    list(fields, name).iter().filter_map(Value::as_text)
}

/// One value, whole.
pub(crate) fn show(name: &str, value: &Value, view: &View) -> String {
    match value {
        Value::Int(number) if name == "size" || name.ends_with("_bytes") => signed_bytes(*number),
        Value::Text(text) if TIMES.contains(&name) => {
            text.parse::<Time>().map_or_else(|_form| text.clone(), |time| view.time(time))
        }
        Value::Text(text) if text.is_empty() => "\"\"".to_owned(),
        // systemd's mark for a directory that the unit can do without.
        Value::Text(text) if name == "working_directory" && text.len() > 1 => {
            match text.strip_prefix('!') {
                Some(directory) => format!("{directory} (if it is there)"),
                None => text.clone(),
            }
        }
        Value::List(words) if COMMAND_LINES.contains(&name) => command_line(words),
        Value::List(entries) => {
            let entries: Vec<String> = entries.iter().map(entry).collect();
            entries.join(", ")
        }
        Value::Map(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}={}", entry(v))).collect();
            pairs.join(", ")
        }
        other => other.to_string(),
    }
}

/// An entry of a list; one that is itself a list is a command line.
pub(crate) fn entry(value: &Value) -> String {
    match value {
        Value::List(words) => command_line(words),
        other => other.to_string(),
    }
}

/// Words as a shell would take them.
pub(crate) fn command_line(words: &[Value]) -> String {
    // Some programs write one long text over their arguments, which needs no quotes.
    if let [only] = words {
        return only.to_string();
    }
    let quoted: Vec<String> = words.iter().map(|word| quote(&word.to_string())).collect();
    quoted.join(" ")
}

fn quote(word: &str) -> String {
    let bare = |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(bare) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// How one field became another: `812 → 901`, `+x −y`.
pub(crate) fn edit(name: &str, was: Option<&Value>, now: Option<&Value>, view: &View) -> String {
    let command = COMMAND_LINES.contains(&name);
    match (was, now) {
        (Some(Value::List(was)), Some(Value::List(now))) if !command => lists(was, now),
        (None, Some(Value::List(now))) if !command => lists(&[], now),
        (Some(Value::List(was)), None) if !command => lists(was, &[]),
        (Some(Value::Map(was)), Some(Value::Map(now))) => maps(was, now),
        (None, Some(Value::Map(now))) => maps(&BTreeMap::new(), now),
        (Some(Value::Map(was)), None) => maps(was, &BTreeMap::new()),
        _ => {
            let shown = |value: Option<&Value>| {
                let text = value.map_or_else(|| NONE.to_owned(), |value| show(name, value, view));
                shorten(&text, MAX_VALUE).into_owned()
            };
            format!("{} → {}", shown(was), shown(now))
        }
    }
}

fn lists(was: &[Value], now: &[Value]) -> String {
    let only = |left: &[Value], right: &[Value]| -> Vec<String> {
        left.iter().filter(|value| !right.contains(value)).map(entry).collect()
    };
    let mut parts = signed('+', only(now, was));
    parts.extend(signed('−', only(was, now)));
    if parts.is_empty() { "in another order".to_owned() } else { parts.join(" ") }
}

fn maps(was: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) -> String {
    let pair = |(key, value): (&String, &Value)| format!("{key}={}", entry(value));
    let came = now.iter().filter(|(key, _)| !was.contains_key(*key)).map(pair).collect();
    let went = was.keys().filter(|key| !now.contains_key(*key)).cloned().collect();
    let mut parts = signed('+', came);
    parts.extend(signed('−', went));
    for (key, after) in now {
        let Some(before) = was.get(key).filter(|before| *before != after) else { continue };
        parts.push(format!("{key}: {} → {}", entry(before), entry(after)));
    }
    parts.truncate(3 * MAX_ENTRIES);
    parts.join(" ")
}

/// Each with its sign, the last standing for those left out.
fn signed(sign: char, entries: Vec<String>) -> Vec<String> {
    let left_out = entries.len().saturating_sub(MAX_ENTRIES);
    let shown = entries.into_iter().take(MAX_ENTRIES);
    let mut out: Vec<String> =
        shown.map(|entry| format!("{sign}{}", shorten(&entry, MAX_VALUE))).collect();
    if left_out > 0 {
        out.push(format!("{sign}{left_out} more"));
    }
    out
}

/// At most so many of some names, and how many more there are.
pub(crate) fn some<T: AsRef<str>>(names: &[T], limit: usize) -> String {
    let shown: Vec<&str> = names.iter().take(limit).map(AsRef::as_ref).collect();
    let mut out = shown.join(", ");
    if names.len() > limit {
        out.push_str(&format!(" and {} more", names.len() - limit));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Option<Value> {
        Value::from_json(serde_json::from_str(json).unwrap())
    }

    fn check(name: &str, was: &str, now: &str, expected: &str) {
        let view = View::of_tests();
        let (was, now) = (value(was), value(now));
        assert_eq!(edit(name, was.as_ref(), now.as_ref(), &view), expected);
    }

    #[test]
    fn edits() {
        check("main_pid", "812", "901", "812 → 901");
        check("main_pid", "812", "null", "812 → none");
        check("size", "1200", "13000", "1.1 KiB → 12.6 KiB");
        check("since", "null", "\"2026-11-20T09:00:00.5Z\"", "none → 2026-11-20T09:00:00Z");
        check("drop_ins", "null", r#"["/etc/a.conf"]"#, "+/etc/a.conf");
        check("wants", r#"["a","b"]"#, r#"["b","c"]"#, "+c −a");
        check("wants", r#"["a","b"]"#, r#"["b","a"]"#, "in another order");
        check(
            "exec_start",
            "null",
            r#"[["/bin/sh","-c","echo 'hi'"]]"#,
            r"+/bin/sh -c 'echo '\''hi'\'''",
        );
        check("arguments", r#"["a","-x"]"#, r#"["a",""]"#, "a -x → a ''");
        check("environment", r#"{"A":"1","B":"2"}"#, r#"{"B":"3","C":"4"}"#, "+C=4 −A B: 2 → 3");
        check(
            "working_directory",
            "\"!/home/alice\"",
            "\"/srv\"",
            "/home/alice (if it is there) → /srv",
        );
        let many: Vec<String> = (0..20).map(|i| format!("\"u{i}\"")).collect();
        check(
            "after",
            "null",
            &format!("[{}]", many.join(",")),
            "+u0 +u1 +u2 +u3 +u4 +u5 +u6 +u7 +12 more",
        );
    }

    #[test]
    fn some_of_many() {
        assert_eq!(some(&["a", "b"], 2), "a, b");
        assert_eq!(some(&["a", "b", "c"], 1), "a and 2 more");
    }
}
