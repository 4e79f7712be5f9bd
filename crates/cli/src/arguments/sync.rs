//! The command line of keeping VMs in step with vSpheres.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum SyncCommand {
    /// Run a server that keeps VMs in step, in place of the older sync service.
    #[command(after_help = "\
The older service's sync.yaml is taken as it is. Its three routes are on the address that
api_server says; all else, for twin sync, twin inventory and twin run, is on --listen.

Of each of esxi_hosts also:
  ca_file: /etc/ssl/esxi-ca.pem   # who signed its certificate
  fingerprint: AB:CD:…            # SHA-256 of the one certificate it has
  verify_tls: false               # whoever answers is believed
Of sync also:
  breaker_share: 50               # so many percent of a host's VMs …
  breaker_count: 5                # … and so many are not made orphans at once")]
    Serve(Box<ServeArguments>),
    /// Show how it stands: sources, the last full pass, what waits.
    Status,
    /// Have all sources list their VMs now, and see what comes of it.
    #[command(after_help = "Exit status: that of the run; others as in twin --help.")]
    Now {
        /// Print the run's id and do not wait.
        #[arg(long)]
        detach: bool,
    },
    /// Show what would be decided now, and why. Changes nothing.
    #[command(after_help = "\
With --config no server is asked, but the file's sources and MongoDB themselves: what
twin sync serve would decide that was just installed.")]
    Plan {
        /// A sync.yaml.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show what waits for sessions and endpoints, try it again, or let go of it.
    #[command(subcommand)]
    Outbox(OutboxCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum OutboxCommand {
    /// List what waits, the oldest first.
    List {
        /// Only what nobody tries any more.
        #[arg(long)]
        dead: bool,
    },
    /// Try entries again now.
    Retry {
        /// Their ids [default: all that nobody tries any more].
        #[arg(value_name = "ENTRY")]
        ids: Vec<String>,
    },
    /// Let go of an entry: whom it was for is never told.
    Discard {
        #[arg(value_name = "ENTRY")]
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// The older service's file.
    #[arg(long, value_name = "FILE", env = "CONFIG_FILE")]
    pub(crate) config: PathBuf,
    /// Where everything is kept [default: /var/lib/safetytwin; for users ~/.local/share/safetytwin].
    #[arg(long, value_name = "DIR", env = "SAFETYTWIN_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address of all other routes, HOST:PORT; may be repeated. Beyond loopback tokens are needed.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Vec<String>,
    /// Write the log to a file instead of standard error.
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// debug, info, warning, error or critical.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}
