//! The command line.

mod inventory;
mod sync;
mod twin;

pub(crate) use inventory::{InventoryCommand, ListVmsArguments, WatchVmsArguments};
pub(crate) use sync::{OutboxCommand, ServeArguments, SyncCommand};
pub(crate) use twin::{
    CloneArguments, ConsoleArguments, DeleteArguments, ExtrasCommand, FidelityArguments,
    FollowArguments, RevertArguments, SnapshotCommand, SshArguments, StartArguments, StopArguments,
    TwinArguments,
};

use crate::failure::EXIT_CODES;
use crate::target::MomentText;
use crate::view::Color;
use api::run::{RunId, RunKind, RunState};
use clap::{Args, Parser, Subcommand, ValueEnum};
use model::{HostId, Kind, Moment};
use server::tokens::Role;
use std::path::PathBuf;
use std::time::Duration;

const MOMENTS: &str = "\
HOST may carry a moment: web01@-5m, web01@2026-11-20T09:00Z, web01@412 (a version).
On a server with one host the name may be left out: twin show, twin state @-5m.
A subject is a unit, container, package, file or process: nginx, nginx.service,
/etc/hosts, or with its kind, unit:nginx.service.";

/// A live, rewindable twin of every Linux host you run.
#[derive(Debug, Parser)]
#[command(name = "twin", version, after_help = EXIT_CODES, after_long_help = format!("{MOMENTS}\n\n{EXIT_CODES}"))]
#[command(propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Address of the server.
    #[arg(long, global = true, value_name = "URL", env = "SAFETYTWIN_SERVER", default_value = DEFAULT_SERVER)]
    pub(crate) server: String,
    /// File that holds a token; SAFETYTWIN_TOKEN may hold the token itself.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Print JSON, exact and complete.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to colour; NO_COLOR is honoured.
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) color: Color,
    /// Show times in UTC instead of the local time zone.
    #[arg(long, global = true)]
    pub(crate) utc: bool,
}

/// The same port as `api::DEFAULT_PORT`, which a test sees to.
const DEFAULT_SERVER: &str = "http://127.0.0.1:8470";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch this machine: server and agent together, in the foreground.
    Up(Box<UpArguments>),
    /// Run the server.
    Server(Box<ServerArguments>),
    /// Run the agent.
    #[command(
        after_help = "Standard error is the log. As root it sees everything; as an ordinary user what that user may."
    )]
    Agent(Box<agent::options::Options>),
    /// List the hosts and their twins: version, last change, faults, state, lag, fidelity.
    List,
    /// Show one host at a glance, and its twin.
    Show(ShowArguments),
    /// Show the facts of a host, now or at any moment.
    State(StateArguments),
    /// Show what happened to a unit, container, package, file, or to the whole host.
    Log(LogArguments),
    /// Show what differs between two moments, or two hosts.
    Diff(DiffArguments),
    /// Follow changes as they happen.
    Watch(WatchArguments),
    /// Show the load of a host, its units and processes.
    Load(LoadArguments),
    /// Start the twin of a host: make it if need be, boot it, wait until it answers.
    Start(StartArguments),
    /// Stop a twin.
    Stop(StopArguments),
    /// Stop a twin and start it.
    Restart(StopArguments),
    /// Open a shell in a twin, or run a command there.
    Ssh(SshArguments),
    /// Open the serial console of a twin.
    Console(ConsoleArguments),
    /// Make machines that begin in a moment of a twin, each with an identity of its own.
    Clone(CloneArguments),
    /// Put a twin back to a snapshot or a moment; what was not saved is lost.
    Revert(RevertArguments),
    /// Show what would be done in a twin to bring it to its host.
    Plan(FollowArguments),
    /// Look at a twin, and say whether it is as its host.
    #[command(after_help = "Exit status: 0 it is, 1 it is not; others as in twin --help.")]
    Verify(FollowArguments),
    /// Show what of a host its twin has; what it has not, why, and what to do.
    Fidelity(FidelityArguments),
    /// Bring a twin to the newest version of its host, once; also one that is held.
    Apply(TwinArguments),
    /// Leave a twin as it is, whatever its host does.
    Hold(FollowArguments),
    /// Let a twin follow its host.
    Follow(FollowArguments),
    /// Remove a twin with its disk and all its snapshots. The host's history stays.
    Delete(DeleteArguments),
    /// Save a twin, go back to what was saved, list and delete that.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Declare services, processes, containers and dependencies of a twin, on top of its host's.
    #[command(subcommand)]
    Extras(ExtrasCommand),
    /// See what takes long: its state, its log, and end it.
    #[command(subcommand)]
    Run(RunCommand),
    /// Build, list and delete the base images that machines start from.
    #[command(subcommand)]
    Image(ImageCommand),
    /// See the VMs of all nodes: their state, their use, how well they do.
    #[command(subcommand)]
    Inventory(InventoryCommand),
    /// Keep VMs in step with ESXi hosts and vCenters, and see how it stands.
    #[command(subcommand)]
    Sync(SyncCommand),
    /// Create, list and revoke tokens of the server on this machine.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Find what is missing or misconfigured, and how to mend it.
    Doctor(DataDirectory),
    /// Print the OpenAPI document of this version's routes.
    #[command(hide = true)]
    Openapi,
    /// Print a completion script for a shell.
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands to a directory.
    Man {
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = MOMENTS)]
pub(crate) struct ShowArguments {
    /// A host, or a clone [default: the server's only host].
    #[arg(value_name = "HOST[@MOMENT]")]
    pub(crate) target: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = MOMENTS)]
