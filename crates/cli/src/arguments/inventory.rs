//! The command line of the VM inventory.

use super::time;
use api::vm::{Presence, VmRecovery};
use clap::{Args, Subcommand};
use model::HostId;
use model::vm::{VmHealth, VmState};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub(crate) enum InventoryCommand {
    /// List the VMs of all nodes.
    List(ListVmsArguments),
    /// Show one VM.
    Show {
        /// Its id, as `twin inventory list` has it, or its name where only one has it.
        vm: String,
    },
    /// Show how well a VM does: its checks, and what became of it.
    Health {
        /// Its id, or its name where only one has it.
        vm: String,
    },
    /// Follow what becomes of VMs, as it becomes so.
    Watch(WatchVmsArguments),
    /// Show the checks that are made of a VM because somebody asked for them, or say which.
    #[command(after_help = "\
FILE is YAML or JSON, and replaces what was said before:

checks:
  web:
    address: 10.0.0.5:80      # IP:PORT, as the server reaches it
    from_node: false          # or as the VM's node does: twin-node looks
    path: /health             # asks by HTTP; without it the port has to take connections
    status: 200
    interval_seconds: 30
    timeout_seconds: 5
    initial_delay_seconds: 60 # after the VM began to run
    failure_threshold: 3      # in a row
    success_threshold: 2
    weight: 1
    critical: false
  vmm:
    process: virtiofsd        # runs in the VM's unit
  disk:
    script: disk              # /etc/safetytwin/checks/disk on the node ends with 0
  boot:
    console: 'login:'         # the VM wrote it since it was started
  panic:
    console: Kernel panic
    absent: true              # or must not have
  guest:
    guest_agent: true         # QEMU's guest agent answers
    vsock_port: 9001          # at this port of the guest's vsock device; else at QEMU's channel
  ping:
    icmp: 10.0.0.5            # answers echo requests, as the node reaches it
  link:
    arp: 10.0.0.5             # somebody has the address on the node's network

The server makes those with an address or a process, unless from_node. twin-node on the VM's node makes the others.")]
    Checks {
        /// Its id, or its name where only one has it.
        vm: String,
        /// Says which checks; `-` for standard input.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show whether a VM is started anew when it does badly, or say so.
    #[command(after_help = "\
A VM does badly when its unit failed, or when it runs and is unresponsive or critical. It is started
anew by twin-node on its node, which has to be allowed to: restart: in node.yaml there names it.")]
    Recovery(RecoveryArguments),
    /// Say that VMs which a node lost all at once are gone indeed.
    Confirm {
        /// The node, as `twin inventory list` names it.
        node: HostId,
    },
    /// Remove the record of an orphan.
    Forget {
        /// Its id, or its name where only one has it.
        vm: String,
    },
}

#[derive(Debug, Default, Args)]
pub(crate) struct ListVmsArguments {
    /// Only those of this node.
    #[arg(long)]
    pub(crate) node: Option<HostId>,
    /// Only those in this state: running, stopped, failed, …
    #[arg(long)]
    pub(crate) state: Option<VmState>,
    /// Only those that do so well: healthy, degraded, unhealthy, unresponsive, critical, unknown.
    #[arg(long)]
    pub(crate) health: Option<VmHealth>,
    /// Only those that are present, stale or an orphan.
    #[arg(long)]
    pub(crate) presence: Option<Presence>,
}

#[derive(Debug, Args)]
pub(crate) struct RecoveryArguments {
    /// Its id, or its name where only one has it.
    pub(crate) vm: String,
    /// Start it anew when it does badly.
    #[arg(long)]
    on: bool,
    /// Don't.
    #[arg(long, conflicts_with = "on")]
    off: bool,
    /// Give up after so many that did not help [default: 3].
    #[arg(long, value_name = "N", requires = "on", value_parser = clap::value_parser!(u32).range(1..=100))]
    restarts: Option<u32>,
    /// Wait so long for the first, and twice as long for each further one [default: 5s].
    #[arg(long, value_name = "TIME", requires = "on", value_parser = time)]
    delay: Option<Duration>,
    /// But never longer [default: 5m].
    #[arg(long, value_name = "TIME", requires = "on", value_parser = time)]
    cap: Option<Duration>,
}

impl RecoveryArguments {
    /// What is to be said, if anything.
    pub(crate) fn asked(&self) -> Option<VmRecovery> {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        (self.on || self.off).then(|| VmRecovery {
            restart: self.on,
            restarts: self.restarts,
            delay_seconds: self.delay.map(seconds),
            cap_seconds: self.cap.map(seconds),
            ..VmRecovery::default()
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct WatchVmsArguments {
    /// A VM, by its id, or its name where only one has it [default: all].
    pub(crate) vm: Option<String>,
    /// End after so many events.
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End after this time: 10s, 5m, 1h30m.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub(crate) time: Option<Duration>,
}
