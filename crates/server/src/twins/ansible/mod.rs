//! Carries out a plan by Ansible, over SSH: the real `ansible-playbook`, with the playbook of the
//! folder `ansible/`, and the plan as tasks.
//!
//! ```text
//! plan ─► plan.yml, files/ID ─┐
//! keys, address ─► inventory, ssh_config ─┴─► ansible-playbook ─► lines, events ─► outcomes
//! ```
//!
//! All of it lies in a directory of its own, made anew each time, and removed in the end.
//!
//! # Invariants
//! - Nothing of a host is a template: it is `!unsafe` in tasks, and contents are files.
//! - The guest shows a key that was pinned, or nothing is said to it.
//! - A step without an end is a failed one; so is one whose end Ansible did not tell.

mod containers;
mod events;
mod packages;
mod task;
mod tasks;
mod yaml;

use super::Twins;
use super::channel::{CarriedOut, keep, tell};
use super::create::{hexadecimal, random};
use super::error::Error;
use super::reach::CONFIGURATION;
pub use super::reach::Reach;
use crate::runs::{Failure, Handle, Stream as Says};
use events::{Course, End};
use model::ContentId;
use model::plan::{Action, Event, Outcome, Plan, PutFile};
use model::spec::Source;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vm::image::MachineName;
use vm::job::{Job, Progress, Tool};
use yaml::Yaml;

const PLAYBOOK: &str = include_str!("../../../../../ansible/apply_services.yml");
const PLUGIN: &str = include_str!("../../../../../ansible/callback_plugins/safetytwin.py");
const SETTINGS: &str = include_str!("../../../../../ansible/ansible.cfg");

/// One connection for all tasks.
const KEPT_OPEN: &str = "-o ControlMaster=auto -o ControlPath=master -o ControlPersist=10";
/// A run of Ansible takes at least so long to be cut off, and at most.
const SHORTEST: Duration = Duration::from_secs(600);
const LONGEST: Duration = Duration::from_secs(4 * 3600);

/// What is said meanwhile.
#[derive(Debug)]
pub enum Said {
    /// A line of Ansible's own.
    Line(String),
    Event(Event),
}

/// One run of Ansible.
#[derive(Debug)]
pub struct Ansible<'a> {
    /// Where everything it reads is put; what is there goes.
    pub directory: &'a Path,
    /// The playbook that takes `plan_file`, if it is not ours.
    pub playbook: Option<&'a Path>,
    pub reach: &'a Reach,
    /// The port of the machine's loopback at which apt is to ask for packages.
    pub relay: Option<u16>,
}

impl Ansible<'_> {
    /// Carries out a plan; returns what became of each step.
    ///
    /// # Errors
    /// When Ansible is not there, or can't begin; not when a step failed.
    pub async fn carry_out(
        &self,
        plan: &Arc<Plan>,
        contents: BTreeMap<ContentId, String>,
        say: impl Fn(Said) + Send + Sync + 'static,
        cancel: CancellationToken,
    ) -> Result<Vec<Outcome>, Failure> {
        let word = format!("\u{1e}{}", hexadecimal(&random::<8>()?));
        let extra = self.prepare(plan, contents).await?;
        let say = Arc::new(say);
        let course = Arc::new(Mutex::new(Course::default()));
        let sink = {
            let (word, plan, say) = (word.clone(), Arc::clone(plan), Arc::clone(&say));
            let course = Arc::clone(&course);
            move |said: Progress| {
                let Progress::Line(line) = said else { return };
                match events::read(&line, &word) {
                    Some(told) => {
                        let mut course = course.lock().unwrap_or_else(PoisonError::into_inner);
                        let events = course.take(&plan, told);
                        drop(course);
                        events.into_iter().for_each(|event| say(Said::Event(event)));
                    }
                    None if line.trim().is_empty() => {}
                    None => say(Said::Line(line)),
                }
            }
        };
        let job = Job::new(Arc::new(sink), cancel, Instant::now() + limit(plan));
        let ended = job.run(self.tool(&word, &extra)).await;
        let removed = fs::remove_dir_all(self.directory);
        removed.map_err(Error::file("remove", self.directory))?;
        let course = std::mem::take(&mut *course.lock().unwrap_or_else(PoisonError::into_inner));
        let (events, outcomes) = match ended {
            Ok(()) => course.finish(plan, End::Whole),
            Err(vm::job::Error::Cancelled) => course.finish(plan, End::Cancelled),
            // The playbook fails in the end where a step did.
            Err(vm::job::Error::Failed { .. }) if course.has_failed() => {
                course.finish(plan, End::Broken)
            }
            Err(vm::job::Error::TimedOut { .. }) => course.finish(plan, End::Broken),
            Err(vm::job::Error::Failed { last, .. }) => {
                return Err(Failure::new(format!("Ansible did not get to the steps: {last}")));
            }
            Err(error @ vm::job::Error::Missing { .. }) => {
                let what = "or let the twin's agent carry out plans: twins: {apply: native}";
                return Err(Failure::new(format!("{error}; install it for the server, {what}")));
            }
            Err(error) => return Err(error.into()),
        };
        events.into_iter().for_each(|event| say(Said::Event(event)));
        Ok(outcomes)
    }

    fn tool(&self, word: &str, extra: &str) -> Tool {
        let playbook = self.playbook.unwrap_or(Path::new("apply_services.yml"));
        Tool::new("ansible-playbook", "ansible-core")
            .args(["--inventory", "inventory.yml", "--extra-vars", extra])
            .arg(playbook)
            .within_directory(self.directory)
            .variable("ANSIBLE_CONFIG", "ansible.cfg")
            .variable("ANSIBLE_HOME", "home")
            .variable("ANSIBLE_CALLBACK_PLUGINS", "callback_plugins")
            .variable("ANSIBLE_CALLBACKS_ENABLED", "safetytwin")
            .variable("ANSIBLE_SSH_ARGS", &format!("-F {CONFIGURATION} {KEPT_OPEN}"))
            .variable("SAFETYTWIN_WORD", word)
    }

    /// Writes down all that Ansible reads; returns the variables it is given.
    async fn prepare(
        &self,
        plan: &Arc<Plan>,
        contents: BTreeMap<ContentId, String>,
    ) -> Result<String, Failure> {
        let (directory, plan) = (self.directory.to_owned(), Arc::clone(plan));
        let (reach, relay) = (self.reach.clone(), self.relay);
        let write = move || -> Result<String, Error> {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file("remove", directory)(error));
                }
                _ => {}
            }
            for place in ["files", "callback_plugins"] {
                let place = directory.join(place);
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&place);
                made.map_err(Error::file("make the directory", place))?;
            }
            let mut files = vec![
                ("apply_services.yml".to_owned(), PLAYBOOK.to_owned()),
                ("ansible.cfg".to_owned(), SETTINGS.to_owned()),
                ("callback_plugins/safetytwin.py".to_owned(), PLUGIN.to_owned()),
                ("inventory.yml".to_owned(), inventory(&reach)),
                ("plan.yml".to_owned(), tasks::tasks(&plan, relay).document()),
            ];
            files.extend(made(&plan).map(|(id, text)| (content_file(&id), text)));
            files.extend(contents.into_iter().map(|(id, text)| (content_file(&id), text)));
            for (name, text) in files {
                let path = directory.join(name);
                fs::write(&path, text).map_err(Error::file("write", path))?;
            }
            reach.prepare(&directory)?;
            let plan_file = directory.join("plan.yml");
            let plan_file =
                std::path::absolute(&plan_file).map_err(Error::file("find", plan_file))?;
            Ok(serde_json::json!({"plan_file": plan_file.to_string_lossy()}).to_string())
        };
        let written = tokio::task::spawn_blocking(write).await;
        Ok(written.map_err(|_panic| Failure::new("the plan could not be written down"))??)
    }
}