pub(crate) struct StateArguments {
    /// A host [default: the server's only one], and subjects of it [default: all].
    #[arg(value_name = "HOST[@MOMENT] | SUBJECT")]
    pub(crate) words: Vec<String>,
    /// Only items of this kind: unit, container, process, package, file, socket, …
    #[arg(long, value_parser = kind)]
    pub(crate) kind: Option<Kind>,
}

#[derive(Debug, Args)]
#[command(after_help = MOMENTS)]
pub(crate) struct LogArguments {
    /// A host [default: the server's only one], and subjects of it [default: all].
    #[arg(value_name = "HOST[@MOMENT] | SUBJECT")]
    pub(crate) words: Vec<String>,
    /// How many entries.
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) limit: u32,
    /// All entries.
    #[arg(long, conflicts_with = "limit")]
    pub(crate) all: bool,
    /// Not before this moment.
    #[arg(long, value_name = "MOMENT", allow_hyphen_values = true)]
    pub(crate) since: Option<MomentText>,
    /// Not after this moment.
    #[arg(long, value_name = "MOMENT", allow_hyphen_values = true)]
    pub(crate) until: Option<MomentText>,
    /// Only major changes.
    #[arg(long)]
    pub(crate) major: bool,
    /// Show how the text of files changed; on by itself for a file.
    #[arg(long, short)]
    pub(crate) patch: bool,
    /// Leave out what belongs to the subject: processes, sockets, files, package.
    #[arg(long)]
    pub(crate) only: bool,
    /// Also tell what else changed within so many seconds; 0 for nothing.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub(crate) around: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
