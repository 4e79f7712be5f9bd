//! Containers, as they are to be made.

use super::{Cause, Spec};
use crate::checked;
use crate::entity::{self, Entity};
use crate::redact::MARK;
use crate::{Facts, Kind, Subject, TextError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

checked!(
    /// The name of a container, a network or a volume.
    ContainerName,
    "the name of a container",
    is_name
);
checked!(
    /// An image as it was asked for, `registry/name:tag`, or by its digest.
    Image,
    "the name of an image",
    is_image
);
checked!(
    /// The name of a variable of the environment.
    Variable,
    "the name of a variable",
    is_variable
);
checked!(
    /// A word of a command, a value, a user, a path in a container: handed over as it is, never
    /// read by a shell.
    Word,
    "a text without zero bytes, of at most 128 KiB",
    is_word
);

/// Whether a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Running,
    Stopped,
    Paused,
}

/// `0.0.0.0:8080->80/tcp`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    pub address: IpAddr,
    pub outside: u16,
    pub inside: u16,
    pub udp: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mount {
    Bind { source: Word, destination: Word, read_only: bool },
    Volume { name: ContainerName, destination: Word, read_only: bool },
    Memory { destination: Word },
}

/// What makes a container this one. Equal ones need not be made anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub image: Image,
    /// What the host's engine calls the image that has this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_from: Option<Word>,
    pub entrypoint: Vec<Word>,
    pub command: Vec<Word>,
    pub user: Option<Word>,
    pub working_directory: Option<Word>,
    pub ports: BTreeSet<Port>,
    pub mounts: BTreeSet<Mount>,
    /// `None` where the value is a secret, which is not known.
    pub environment: BTreeMap<Variable, Option<Word>>,
    /// Variables that are as its image has them, and are not set.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub inherited: BTreeSet<Variable>,
    pub networks: BTreeSet<ContainerName>,
    pub labels: BTreeMap<Word, Word>,
    pub restart_policy: Option<Word>,
    pub memory_bytes: Option<u64>,
    pub cpu_millis: Option<u64>,
    pub privileged: bool,
    /// `None` where it is on its way.
    pub standing: Option<Standing>,
}

/// The label by which a twin's container tells what its host's was made from.
pub(super) const MADE_FROM: &str = "safetytwin.made-from";

impl Container {
    /// Whether the other is the same but for whether it runs.
    #[must_use]
    pub fn has_form_of(&self, other: &Self) -> bool {
        let form = |c: &Self| {
            let mut form = c.clone();
            form.standing = None;
            form.environment.clear();
            form.inherited.clear();
            form.ports.clear();
            form.made_from = None;
            form
        };
        form(self) == form(other)
            && self.has_image_of(other)
            && self.has_ports_of(other)
            && self.has_environment_of(other)
    }

    /// Whether both were made from the same image, as far as is known.
    #[must_use]
    pub fn has_image_of(&self, other: &Self) -> bool {
        let known = self.made_from.as_ref().zip(other.made_from.as_ref());
        self.image == other.image && known.is_none_or(|(one, two)| one == two)
    }

    /// Ports that its engine chose are gone while a container does not run.
    fn has_ports_of(&self, other: &Self) -> bool {
        match other.standing {
            Some(Standing::Stopped) => other.ports.is_subset(&self.ports),
            _ => other.ports == self.ports,
        }
    }

    /// What an image brings is its own matter, and a value that is not known on either side says
    /// nothing.
    fn has_environment_of(&self, other: &Self) -> bool {
        let brings = |one: &Self, two: &Self| {
            let own = one.environment.keys().filter(|name| !one.inherited.contains(*name));
            own.into_iter().all(|name| two.environment.contains_key(name))
        };
        let is_same = |(name, value): (&Variable, &Option<Word>)| {
            let inherited = self.inherited.contains(name) && other.inherited.contains(name);
            match (value, other.environment.get(name)) {
                (Some(one), Some(Some(two))) if !inherited => one == two,
                _ => true,
            }
        };
        brings(self, other) && brings(other, self) && self.environment.iter().all(is_same)
    }

    /// Whether it can't be run as it is, since words of its command are not known.
    fn has_secret_command(&self) -> bool {
        self.command.iter().chain(&self.entrypoint).any(|word| word.as_str().contains(MARK))
    }

