//! One piece of long work: what it reports, when it must stop, and the programs it runs.
//!
//! # Invariants
//! - A program runs in a process group of its own, and its group ends with the job: at cancel,
//!   at the deadline, and when the job's future is dropped.
//! - It also ends with this process, when that is killed: the program does, and what namespaces
//!   of its own it has.
//! - Arguments go to programs as they are; no shell sees them.

mod children;

use crate::turn::Turn;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a program may take to end by itself once asked to.
const GRACE: Duration = Duration::from_secs(5);
/// Lines kept to explain a failure, and the longest one told.
const LAST_LINES: usize = 12;
const LINE_BYTES: usize = 4096;
/// Output taken from a program whose answer is read.
const ANSWER_BYTES: usize = 64 << 20;

/// Why a job did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name of a program that is not there, and the package it comes from.
    #[error("{program} is not installed; it is in the package {package}")]
    Missing { program: String, package: &'static str },
    #[error("could not start {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    /// With the last lines the program wrote.
    #[error("{program} failed ({status}): {last}")]
    Failed { program: String, status: String, code: Option<i32>, last: String },
    #[error("cancelled")]
    Cancelled,
    #[error("not done in the time given; it was at: {step}")]
    TimedOut { step: String },
}

/// What a job says while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The job goes on to its next step.
    Step(String),
    /// A program's output.
    Line(String),
    /// How much of the step's data is done; the total when it is known.
    Bytes { done: u64, total: Option<u64> },
}

/// Who listens, and when to stop. Cheap to clone; clones are the same job.
#[derive(Clone)]
pub struct Job {
    sink: Arc<dyn Fn(Progress) + Send + Sync>,
    cancel: CancellationToken,
    deadline: Instant,
    step: Arc<Mutex<String>>,
    /// Of the machines that it works with.
    turns: Vec<Arc<Turn>>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("step", &self.current()).finish_non_exhaustive()
    }
}

impl Job {
    /// The sink is called from several threads and must not block.
    #[must_use]
    pub fn new(
        sink: Arc<dyn Fn(Progress) + Send + Sync>,
        cancel: CancellationToken,
        deadline: Instant,
    ) -> Self {
        Self { sink, cancel, deadline, step: Arc::default(), turns: Vec::new() }
    }

    /// The same job, which has this turn as well.
    pub(crate) fn with(&self, turn: Turn) -> Self {
        let mut job = self.clone();
        job.turns.push(Arc::new(turn));
        job
    }

    /// The same job, of which nobody is told.
    #[cfg(feature = "libvirt")]
    pub(crate) fn quiet(&self) -> Self {
        Self { sink: Arc::new(|_progress| {}), ..self.clone() }
    }

    fn current(&self) -> String {
        self.step.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn step(&self, what: impl Into<String>) {
        let what = what.into();
        self.step.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&what);
        (self.sink)(Progress::Step(what));
    }

    pub(crate) fn line(&self, text: String) {
        (self.sink)(Progress::Line(text));
    }

    pub(crate) fn bytes(&self, done: u64, total: Option<u64>) {
        (self.sink)(Progress::Bytes { done, total });
    }

