//! What somebody declares of a twin, on top of what is observed on its host.
//!
//! # Invariants
//! - What is kept was checked: it names one thing, and has only fields that mean something there.
//! - A declared field goes before the observed one, and all others stay as observed.

use super::process::command;
use super::{AccountName, Body, Container, ContainerName, File, FilePath, Mode, Source, Spec};
use super::{UnitName, units::RUN};
use crate::entity::{self, Entity};
use crate::redact::MARK;
use crate::value::{Fields, Value};
use crate::{Facts, Item, Kind, Subject, TextError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Where units that are made for a declaration, and drop-ins, are put.
const UNITS: &str = "/etc/systemd/system";

/// What somebody declared of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extra {
    /// It is not to be in the twin.
    Gone,
    /// It is to be there; with these fields, whatever is observed of them.
    There(Fields),
}

/// All that was declared of one twin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// Items that are to be there; each field goes before the observed one.
    pub put: Facts,
    /// Observed things that are not to be in the twin.
    pub gone: BTreeSet<Subject>,
}

/// Why something can't be declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtraError {
    #[error("{0:?} can't be declared; what can: service, process, container, dependency")]
    Kind(String),
    #[error(transparent)]
    Name(#[from] TextError),
    #[error("a {kind} has no field {field:?} that can be declared; it has {known}")]
    Field { kind: &'static str, field: String, known: String },
    #[error("{field}: {why}")]
    Value { field: String, why: String },
    #[error("a new process needs its executable: a field `executable` with an absolute path")]
    NoProgram,
    #[error("what a unit's own file says it needs can't be declared away; override the unit")]
    Dependency,
}

/// What can be declared, by the word that people use for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExtraKind {
    Service,
    Process,
    Container,
    Dependency,
}

impl ExtraKind {
    pub const ALL: [Self; 4] = [Self::Service, Self::Process, Self::Container, Self::Dependency];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Process => "process",
            Self::Container => "container",
            Self::Dependency => "dependency",
        }
    }

    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Service => &[
                "active_state",
                "enablement",
                "environment",
                "exec_start",
                "restart",
                "user",
                "working_directory",
            ],
            Self::Process => &["arguments", "executable", "user", "working_directory"],
            Self::Container => &[
                "command",
                "cpu_limit_millis",
                "entrypoint",
                "environment",
                "image",
                "labels",
                "memory_limit_bytes",
                "mounts",
                "networks",
                "ports",
                "privileged",
                "restart_policy",
                "state",
                "user",
                "working_directory",
            ],
            Self::Dependency => &[],
        }
    }

    /// The thing of this name, as facts have it.
    ///
    /// # Errors
    /// When it is none.
    pub fn subject(self, name: &str) -> Result<Subject, ExtraError> {
        let escaped = |kind, id: &str| Ok(Subject::escaped(kind, id));
        match self {
            Self::Service => {
                let is_whole = RUN.iter().any(|kind| name.ends_with(&format!(".{kind}")));
                let whole = if is_whole { name.to_owned() } else { format!("{name}.service") };
                escaped(Kind::UNIT, whole.parse::<UnitName>()?.as_str())
            }
            Self::Process => {
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "._+-#".contains(c);
                let is_one = (1..=200).contains(&name.len()) && name.chars().all(is_plain);
                match is_one {
                    true => escaped(Kind::PROCESS, name),
                    false => Err(TextError::new(name, "the name of a process").into()),
                }
            }
            Self::Container => escaped(Kind::CONTAINER, name.parse::<ContainerName>()?.as_str()),
            Self::Dependency => {
                let wrong = || TextError::new(name, "two units, as `app.service->redis.service`");
                let (from, to) = name.split_once("->").ok_or_else(wrong)?;
                let unit = |text: &str| text.trim().parse::<UnitName>();
                escaped(Kind::DEPENDENCY, &format!("{} -> {}", unit(from)?, unit(to)?))
            }
        }
    }

    /// The kind of a subject that was declared.
    #[must_use]
    pub fn of(subject: &Subject) -> Option<Self> {
        let kinds = [Kind::UNIT, Kind::PROCESS, Kind::CONTAINER, Kind::DEPENDENCY];
        let at = kinds.iter().position(|kind| *kind == subject.kind())?;
        Self::ALL.get(at).copied()
    }
}