    /// As facts tell it.
    ///
    /// # Errors
    /// When a name or value is not what a container can have.
    pub(crate) fn of(seen: &entity::Container) -> Result<(ContainerName, Self), TextError> {
        let words = |list: &[String]| list.iter().map(|w| w.parse()).collect::<Result<Vec<_>, _>>();
        let word = |text: &Option<String>| text.as_deref().map(str::parse).transpose();
        let value = |text: &str| match text.contains(MARK) {
            true => Ok(None),
            false => text.parse().map(Some),
        };
        let environment = seen.environment.iter().map(|(n, v)| Ok((n.parse()?, value(v)?)));
        let mut labels = seen.labels.clone();
        // Of a twin's: engines do not all have the same name for the same image.
        let made_from = labels.remove(MADE_FROM).or_else(|| seen.image_id.clone());
        let labels = labels.iter().map(|(n, v)| Ok::<_, TextError>((n.parse()?, v.parse()?)));
        let container = Self {
            image: seen.image.parse()?,
            made_from: word(&made_from)?,
            entrypoint: words(&seen.entrypoint)?,
            command: words(&seen.command)?,
            user: word(&seen.user)?,
            working_directory: word(&seen.working_directory)?,
            ports: seen.ports.iter().map(|p| port(p)).collect::<Result<_, _>>()?,
            mounts: seen.mounts.iter().map(|m| mount(m)).collect::<Result<_, _>>()?,
            environment: environment.collect::<Result<_, TextError>>()?,
            inherited: seen.inherited.iter().map(|n| n.parse()).collect::<Result<_, _>>()?,
            networks: seen.networks.iter().map(|n| n.parse()).collect::<Result<_, _>>()?,
            labels: labels.collect::<Result<_, _>>()?,
            restart_policy: word(&seen.restart_policy)?,
            memory_bytes: seen.memory_limit_bytes.and_then(|bytes| u64::try_from(bytes).ok()),
            cpu_millis: seen.cpu_limit_millis.and_then(|millis| u64::try_from(millis).ok()),
            privileged: seen.privileged,
            standing: match seen.state.as_str() {
                "running" => Some(Standing::Running),
                "paused" => Some(Standing::Paused),
                "created" | "exited" | "dead" => Some(Standing::Stopped),
                _ => None,
            },
        };
        Ok((seen.name.parse()?, container))
    }
}

impl Spec {
    pub(super) fn take_containers(&mut self, facts: &Facts) {
        for seen in facts.entities::<entity::Container>() {
            let (subject, _) = seen.to_item();
            match Container::of(&seen) {
                Ok((name, container)) => {
                    self.tell_of_container(&subject, &container, &seen.options);
                    if !container.has_secret_command() {
                        self.containers.insert(name, container);
                    }
                }
                Err(error) => self.unsafe_gap(&subject, &error),
            }
        }
        self.tell_of_images(facts);
    }

    /// By its name one of several images comes to the twin, for all containers that were made from
    /// one of that name.
    fn tell_of_images(&mut self, facts: &Facts) {
        let made = |name: &ContainerName| {
            facts.entity::<entity::Container>(name.as_str()).and_then(|seen| seen.created_at)
        };
        let mut last: BTreeMap<&Image, (&ContainerName, &Container)> = BTreeMap::new();
        for (name, container) in &self.containers {
            let before = last.entry(&container.image).or_insert((name, container));
            if made(name) > made(before.0) {
                *before = (name, container);
            }
        }
        let others = self.containers.iter().filter_map(|(name, container)| {
            let (newest, one) = last.get(&container.image)?;
            (!container.has_image_of(one)).then(|| (name.clone(), (*newest).clone()))
        });
        for (name, newest) in others.collect::<Vec<_>>() {
            let subject = Subject::escaped(Kind::CONTAINER, name.as_str());
            let what =
                format!("its image is not the one that has the name since {newest} was made");
            self.gap(&subject, Cause::Gone, &what, "make it anew on the host, from the newer one");
        }
    }

    fn tell_of_container(&mut self, subject: &Subject, container: &Container, options: &[String]) {
        let unknown = container.environment.iter().filter(|(name, value)| {
            // Those of the image the twin's image has, too.
            value.is_none() && !container.inherited.contains(*name)
        });
        let names: Vec<&str> = unknown.map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            let what =
                format!("its environment has secrets, which are not known: {}", names.join(", "));
            self.gap(
                subject,
                Cause::Secret,
                &what,
                "make it in the twin by hand, or name them legible",
            );
        }
        if container.has_secret_command() {
            let what = "a secret is in its command";
            self.gap(subject, Cause::Secret, what, "make it in the twin by hand");
        }
        if !options.is_empty() {
            let what =
                format!("options that it was made with are not followed: {}", options.join(", "));
            let remedy = "make it in the twin by hand, if it does not do without them";
            self.gap(subject, Cause::Option, &what, remedy);
        }
        let has_data = container.mounts.iter().any(|mount| !matches!(mount, Mount::Memory { .. }));
        if has_data {
            let what = "what is in its volumes and mounted directories is not followed";
            self.gap(subject, Cause::Data, what, "track the files that matter with `track:`");
        }
    }
}

