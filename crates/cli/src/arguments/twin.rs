//! The command line of twins: the machine that mirrors a host, its snapshots, its clones.

use crate::commands::extras::Field;
use api::twin::{MAX_CLONES, NewTwin, TwinNetwork};
use clap::{Args, Subcommand};
use model::HostId;
use std::ffi::OsString;

const FOLLOWED: &str = "\
The log is shown until it is done; the exit code is that of the run: 0 succeeded, 1 failed,
6 cancelled, 7 interrupted; others as in twin --help. With --detach only the run's id is
printed.";

/// Which twin, and whether to wait.
#[derive(Debug, Args)]
pub(crate) struct TwinArguments {
    /// A host, for its twin, or a clone [default: the server's only host].
    #[arg(value_name = "HOST")]
    pub(crate) name: Option<HostId>,
    /// Print the run's id and do not wait.
    #[arg(long)]
    pub(crate) detach: bool,
}

/// Which twin.
#[derive(Debug, Args)]
pub(crate) struct FollowArguments {
    /// A host, for its twin [default: the server's only host].
    #[arg(value_name = "HOST")]
    pub(crate) name: Option<HostId>,
}

#[derive(Debug, Args)]
pub(crate) struct FidelityArguments {
    #[command(flatten)]
    pub(crate) of: FollowArguments,
    /// All that is not reproduced, not only some of each cause.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = FOLLOWED, after_long_help = format!("\
twin start web01                                 make it if need be, boot it, wait until it answers
twin start web01 --memory 2048 --network nat     with more memory, and a way out

What it is made of is decided when it is made; what is not said here is as the server is
configured. One that runs is left alone.

{FOLLOWED}"))]
pub(crate) struct StartArguments {
    #[command(flatten)]
    pub(crate) twin: TwinArguments,
    /// The base image, by name or digest [default: that of the configuration, else the newest].
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Memory in MiB [default: 1024].
    #[arg(long, value_name = "MIB")]
    pub(crate) memory: Option<u64>,
    /// Processors [default: 2].
    #[arg(long, value_name = "NUMBER")]
    pub(crate) processors: Option<u32>,
    /// Disk in GiB, at least that of the image [default: 10].
    #[arg(long, value_name = "GIB")]
    pub(crate) disk: Option<u64>,
    /// What it reaches: isolated (nothing), nat, open [default: isolated].
    #[arg(long)]
    pub(crate) network: Option<TwinNetwork>,
}

impl StartArguments {
    pub(crate) fn wanted(&self) -> NewTwin {
        NewTwin {
            image: self.image.clone(),
            memory_mb: self.memory,
            processors: self.processors,
            disk_gb: self.disk,
            network: self.network,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = FOLLOWED)]
pub(crate) struct StopArguments {
    #[command(flatten)]
    pub(crate) twin: TwinArguments,
    /// Take the power away instead of asking the guest.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = FOLLOWED, after_long_help = format!("\
twin delete web01    the twin of a host, with all its snapshots
twin delete try      a clone

One that clones were made of is deleted only after them.

{FOLLOWED}"))]
pub(crate) struct DeleteArguments {
    /// A host, for its twin, or a clone.
    #[arg(value_name = "HOST")]
    pub(crate) name: HostId,
    /// Print the run's id and do not wait.
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Ctrl-] leaves. One at a time: whoever has it keeps others out. With tokens, one of the role
operator is needed. It works while the network of the guest does not.")]
pub(crate) struct ConsoleArguments {
    /// A host, for its twin, or a clone [default: the server's only host].
    #[arg(value_name = "HOST")]
    pub(crate) name: Option<HostId>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
twin ssh web01                       a shell in the twin
twin ssh web01 systemctl --failed    one command, as ssh passes it on

On the server's machine, as the user the server runs as, or root. The twin's host key was
pinned when it was made. The exit code is that of the command, or 255 where ssh itself failed;
where it came to no ssh, as in twin --help.")]
pub(crate) struct SshArguments {
    /// A host, for its twin, or a clone.
    #[arg(value_name = "HOST")]
    pub(crate) name: HostId,
    /// What to run there [default: a shell].
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// `web01`, `web01@before_upgrade`, `web01@-5m`: a twin, and a snapshot of it or a moment, which
/// the server tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TwinMoment {
    pub(crate) name: HostId,
    pub(crate) snapshot: Option<String>,
}

impl std::str::FromStr for TwinMoment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, snapshot) = match text.split_once('@') {
            Some((name, "")) => return Err(format!("name a snapshot or a moment behind {name}@")),
            Some((name, snapshot)) => (name, Some(snapshot.to_owned())),
            None => (text, None),
        };
        let name = HostId::new(name).map_err(|error| error.to_string())?;
        Ok(Self { name, snapshot })
    }
}

const MOMENT: &str = "\
A moment is a time (2026-11-20T09:00Z), an age (-5m) or a version of the host (412, @412). It
begins in the newest snapshot at or before it; what the host did until then is brought to it where
an agent sees that host. The log says how far it was. A snapshot of that name goes first.";

#[derive(Debug, Args)]
#[command(after_help = FOLLOWED, after_long_help = format!("\
twin revert web01@before_upgrade    to a snapshot
twin revert web01@-5m               to how its host was five minutes ago
twin revert web01                   to the current snapshot, the last taken or reverted to

{MOMENT}

{FOLLOWED}"))]
pub(crate) struct RevertArguments {
    /// A host, for its twin, or a clone; and where to go back to [default: the current snapshot].
    #[arg(value_name = "HOST[@SNAPSHOT|@MOMENT]")]
    pub(crate) to: TwinMoment,
    /// Print the run's id and do not wait.
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
#[command(after_help = FOLLOWED, after_long_help = format!("\
twin clone web01                             from how it is now, which is saved for it
twin clone web01@before_upgrade --count 3    three that begin in a snapshot
twin clone web01@before_upgrade --name try   one that is called try
twin clone web01@-5m                         as its host was five minutes ago
twin clone web01@412                         from the newest of version 412 of the host or before

{MOMENT}

A clone has a name, a machine id, a network address and SSH keys of its own, and reaches
nothing. Remove it with: twin delete NAME

{FOLLOWED}"))]
pub(crate) struct CloneArguments {
    /// A host, for its twin, or a clone; and the moment to begin in [default: now].
    #[arg(value_name = "HOST[@SNAPSHOT|@MOMENT]")]
    pub(crate) of: TwinMoment,
    /// How many [default: 1].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CLONES)))]
    pub(crate) count: Option<u32>,
    /// What it is called; several get -1, -2, … behind it [default: HOST-clone-N].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Print the run's id and do not wait.
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExtrasCommand {
    /// List what is declared of a twin.
    List {
        /// A host, for its twin [default: the server's only host].
        #[arg(value_name = "HOST")]
        name: Option<HostId>,
    },
    /// Declare one thing, in the place of what was declared of it before.
    #[command(after_long_help = "\
twin extras set web01 service nginx active_state=inactive        stopped, whatever the host's does
twin extras set web01 service sidecar 'exec_start=[[\"/usr/bin/sidecar\",\"--quiet\"]]' user=app
twin extras set web01 process probe executable=/usr/bin/probe
twin extras set web01 container cache image=redis:7 'ports=[\"127.0.0.1:6379->6379/tcp\"]'
twin extras set web01 dependency 'app.service->redis.service'
twin extras set web01 service billing --gone                     not in the twin at all

Fields are those of the host's state (twin state web01 --json); each goes before the observed
one. Lists and maps are JSON. A service that the host does not have needs exec_start.")]
    Set {
        /// A host, for its twin.
        #[arg(value_name = "HOST")]
        host: HostId,
        /// service, process, container or dependency.
        #[arg(value_name = "KIND")]
        kind: String,
        /// Of the service, process or container; of a dependency `FROM->TO`.
        #[arg(value_name = "NAME")]
        name: String,
        /// It is not to be in the twin.
        #[arg(long, conflicts_with = "fields")]
        gone: bool,
        #[arg(value_name = "FIELD=VALUE")]
        fields: Vec<Field>,
    },
    /// Take back what was declared of one thing: it is as on the host again.
    Remove {
        /// A host, for its twin.
        #[arg(value_name = "HOST")]
        host: HostId,
        /// service, process, container or dependency.
        #[arg(value_name = "KIND")]
        kind: String,
        /// As `twin extras list` has it.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// List the snapshots of a twin, the oldest first.
    List {
        /// A host, for its twin, or a clone [default: the server's only host].
        #[arg(value_name = "HOST")]
        name: Option<HostId>,
    },
    /// Save a twin as it is now; it goes on as if nothing had been.
    #[command(after_help = FOLLOWED, after_long_help = format!("\
twin snapshot create web01                    named after the time
twin snapshot create web01 before_upgrade     named
twin snapshot create web01 --disk             without its memory

A twin that runs is saved with its memory, unless --disk is given. Past max_snapshots those
that matter least go, the oldest first; never base_state nor the current one.

{FOLLOWED}"))]
    Create {
        /// A host, for its twin, or a clone.
        #[arg(value_name = "HOST")]
        twin: HostId,
        /// a-z, 0-9, '.', '_', '-' [default: state_YYYYMMDD_HHMMSS].
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// The disk alone, after the guest wrote out what was pending.
        #[arg(long)]
        disk: bool,
        /// Print the run's id and do not wait.
        #[arg(long)]
        detach: bool,
    },
    /// Put a twin back to a snapshot. What it was before is lost, unless it was saved.
    #[command(after_help = FOLLOWED, after_long_help = format!("\
twin snapshot create web01 after_upgrade    saves what would be lost
twin snapshot revert web01 before_upgrade    back: processes, connections inside, files

With a snapshot of the disk alone, a twin that runs boots anew, and one that is stopped stays so.

{FOLLOWED}"))]
    Revert {
        /// A host, for its twin, or a clone.
        #[arg(value_name = "HOST")]
        twin: HostId,
        /// Its name, as `twin snapshot list` has it.
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// Print the run's id and do not wait.
        #[arg(long)]
        detach: bool,
    },
    /// Delete a snapshot; the others stay whole.
    #[command(after_help = FOLLOWED)]
    Delete {
        /// A host, for its twin, or a clone.
        #[arg(value_name = "HOST")]
        twin: HostId,
        /// Its name, as `twin snapshot list` has it.
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// Print the run's id and do not wait.
        #[arg(long)]
        detach: bool,
    },
    /// Show one snapshot.
    Show {
        /// A host, for its twin, or a clone.
        #[arg(value_name = "HOST")]
        twin: HostId,
        /// Its name, as `twin snapshot list` has it.
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_at_a_snapshot() {
        let check = |text: &str, expected: Option<(&str, Option<&str>)>| {
            let read = text.parse::<TwinMoment>().ok();
            let read = read.as_ref().map(|one| (one.name.as_str(), one.snapshot.as_deref()));
            assert_eq!(read, expected, "{text}");
        };
        check("web01", Some(("web01", None)));
        check("Web01@before", Some(("web01", Some("before"))));
        check("web01@-5m", Some(("web01", Some("-5m"))));
        check("web01@@412", Some(("web01", Some("@412"))));
        for bad in ["web01@", "@before", "../x", ""] {
            check(bad, None);
        }
    }
}
