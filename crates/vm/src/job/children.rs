//! Starts programs that end with this process, however it ends.
//!
//! The kernel kills such a program when the thread that started it ends, not only with the whole
//! process. So one thread starts all of them, and stays.

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A program to start, for whom it is waited for in this runtime.
struct Wanted {
    command: Command,
    runtime: Handle,
    answer: oneshot::Sender<io::Result<Child>>,
}

static STARTER: OnceLock<Option<Sender<Wanted>>> = OnceLock::new();

/// Starts a program. Nobody waits for it any more when this is dropped: then it is killed.
pub(super) async fn spawn(mut command: Command) -> io::Result<Child> {
    let gone = || io::Error::other("the thread that starts programs has ended");
    end_with_this_process(&mut command);
    command.kill_on_drop(true);
    let (answer, child) = oneshot::channel();
    let wanted = Wanted { command, runtime: Handle::current(), answer };
    let starter = STARTER.get_or_init(start).as_ref().ok_or_else(gone)?;
    starter.send(wanted).map_err(|_ended| gone())?;
    child.await.unwrap_or_else(|_ended| Err(gone()))
}

fn start() -> Option<Sender<Wanted>> {
    let (send, receive) = channel::<Wanted>();
    let work = move || {
        for Wanted { mut command, runtime, answer } in receive {
            let _within = runtime.enter();
            // Whoever asked may have gone.
            drop(answer.send(command.spawn()));
        }
    };
    std::thread::Builder::new().name("programs".to_owned()).spawn(work).ok().map(|_thread| send)
}

fn end_with_this_process(command: &mut Command) {
    let parent = getpid();
    let ends = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may be gone by now, and then nothing tells of it.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    #[expect(
        unsafe_code,
        reason = "nothing else is done between fork and exec but two system calls"
    )]
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(ends);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Job, Tool};
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    use std::sync::Arc;
    use std::time::{Duration, Instant};
    use tokio_util::sync::CancellationToken;

    const ROLE: &str = "SAFETYTWIN_TEST_STARTS_A_PROGRAM";

    /// Not a test by itself: the process that the next one kills.
    #[tokio::test]
    async fn starts_a_program_for_the_other_test() {
        if std::env::var_os(ROLE).is_none() {
            return;
        }
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let told = |progress| println!("told {progress:?}");
        let job = Job::new(Arc::new(told), CancellationToken::new(), deadline);
        let shell = Tool::new("sh", "dash").args(["-c", "echo pid $$; exec sleep 1000"]);
        job.run(shell).await.unwrap();
    }

    #[test]
    fn a_program_ends_with_the_process_that_started_it() {
        let mut process = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "job::children::tests::starts_a_program_for_the_other_test"])
            .args(["--nocapture", "--test-threads=1"])
            .env(ROLE, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let pid = lines.map(Result::unwrap).find_map(|line| {
            let (_, rest) = line.split_once("Line(\"pid ")?;
            rest.split_once('"')?.0.parse::<i32>().ok()
        });
        let stat = format!("/proc/{}/stat", pid.expect("it says which"));
        // One that nobody waits for stays as a zombie, which does not run.
        let is_running = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(is_running());
        process.kill().unwrap();
        process.wait().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while is_running() {
            assert!(Instant::now() < until, "it outlived what started it");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Those of a runtime come and go.
    #[test]
    fn a_program_does_not_end_with_a_thread() {
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                let job = Job::new(Arc::new(|_| {}), CancellationToken::new(), deadline);
                job.ask(Tool::new("sh", "dash").args(["-c", "echo there"])).await
            })
        };
        let first = std::thread::spawn(ask).join().unwrap();
        // The thread that first asked is gone, and programs are started all the same.
        assert_eq!((first.unwrap().as_str(), ask().unwrap().as_str()), ("there\n", "there\n"));
    }
}