impl std::str::FromStr for ExtraKind {
    type Err = ExtraError;

    fn from_str(text: &str) -> Result<Self, ExtraError> {
        let one = match text {
            "unit" => "service",
            text => text.strip_suffix('s').filter(|one| *one != "proces").unwrap_or(text),
        };
        let one = if text == "processes" { "process" } else { one };
        let one = if text == "dependencies" { "dependency" } else { one };
        let known = Self::ALL.into_iter().find(|kind| kind.as_str() == one);
        known.ok_or_else(|| ExtraError::Kind(text.to_owned()))
    }
}

impl std::fmt::Display for ExtraKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Extra {
    /// Whether it means something of this thing.
    ///
    /// # Errors
    /// When it does not: a field that nobody reads, or a value that can't be one.
    pub fn check(&self, kind: ExtraKind, subject: &Subject) -> Result<(), ExtraError> {
        let fields = match self {
            Self::Gone if kind == ExtraKind::Dependency => return Err(ExtraError::Dependency),
            Self::Gone => return Ok(()),
            Self::There(fields) => fields,
        };
        for (field, value) in fields {
            if !kind.fields().contains(&field.as_str()) {
                let known = match kind.fields() {
                    [] => "none".to_owned(),
                    known => known.join(", "),
                };
                return Err(ExtraError::Field { kind: kind.as_str(), field: field.clone(), known });
            }
            check_value(kind, field, value)?;
        }
        let id = subject.id();
        match kind {
            ExtraKind::Process if !id.contains('#') && !fields.contains_key("executable") => {
                Err(ExtraError::NoProgram)
            }
            _ => Ok(()),
        }
    }
}

fn check_value(kind: ExtraKind, field: &str, value: &Value) -> Result<(), ExtraError> {
    let wrong = |why: &str| Err(ExtraError::Value { field: field.to_owned(), why: why.to_owned() });
    let alone: Fields = [(field.to_owned(), value.clone())].into();
    let is_kept = match kind {
        ExtraKind::Service => keeps::<entity::Unit>(&alone),
        ExtraKind::Process => keeps::<entity::Process>(&alone),
        ExtraKind::Container => keeps::<entity::Container>(&alone),
        ExtraKind::Dependency => false,
    };
    if !is_kept {
        return wrong("it has another form, or says nothing; see how `twin state --json` shows it");
    }
    if value.to_json().to_string().contains(MARK) {
        return wrong("it has a mark where a secret was; what is declared is kept as it is");
    }
    let one_of = |words: &[&str]| match value {
        Value::Text(text) if words.contains(&text.as_str()) => Ok(()),
        _ => wrong(&format!("it is one of {}", words.join(", "))),
    };
    match (kind, field, value) {
        (ExtraKind::Service, "active_state", _) => one_of(&["active", "inactive"]),
        (ExtraKind::Service, "enablement", _) => one_of(&["enabled", "disabled", "masked"]),
        (ExtraKind::Service, "restart", _) => {
            one_of(&["no", "always", "on-success", "on-failure", "on-abnormal", "on-abort"])
        }
        (ExtraKind::Container, "state", _) => one_of(&["running", "exited", "paused"]),
        (ExtraKind::Service, "exec_start", _) => {
            let unit = entity::Unit::from_fields("", alone).unwrap_or_default();
            let is_path = |words: &Vec<String>| words.first().is_some_and(|w| w.starts_with('/'));
            match unit.exec_start.as_slice() {
                [words] if is_path(words) => Ok(()),
                _ => wrong("it is one command: [[\"/absolute/program\", \"argument\"]]"),
            }
        }
        (ExtraKind::Service, "environment", Value::Map(pairs)) => {
            for name in pairs.keys() {
                name.parse::<super::Variable>()?;
            }
            Ok(())
        }
        (ExtraKind::Process, "executable", Value::Text(text)) if !text.starts_with('/') => {
            wrong("it is an absolute path")
        }
        (ExtraKind::Service | ExtraKind::Process, "user", Value::Text(text)) => {
            Ok(text.parse::<AccountName>().map(drop)?)
        }
        (_, "working_directory", Value::Text(text)) => match text.starts_with('/') {
            true => Ok(text.parse::<super::Word>().map(drop)?),
            false => wrong("it is an absolute path"),
        },
        (ExtraKind::Container, ..) => {
            let mut seen = entity::Container::from_fields("x", alone).unwrap_or_default();
            if seen.image.is_empty() {
                "x".clone_into(&mut seen.image);
            }
            match Container::of(&seen) {
                Ok(_) => Ok(()),
                Err(error) => wrong(&error.to_string()),
            }
        }
        _ => Ok(()),
    }
}

