//! The processes that machines run in: starting them, finding them again, ending them.
//!
//! ```text
//! run/N/process   "PID START BOOT": the process, when it began, and since which boot of this
//!                 machine; all three or it is another one
//! run/N/network   the same of what is its network, where that is a program of its own
//! ```
//!
//! A QEMU outlives the server that started it, and so does what is its network. They are signalled
//! by a handle of the process, never by its number alone.

use super::command::{self, Command};
use super::home;
use super::qmp::Qmp;
use crate::job::{self, Job, Tool};
use crate::machine::{Acceleration, Error};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The program, and the package it is in.
pub(super) const TOOL: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");

/// The first with all that saved moments need.
const WANTED: &str = "9.0";
const IDENTITY: &str = "process";
const NETWORK: &str = "network";
/// What QEMU says, which is why it ended.
const LOG: &str = "qemu.log";
/// For a monitor that listens to greet.
const READY: Duration = Duration::from_secs(10);
/// Until a process that was killed is gone: it has memory to give back.
const END: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(2);
/// Paths of sockets are short, and that of a run may not be: it is opened, and named by number.
const SELF: &str = "/proc/self/fd";

/// A process that was found to be the one written down.
#[derive(Debug)]
pub(super) struct Process {
    handle: OwnedFd,
}

/// The version of the QEMU that is installed.
pub(super) async fn version(job: &Job) -> Result<String, Error> {
    let answer = job.ask(Tool::new(TOOL.0, TOOL.1).arg("--version")).await?;
    let number =
        answer.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let number = number.unwrap_or_default();
    let first = |text: &str| text.split('.').next().and_then(|n| n.parse::<u32>().ok());
    if first(number) < first(WANTED) {
        let (program, found) = (TOOL.0.to_owned(), number.to_owned());
        return Err(Error::TooOld { program, found, wanted: WANTED });
    }
    Ok(number.to_owned())
}

