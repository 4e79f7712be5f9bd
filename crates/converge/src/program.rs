//! Other programs, run without a shell and within a time.
//!
//! # Invariants
//! - One that is cut off, too late or no longer waited for, is gone with all that it began before
//!   anything else is done: dpkg does not go on behind a killed apt.

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::ffi::OsStr;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

/// Bytes of what it says that are kept, of each kind.
const SAID: u64 = 4096;
/// For processes that were killed to be gone, and between two looks whether they are.
const DYING: Duration = Duration::from_secs(5);
const DYING_LOOK: Duration = Duration::from_millis(5);

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
/// killed with all that it began, and so is one whose caller stops waiting.
pub(crate) async fn run(
    program: &'static str,
    arguments: &[&OsStr],
    within: Duration,
) -> Result<Vec<u8>, Error> {
    let mut group = start(program, arguments)?;
    let (output, complaint) = (group.leader.stdout.take(), group.leader.stderr.take());
    let all = async { tokio::join!(group.leader.wait(), beginning(output), beginning(complaint)) };
    let ended = tokio::time::timeout(within, all).await;
    let (status, output, said) = ended.map_err(|_late| Error::Late { program, within })?;
    group.number = None;
    judge(program, status, &said)?;
    Ok(output)
}

/// Runs a program to its end, and tells each line that it says, on whatever stream.
pub(crate) async fn follow(
    program: &'static str,
    arguments: &[&OsStr],
    within: Duration,
    tell: &(impl Fn(&str) + Sync),
) -> Result<(), Error> {
    let mut group = start(program, arguments)?;
    let (output, complaint) = (group.leader.stdout.take(), group.leader.stderr.take());
    let all =
        async { tokio::join!(group.leader.wait(), lines(output, tell), lines(complaint, tell)) };
    let ended = tokio::time::timeout(within, all).await;
    let (status, _last, last) = ended.map_err(|_late| Error::Late { program, within })?;
    group.number = None;
    judge(program, status, last.as_bytes())
}

/// A program and all that it begins. What is left of it when this goes is killed and waited for.
struct Group {
    leader: Child,
    /// Until all of it ended by itself.
    number: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        // One that is gone already can't be killed.
        let _gone = kill_process_group(number, Signal::KILL);
        let begun = Instant::now();
        // The leader is ours to take note of; the others are the system's.
        while self.leader.try_wait().is_ok_and(|ended| ended.is_none())
            || test_kill_process_group(number).is_ok()
        {
            if begun.elapsed() > DYING {
                return;
            }
            std::thread::sleep(DYING_LOOK);
        }
    }
}

fn start(program: &'static str, arguments: &[&OsStr]) -> Result<Group, Error> {
    let leader = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        // What installs packages asks nobody.
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .process_group(0)
        .spawn()
        .map_err(|source| Error::Run { program, source })?;
    let number = leader.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    Ok(Group { leader, number })
}

fn judge(program: &'static str, status: io::Result<ExitStatus>, said: &[u8]) -> Result<(), Error> {
    let status = status.map_err(|source| Error::Run { program, source })?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(said);
    let what = match said.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => plain(line),
        None => status.to_string(),
    };
    Err(Error::Failed { program, what })
}

/// A line without what a terminal would obey.
pub(crate) fn plain(line: &str) -> String {
    line.trim().chars().filter(|c| !c.is_control()).collect()
}

/// Tells the lines, and returns the last that is not empty.
async fn lines(from: Option<impl AsyncRead + Unpin>, tell: &impl Fn(&str)) -> String {
    let mut last = String::new();
    let Some(from) = from else { return last };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut from).take(SAID).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            _ => return last,
        }
        let text = plain(&String::from_utf8_lossy(&line));
        if !text.is_empty() {
            tell(&text);
            last = text;
        }
    }
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
    async fn what_is_cut_off_is_gone_with_all_that_it_began() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("number");
        let script =
            format!("sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; wait", place.display());
        let words = [OsStr::new("-c"), OsStr::new(&script)];
        let is_running = || {
            let number = std::fs::read_to_string(&place).unwrap();
            let status = std::fs::read_to_string(format!("/proc/{}/stat", number.trim()));
            status.is_ok_and(|status| !status.contains(") Z "))
        };
        let written = async {
            while !place.exists() {
                tokio::task::yield_now().await;
            }
            assert!(is_running());
        };
        tokio::select! {
            ran = run("sh", &words, Duration::from_secs(1000)) => panic!("{ran:?}"),
            () = written => {}
        }
        assert!(!is_running(), "its caller waits no longer");
        std::fs::remove_file(&place).unwrap();
        let late = run("sh", &words, Duration::from_secs(2)).await;
        assert!(matches!(late, Err(Error::Late { .. })), "{late:?}");
        assert!(!place.exists() || !is_running(), "it is too late");
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
