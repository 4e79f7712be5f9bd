//! Other programs, run without a shell and within a time.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Bytes of what it says that are kept, of each kind.
const SAID: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not run {program}")]
    Run {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{program} did not end within {} s", .within.as_secs())]
    Late { program: &'static str, within: Duration },
    #[error("{program}: {what}")]
    Failed { program: &'static str, what: String },
}

/// Runs a program to its end, and returns the beginning of its output. One that takes too long is
/// killed, and so is one whose caller stops waiting.
pub(crate) async fn run(
    program: &'static str,
    arguments: &[&OsStr],
    within: Duration,
) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Run { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (output, complaint) = (child.stdout.take(), child.stderr.take());
    let all = async { tokio::join!(child.wait(), beginning(output), beginning(complaint)) };
    let ended = tokio::time::timeout(within, all).await;
    let (status, output, said) = ended.map_err(|_late| Error::Late { program, within })?;
    let status = status.map_err(failed)?;
    if status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&said);
    let what = match said.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => line.trim().chars().filter(|c| !c.is_control()).collect(),
        None => status.to_string(),
    };
    Err(Error::Failed { program, what })
}

/// What comes first; the rest is read, too, or the program would wait for ever.
async fn beginning(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut said = Vec::new();
    if let Some(mut from) = from {
        let begun = (&mut from).take(SAID).read_to_end(&mut said).await;
        if begun.is_ok() {
            let _unread = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(program: &'static str, arguments: &[&str], within: Duration, expected: &str) {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let ran = run(program, &arguments, within).await;
        let said =
            ran.map_or_else(|error| error.to_string(), |said| String::from_utf8(said).unwrap());
        assert_eq!(said, expected);
    }

    #[tokio::test]
    async fn endings() {
        let long = Duration::from_secs(20);
        check("echo", &["$HOME", "*"], long, "$HOME *\n").await;
        check("false", &[], long, "false: exit status: 1").await;
        check("sleep", &["30"], Duration::ZERO, "sleep did not end within 0 s").await;
        check("safetytwin-none", &[], long, "could not run safetytwin-none").await;
        let words = "x; touch /tmp/$HOME";
        let expected = "ls: ls: cannot access 'x; touch /tmp/$HOME': No such file or directory";
        check("ls", &[words], long, expected).await;
    }
}