/// Whether the typed form has all that the fields say.
fn keeps<T: Entity>(fields: &Fields) -> bool {
    T::from_fields("x", fields.clone()).is_some_and(|entity| entity.to_item().1 == *fields)
}

impl Extras {
    /// Of those that were declared one by one.
    #[must_use]
    pub fn of(declared: impl IntoIterator<Item = (Subject, Extra)>) -> Self {
        let mut extras = Self::default();
        for (subject, extra) in declared {
            match extra {
                Extra::Gone => {
                    extras.gone.insert(subject);
                }
                Extra::There(fields) => {
                    extras.put.put(subject, Item::new(&fields));
                }
            }
        }
        extras
    }

    /// All things of which something was declared; with a unit, the files that go with it.
    pub(super) fn subjects(&self, facts: &Facts) -> BTreeSet<Subject> {
        let files = |subject: &Subject| -> Vec<Subject> {
            let unit = (subject.kind() == Kind::UNIT).then_some(subject.id());
            let unit = unit.and_then(|id| facts.entity::<entity::Unit>(id)).unwrap_or_default();
            let paths = unit.drop_ins.iter().chain(&unit.fragment_path);
            paths.map(|path| Subject::escaped(Kind::FILE, path)).collect()
        };
        let put = self.put.iter().map(|(subject, _)| subject);
        put.chain(&self.gone).cloned().chain(self.gone.iter().flat_map(files)).collect()
    }

    /// The facts with what was declared on top.
    pub(super) fn over(&self, facts: &Facts) -> Facts {
        let mut merged = facts.clone();
        for subject in &self.gone {
            match subject.kind() {
                Kind::UNIT => leave_out_unit(&mut merged, subject),
                _ => drop(merged.remove(subject)),
            }
        }
        for (subject, item) in self.put.iter() {
            let mut fields = match merged.get(subject) {
                Some(observed) => observed.fields(),
                None => usual(subject),
            };
            // What is declared is to be set, whatever an image brings.
            if item.fields().contains_key("environment") {
                fields.remove("inherited");
            }
            // Another one is not the one that the host's was made from.
            if item.fields().contains_key("image") {
                fields.remove("image_id");
            }
            fields.extend(item.fields());
            merged.put(subject.clone(), Item::new(&fields));
        }
        merged
    }
}