twin diff web01@-10m            then and now
twin diff web01@407 @412        two versions
twin diff web01 web02           two hosts
twin diff web01@-1h web02@-1h   two hosts at a moment")]
pub(crate) struct DiffArguments {
    /// One moment, to compare with now; two moments, or two hosts.
    #[arg(value_name = "HOST[@MOMENT]", num_args = 1..=2, required = true)]
    pub(crate) ends: Vec<String>,
    /// Only items of this kind.
    #[arg(long, value_parser = kind)]
    pub(crate) kind: Option<Kind>,
    /// Only major changes.
    #[arg(long)]
    pub(crate) major: bool,
    /// Show how the text of files differs.
    #[arg(long, short)]
    pub(crate) patch: bool,
    /// All items of each kind, however many.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArguments {
    /// A host, subjects of it, or nothing: all hosts.
    #[arg(value_name = "HOST | SUBJECT")]
    pub(crate) words: Vec<String>,
    /// End after so many entries.
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End after this time: 10s, 5m, 1h30m.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub(crate) time: Option<Duration>,
    /// Begin after this version instead of the newest one.
    #[arg(long, value_name = "VERSION")]
    pub(crate) from: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Sort {
    #[default]
    Cpu,
    Memory,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArguments {
    /// A host [default: the server's only one].
    #[arg(value_name = "HOST")]
    pub(crate) target: Option<String>,
    /// What the busiest are judged by.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) sort: Sort,
    /// How many units and processes.
    #[arg(long, short = 'n', default_value_t = 12)]
    pub(crate) limit: usize,
    /// The course of the load from this moment.
    #[arg(long, value_name = "MOMENT", allow_hyphen_values = true)]
    pub(crate) from: Option<MomentText>,
    /// … to this one.
    #[arg(long, value_name = "MOMENT", allow_hyphen_values = true)]
    pub(crate) to: Option<MomentText>,
    /// How many points of it.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) points: u16,
}

#[derive(Debug, Args)]
pub(crate) struct DataDirectory {
    /// Where the server keeps its data [default: as its configuration file says, else
    /// /var/lib/safetytwin; for users ~/.local/share/safetytwin].
    #[arg(long, value_name = "DIR", env = "SAFETYTWIN_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunCommand {
    /// List runs, the newest first.
    List {
        /// Only those of this subject: image:debian.
        #[arg(long, value_name = "KIND:NAME")]
        subject: Option<String>,
        /// Only of this kind: image_build, vm_start, snapshot_create, …
        #[arg(long)]
        kind: Option<RunKind>,
        /// Only in this state: queued, running, succeeded, failed, cancelled, interrupted.
        #[arg(long)]
        state: Option<RunState>,
        /// How many.
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show one run.
    Show {
        /// Its id, as `twin run list` has it.
        #[arg(value_name = "RUN")]
        id: RunId,
    },
    /// Print the log of a run.
    #[command(after_help = "\
With --follow it ends with the run, and with its exit code: 0 succeeded, 1 failed,
6 cancelled, 7 interrupted. It connects again by itself.")]
    Logs {
        /// Its id, as `twin run list` has it.
        #[arg(value_name = "RUN")]
        id: RunId,
        /// Print what comes until the run is over.
        #[arg(long, short)]
        follow: bool,
        /// Begin with this record.
        #[arg(long, value_name = "OFFSET", default_value_t = 0)]
        from: u64,
    },
    /// Tell a run to stop.
    Cancel {
        /// Its id, as `twin run list` has it.
        #[arg(value_name = "RUN")]
        id: RunId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image of packages, or take one from elsewhere.
    Build(ImageBuildArguments),
    /// List the images, the newest first.
    List,
    /// Show one image and its packages.
    Show {
        /// Its name, its digest, or the first digits of it.
        image: String,
    },
    /// Delete an image.
    Delete {
        /// Its name, its digest, or the first digits of it.
        image: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
The log is shown until the image is there; the exit code is that of the run: 0 succeeded,
1 failed, 6 cancelled, 7 interrupted.")]
pub(crate) struct ImageBuildArguments {
    /// What the image is called.
    pub(crate) name: String,
    /// A release of Debian [default: bookworm].
    #[arg(long, conflicts_with = "from")]
    pub(crate) suite: Option<String>,
    /// Where packages come from [default: what the server's machine uses].
    #[arg(long, value_name = "URL", conflicts_with = "from")]
    pub(crate) mirror: Option<String>,
    /// A further package; may be repeated.
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    pub(crate) package: Vec<String>,
    /// Take this disk image (qcow2, raw) instead. A file is read by the server.
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) from: Option<String>,
    /// What its publisher says: sha256:… or sha512:…
    #[arg(long, value_name = "DIGEST", requires = "from")]
    pub(crate) checksum: Option<String>,
    /// Print the run's id and do not wait.
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token and print it, once.
    #[command(after_help = "\
viewer    reads
operator  also acts on twins and runs
admin     also changes configuration
agent     sends what a host's agent sees, and reads nothing")]
    Create {
        #[arg(long, value_enum)]
        role: RoleArgument,
        /// Whose it is, for the list.
        #[arg(long, default_value = "")]
        name: String,
        /// The only host an agent's token may speak for.
        #[arg(long)]
        host: Option<HostId>,
        #[command(flatten)]
        data: DataDirectory,
    },
    /// List the tokens, without their texts.
    List {
        #[command(flatten)]
        data: DataDirectory,
    },
    /// Take a token back.
    Revoke {
        /// Its id, as `twin token list` has it.
        id: String,
        #[command(flatten)]
        data: DataDirectory,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArgument {
    Viewer,
    Operator,
    Admin,
    Agent,
}

impl From<RoleArgument> for Role {
    fn from(role: RoleArgument) -> Self {
        match role {
            RoleArgument::Viewer => Self::Viewer,
            RoleArgument::Operator => Self::Operator,
            RoleArgument::Admin => Self::Admin,
            RoleArgument::Agent => Self::Agent,
        }
    }
}

/// `unit`, also written `units`.
fn kind(text: &str) -> Result<Kind, String> {
    let known = Kind::ALL.iter().find(|kind| crate::view::plural(kind.as_str()) == text);
    let exact = Kind::parse(text).filter(|kind| Kind::ALL.contains(kind));
    known.copied().or(exact).ok_or_else(|| {
        let names: Vec<String> = Kind::ALL.iter().map(Kind::to_string).collect();
        format!("a kind is one of {}", names.join(", "))
    })
}

/// A length of time, in the units of an age.
fn time(text: &str) -> Result<Duration, String> {
    match format!("-{text}").parse() {
        Ok(Moment::Ago(time)) if !time.is_zero() => Ok(time),
        _ => Err("write a time as 10s, 5m or 1h30m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        assert!(DEFAULT_SERVER.ends_with(&format!(":{}", api::DEFAULT_PORT)));
    }

    #[test]
    fn values() {
        assert_eq!(kind("unit"), Ok(Kind::UNIT));
        assert_eq!(kind("processes"), Ok(Kind::PROCESS));
        assert!(kind("Unit").unwrap_err().contains("container"));
        assert_eq!(time("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "10", "0s", "-5s", "x"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}

#[derive(Debug, Default, Args)]
pub(crate) struct ServerArguments {
    /// Configuration file [default: /etc/safetytwin/twin.yaml, else the bridge's; for users ~/.config/safetytwin/twin.yaml].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where everything is kept [default: /var/lib/safetytwin; for users ~/.local/share/safetytwin].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address to listen on, HOST:PORT; may be repeated. Beyond loopback tokens are needed.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Vec<String>,
    /// Address to listen on, without the port [default: 127.0.0.1].
    #[arg(long, value_name = "HOST", conflicts_with = "listen")]
    pub(crate) host: Option<String>,
    /// Port to listen on [default: 8470].
    #[arg(long, value_name = "PORT", conflicts_with = "listen")]
    pub(crate) port: Option<u16>,
    /// The bridge's name for its machine.
    #[arg(long, value_name = "NAME")]
    pub(crate) vm_name: Option<String>,
    /// Write the log to a file instead of standard error.
    #[arg(long, visible_alias = "log", value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// debug, info, warning, error or critical.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Say more.
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// The same as --log-level debug.
    #[arg(long)]
    pub(crate) debug: bool,
}

#[derive(Debug, Default, Args)]
pub(crate) struct UpArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// The name this machine goes by [default: its hostname].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The agent's configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) agent_config: Option<PathBuf>,
    /// Start no virtual machine that mirrors this one.
    #[arg(long)]
    pub(crate) no_twin: bool,
}
