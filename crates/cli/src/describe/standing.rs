//! How a thing stands, in phrases: what one would say of it to somebody who asks.

use super::unit_state;
use crate::values::{command_line, int, list, show, some, text, texts};
use crate::view::{View, count, signed_bytes};
use model::{Fields, Kind, Value};

/// Phrases about one thing, the most telling first; not yet plain.
pub(crate) fn standing(kind: Kind, fields: &Fields, view: &View) -> Vec<String> {
    let mut phrases = Phrases { fields, view, out: Vec::new() };
    match kind {
        Kind::UNIT => unit(&mut phrases),
        Kind::CONTAINER => container(&mut phrases),
        Kind::PROCESS => process(&mut phrases),
        Kind::PACKAGE => phrases.texts(&["version", "state"]),
        Kind::FILE => file(&mut phrases),
        Kind::SOCKET => socket(&mut phrases),
        Kind::DEPENDENCY => {
            phrases.list("declared", "");
            phrases.list("observed", "seen on ");
        }
        Kind::WORKLOAD => {
            phrases.texts(&["runtime"]);
            phrases.list("model_files", "");
            phrases.list("listens", "listens on ");
            phrases.list("gpus", "on ");
        }
        Kind::USER => {
            phrases.labelled("uid", "uid");
            phrases.texts(&["home", "shell", "comment"]);
        }
        Kind::GROUP => {
            phrases.labelled("gid", "gid");
            phrases.list("members", "members ");
        }
        _ => machine(kind, &mut phrases),
    }
    phrases.out
}

struct Phrases<'a> {
    fields: &'a Fields,
    view: &'a View,
    out: Vec<String>,
}

impl Phrases<'_> {
    fn say(&mut self, phrase: impl Into<String>) {
        self.out.push(phrase.into());
    }

    fn texts(&mut self, names: &[&str]) {
        self.out.extend(names.iter().filter_map(|name| text(self.fields, name)).map(str::to_owned));
    }

    fn labelled(&mut self, name: &str, label: &str) {
        if let Some(value) = self.fields.get(name) {
            self.say(format!("{label} {}", show(name, value, self.view)));
        }
    }

    fn list(&mut self, name: &str, label: &str) {
        let entries: Vec<&str> = texts(self.fields, name).collect();
        if !entries.is_empty() {
            self.say(format!("{label}{}", some(&entries, 3)));
        }
    }

    fn bytes(&mut self, name: &str) {
        if let Some(number) = int(self.fields, name) {
            self.say(signed_bytes(number));
        }
    }
}

fn unit(phrases: &mut Phrases<'_>) {
    // One that was only named, or of which only a part was asked for, has no state to tell.
    let state = unit_state(phrases.fields);
    let load = text(phrases.fields, "load_state").filter(|&load| load != "loaded");
    let state: Vec<&str> = state.as_deref().into_iter().chain(load).collect();
    let mut state = state.join(", ");
    if let Some(since) = phrases.fields.get("since").filter(|_| !state.is_empty()) {
        state = format!("{state} since {}", show("since", since, phrases.view));
    }
    if !state.is_empty() {
        phrases.say(state);
    }
    if let Some(result) = text(phrases.fields, "result").filter(|&result| result != "success") {
        phrases.say(result);
    }
    phrases.labelled("main_pid", "pid");
    phrases.texts(&["enablement", "fragment_path"]);
}

fn container(phrases: &mut Phrases<'_>) {
    let mut state = text(phrases.fields, "state").unwrap_or("state unknown").to_owned();
    match (text(phrases.fields, "health"), int(phrases.fields, "exit_code")) {
        (Some(health), _) => state = format!("{state} ({health})"),
        (None, Some(code)) if state == "exited" => state = format!("{state} ({code})"),
        _ => {}
    }
    phrases.say(state);
    phrases.texts(&["image"]);
    phrases.list("ports", "");
}

fn process(phrases: &mut Phrases<'_>) {
    match list(phrases.fields, "arguments") {
        [] => phrases.texts(&["executable"]),
        arguments => phrases.say(command_line(arguments)),
    }
    match list(phrases.fields, "pids") {
        [] => {}
        [pid] => phrases.say(format!("pid {pid}")),
        [pid, rest @ ..] => phrases.say(format!("pid {pid} and {} more", rest.len())),
    }
    phrases.labelled("user", "user");
    phrases.labelled("container", "container");
}

fn file(phrases: &mut Phrases<'_>) {
    if let Some(link) = text(phrases.fields, "link") {
        phrases.say(format!("link to {link}"));
    }
    phrases.bytes("size");
    phrases.labelled("mode", "mode");
    match (text(phrases.fields, "owner"), text(phrases.fields, "group")) {
        (Some(owner), Some(group)) => phrases.say(format!("{owner}:{group}")),
        (Some(owner), None) => phrases.say(owner),
        _ => {}
    }
    phrases.labelled("withheld", "content withheld:");
}

fn socket(phrases: &mut Phrases<'_>) {
    for (name, label) in [("process", ""), ("unit", "of "), ("container", "of container ")] {
        if let Some(holder) = text(phrases.fields, name) {
            phrases.say(format!("{label}{holder}"));
        }
    }
}

fn machine(kind: Kind, phrases: &mut Phrases<'_>) {
    match kind {
        Kind::PLATFORM => {
            phrases.texts(&["distribution_name", "hostname", "kernel", "architecture"]);
        }
        Kind::CPU => {
            phrases.texts(&["model"]);
            if let Some(logical) = int(phrases.fields, "logical") {
                phrases.say(count(usize::try_from(logical).unwrap_or(0), "processor"));
            }
        }
        Kind::MEMORY => phrases.bytes("total_bytes"),
        Kind::DISK => {
            phrases.bytes("size_bytes");
            phrases.texts(&["model"]);
        }
        Kind::FILESYSTEM => {
            phrases.texts(&["filesystem_type", "device"]);
            phrases.bytes("size_bytes");
        }
        Kind::INTERFACE => {
            phrases.texts(&["state"]);
            phrases.list("addresses", "");
        }
        Kind::ROUTE => phrases.labelled("gateway", "via"),
        Kind::GPU => {
            phrases.texts(&["vendor", "model"]);
            phrases.bytes("memory_bytes");
        }
        Kind::COLLECTOR => match text(phrases.fields, "fault") {
            Some(fault) => {
                phrases.say(fault);
                phrases.labelled("fault_since", "since");
            }
            None => phrases.say("sees"),
        },
        _ => unknown(phrases),
    }
}

/// A kind that only a newer agent knows.
fn unknown(phrases: &mut Phrases<'_>) {
    let simple = |value: &Value| !matches!(value, Value::List(_) | Value::Map(_));
    let names: Vec<&String> =
        phrases.fields.iter().filter(|(_, value)| simple(value)).map(|(name, _)| name).collect();
    for name in names.into_iter().take(4) {
        phrases.labelled(name, name);
    }
}