/// Where a content lies for the tasks.
fn content_file(id: &ContentId) -> String {
    format!("files/{id}")
}

/// Contents that come with the plan itself.
fn made(plan: &Plan) -> impl Iterator<Item = (ContentId, String)> {
    plan.steps().iter().filter_map(|step| match &step.action {
        Action::PutFile(PutFile { source: source @ Source::Made(text), .. }) => {
            Some((source.id(), text.clone()))
        }
        _ => None,
    })
}

fn limit(plan: &Plan) -> Duration {
    let steps = plan.steps().iter().map(|step| step.action.within());
    steps.sum::<Duration>().clamp(SHORTEST, LONGEST)
}

fn inventory(reach: &Reach) -> String {
    let host = vec![
        ("ansible_host", Yaml::Data(reach.address.to_string())),
        ("ansible_port", Yaml::Number(reach.port.into())),
        ("ansible_user", Yaml::data(reach.user.as_str())),
        ("ansible_become", Yaml::Truth(reach.user.as_str() != "root")),
        ("ansible_python_interpreter", Yaml::own("/usr/bin/python3")),
    ];
    let hosts = Yaml::Map(vec![("digital_twin", Yaml::Map(host))]);
    Yaml::Map(vec![("all", Yaml::Map(vec![("hosts", hosts)]))]).document()
}

impl Twins {
    /// Carries out a plan in a twin by Ansible; whose turn it is was decided before.
    pub(super) async fn carry_out_by_ansible(
        &self,
        name: &MachineName,
        (plan, relay): (&Plan, Option<u16>),
        handle: &Handle,
    ) -> Result<CarriedOut, Failure> {
        let reach = self.way_of_ssh(name).await?;
        let wanted: Vec<ContentId> = plan.contents().into_iter().collect();
        let texts = self.off_thread(move |this| this.texts(&wanted)).await?;
        let contents =
            texts.into_iter().map(|text| (ContentId::of(text.as_bytes()), text)).collect();
        let directory = self.inner.ansible.join(name.as_str());
        let ansible = Ansible {
            directory: &directory,
            playbook: self.inner.settings.playbook.as_deref(),
            reach: &reach,
            relay,
        };
        let plan = Arc::new(plan.clone());
        let said = Arc::new(Mutex::new(BTreeMap::new()));
        let say = {
            let (plan, handle, all) = (Arc::clone(&plan), handle.clone(), Arc::clone(&said));
            move |one: Said| match one {
                Said::Line(line) => handle.line(Says::Stdout, &line),
                Said::Event(event) => {
                    tell(&plan, &event, &handle);
                    keep(&mut all.lock().unwrap_or_else(PoisonError::into_inner), &event);
                }
            }
        };
        let outcomes = ansible.carry_out(&plan, contents, say, handle.cancelled()).await?;
        let said = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(CarriedOut { outcomes, said })
    }
}
