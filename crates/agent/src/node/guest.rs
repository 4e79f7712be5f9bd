//! Whether the agent in a guest answers, by way of the VMM of its unit.

use super::{Answer, unable};
use host::Root;
use host::vmm::{Error, Monitor};
use model::vm::Layer;
use model::with_causes;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Bytes of the name of a control group.
const GROUP: u64 = 4096;

/// `token` is what the guest has to say again.
pub(super) async fn look(unit: &str, port: Option<u32>, token: u64, limit: Duration) -> Answer {
    let begin = tokio::time::Instant::now();
    let group = match tokio::time::timeout(limit, group(unit)).await {
        Ok(Ok(group)) => group,
        Ok(Err(why)) => return unable(why),
        Err(_) => {
            return unable(format!("systemctl did not answer within {} s", limit.as_secs()));
        }
    };
    let root = Root::live();
    let found = tokio::task::spawn_blocking(move || (Monitor::find(&root, &group), root)).await;
    let asked = match found {
        Ok((Some(monitor), root)) => {
            let rest = limit.saturating_sub(begin.elapsed());
            monitor.guest(&root, port, token, rest).await
        }
        Ok((None, _)) => Err(Error::NoMonitor),
        Err(error) => return unable(format!("its processes could not be looked at: {error}")),
    };
    match asked {
        Ok(()) => Answer::passed(),
        Err(error) if error.layer() == Layer::Node => unable(with_causes(&error)),
        Err(error) => Answer { layer: Some(error.layer()), ..Answer::failed(with_causes(&error)) },
    }
}

/// The control group of a unit.
async fn group(unit: &str) -> Result<String, String> {
    let mut command = Command::new("systemctl");
    command.args(["--no-ask-password", "show", "--property=ControlGroup", "--value", "--", unit]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child =
        command.spawn().map_err(|error| format!("systemctl could not be started: {error}"))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(GROUP).read_to_string(&mut said).await;
        read.map_err(|error| format!("systemctl could not be read: {error}"))?;
    }
    match child.wait().await {
        Ok(status) if status.success() => Ok(said.trim().to_owned()),
        Ok(status) => Err(format!("systemctl show ended with {status}")),
        Err(error) => Err(format!("systemctl could not be waited for: {error}")),
    }
}
