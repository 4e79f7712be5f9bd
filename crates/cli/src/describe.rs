//! What a change says, in a few words: `active (running) → failed`, `1.22.1-9 → 1.24.0-1`.
//!
//! A description names the fields it told of; the rest can then be listed field by field
//! without saying anything twice. Fields that no kind here knows are still told, by name.

mod standing;

pub(crate) use standing::standing;

use crate::values::{NONE, edit, int, text};
use crate::view::{View, signed_bytes};
use model::terminal::{plain, shorten};
use model::{Fields, Kind, Op, Subject, Value};
use std::collections::BTreeSet;

/// How good the news is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Neutral,
    Bad,
}

/// A change in a few words, already plain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// `installed`, `ended`; empty for an edit.
    pub(crate) verb: &'static str,
    pub(crate) text: String,
    pub(crate) tone: Tone,
    /// Fields that need no telling any more.
    pub(crate) told: BTreeSet<String>,
}

impl Description {
    /// Verb and text together: `installed: 1.2`.
    pub(crate) fn sentence(&self) -> String {
        match (self.verb, self.text.as_str()) {
            ("", text) => text.to_owned(),
            (verb, "") => verb.to_owned(),
            (verb, text) => format!("{verb}: {text}"),
        }
    }
}

/// Characters a description may have.
const MAX_TEXT: usize = 400;

pub(crate) fn describe(subject: &Subject, op: &Op, view: &View) -> Description {
    match op {
        Op::Added(fields) => whole(subject, fields, true, view),
        Op::Removed(fields) => whole(subject, fields, false, view),
        Op::Edited { was, now } => edited(subject, was, now, view),
    }
}

fn whole(subject: &Subject, fields: &Fields, came: bool, view: &View) -> Description {
    let text = standing(subject.kind(), fields, view).join(", ");
    Description {
        verb: verb(subject.kind(), came),
        text: plain(&shorten(&text, MAX_TEXT)).into_owned(),
        tone: if came { tone(subject.kind(), fields) } else { Tone::Neutral },
        told: BTreeSet::new(),
    }
}

fn verb(kind: Kind, came: bool) -> &'static str {
    let (come, gone) = match kind {
        Kind::PACKAGE => ("installed", "uninstalled"),
        Kind::FILE => ("created", "deleted"),
        Kind::PROCESS => ("started", "ended"),
        Kind::SOCKET => ("listens", "no longer listens"),
        Kind::CONTAINER => ("created", "removed"),
        Kind::FILESYSTEM => ("mounted", "unmounted"),
        _ => ("appeared", "gone"),
    };
    if came { come } else { gone }
}

/// How things stand, judged by the state they are in.
fn tone(kind: Kind, fields: &Fields) -> Tone {
    match kind {
        Kind::UNIT => match text(fields, "active_state") {
            Some("failed") => Tone::Bad,
            Some("active") => Tone::Good,
            _ => Tone::Neutral,
        },
        Kind::CONTAINER => match (text(fields, "state"), text(fields, "health")) {
            (Some("dead"), _) | (_, Some("unhealthy")) => Tone::Bad,
            (Some("exited"), _) if int(fields, "exit_code").is_some_and(|code| code != 0) => {
                Tone::Bad
            }
            (Some("running"), _) => Tone::Good,
            _ => Tone::Neutral,
        },
        Kind::COLLECTOR if fields.contains_key("fault") => Tone::Bad,
        _ => Tone::Neutral,
    }
}

fn edited(subject: &Subject, was: &Fields, now: &Fields, view: &View) -> Description {
    let mut teller = Teller { was, now, view, phrases: Vec::new(), told: BTreeSet::new() };
    let mut tone = tone(subject.kind(), now);
    match subject.kind() {
        Kind::UNIT => teller.unit(),
        Kind::CONTAINER => teller.container(),
        Kind::PROCESS => teller.process(),
        Kind::PACKAGE => {
            teller.bare("version");
            teller.named("state", "state");
        }
        Kind::FILE => teller.file(),
        Kind::PLATFORM => teller.platform(),
        Kind::INTERFACE => {
            teller.bare("state");
            teller.named("addresses", "addresses");
        }
        Kind::COLLECTOR => {
            if now.contains_key("fault") {
                let fault = text(now, "fault").unwrap_or_default();
                teller.say(format!("can't see: {fault}"), &["fault"]);
            } else if was.contains_key("fault") {
                teller.say("sees again", &["fault"]);
                tone = Tone::Good;
            }
            teller.hush(&["fault_since"]);
        }
        _ => {}
    }
    teller.rest();
    Description {
        verb: "",
        text: plain(&shorten(&teller.phrases.join(", "), MAX_TEXT)).into_owned(),
        tone,
        told: teller.told,
    }
}

/// Collects phrases about an edit, and which fields they tell of.
struct Teller<'a> {
    was: &'a Fields,
    now: &'a Fields,
    view: &'a View,
    phrases: Vec<String>,
    told: BTreeSet<String>,
}