/// Starts a QEMU in its run's directory, and connects to its monitor as soon as it listens.
pub(super) async fn start(command: &Command<'_>, run: &Path, job: &Job) -> Result<Qmp, Error> {
    let log = run.join(LOG);
    let file = fs::File::create(&log).map_err(Error::file("make", &log))?;
    let tool = Tool::new(TOOL.0, TOOL.1).args(command.arguments()).within_directory(run);
    let mut child = tool.detach(file)?;
    write_down(run, child.id())?;
    let (_dir, monitor) = socket(run, command::MONITOR)?;
    let listens = async {
        loop {
            if let Ok(qmp) = Qmp::connect(&monitor, READY).await {
                return Ok(qmp);
            }
            let ended = child.try_wait().map_err(Error::file("wait for", run))?;
            if let Some(status) = ended {
                let last = fs::read_to_string(&log).unwrap_or_default();
                let last = last.trim().replace('\n', "; ");
                let (program, code) = (TOOL.0.to_owned(), status.code());
                let status = status.to_string();
                return Err(job::Error::Failed { program, status, code, last }.into());
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    job.within(listens).await
}

/// Which process is this run's.
pub(super) fn write_down(run: &Path, pid: Option<u32>) -> Result<(), Error> {
    let number = pid.and_then(|pid| i32::try_from(pid).ok());
    write_identity(&run.join(IDENTITY), number)
}

fn write_identity(path: &Path, pid: Option<i32>) -> Result<(), Error> {
    let identity = pid.and_then(|pid| Some(format!("{pid} {} {}\n", began(pid)?, boot()?)));
    fs::write(path, identity.unwrap_or_default()).map_err(Error::file("write", path))
}

/// The process of this run, if it is alive.
pub(super) fn find(run: &Path) -> Result<Option<Process>, Error> {
    match identity(run)? {
        Some(text) => open(run, &text, "qemu"),
        None => Ok(None),
    }
}

/// Writes down which process is the network of this run: the one that has said so by now.
pub(super) fn write_down_network(run: &Path) -> Result<(), Error> {
    let pid = read(&run.join(command::NET_PID))?;
    write_identity(&run.join(NETWORK), pid.and_then(|text| text.trim().parse().ok()))
}

/// The process that is the network of this run, if it is alive. By itself it ends when its QEMU
/// does, unless that never began.
pub(super) fn find_network(run: &Path) -> Result<Option<Process>, Error> {
    match first(run, [NETWORK, command::NET_PID])? {
        Some(text) => open(run, &text, "passt"),
        None => Ok(None),
    }
}

/// The process of an identity, if it is alive.
fn open(run: &Path, identity: &str, called: &str) -> Result<Option<Process>, Error> {
    let mut words = identity.split_whitespace();
    let (pid, start, since) = (words.next(), words.next(), words.next());
    let pid = pid.and_then(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0);
    let Some((number, pid)) = pid.and_then(|number| Some((number, Pid::from_raw(number)?))) else {
        return Ok(None);
    };
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(Error::file("open the process of", run)(error.into())),
    };
    // With the handle open the number can't become another's while it is compared.
    let same = match (start, since) {
        (Some(start), Some(since)) => {
            began(number).is_some_and(|found| found.to_string() == start)
                && boot().is_some_and(|found| found == since)
        }
        // We were killed before the identity was written: this is the program's own file.
        (None, None) => program(number).is_some_and(|name| name.contains(called)),
        _ => false,
    };
    Ok(same.then_some(Process { handle }))
}

impl Process {
    /// Takes its power away and waits until it is gone.
    pub(super) async fn kill(self) -> Result<(), Error> {
        self.cut()?;
        let ended = tokio::time::timeout(END, self.ended()).await;
        ended.unwrap_or_else(|_| Err(not_ended(rustix::io::Errno::TIMEDOUT)))
    }

    /// Takes its power away; it is gone in a moment.
    pub(super) fn cut(&self) -> Result<(), Error> {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(not_ended(error)),
        }
    }

    /// Waits until it has ended.
    pub(super) async fn ended(self) -> Result<(), Error> {
        loop {
            let mut handle = [PollFd::new(&self.handle, PollFlags::IN)];
            let now = Timespec::default();
            let ended = rustix::event::poll(&mut handle, Some(&now));
            match ended.map_err(|error| Error::file("wait for the process", SELF)(error.into()))? {
                0 => tokio::time::sleep(PAUSE).await,
                _ => return Ok(()),
            }
        }
    }
}

fn not_ended(error: rustix::io::Errno) -> Error {
    Error::file("end the process", SELF)(error.into())
}

/// What is known of a run's process: what we wrote down, or else its number alone, by QEMU or by
/// the directory that it works in.
fn identity(run: &Path) -> Result<Option<String>, Error> {
    let written = first(run, [IDENTITY, command::PID])?;
    // We were killed as it began: it has not said a word yet, and is about to be a machine.
    Ok(written.or_else(|| at_home_in(run).map(|pid| pid.to_string())))
}

/// The first of these files that says something.
fn first(run: &Path, names: [&str; 2]) -> Result<Option<String>, Error> {
    for name in names {
        if let Some(text) = read(&run.join(name))? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// What a file says, if it is there and says something.
fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text).filter(|text| !text.trim().is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// The process that was started in this directory.
fn at_home_in(run: &Path) -> Option<i32> {
    let home = fs::metadata(run).ok()?;
    let is_there = |pid: &i32| {
        let cwd = fs::metadata(format!("/proc/{pid}/cwd"));
        cwd.is_ok_and(|cwd| (cwd.dev(), cwd.ino()) == (home.dev(), home.ino()))
            && program(*pid).is_some_and(|name| name.contains("qemu"))
    };
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(is_there)
}

/// The number of a run's process.
fn number(run: &Path) -> Option<u32> {
    identity(run).ok()??.split_whitespace().next()?.parse().ok()
}

/// How the machine of a run is accelerated, by how its process was begun.
pub(super) fn acceleration(run: &Path) -> Option<Acceleration> {
    let words = fs::read(format!("/proc/{}/cmdline", number(run)?)).ok()?;
    let mut words = words.split(|byte| *byte == 0).skip_while(|word| *word != b"-accel");
    let kind = words.nth(1)?;
    Some(if kind == b"kvm" { Acceleration::Kvm } else { Acceleration::Tcg })
}

/// Files that a run's process has open though they have no name any more, by their last one.
pub(super) fn removed_files(run: &Path) -> Vec<PathBuf> {
    let open = number(run).and_then(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok());
    let targets =
        open.into_iter().flatten().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    targets
        .filter_map(|target| Some(PathBuf::from(target.to_str()?.strip_suffix(" (deleted)")?)))
        .collect()
}

/// What a run's process has of memory at most, also of that which lies in files; zero when it is
/// gone.
pub(super) fn memory_bytes(run: &Path) -> u64 {
    let read = || {
        let process = number(run)?;
        let status = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
        let resident = status.split_whitespace().nth(1)?.parse::<u64>().ok()?;
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).ok()?;
        Some(resident * rustix::param::page_size() as u64 + maps.lines().map(of_saved).sum::<u64>())
    };
    read().unwrap_or(0)
}

/// What lies on disk of a saved memory that is mapped so; where that is not known, all of it.
fn of_saved(mapping: &str) -> u64 {
    let Some((_, path)) = mapping.split_once('/').filter(|(_, path)| is_memory(path)) else {
        return 0;
    };
    match fs::metadata(format!("/{path}")) {
        Ok(found) => found.blocks() * 512,
        Err(_) => u64::from(u32::MAX) << 8,
    }
}

/// Of a snapshot, also of one that is gone.
fn is_memory(path: &str) -> bool {
    path.trim_end_matches(" (deleted)").ends_with("/memory")
}

/// A socket's path through an open directory, short whatever the directory's is. The directory
/// has to stay open while the path is used.
pub(super) fn socket(run: &Path, name: &str) -> Result<(fs::File, PathBuf), Error> {
    let dir = fs::File::open(run).map_err(Error::file("open", run))?;
    let path = Path::new(SELF).join(dir.as_raw_fd().to_string()).join(name);
    Ok((dir, path))
}

/// A fresh directory for a run.
pub(super) fn make(run: &Path) -> Result<(), Error> {
    home::remove(run)?;
    home::make(run)
}

/// When a process began, in ticks since this machine's boot; `None` when it is gone or done.
fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in brackets and may hold anything.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?;
    (state != "Z" && state != "X").then(|| rest.nth(18)?.parse().ok())?
}

fn program(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok()
}

fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_process_that_was_written_down_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let child = tokio::process::Command::new("sleep")
            .arg("1000")
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let write = |text: String| fs::write(dir.path().join("process"), text).unwrap();
        let (start, since) = (began(pid).unwrap(), boot().unwrap());
        for other in [
            format!("{pid} {} {since}", start + 1),
            format!("{pid} {start} other"),
            format!("{pid}"),
            "0 0 0".to_owned(),
            "-1 1 1".to_owned(),
            String::new(),
        ] {
            write(other.clone());
            assert!(find(dir.path()).unwrap().is_none(), "{other:?}");
        }
        write(format!("{pid} {start} {since}\n"));
        // What is its network is another one, and is written down when it has said its number.
        assert!(find_network(dir.path()).unwrap().is_none());
        write_down_network(dir.path()).unwrap();
        assert!(find_network(dir.path()).unwrap().is_none());
        fs::write(dir.path().join(command::NET_PID), format!("{pid}\n")).unwrap();
        assert!(find_network(dir.path()).unwrap().is_none(), "it is called sleep");
        write_down_network(dir.path()).unwrap();
        assert!(find_network(dir.path()).unwrap().is_some());
        let process = find(dir.path()).unwrap().unwrap();
        process.kill().await.unwrap();
        assert!(find(dir.path()).unwrap().is_none());
        assert!(find_network(dir.path()).unwrap().is_none());
    }

    #[tokio::test]
    async fn one_that_nobody_wrote_down_is_found_by_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (program, run, other) =
            (dir.path().join("qemu-test"), dir.path().join("1"), dir.path().join("2"));
        let sleep = ["/bin/sleep", "/usr/bin/sleep"].into_iter().find(|at| Path::new(at).exists());
        fs::copy(sleep.unwrap(), &program).unwrap();
        for place in [&run, &other] {
            fs::create_dir(place).unwrap();
        }
        let mut child = tokio::process::Command::new(&program)
            .arg("1000")
            .current_dir(&run)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        assert!(find(&other).unwrap().is_none());
        find(&run).unwrap().unwrap().kill().await.unwrap();
        child.wait().await.unwrap();
        assert!(find(&run).unwrap().is_none());
    }
}
