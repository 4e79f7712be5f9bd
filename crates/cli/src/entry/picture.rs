//! The whole picture of a thing when it is first seen: what it runs, from which package and
//! files, what it listens on, what it needs, which processes it has.
//!
//! Put together from its own fields and from what appeared with it in the same version.

use super::{aligned, fields};
use crate::describe::standing;
use crate::values::{command_line, show, some, text, texts};
use crate::view::View;
use api::answer::Change;
use model::terminal::shorten;
use model::{Fields, Kind, Op, Subject, Value};
use std::collections::BTreeSet;

pub(super) struct Picture {
    pub(super) lines: Vec<String>,
    /// What needs no telling any more.
    pub(super) told: BTreeSet<Subject>,
}

/// Things of a kind that are named.
const MAX_NAMES: usize = 8;

/// Processes with a line of their own.
const MAX_PROCESSES: usize = 4;

/// Units that nearly every other one needs.
const COMMON: [&str; 6] =
    ["-.mount", "basic.target", "sysinit.target", "system.slice", "-.slice", "shutdown.target"];

pub(super) fn picture(subject: &Subject, of: &Fields, others: &[&Change], view: &View) -> Picture {
    if ![Kind::UNIT, Kind::CONTAINER].contains(&subject.kind()) {
        return Picture { lines: fields(of, view), told: BTreeSet::new() };
    }
    let mut draft = Draft { subject, of, others, view, rows: Vec::new(), told: BTreeSet::new() };
    if subject.kind() == Kind::UNIT {
        draft.unit();
    } else {
        draft.container();
    }
    draft.belongings();
    let rows = draft.rows.iter().map(|(label, text)| (*label, text.clone())).collect();
    Picture { lines: aligned(rows, view), told: draft.told }
}

struct Draft<'a> {
    subject: &'a Subject,
    of: &'a Fields,
    others: &'a [&'a Change],
    view: &'a View,
    rows: Vec<(&'static str, String)>,
    told: BTreeSet<Subject>,
}

impl<'a> Draft<'a> {
    fn row(&mut self, label: &'static str, text: impl Into<String>) {
        self.rows.push((label, text.into()));
    }

    fn field(&mut self, label: &'static str, name: &str) {
        if let Some(value) = self.of.get(name) {
            let text = show(name, value, self.view);
            self.row(label, shorten(&text, 300));
        }
    }

    fn names(&mut self, label: &'static str, names: &[String]) {
        if !names.is_empty() {
            self.row(label, some(names, MAX_NAMES));
        }
    }

    /// What appeared with it of one kind, from now on told.
    fn appeared(&mut self, kind: Kind) -> Vec<(&'a Subject, &'a Fields)> {
        let mut found = Vec::new();
        for change in self.others {
            if let Op::Added(fields) = &change.op
                && change.subject.kind() == kind
            {
                self.told.insert(change.subject.clone());
                found.push((&change.subject, fields));
            }
        }
        found
    }

    fn unit(&mut self) {
        self.field("description", "description");
        if let Some(Value::List(commands)) = self.of.get("exec_start") {
            for words in commands.iter().take(MAX_PROCESSES) {
                let Value::List(words) = words else { continue };
                self.row("runs", shorten(&command_line(words), 300));
            }
        }
        self.field("user", "user");
        self.field("restart", "restart");
        self.field("listens on", "listen");
        self.field("schedule", "schedule");
        self.field("mounts", "mount_what");
        self.field("drop-ins", "drop_ins");
        let mut needs: BTreeSet<String> = BTreeSet::new();
        for name in ["requires", "requisite", "binds_to"] {
            needs.extend(texts(self.of, name).map(str::to_owned));
        }
        let uncommon = |unit: &String| !COMMON.contains(&unit.as_str());
        let needs: Vec<String> = needs.into_iter().filter(uncommon).collect();
        self.names("needs", &needs);
        let wants: Vec<String> =
            texts(self.of, "wants").map(str::to_owned).filter(uncommon).collect();
        self.names("wants", &wants);
        self.field("limits", "limits");
    }

    fn container(&mut self) {
        for (label, name) in [
            ("entrypoint", "entrypoint"),
            ("command", "command"),
            ("user", "user"),
            ("restart", "restart_policy"),
            ("mounts", "mounts"),
            ("networks", "networks"),
            ("links", "links"),
        ] {
            self.field(label, name);
        }
    }

    fn belongings(&mut self) {
        let packages: Vec<String> = self
            .appeared(Kind::PACKAGE)
            .into_iter()
            .map(|(subject, fields)| {
                format!("{} {}", subject.id(), text(fields, "version").unwrap_or_default())
            })
            .collect();
        self.names("package", &packages);
        let files: Vec<String> = self
            .appeared(Kind::FILE)
            .into_iter()
            .filter(|(_, fields)| text(fields, "role") != Some("unit"))
            .map(|(subject, _)| subject.id().to_owned())
            .collect();
        self.names("files", &files);
        let sockets: Vec<String> = self
            .appeared(Kind::SOCKET)
            .into_iter()
            .map(|(subject, _)| subject.id().to_owned())
            .collect();
        self.names("listens on", &sockets);
        self.dependencies();
        for (subject, fields) in self.appeared(Kind::CONTAINER) {
            let text = standing(Kind::CONTAINER, fields, self.view).join(", ");
            self.row("container", format!("{}: {text}", subject.id()));
        }
        for (_, fields) in self.appeared(Kind::WORKLOAD) {
            self.row("model", standing(Kind::WORKLOAD, fields, self.view).join(", "));
        }
        let processes = self.appeared(Kind::PROCESS);
        for (_, fields) in processes.iter().take(MAX_PROCESSES) {
            let text = standing(Kind::PROCESS, fields, self.view).join(", ");
            self.row("process", shorten(&text, 300));
        }
        if processes.len() > MAX_PROCESSES {
            self.row("", format!("and {} more", processes.len() - MAX_PROCESSES));
        }
    }

    fn dependencies(&mut self) {
        let (mut uses, mut used_by) = (Vec::new(), Vec::new());
        for (_, fields) in self.appeared(Kind::DEPENDENCY) {
            let observed: Vec<&str> = texts(fields, "observed").collect();
            if observed.is_empty() {
                // Declared ones are among the unit's own fields.
                continue;
            }
            let on = some(&observed, 2);
            match (text(fields, "from"), text(fields, "to")) {
                (Some(from), Some(to)) if from == self.subject.id() => {
                    uses.push(format!("{to} ({on})"));
                }
                (Some(from), Some(_)) => used_by.push(format!("{from} ({on})")),
                _ => {}
            }
        }
        self.names("talks to", &uses);
        self.names("used by", &used_by);
    }
}
