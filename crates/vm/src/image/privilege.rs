//! How a tree with files of many owners is made, read and removed: as root, or as an ordinary
//! user in a user namespace where that user's subordinate ids stand in for the others.

use super::Error;
use crate::job::{self, Job, Tool};
use std::io;
use std::path::Path;

/// Mounts and processes of what runs within end with it, whatever happens to it.
const AS_ROOT: &[&str] =
    &["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"];
const AS_USER: &[&str] = &[
    "unshare",
    "--map-root-user",
    "--map-auto",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--",
];

/// Who builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Privilege {
    Root,
    /// An ordinary user with subordinate ids.
    User,
}

impl Privilege {
    /// What this process may do. Says what is missing where a user has no subordinate ids, or
    /// root was shut into a service or a container that may not mount.
    pub(super) async fn find(job: &Job) -> Result<Self, Error> {
        let own = if rustix::process::geteuid().is_root() { Self::Root } else { Self::User };
        match job.run(own.tool("true", "coreutils")).await {
            Ok(()) => Ok(own),
            Err(job::Error::Failed { last, .. }) if own == Self::Root => {
                Err(Error::Confined { what: last })
            }
            Err(job::Error::Failed { last, .. }) => Err(Error::Privilege { what: last }),
            Err(error) => Err(error.into()),
        }
    }

    /// A program that sees itself as root, in namespaces that end with it.
    pub(super) fn tool(self, program: &str, package: &'static str) -> Tool {
        let wrapper = match self {
            Self::Root => AS_ROOT,
            Self::User => AS_USER,
        };
        Tool::within(wrapper, program, package)
    }
}

/// Removes a tree, also one with files of subordinate ids. Blocks.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        outcome => return outcome,
    }
    let Some((program, options)) = AS_USER.split_first() else { return Ok(()) };
    let status = std::process::Command::new(program)
        .args(options)
        .args(["rm", "-rf", "--one-file-system", "--"])
        .arg(path)
        .status()?;
    if status.success() { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}
