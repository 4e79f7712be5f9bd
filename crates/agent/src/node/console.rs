//! Looks for a text in what a unit wrote to the journal: that is a VM's console, where its VMM
//! writes it to its output.

use super::{Answer, unable};
use model::Time;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

/// Bytes of the journal that are read.
const BYTES: u64 = 64 << 20;
/// Bytes of one line; the text is looked for in each such part of a longer one.
const LINE: u64 = 64 << 10;

pub(super) async fn look(
    unit: &str,
    text: &str,
    absent: bool,
    since: Option<Time>,
    limit: Duration,
) -> Answer {
    let found = tokio::time::timeout(limit, search(unit, text, since)).await;
    match found {
        Err(_) => unable(format!("the journal was not read within {} s", limit.as_secs())),
        Ok(Err(why)) => unable(why),
        Ok(Ok(found)) if found != absent => Answer::passed(),
        Ok(Ok(found)) => {
            let said = if found { "is on the console" } else { "is not on the console" };
            Answer::failed(format!("{text:?} {said}"))
        }
    }
}

async fn search(unit: &str, text: &str, since: Option<Time>) -> Result<bool, String> {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=cat", "--all"]);
    if let Some(since) = since {
        command.arg(format!("--since=@{}", since.0.div_euclid(1_000_000)));
    }
    // A match, and not --unit, which takes patterns.
    command.arg(format!("_SYSTEMD_UNIT={unit}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child =
        command.spawn().map_err(|error| format!("journalctl could not be started: {error}"))?;
    let Some(stdout) = child.stdout.take() else { return Err("journalctl is mute".to_owned()) };
    let read = contains(BufReader::new(stdout.take(BYTES)), text.as_bytes()).await;
    let found = read.map_err(|error| format!("journalctl could not be read: {error}"))?;
    if found {
        return Ok(true);
    }
    match child.wait().await {
        Ok(status) if status.success() => Ok(false),
        Ok(status) => Err(format!("journalctl ended with {status}")),
        Err(error) => Err(format!("journalctl could not be waited for: {error}")),
    }
}

async fn contains(mut lines: impl AsyncBufRead + Unpin, text: &[u8]) -> std::io::Result<bool> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut lines).take(LINE).read_until(b'\n', &mut line).await? == 0 {
            return Ok(false);
        }
        if line.windows(text.len().max(1)).any(|part| part == text) {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn texts_of_a_console() {
        let check = async |console: &str, text: &str| {
            contains(console.as_bytes(), text.as_bytes()).await.unwrap()
        };
        assert!(check("[  0.1] booting\nweb login: ", "login:").await);
        assert!(!check("a\nb", "a\nb").await, "a text is within a line");
        assert!(!check("", "x").await);
        let long = format!("{}x", "-".repeat(200_000));
        assert!(check(&long, "-x").await);
    }
}
