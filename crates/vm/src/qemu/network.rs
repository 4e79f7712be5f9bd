//! What leads into a guest and out of it.
//!
//! `isolated` is QEMU's own network with everything out of it refused; `nat` and `open` are
//! passt, which carries connections as an ordinary program of this machine would make them.
//! Either way SSH comes in at a port of 127.0.0.1.

use super::command::NET;
use super::qmp::Qmp;
use crate::image::MachineName;
use crate::job::{Job, Tool};
use crate::machine::{Error, Network};
use serde_json::json;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

/// Between finding a free port and taking it another program may have it.
const TRIES: usize = 8;
const SSH: u16 = 22;
/// How addresses begin that QEMU gives out.
const OWN: [u8; 3] = [10, 0, 2];

/// Starts what is the network of a machine, before the machine. It ends with the machine.
/// Returns the port that leads to SSH, if it is known by now.
pub(super) async fn before(
    network: Network,
    run: &Path,
    wanted: Option<u16>,
    job: &Job,
) -> Result<Option<u16>, Error> {
    if network == Network::Isolated {
        return Ok(None);
    }
    let mut failure = None;
    for port in ports(wanted) {
        let port = port?;
        let forward = format!("127.0.0.1/{port}:{SSH}");
        let mut tool = Tool::new("passt", "passt")
            .args(["--quiet", "--one-off", "--socket", NET, "--tcp-ports", &forward])
            .within_directory(run);
        if network == Network::Nat {
            tool = tool.arg("--no-map-gw");
        }
        // Of root it would become nobody, who can't make the socket in a directory of root's
        // alone. It gives up all rights and the file system by itself.
        if rustix::process::geteuid().is_root() {
            tool = tool.args(["--runas", "0:0"]);
        }
        match job.run(tool).await {
            Ok(()) => return Ok(Some(port)),
            Err(error @ crate::job::Error::Failed { .. }) => failure = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(failure.map_or_else(|| no_port(run), Error::from))
}

/// Opens the way in of an isolated machine that is there already.
pub(super) async fn after(
    qmp: &mut Qmp,
    name: &MachineName,
    wanted: Option<u16>,
    guest: Option<Ipv4Addr>,
) -> Result<u16, Error> {
    let guest = guest.map(|address| address.to_string()).unwrap_or_default();
    let mut what = String::new();
    for port in ports(wanted) {
        let port = port?;
        let line = format!("hostfwd_add net tcp:127.0.0.1:{port}-{guest}:{SSH}");
        let answer = qmp.call::<String>("human-monitor-command", json!({ "command-line": line }));
        match answer.await {
            Ok(said) if said.trim().is_empty() => return Ok(port),
            Ok(said) => what = said,
            Err(error) => what = error.to_string(),
        }
    }
    Err(Error::Refused { name: name.clone(), doing: "open a port to its SSH", what })
}

/// Leads the port to where the guest is now, and tells where that is. QEMU gives each network
/// card that asks it another address, and remembers those of the machine that a clone was.
pub(super) async fn move_to(
    qmp: &mut Qmp,
    name: &MachineName,
    port: u16,
    addresses: &[Ipv4Addr],
) -> Result<Ipv4Addr, Error> {
    let refused = |what: String| Error::Refused {
        name: name.clone(),
        doing: "lead SSH to where its guest is",
        what,
    };
    let Some(address) = addresses.iter().find(|address| address.octets().starts_with(&OWN)) else {
        return Err(refused("the guest has no address of QEMU's network".to_owned()));
    };
    let old = format!("hostfwd_remove net tcp:127.0.0.1:{port}");
    let new = format!("hostfwd_add net tcp:127.0.0.1:{port}-{address}:{SSH}");
    for (line, good) in [(old, "host forwarding rule for"), (new, "")] {
        let answer = qmp.call::<String>("human-monitor-command", json!({ "command-line": line }));
        let said = answer.await.map_err(|error| refused(error.to_string()))?;
        // Of the first it says what it did, of the second nothing.
        if !(said.trim().is_empty() || !good.is_empty() && said.starts_with(good)) {
            return Err(refused(said));
        }
    }
    Ok(*address)
}

/// The one it had, then free ones.
fn ports(wanted: Option<u16>) -> impl Iterator<Item = Result<u16, Error>> {
    let free = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let port = listener.and_then(|listener| Ok(listener.local_addr()?.port()));
        port.map_err(Error::file("find a free port on", "127.0.0.1"))
    };
    wanted.into_iter().map(Ok).chain(std::iter::repeat_with(free).take(TRIES))
}

fn no_port(run: &Path) -> Error {
    Error::file("find a free port for", run)(std::io::ErrorKind::AddrInUse.into())
}
