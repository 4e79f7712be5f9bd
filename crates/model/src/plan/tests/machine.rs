//! A machine on paper: carries plans out as a real one would, and looks whether what a step
//! stands on is there.

use crate::entity::{Container, File, Group, Package, Platform, Unit, User};
use crate::plan::{Action, Plan, PutFile};
use crate::spec::Standing;
use crate::{ContentId, Facts, Subject, Time};
use std::collections::BTreeSet;

struct Machine<'h> {
    host: &'h Facts,
    facts: Facts,
    clock: i64,
    images: BTreeSet<String>,
}

/// The facts of the twin after all steps, one after the other.
pub(super) fn carry_out(plan: &Plan, host: &Facts, twin: &Facts) -> Facts {
    let clock = 1_896_000_000_000_000;
    let mut machine = Machine { host, facts: twin.clone(), clock, images: BTreeSet::new() };
    for (at, step) in plan.steps().iter().enumerate() {
        assert!(step.needs.iter().chain(&step.after).all(|before| *before < at));
        machine.clock += 1;
        machine.act(&step.action);
    }
    machine.facts
}

impl Machine<'_> {
    fn now(&self) -> Option<Time> {
        Some(Time(self.clock))
    }

    fn edit_unit(&mut self, name: &str, edit: impl FnOnce(&mut Unit)) {
        let mut unit = self.facts.entity::<Unit>(name).unwrap_or_else(|| Unit {
            load_state: "loaded".into(),
            ..self.host.entity::<Unit>(name).map_or_else(
                || Unit {
                    id: name.to_owned(),
                    fragment_path: Some(format!("/etc/systemd/system/{name}")),
                    ..Unit::default()
                },
                |host| Unit {
                    active_state: "inactive".into(),
                    enablement: host
                        .enablement
                        .filter(|e| !["enabled", "masked"].contains(&e.as_str())),
                    since: None,
                    ..host
                },
            )
        });
        edit(&mut unit);
        self.facts.put_entity(&unit);
    }

    fn run(&mut self, name: &str, state: &str) {
        let now = self.now();
        self.edit_unit(name, |unit| {
            unit.active_state = state.to_owned();
            unit.changed_at = now;
            unit.since = now.filter(|_| state == "active");
        });
    }

    fn enable(&mut self, name: &str, how: Option<&str>) {
        self.edit_unit(name, |unit| unit.enablement = how.map(str::to_owned));
    }

    fn write(&mut self, file: &PutFile) {
        let (path, now) = (file.path.as_str().to_owned(), self.now());
        let id: ContentId = file.source.id();
        self.facts.put_entity(&File {
            content: Some(id.to_string()),
            mode: Some(file.mode.to_string()),
            owner: Some(file.owner.to_string()),
            group: Some(file.group.to_string()),
            package: self.host.entity::<File>(&path).and_then(|host| host.package),
            role: "config".into(),
            modified_at: now,
            path,
            ..File::default()
        });
    }

    /// What a package brings beside its configuration.
    fn unpack(&mut self, name: &str) {
        let theirs =
            self.host.entities::<File>().filter(|file| file.package.as_deref() == Some(name));
        let theirs: Vec<File> = theirs.filter(|file| file.path.starts_with("/lib/")).collect();
        for file in theirs {
            self.facts.put_entity(&file);
        }
    }

    fn remove_file(&mut self, path: &str) {
        self.facts.remove(&Subject::escaped(crate::Kind::FILE, path));
        let of_file = |unit: &Unit| unit.fragment_path.as_deref() == Some(path);
        let gone: Vec<Unit> = self.facts.entities::<Unit>().filter(of_file).collect();
        for unit in gone {
            // What the host has without this file has another one in its place.
            match self.host.entity::<Unit>(&unit.id) {
                Some(Unit { fragment_path, .. }) => {
                    self.facts.put_entity(&Unit { fragment_path, ..unit });
                }
                None => drop(self.facts.remove(&Subject::escaped(crate::Kind::UNIT, &unit.id))),
            }
        }
    }

    fn stand(&mut self, name: &str, state: &str) {
        let mut container = self.facts.entity::<Container>(name).expect("it was made before");
        container.state = state.to_owned();
        self.facts.put_entity(&container);
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::SetHostname(name) => {
                let mut platform = self.facts.entity::<Platform>("host").unwrap();
                platform.hostname = name.to_string();
                self.facts.put_entity(&platform);
            }
            Action::PutGroup { name, gid } => {
                let (name, gid) = (name.to_string(), Some(i64::from(*gid)));
                self.facts.put_entity(&Group { name, gid, members: Vec::new() });
            }
            Action::SetMembers { name, group } => {
                for member in &group.members {
                    assert!(
                        self.facts.entity::<User>(member.as_str()).is_some(),
                        "{member} is there"
                    );
                }
                let mut there =
                    self.facts.entity::<Group>(name.as_str()).expect("the group is there");
                there.members = group.members.iter().map(ToString::to_string).collect();
                self.facts.put_entity(&there);
            }
            Action::PutUser { name, user } => drop(self.facts.put_entity(&User {
                name: name.to_string(),
                uid: Some(user.uid.into()),
                gid: Some(user.gid.into()),
                home: Some(user.home.to_string()).filter(|text| !text.is_empty()),
                shell: Some(user.shell.to_string()).filter(|text| !text.is_empty()),
                comment: Some(user.comment.to_string()).filter(|text| !text.is_empty()),
            })),
            Action::RemoveGroup(name) => self.forget(crate::Kind::GROUP, name.as_str()),
            Action::RemoveUser(name) => self.forget(crate::Kind::USER, name.as_str()),
            Action::RemovePackage(name) => self.forget(crate::Kind::PACKAGE, name.as_str()),
            Action::PutPackage { name, version } => {
                let (version, manager) = (version.to_string(), "dpkg".to_owned());
                let package =
                    Package { name: name.to_string(), version, manager, ..Package::default() };
                self.facts.put_entity(&package);
                self.unpack(name.as_str());
            }
            Action::PutFile(file) => self.write(file),
            Action::PutLink { path, target } if path.as_str() == "/etc/localtime" => {
                let mut platform = self.facts.entity::<Platform>("host").unwrap();
                platform.time_zone =
                    target.as_str().strip_prefix("/usr/share/zoneinfo/").map(str::to_owned);
                self.facts.put_entity(&platform);
            }
            Action::PutLink { path, target } => drop(self.facts.put_entity(&File {
                path: path.to_string(),
                link: Some(target.to_string()),
                modified_at: self.now(),
                ..File::default()
            })),
            Action::RemoveFile(path) => self.remove_file(path.as_str()),
            Action::ReloadManager => {
                let units: Vec<Unit> = self.facts.entities::<Unit>().collect();
                for unit in units {
                    self.facts.put_entity(&Unit { needs_reload: false, ..unit });
                }
            }
            others => self.act_on_running(others),
        }
    }

    fn act_on_running(&mut self, action: &Action) {
        match action {
            Action::Enable(unit) => self.enable(unit.as_str(), Some("enabled")),
            Action::Disable(unit) | Action::Unmask(unit) => {
                self.enable(unit.as_str(), Some("disabled"));
            }
            Action::Mask(unit) => self.enable(unit.as_str(), Some("masked")),
            Action::Start(unit) | Action::Restart(unit) => {
                self.run(unit.as_str(), "active");
                let unit = self.facts.entity::<Unit>(unit.as_str()).unwrap();
                assert_ne!(
                    unit.enablement.as_deref(),
                    Some("masked"),
                    "{} can be started",
                    unit.id
                );
            }
            Action::Stop(unit) => self.run(unit.as_str(), "inactive"),
            Action::Reload(unit) => {
                let now = self.now();
                self.edit_unit(unit.as_str(), |unit| unit.changed_at = now);
            }
            Action::PutImage(image) | Action::RenewImage(image) => {
                _ = self.images.insert(image.to_string());
            }
            Action::CreateContainer { name, container } => {
                assert!(self.images.contains(container.image.as_str()));
                assert!(self.facts.entity::<Container>(name.as_str()).is_none());
                let host = self.host.entity::<Container>(name.as_str()).expect("it is the host's");
                self.facts.put_entity(&Container { state: "created".into(), ..host });
            }
            Action::StartContainer(name) | Action::UnpauseContainer(name) => {
                self.stand(name.as_str(), "running");
            }
            Action::StopContainer(name) => self.stand(name.as_str(), "exited"),
            Action::PauseContainer(name) => self.stand(name.as_str(), "paused"),
            Action::RemoveContainer(name) => self.forget(crate::Kind::CONTAINER, name.as_str()),
            _ => unreachable!("the others are done before"),
        }
    }

    fn forget(&mut self, kind: crate::Kind, id: &str) {
        assert!(self.facts.remove(&Subject::escaped(kind, id)).is_some());
    }
}

/// What the spec and the paper agree on.
#[test]
fn standings_are_those_of_the_engine() {
    for (state, standing) in [("running", Standing::Running), ("exited", Standing::Stopped)] {
        let seen = Container {
            name: "a".into(),
            image: "a".into(),
            state: state.into(),
            ..Container::default()
        };
        assert_eq!(crate::spec::Container::of(&seen).unwrap().1.standing, Some(standing));
    }
}