impl Teller<'_> {
    fn changed(&self, name: &str) -> bool {
        self.was.contains_key(name) || self.now.contains_key(name)
    }

    fn hush(&mut self, names: &[&str]) {
        self.told.extend(names.iter().map(|&name| name.to_owned()));
    }

    fn say(&mut self, phrase: impl Into<String>, names: &[&str]) {
        self.phrases.push(phrase.into());
        self.hush(names);
    }

    fn edit(&self, name: &str) -> String {
        edit(name, self.was.get(name), self.now.get(name), self.view)
    }

    /// `1.2 → 1.3`, where the field changed and its kind says what it is.
    fn bare(&mut self, name: &str) {
        if self.changed(name) {
            self.say(self.edit(name), &[name]);
        }
    }

    /// `mode 0644 → 0600`.
    fn named(&mut self, name: &str, label: &str) {
        if self.changed(name) {
            self.say(format!("{label} {}", self.edit(name)), &[name]);
        }
    }

    /// What is left: told whole when it is little, by name when it is much. Fields told only
    /// by name stay to be listed.
    fn rest(&mut self) {
        let names: BTreeSet<&str> =
            self.was.keys().chain(self.now.keys()).map(String::as_str).collect();
        let left: Vec<String> = names
            .into_iter()
            .filter(|name| !self.told.contains(*name))
            .map(str::to_owned)
            .collect();
        if !self.phrases.is_empty() {
            return;
        }
        match left.as_slice() {
            [] => {}
            [one] => {
                let one = one.clone();
                self.named(&one, &one);
            }
            many => {
                let shown = crate::values::some(many, 4);
                self.phrases.push(format!("{shown} changed"));
            }
        }
    }

    fn unit(&mut self) {
        if self.changed("active_state") || self.changed("sub_state") {
            let state = |fields| unit_state(fields).unwrap_or_else(|| NONE.to_owned());
            let phrase = format!("{} → {}", state(self.was), state(self.now));
            self.say(phrase, &["active_state", "sub_state", "since"]);
        } else if self.changed("main_pid") && self.was.contains_key("main_pid") {
            let phrase = format!("restarted, pid {}", self.edit("main_pid"));
            self.say(phrase, &["main_pid", "since"]);
        }
        if self.changed("result") {
            // `success` is what a working unit has all the time.
            let bad = text(self.now, "result").filter(|&result| result != "success");
            if let Some(result) = bad {
                self.say(result.to_owned(), &[]);
            }
            self.hush(&["result"]);
        }
        self.bare("load_state");
        self.bare("enablement");
    }

    fn container(&mut self) {
        if self.changed("container_id") && self.was.contains_key("container_id") {
            self.say("recreated", &["container_id", "created_at"]);
        }
        self.named("image", "image");
        if self.changed("state") {
            let mut phrase = self.edit("state");
            if let Some(code) = int(self.now, "exit_code") {
                phrase.push_str(&format!(" ({code})"));
            }
            self.say(phrase, &["state", "exit_code", "started_at"]);
        } else if self.changed("started_at") && self.was.contains_key("started_at") {
            self.say("restarted", &["started_at"]);
        }
        self.named("health", "health");
        if !self.phrases.is_empty() && self.changed("image") {
            self.hush(&["image_digest", "image_id"]);
        }
    }

    fn process(&mut self) {
        if let (Some(Value::List(was)), Some(Value::List(now))) =
            (self.was.get("pids"), self.now.get("pids"))
        {
            let phrase = match (was.as_slice(), now.as_slice()) {
                ([was], [now]) => format!("restarted, pid {was} → {now}"),
                _ if was.len() == now.len() => format!("pids {}", self.edit("pids")),
                _ => format!("{} → {} processes, pids {}", was.len(), now.len(), self.edit("pids")),
            };
            self.say(phrase, &["pids", "started_at"]);
        }
    }

    fn file(&mut self) {
        if ["content", "fingerprint"].iter().any(|name| self.changed(name)) {
            let size = |fields: &Fields| int(fields, "size").map(signed_bytes);
            let phrase = match (size(self.was), size(self.now)) {
                (Some(was), Some(now)) if was != now => format!("edited ({was} → {now})"),
                _ => "edited".to_owned(),
            };
            self.say(phrase, &["content", "fingerprint", "size", "modified_at", "withheld"]);
        }
        for name in ["mode", "owner", "group", "link"] {
            self.named(name, name);
        }
    }

    fn platform(&mut self) {
        if self.changed("boot_id") && self.was.contains_key("boot_id") {
            self.say("rebooted", &["boot_id", "booted_at"]);
        }
        for name in ["kernel", "hostname", "distribution_version"] {
            self.named(name, name);
        }
        self.hush(&["booted_at"]);
    }
}

/// `active (running)`, or the half of it that is known, if any is.
fn unit_state(fields: &Fields) -> Option<String> {
    match (text(fields, "active_state"), text(fields, "sub_state")) {
        (Some(active), Some(sub)) if active != sub => Some(format!("{active} ({sub})")),
        (Some(one), _) | (None, Some(one)) => Some(one.to_owned()),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests;