/// What is meant where only that it is there was declared.
fn usual(subject: &Subject) -> Fields {
    let text = |text: &str| Value::Text(text.to_owned());
    let pairs: &[(&str, Value)] = match subject.kind() {
        Kind::UNIT => &[("active_state", text("active")), ("load_state", text("loaded"))],
        Kind::CONTAINER => &[("state", text("running"))],
        // It has no number on the host; the unit that is made for it has to have one.
        Kind::PROCESS => {
            &[("pids", Value::List(vec![Value::Int(0)])), ("name", text(subject.id()))]
        }
        _ => &[],
    };
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// A unit goes with its file. Where that is of a package, it is stopped and masked.
fn leave_out_unit(facts: &mut Facts, subject: &Subject) {
    let Some(unit) = facts.entity::<entity::Unit>(subject.id()) else { return };
    let of_package =
        |path: &str| facts.entity::<entity::File>(path).is_some_and(|file| file.package.is_some());
    let fragment = unit.fragment_path.clone().unwrap_or_default();
    if of_package(&fragment) || !fragment.starts_with("/etc/") {
        facts.put_entity(&entity::Unit {
            active_state: "inactive".to_owned(),
            enablement: Some("masked".to_owned()),
            ..unit
        });
        return;
    }
    facts.remove(subject);
    for path in unit.drop_ins.iter().chain([&fragment]) {
        facts.remove(&Subject::escaped(Kind::FILE, path));
    }
}

impl Spec {
    /// Files for what was declared, and the order that declared dependencies ask for.
    pub(super) fn take_declared(&mut self, extras: &Extras, observed: &Facts) {
        for (subject, item) in extras.put.iter() {
            match subject.kind() {
                Kind::UNIT => {
                    let said = entity::Unit::from_fields(subject.id(), item.fields());
                    let is_new = observed.get(subject).is_none();
                    if let Some(said) = said {
                        self.declared_unit(&said, is_new);
                    }
                }
                Kind::DEPENDENCY => self.declared_dependency(subject),
                _ => {}
            }
        }
    }

    fn declared_unit(&mut self, said: &entity::Unit, is_new: bool) {
        let Some(section) = service(said) else { return };
        let Ok(name) = said.id.parse::<UnitName>() else { return };
        let (path, text) = match is_new {
            true => (
                format!("{UNITS}/{name}"),
                format!(
                    "# Written by SafetyTwin: declared for this twin.\n[Unit]\nDescription={name}\n\n\
                     [Service]\n{section}\n[Install]\nWantedBy=multi-user.target\n"
                ),
            ),
            false => (
                format!("{UNITS}/{name}.d/zz-declared.conf"),
                format!("# Written by SafetyTwin: declared for this twin.\n[Service]\n{section}"),
            ),
        };
        let Some(path) = self.made(&path, text, if is_new { "unit" } else { "dropin" }) else {
            return;
        };
        if let Some(unit) = self.units.get_mut(&name) {
            unit.files.insert(path.clone());
            if is_new {
                unit.fragment = Some(path);
            }
        }
    }

    fn declared_dependency(&mut self, subject: &Subject) {
        let parts = subject.id().split_once(" -> ");
        let Some((Ok(from), Ok(to))) = parts.map(|(from, to)| (from.parse(), to.parse())) else {
            return;
        };
        let (from, to): (UnitName, UnitName) = (from, to);
        let text = format!(
            "# Written by SafetyTwin: declared for this twin.\n[Unit]\nRequires={to}\nAfter={to}\n"
        );
        self.made(&format!("{UNITS}/{from}.d/zz-needs-{to}.conf"), text, "dropin");
        if let Some(unit) = self.units.get_mut(&from) {
            unit.requires.insert(to.clone());
            unit.after.insert(to);
        }
    }

    fn made(&mut self, path: &str, text: String, role: &str) -> Option<FilePath> {
        let subject = Subject::escaped(Kind::FILE, path);
        let path: FilePath = path.parse().ok()?;
        let root: AccountName = "root".parse().ok()?;
        let body = Body::Plain {
            source: Source::Made(text),
            mode: Mode::PLAIN,
            owner: root.clone(),
            group: root,
        };
        self.declared.insert(subject.clone());
        let file = File { subject, body, role: role.to_owned(), package: None, modified_at: None };
        self.files.insert(path.clone(), file);
        Some(path)
    }
}

/// What a declared service's section says; nothing where only its state was declared.
fn service(said: &entity::Unit) -> Option<String> {
    let mut section = String::new();
    let mut line = |key: &str, value: &str| {
        writeln!(section, "{key}={value}").expect("a text takes whatever is written");
    };
    if let Some(words) = said.exec_start.first() {
        // The first empties the list of an observed one.
        line("ExecStart", "");
        line("ExecStart", &command(words.first()?, words));
    }
    if let Some(user) = &said.user {
        line("User", user);
    }
    if let Some(directory) = &said.working_directory {
        line("WorkingDirectory", &super::process::quoted_path(directory));
    }
    let pairs: &BTreeMap<String, String> = &said.environment;
    for (name, value) in pairs {
        line("Environment", &super::process::quoted_assignment(name, value));
    }
    if let Some(restart) = &said.restart {
        line("Restart", restart);
    }
    (!section.is_empty()).then_some(section)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        match Value::from_json(serde_json::from_str(json).unwrap()) {
            Some(Value::Map(fields)) => fields,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kinds_by_their_words() {
        for (text, expected) in [
            ("service", "service"),
            ("services", "service"),
            ("unit", "service"),
            ("process", "process"),
            ("processes", "process"),
            ("containers", "container"),
            ("dependencies", "dependency"),
            ("proces", "-"),
            ("package", "-"),
            ("", "-"),
        ] {
            let kind = text.parse::<ExtraKind>();
            assert_eq!(kind.as_ref().map_or("-", |kind| kind.as_str()), expected, "{text}");
        }
    }

    fn check_name(kind: ExtraKind, name: &str, expected: &str) {
        let subject = kind.subject(name);
        let shown = subject.map_or_else(|error| format!("error: {error}"), |s| s.to_string());
        assert!(shown.starts_with(expected), "{name}: {shown}");
    }

    #[test]
    fn names_are_checked() {
        check_name(ExtraKind::Service, "app", "unit:app.service");
        check_name(ExtraKind::Service, "app.timer", "unit:app.timer");
        check_name(ExtraKind::Service, "../x", "error: ");
        check_name(ExtraKind::Service, "a b", "error: ");
        check_name(ExtraKind::Process, "worker", "process:worker");
        check_name(ExtraKind::Process, "worker#1a2b", "process:worker#1a2b");
        check_name(ExtraKind::Process, "a\nb", "error: ");
        check_name(ExtraKind::Container, "web", "container:web");
        check_name(ExtraKind::Container, "-rf", "error: ");
        check_name(
            ExtraKind::Dependency,
            "a.service->b.socket",
            "dependency:a.service -> b.socket",
        );
        check_name(ExtraKind::Dependency, "a.service", "error: ");
        check_name(ExtraKind::Dependency, "a.service->../b", "error: ");
    }

    fn check(kind: ExtraKind, name: &str, json: &str, expected: &str) {
        let subject = kind.subject(name).unwrap();
        let result = Extra::There(fields(json)).check(kind, &subject);
        let shown = result.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
        assert!(shown.starts_with(expected), "{json}: {shown}");
    }

    #[test]
    fn only_what_means_something_is_taken() {
        use ExtraKind::{Container, Dependency, Process, Service};
        check(Service, "a", "{}", "ok");
        check(Service, "a", r#"{"active_state":"inactive","enablement":"masked"}"#, "ok");
        check(Service, "a", r#"{"active_state":"failed"}"#, "active_state: it is one of");
        check(Service, "a", r#"{"main_pid":1}"#, "a service has no field \"main_pid\"");
        check(Service, "a", r#"{"exec_start":[["/bin/x","; rm $HOME"]]}"#, "ok");
        check(Service, "a", r#"{"exec_start":[["x"]]}"#, "exec_start: it is one command");
        check(Service, "a", r#"{"exec_start":[["/a"],["/b"]]}"#, "exec_start: it is one command");
        check(Service, "a", r#"{"exec_start":"x"}"#, "exec_start: it has another form");
        check(Service, "a", r#"{"user":"x\ny"}"#, "");
        check(Service, "a", r#"{"environment":{"A":"1"}}"#, "ok");
        check(Service, "a", r#"{"environment":{"A B":"1"}}"#, "");
        check(Process, "a", r#"{"executable":"/bin/a","arguments":["a","-x"]}"#, "ok");
        check(Process, "a", "{}", "a new process needs its executable");
        check(Process, "a#1", r#"{"user":"bob"}"#, "ok");
        check(Container, "c", r#"{"image":"web:1","ports":["0.0.0.0:80->8080/tcp"]}"#, "ok");
        check(Container, "c", r#"{"ports":["80"]}"#, "ports: ");
        check(Container, "c", r#"{"image":"-x"}"#, "image: ");
        check(Dependency, "a.service->b.service", "{}", "ok");
        check(Dependency, "a.service->b.service", r#"{"x":1}"#, "a dependency has no field");
        let gone = Dependency.subject("a.service->b.service").unwrap();
        assert_eq!(Extra::Gone.check(Dependency, &gone), Err(ExtraError::Dependency));
    }
}