fn port(text: &str) -> Result<Port, TextError> {
    let parse = || {
        let (outside, inside) = text.split_once("->")?;
        let (address, outside) = outside.rsplit_once(':')?;
        let (inside, protocol) = inside.split_once('/')?;
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return None,
        };
        let address = address.trim_matches(['[', ']']).parse().ok()?;
        Some(Port { address, outside: outside.parse().ok()?, inside: inside.parse().ok()?, udp })
    };
    parse().ok_or_else(|| TextError::new(text, "a port of a container that is led outside"))
}

/// `bind /src -> /dst ro`.
fn mount(text: &str) -> Result<Mount, TextError> {
    let error = || TextError::new(text, "a mount of a container");
    let (from, to) = text.split_once(" -> ").ok_or_else(error)?;
    let (to, read_only) = to.strip_suffix(" ro").map_or((to, false), |to| (to, true));
    let (kind, source) = from.split_once(' ').unwrap_or((from, ""));
    let absolute = |path: &str| if path.starts_with('/') { path.parse() } else { Err(error()) };
    let destination = absolute(to)?;
    match kind {
        "bind" => Ok(Mount::Bind { source: absolute(source)?, destination, read_only }),
        "volume" => Ok(Mount::Volume { name: source.parse()?, destination, read_only }),
        "tmpfs" => Ok(Mount::Memory { destination }),
        _ => Err(error()),
    }
}

fn is_name(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    (1..=128).contains(&text.len())
        && text.bytes().all(legal)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn is_image(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.-/:@".contains(&b);
    (1..=512).contains(&text.len())
        && text.bytes().all(legal)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && !text.contains("..")
}

fn is_variable(text: &str) -> bool {
    (1..=256).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c == '=')
}

fn is_word(text: &str) -> bool {
    text.len() <= 128 << 10 && !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ports: &[&str], mounts: &[&str], expected: Result<(), &str>) {
        let seen = entity::Container {
            name: "web".into(),
            image: "lab/busybox:1".into(),
            state: "running".into(),
            ports: ports.iter().map(|&port| port.to_owned()).collect(),
            mounts: mounts.iter().map(|&mount| mount.to_owned()).collect(),
            ..entity::Container::default()
        };
        let taken = Container::of(&seen).map(drop).map_err(|error| error.to_string());
        assert_eq!(taken, expected.map_err(str::to_owned));
    }

    fn container(environment: &[(&str, &str)], inherited: &[&str], state: &str) -> Container {
        let pair = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let seen = entity::Container {
            name: "web".into(),
            image: "a:1".into(),
            state: state.into(),
            environment: environment.iter().map(pair).collect(),
            inherited: inherited.iter().map(|&name| name.to_owned()).collect(),
            ..entity::Container::default()
        };
        Container::of(&seen).unwrap().1
    }

    #[test]
    fn what_an_image_brings_is_neither_set_nor_compared() {
        let check = |host: &Container, twin: &Container, expected: bool| {
            assert_eq!(twin.has_form_of(host), expected, "{twin:?} {host:?}");
        };
        let host = container(&[("A", "1"), ("V", "redacted:0")], &["V"], "running");
        check(&host, &container(&[("A", "1"), ("V", "2")], &["V"], "running"), true);
        check(&host, &container(&[("A", "1"), ("W", "2")], &["W"], "running"), true);
        check(&host, &container(&[("A", "2"), ("V", "2")], &["V"], "running"), false);
        check(&host, &container(&[("A", "1"), ("B", "1")], &[], "running"), false);
        check(&host, &container(&[("V", "2")], &["V"], "running"), false);
        // Of a host whose agent does not tell which are its image's.
        let older = container(&[("A", "1"), ("V", "redacted:0")], &[], "running");
        check(&older, &container(&[("A", "1"), ("V", "2")], &["V"], "running"), true);
        let form = host.form();
        assert_eq!(form["Env"], serde_json::json!(["A=1"]));
    }

    #[test]
    fn ports_that_an_engine_chose_are_not_missed_while_it_is_stopped() {
        let with = |ports: &[&str], state: &str| {
            let ports = ports.iter().map(|text| port(text).unwrap()).collect();
            Container { ports, ..container(&[], &[], state) }
        };
        let chosen = ["0.0.0.0:32768->80/tcp"];
        assert!(with(&chosen, "running").has_form_of(&with(&[], "exited")));
        assert!(!with(&chosen, "running").has_form_of(&with(&[], "running")));
        assert!(!with(&[], "exited").has_form_of(&with(&chosen, "exited")));
    }

    #[test]
    fn ports_and_mounts() {
        let ports = ["0.0.0.0:8080->80/tcp", "[::]:53->53/udp"];
        check(&ports, &["bind /src -> /dst ro", "volume data -> /v", "tmpfs -> /t"], Ok(()));
        let error = "\"80\" is not a port of a container that is led outside";
        check(&["80"], &[], Err(error));
        check(
            &[],
            &["bind ../x -> /dst"],
            Err("\"bind ../x -> /dst\" is not a mount of a container"),
        );
    }
}
