//! Units that stand for processes which nothing on the host owns.

use super::draft::{At, Draft};
use super::files;
use super::step::{Action, PutFile};
use crate::entity::{self, Entity};
use crate::spec::{AccountName, FilePath, Mode, PREFIX, Process, Source, UnitName};
use crate::{ContentId, Kind};

/// Where they are written.
const PLACE: &str = "/etc/systemd/system";

impl Draft<'_> {
    pub(super) fn processes(&mut self) {
        if !self.sees(Kind::UNIT) {
            return;
        }
        let spec = self.spec;
        for (name, process) in &spec.processes {
            self.process(name, process);
        }
        if self.may_remove(Kind::PROCESS) && !spec.unseen.contains(&Kind::UNIT) {
            self.remove_processes();
        }
    }

    fn process(&mut self, name: &UnitName, process: &Process) {
        let path = path(name);
        let unit = self.twin.entity::<entity::Unit>(name.as_str());
        let file = self.twin.entity::<entity::File>(path.as_str());
        let id = ContentId::of(process.text.as_bytes()).to_string();
        // What a redactor finds in the file, it finds for no reason that the unit would show.
        let is_written = file.as_ref().is_some_and(|file| {
            file.content.as_deref() == Some(id.as_str())
                || file.redacted
                    && unit.as_ref().is_some_and(|u| u.description == process.description)
        });
        if !is_written {
            let root: AccountName = "root".parse().expect("root is a plain name");
            let file = PutFile {
                path: path.clone(),
                source: Source::Made(process.text.clone()),
                mode: Mode::PLAIN,
                owner: root.clone(),
                group: root,
            };
            let why = "a process that no unit owns runs so on the host";
            let at = self.add(&process.subject, Action::PutFile(file), why);
            self.files.insert(path, at);
        }
        let is = |wanted: &str, seen: Option<&String>| seen.is_some_and(|seen| seen == wanted);
        if !is("enabled", unit.as_ref().and_then(|unit| unit.enablement.as_ref())) {
            let at = self.add(
                &process.subject,
                Action::Enable(name.clone()),
                "it is to come back at boot",
            );
            self.await_file(at, name);
        }
        let is_active = is("active", unit.as_ref().map(|unit| &unit.active_state));
        let action = match (is_active, is_written) {
            (true, true) => return,
            (true, false) => Action::Restart(name.clone()),
            (false, _) => Action::Start(name.clone()),
        };
        let at = self.add(&process.subject, action, "the process runs on the host");
        self.await_file(at, name);
        self.starts.insert(name.clone(), at);
    }

    fn await_file(&mut self, at: At, name: &UnitName) {
        let file = self.files.get(&path(name)).copied();
        self.need(at, file);
        self.awaiting_reload.push(at);
    }

    fn remove_processes(&mut self) {
        let spec = self.spec;
        let units: Vec<entity::Unit> = self
            .twin
            .entities::<entity::Unit>()
            .filter(|unit| unit.id.starts_with(PREFIX))
            .collect();
        for unit in units {
            let Ok(name) = unit.id.parse::<UnitName>() else { continue };
            if spec.processes.contains_key(&name) {
                continue;
            }
            let (subject, _) = unit.to_item();
            let why = "its process ended on the host";
            let mut before = Vec::new();
            if unit.active_state != "inactive" && unit.load_state != "not-loaded" {
                let stop = self.add(&subject, Action::Stop(name.clone()), why);
                self.stops.insert(name.clone(), stop);
                before.push(stop);
            }
            if unit.enablement.as_deref() == Some("enabled") {
                before.push(self.add(&subject, Action::Disable(name.clone()), why));
            }
            let path = path(&name);
            let at = self.add(&files::subject(&path), Action::RemoveFile(path.clone()), why);
            for step in before {
                self.need(at, Some(step));
            }
            self.files.insert(path, at);
        }
    }
}

fn path(name: &UnitName) -> FilePath {
    format!("{PLACE}/{name}").parse().expect("a unit's name is a plain file name")
}
