//! One change of a twin, typed: there is no text in it that anything reads as a command.

use crate::spec::{
    AccountName, Container, ContainerName, FilePath, Group, Image, LinkTarget, Mode, PackageName,
    PackageVersion, Source, UnitName, User,
};
use crate::{HostName, Subject};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A change, and what has to come before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What it changes.
    pub subject: Subject,
    pub action: Action,
    /// Why, in words.
    pub why: String,
    /// Earlier steps of the plan that must have succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<usize>,
    /// Earlier steps that must have ended, one way or the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<usize>,
}

/// What is done. Each can be done again: what is so already is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    SetHostname(HostName),
    PutGroup {
        name: AccountName,
        gid: u32,
    },
    /// Who is in a group, with those of the group's list alone.
    SetMembers {
        name: AccountName,
        group: Group,
    },
    RemoveGroup(AccountName),
    PutUser {
        name: AccountName,
        user: User,
    },
    /// The home directory stays.
    RemoveUser(AccountName),
    PutPackage {
        name: PackageName,
        version: PackageVersion,
    },
    RemovePackage(PackageName),
    PutFile(PutFile),
    PutLink {
        path: FilePath,
        target: LinkTarget,
    },
    RemoveFile(FilePath),
    /// systemd reads its files again.
    ReloadManager,
    Enable(UnitName),
    Disable(UnitName),
    Mask(UnitName),
    Unmask(UnitName),
    Start(UnitName),
    Stop(UnitName),
    Restart(UnitName),
    Reload(UnitName),
    /// The image is in the twin's engine.
    PutImage(Image),
    /// The image that has the name on the host now is in the twin's engine.
    RenewImage(Image),
    CreateContainer {
        name: ContainerName,
        container: Box<Container>,
    },
    StartContainer(ContainerName),
    StopContainer(ContainerName),
    PauseContainer(ContainerName),
    UnpauseContainer(ContainerName),
    RemoveContainer(ContainerName),
}

/// A file with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutFile {
    pub path: FilePath,
    pub source: Source,
    pub mode: Mode,
    pub owner: AccountName,
    pub group: AccountName,
}

impl Action {
    /// The image that it puts into the engine.
    #[must_use]
    pub fn image(&self) -> Option<&Image> {
        match self {
            Self::PutImage(image) | Self::RenewImage(image) => Some(image),
            _ => None,
        }
    }

    /// How long it may take.
    #[must_use]
    pub fn within(&self) -> Duration {
        match self {
            Self::PutPackage { .. } | Self::RemovePackage(_) => super::apt::WITHIN,
            Self::PutImage(_) | Self::RenewImage(_) => Duration::from_secs(900),
            Self::Start(_)
            | Self::Stop(_)
            | Self::Restart(_)
            | Self::Reload(_)
            | Self::CreateContainer { .. }
            | Self::StopContainer(_)
            | Self::RemoveContainer(_) => Duration::from_secs(120),
            _ => Duration::from_secs(60),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetHostname(name) => write!(f, "set the host name to {name}"),
            Self::PutGroup { name, gid } => write!(f, "have group {name} as {gid}"),
            Self::SetMembers { name, .. } => write!(f, "set the members of group {name}"),
            Self::RemoveGroup(name) => write!(f, "remove group {name}"),
            Self::PutUser { name, user } => write!(f, "have user {name} as {}", user.uid),
            Self::RemoveUser(name) => write!(f, "remove user {name}"),
            Self::PutPackage { name, version } => write!(f, "install {name} {version}"),
            Self::RemovePackage(name) => write!(f, "remove package {name}"),
            Self::PutFile(file) => write!(f, "write {}", file.path),
            Self::PutLink { path, target } => write!(f, "link {path} to {target}"),
            Self::RemoveFile(path) => write!(f, "remove {path}"),
            Self::ReloadManager => write!(f, "reload systemd"),
            Self::Enable(unit) => write!(f, "enable {unit}"),
            Self::Disable(unit) => write!(f, "disable {unit}"),
            Self::Mask(unit) => write!(f, "mask {unit}"),
            Self::Unmask(unit) => write!(f, "unmask {unit}"),
            Self::Start(unit) => write!(f, "start {unit}"),
            Self::Stop(unit) => write!(f, "stop {unit}"),
            Self::Restart(unit) => write!(f, "restart {unit}"),
            Self::Reload(unit) => write!(f, "reload {unit}"),
            Self::PutImage(image) => write!(f, "have image {image}"),
            Self::RenewImage(image) => write!(f, "have image {image} as it is now"),
            Self::CreateContainer { name, .. } => write!(f, "create container {name}"),
            Self::StartContainer(name) => write!(f, "start container {name}"),
            Self::StopContainer(name) => write!(f, "stop container {name}"),
            Self::PauseContainer(name) => write!(f, "pause container {name}"),
            Self::UnpauseContainer(name) => write!(f, "unpause container {name}"),
            Self::RemoveContainer(name) => write!(f, "remove container {name}"),
        }
    }
}