    /// For loops that block: an error once the job must stop.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if Instant::now() >= self.deadline {
            return Err(Error::TimedOut { step: self.current() });
        }
        Ok(())
    }

    /// The same for what reads and writes.
    pub(crate) fn go_on(&self) -> io::Result<()> {
        self.check().map_err(io::Error::other)
    }

    async fn stopped(&self) -> Error {
        tokio::select! {
            () = self.cancel.cancelled() => Error::Cancelled,
            () = tokio::time::sleep_until(self.deadline) => Error::TimedOut { step: self.current() },
        }
    }

    /// Awaits work that may be dropped at any of its waits, as long as the job goes on.
    pub(crate) async fn within<T, E: From<Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            outcome = work => outcome,
            stopped = self.stopped() => Err(stopped.into()),
        }
    }

    /// Runs blocking work off the async threads. It looks at [`Job::check`] itself, and keeps the
    /// job's turns until it is over.
    pub(crate) async fn block<T: Send + 'static, E: From<Error> + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let turns = self.turns.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turns);
            done
        });
        // A task that ended without an answer: the runtime is going down.
        done.await.unwrap_or_else(|_| Err(Error::Cancelled.into()))
    }

    /// Runs a program to its end and tells its lines.
    ///
    /// # Errors
    /// When it is not there, fails, or the job must stop before.
    pub async fn run(&self, tool: Tool) -> Result<(), Error> {
        self.execute(tool, false).await.map(drop)
    }

    /// Runs a program to its end and returns what it wrote to stdout.
    pub(crate) async fn ask(&self, tool: Tool) -> Result<String, Error> {
        self.execute(tool, true).await
    }

    async fn execute(&self, tool: Tool, answer: bool) -> Result<String, Error> {
        self.check()?;
        let Tool { program, package, mut command } = tool;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let child = children::spawn(command).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { program: program.clone(), package },
            _ => Error::Start { program: program.clone(), source },
        })?;
        let mut group = Group { child };
        let last = Mutex::new(VecDeque::new());
        let mut output = String::new();
        let outcome = tokio::select! {
            outcome = self.follow(&mut group.child, &last, answer.then_some(&mut output)) => outcome,
            stopped = self.stopped() => {
                group.end().await;
                return Err(stopped);
            }
        };
        let status = outcome.map_err(|source| Error::Start { program: program.clone(), source })?;
        if status.success() {
            return Ok(output);
        }
        let last = Vec::from(last.into_inner().unwrap_or_else(PoisonError::into_inner));
        let (code, last) = (status.code(), last.join("; "));
        Err(Error::Failed { program, status: status.to_string(), code, last })
    }

    async fn follow(
        &self,
        child: &mut Child,
        last: &Mutex<VecDeque<String>>,
        answer: Option<&mut String>,
    ) -> io::Result<ExitStatus> {
        let tell = |line: String| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line.clone());
            drop(last);
            self.line(line);
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let out = async {
            match (stdout, answer) {
                (Some(pipe), Some(answer)) => {
                    lines(pipe, |line| {
                        if answer.len() + line.len() < ANSWER_BYTES {
                            answer.push_str(&line);
                            answer.push('\n');
                        }
                    })
                    .await
                }
                (Some(pipe), None) => lines(pipe, &tell).await,
                (None, _) => Ok(()),
            }
        };
        let err = async {
            match stderr {
                Some(pipe) => lines(pipe, &tell).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(out, err)?;
        child.wait().await
    }
}

