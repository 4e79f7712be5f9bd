//! Asks systemd about the unit of a VM, and starts it anew.

use super::{Answer, unable};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Bytes of a property.
const PROPERTY: u64 = 4096;

/// A property of a unit.
pub(super) async fn property(unit: &str, name: &str, limit: Duration) -> Result<String, String> {
    let asked = timeout(limit, show(unit, name)).await;
    asked.unwrap_or_else(|_| Err(format!("systemctl did not answer within {} s", limit.as_secs())))
}

async fn show(unit: &str, name: &str) -> Result<String, String> {
    let mut command = Command::new("systemctl");
    let property = format!("--property={name}");
    command.args(["--no-ask-password", "show", &property, "--value", "--", unit]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child =
        command.spawn().map_err(|error| format!("systemctl could not be started: {error}"))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(PROPERTY).read_to_string(&mut said).await;
        read.map_err(|error| format!("systemctl could not be read: {error}"))?;
    }
    match child.wait().await {
        Ok(status) if status.success() => Ok(said.trim().to_owned()),
        Ok(status) => Err(format!("systemctl show ended with {status}")),
        Err(error) => Err(format!("systemctl could not be waited for: {error}")),
    }
}

/// Starts a unit anew that failed or does badly, if it still is such.
pub(super) async fn restart(unit: &str, limit: Duration) -> Answer {
    let state = property(unit, "ActiveState", limit).await;
    if let Err(why) = state.and_then(|state| may_restart(&state)) {
        return unable(why);
    }
    tracing::warn!(unit, "is started anew, as the server asks");
    let child = Command::new("systemctl")
        .args(["--no-ask-password", "--no-block", "restart", "--", unit])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    match timeout(limit, child).await {
        Ok(Ok(status)) if status.success() => Answer::passed(),
        Ok(Ok(status)) => unable(format!("systemctl restart ended with {status}")),
        Ok(Err(error)) => unable(format!("systemctl could not be started: {error}")),
        Err(_) => unable(format!("systemctl did not answer within {} s", limit.as_secs())),
    }
}

/// What somebody stopped or starts since the server asked is left alone.
fn may_restart(state: &str) -> Result<(), String> {
    match state {
        "active" | "failed" | "reloading" | "refreshing" => Ok(()),
        "activating" => Err("it is being started already".to_owned()),
        _ => Err(format!("it was stopped meanwhile: systemd has it as {state}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stopped_stays_so() {
        assert!(may_restart("failed").is_ok() && may_restart("active").is_ok());
        for (state, why) in [
            ("inactive", "it was stopped meanwhile"),
            ("deactivating", "it was stopped meanwhile"),
            ("activating", "it is being started already"),
            ("", "it was stopped meanwhile"),
        ] {
            let said = may_restart(state).unwrap_err();
            assert!(said.starts_with(why), "{said}");
        }
    }
}
