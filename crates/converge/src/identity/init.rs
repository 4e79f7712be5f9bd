//! systemd itself, which reads the machine's id once and fills it into units.

use super::{Error, is_live, program};
use model::MachineId;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// For systemd to begin anew and to be back on the bus.
const RENEWAL: Duration = Duration::from_secs(60);
/// For one answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Between two looks whether it is back.
const PAUSE: Duration = Duration::from_millis(100);

/// Makes systemd begin anew, as an update of it does: units and their processes stay.
pub(super) async fn renew(root: &Path, id: &MachineId) -> Result<(), Error> {
    // Another init has no such thing.
    if !is_live(root) || !root.join("run/systemd/system").is_dir() || knows(id).await? {
        return Ok(());
    }
    let began = Instant::now();
    program::run("systemctl", &[OsStr::new("daemon-reexec")], RENEWAL).await?;
    loop {
        // Away from the bus for a moment, it is no fault yet.
        let known = knows(id).await;
        if matches!(known, Ok(true)) {
            return Ok(());
        }
        if began.elapsed() > RENEWAL {
            let unchanged = |_known| Err(Error::Unchanged("systemd's machine id".to_owned()));
            return known.map_or_else(Err, unchanged);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether systemd says that this is the machine's id.
async fn knows(id: &MachineId) -> Result<bool, Error> {
    let call = [
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.DBus.Peer",
        "GetMachineId",
    ];
    let said = program::run("busctl", &call.map(OsStr::new), ANSWER).await?;
    Ok(said.trim_ascii() == format!("s \"{id}\"").as_bytes())
}