/// Tells a stream's lines; over-long ones are cut, bytes that are no text replaced.
async fn lines(pipe: impl AsyncRead + Unpin, mut tell: impl FnMut(String)) -> io::Result<()> {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        let chunk = pipe.fill_buf().await?;
        if chunk.is_empty() {
            break;
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
        let room = LINE_BYTES.saturating_sub(line.len());
        line.extend(part.iter().take(room));
        let used = part.len() + usize::from(end.is_some());
        pipe.consume(used);
        if end.is_some() {
            tell(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
    }
    if !line.is_empty() {
        tell(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    Ok(())
}

/// Drives a connection until its other half is dropped; it needs no other end.
#[expect(clippy::disallowed_methods, reason = "ends with the request it belongs to")]
pub(crate) fn drive(connection: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(connection));
}

/// A program to run, and the package a person installs to have it.
#[derive(Debug)]
pub struct Tool {
    program: String,
    package: &'static str,
    command: Command,
}

impl Tool {
    #[must_use]
    pub fn new(program: &str, package: &'static str) -> Self {
        let mut command = Command::new(program);
        // An ordinary user's PATH lacks where mke2fs is.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C.UTF-8");
        Self { program: program.to_owned(), package, command }
    }

    /// The same program run by another one, as `unshare … -- PROGRAM`.
    pub(crate) fn within(wrapper: &[&str], program: &str, package: &'static str) -> Self {
        let Some((first, rest)) = wrapper.split_first() else {
            return Self::new(program, package);
        };
        let tool = Self::new(first, "util-linux").args(rest).arg(program);
        Self { program: program.to_owned(), ..tool }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Where it runs; a relative path of its arguments begins there.
    #[must_use]
    pub fn within_directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it to go on by itself: no signal of a terminal reaches it, it outlives this
    /// process, and what it says goes to a file.
    pub(crate) fn detach(self, log: std::fs::File) -> Result<Child, Error> {
        let Self { program, package, mut command } = self;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { program, package },
            _ => Error::Start { program, source },
        })
    }

    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }
}

/// A child that leads its process group. Dropped while it runs, the group is killed.
struct Group {
    child: Child,
}

impl Group {
    fn signal(&self, signal: rustix::process::Signal) {
        // No id any more means the child was waited for: the number may be another's by now.
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // It may just have ended; then there is nobody to tell.
            rustix::process::kill_process_group(pid, signal).ok();
        }
    }

    async fn end(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            self.signal(rustix::process::Signal::KILL);
            if let Err(error) = self.child.wait().await {
                tracing::warn!(%error, "could not wait for a killed program");
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One that nobody listens to.
    pub(crate) fn quiet() -> Job {
        job(60).0
    }

    fn job(seconds: u64) -> (Job, Arc<Mutex<Vec<Progress>>>, CancellationToken) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let cancel = CancellationToken::new();
        let sink = {
            let seen = seen.clone();
            move |progress| seen.lock().unwrap().push(progress)
        };
        let deadline = Instant::now() + Duration::from_secs(seconds);
        (Job::new(Arc::new(sink), cancel.clone(), deadline), seen, cancel)
    }

    fn shell(script: &str) -> Tool {
        Tool::new("sh", "dash").args(["-c", script])
    }

    #[tokio::test]
    async fn lines_and_failures_are_told() {
        let (job, seen, _) = job(30);
        let error = job.run(shell("echo one; echo two >&2; exit 3")).await.unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        for line in ["one", "two"] {
            assert!(seen.lock().unwrap().contains(&Progress::Line(line.into())), "{line}");
        }
        assert_eq!(job.ask(shell("echo x; echo no >&2")).await.unwrap(), "x\n");
        let missing = job.run(Tool::new("no-such-program", "nothing")).await.unwrap_err();
        assert!(missing.to_string().contains("package nothing"), "{missing}");
    }

    /// Cancel and deadline take the whole group with them, and a dropped job does, too.
    #[tokio::test]
    async fn a_stopped_job_leaves_no_process() {
        for how in ["cancel", "deadline", "drop"] {
            let (job, seen, cancel) = job(if how == "deadline" { 1 } else { 60 });
            let run = job.run(shell("sleep 1000 & echo $!; wait"));
            let line = async {
                loop {
                    if let Some(Progress::Line(pid)) = seen.lock().unwrap().first() {
                        break pid.parse::<i32>().unwrap();
                    }
                    tokio::task::yield_now().await;
                }
            };
            let pid = {
                tokio::pin!(run);
                let pid = tokio::select! {
                    pid = line => pid,
                    outcome = &mut run => panic!("{how}: ended early: {outcome:?}"),
                };
                match how {
                    "drop" => {}
                    "cancel" => {
                        cancel.cancel();
                        assert!(matches!(run.await, Err(Error::Cancelled)));
                    }
                    _ => assert!(matches!(run.await, Err(Error::TimedOut { .. }))),
                }
                pid
            };
            let until = Instant::now() + Duration::from_secs(10);
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            while is_running(pid) {
                assert!(Instant::now() < until, "{how}: still running");
                tokio::task::yield_now().await;
            }
        }
    }

    /// An orphan nobody reaps stays as a zombie, which is not running.
    fn is_running(pid: rustix::process::Pid) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }
}
