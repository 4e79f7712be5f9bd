//! A guest's file systems stand still while its disk is saved, and go on afterwards, whatever
//! happens.
//!
//! ```text
//! its agent answers ─► mark ─► freeze ─► work ─► thaw, confirmed ─► no mark
//!                               │          └─ cut off, or no answer to the thaw ─► thawed behind its back
//!                               ├─ no answer: it may still come about ───────────► thawed behind its back
//!                               └─ this process is killed ───────► thawed when the machine is found again
//! ```
//!
//! The mark is a file beside the machine's other ones. It only has to outlive this process: with
//! the machine it runs on, the guest goes, too.
//!
//! # Invariants
//! - Where file systems may stand still there is a mark, or somebody who thaws them.
//! - A thaw counts when the agent answered it. It does one thing after the other, so no freeze
//!   that was asked for before comes about after that.

use crate::guest_agent::GuestAgent;
use crate::image::MachineName;
use crate::job::Job;
use crate::machine::{Error, Stream};
use serde_json::json;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// The mark's name.
pub(crate) const MARK: &str = "frozen";
/// For the agent to say that it is there.
const GREETING: Duration = Duration::from_secs(5);
/// How long a guest is told to go on that does not confirm it, and how often. Then the mark stays
/// for whoever comes next.
const INSISTENCE: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_secs(1);

/// What connects to the guest's agent, again and again.
pub(crate) type Line = dyn Fn() -> Connecting + Send + Sync;
pub(crate) type Connecting =
    Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, Error>> + Send + 'static>>;

/// Holds and lets go of one guest's file systems. Clones are of the same guest.
#[derive(Clone)]
pub(crate) struct Freezer {
    name: MachineName,
    mark: PathBuf,
    line: Arc<Line>,
}

impl fmt::Debug for Freezer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Freezer").field("mark", &self.mark).finish_non_exhaustive()
    }
}

/// A freeze that was asked for. Dropped before the thaw is confirmed, the guest is thawed behind
/// the back of whoever froze it.
struct Frozen<'a> {
    freezer: &'a Freezer,
    agent: Option<GuestAgent>,
    is_over: bool,
}

impl Freezer {
    pub(crate) fn new(name: &MachineName, mark: PathBuf, line: Arc<Line>) -> Self {
        Self { name: name.clone(), mark, line }
    }

    /// Does `work` while the guest's file systems stand still, if its agent answers.
    pub(crate) async fn still<T>(&self, job: &Job, work: impl Future<Output = T>) -> T {
        let frozen = self.freeze().await;
        if let Err(error) = &frozen {
            job.line(format!(
                "the guest did not write out what was pending ({error}); its disk is as after a power cut"
            ));
        }
        let done = work.await;
        if let Ok(frozen) = frozen
            && let Err(error) = frozen.thaw().await
        {
            job.line(format!(
                "the guest did not confirm that it goes on ({error}); it is told again until it does"
            ));
        }
        done
    }

    /// Makes sure that nothing of an earlier freeze is in force, or may come about.
    pub(crate) async fn settled(&self) -> Result<(), Error> {
        self.thaw().await.map_err(|error| {
            let what = format!(
                "its file systems may stand still for an earlier snapshot, and its guest agent \
                 does not confirm that they go on ({error}); it is told again and again: try \
                 later, or take its power away and start it"
            );
            Error::Refused { name: self.name.clone(), doing: "be saved", what }
        })
    }

    /// Thaws what an earlier process may have left frozen, without being waited for.
    pub(crate) fn thaw_later(&self) {
        let (freezer, Ok(runtime)) = (self.clone(), Handle::try_current()) else { return };
        if !self.mark.exists() {
            return;
        }
        // Nobody's task: it goes on when what froze is cut off, and ends by itself.
        runtime.spawn(async move {
            let until = Instant::now() + INSISTENCE;
            while let Err(error) = freezer.thaw().await {
                if Instant::now() >= until {
                    let machine = &freezer.name;
                    tracing::warn!(%machine, %error, "a guest's file systems may stand still, and it does not confirm that they go on");
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// For a guest that is gone: with it, its freeze.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        crate::qemu::home::remove(&self.mark)
    }

    async fn freeze(&self) -> io::Result<Frozen<'_>> {
        let agent = self.open().await?;
        fs::write(&self.mark, "")?;
        let mut frozen = Frozen { freezer: self, agent: Some(agent), is_over: false };
        match frozen.ask("guest-fsfreeze-freeze").await {
            Ok(()) => Ok(frozen),
            Err(error) => {
                if is_unknown(&error) {
                    frozen.end()?;
                }
                Err(error)
            }
        }
    }

    async fn thaw(&self) -> io::Result<()> {
        if !self.mark.exists() {
            return Ok(());
        }
        let mut agent = self.open().await?;
        thaw_by(&mut agent).await?;
        self.forget().map_err(io::Error::other)
    }

    async fn open(&self) -> io::Result<GuestAgent> {
        let connecting = async { (self.line)().await.map_err(io::Error::other) };
        let stream = tokio::time::timeout(GREETING, connecting).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        GuestAgent::open(stream, GREETING).await
    }
}

impl Frozen<'_> {
    async fn ask(&mut self, command: &str) -> io::Result<()> {
        let agent = self.agent.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        agent.call(command, json!({})).await.map(drop)
    }

    async fn thaw(mut self) -> io::Result<()> {
        let agent = self.agent.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        thaw_by(agent).await?;
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.is_over = true;
        self.freezer.forget().map_err(io::Error::other)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // One at a time talks to the agent.
        self.agent = None;
        if !self.is_over {
            self.freezer.thaw_later();
        }
    }
}

async fn thaw_by(agent: &mut GuestAgent) -> io::Result<()> {
    match agent.call("guest-fsfreeze-thaw", json!({})).await {
        Err(error) if !is_unknown(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether an agent says that it does not do such a thing. It did not do it before, either.
fn is_unknown(error: &io::Error) -> bool {
    let text = error.to_string();
    ["CommandNotFound", "has been disabled", "has not been found"]
        .iter()
        .any(|known| text.contains(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::future::pending;
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
    use tokio_util::sync::CancellationToken;

    /// How a guest's agent takes a freeze.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Takes {
        Well,
        /// It comes about, and is not answered.
        Late,
        /// It is not one of its commands.
        Never,
    }

    #[derive(Debug)]
    struct Guest {
        takes: Takes,
        is_there: AtomicBool,
        is_frozen: AtomicBool,
        asked: Mutex<Vec<String>>,
    }

    impl Guest {
        fn new(takes: Takes) -> Arc<Self> {
            Arc::new(Self {
                takes,
                is_there: AtomicBool::new(true),
                is_frozen: AtomicBool::new(false),
                asked: Mutex::default(),
            })
        }

        fn is_frozen(&self) -> bool {
            self.is_frozen.load(Ordering::SeqCst)
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }

        fn freezer(self: &Arc<Self>, dir: &Path) -> Freezer {
            let guest = Arc::clone(self);
            let line = move || -> Connecting {
                let guest = Arc::clone(&guest);
                Box::pin(async move {
                    if !guest.is_there.load(Ordering::SeqCst) {
                        let (name, doing) = ("web01".parse().unwrap(), "talk to it");
                        return Err(Error::NotRunning { name, doing });
                    }
                    let (near, far) = duplex(4096);
                    crate::job::drive(async move { drop(guest.talk(far).await) });
                    Ok(Box::new(near) as Box<dyn Stream>)
                })
            };
            Freezer::new(&"web01".parse().unwrap(), dir.join(MARK), Arc::new(line))
        }

        async fn talk(&self, far: DuplexStream) -> io::Result<()> {
            let mut far = BufReader::new(far);
            loop {
                let mut line = Vec::new();
                if far.read_until(b'\n', &mut line).await? == 0 {
                    return Ok(());
                }
                let begin = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
                let asked: Value = serde_json::from_slice(&line[begin..])?;
                let command = asked["execute"].as_str().unwrap().to_owned();
                self.asked.lock().unwrap().push(command.clone());
                let answer = match (command.as_str(), self.takes) {
                    ("guest-sync-delimited", _) => json!({ "return": asked["arguments"]["id"] }),
                    (_, Takes::Never) => json!({ "error": { "class": "CommandNotFound" } }),
                    ("guest-fsfreeze-freeze", takes) => {
                        self.is_frozen.store(true, Ordering::SeqCst);
                        if takes == Takes::Late {
                            return Ok(());
                        }
                        json!({ "return": 1 })
                    }
                    ("guest-fsfreeze-thaw", _) => {
                        self.is_frozen.store(false, Ordering::SeqCst);
                        json!({ "return": 1 })
                    }
                    other => panic!("{other:?}"),
                };
                far.write_all(format!("{answer}\n").as_bytes()).await?;
            }
        }
    }

    fn job() -> Job {
        let deadline = Instant::now() + Duration::from_secs(60);
        Job::new(Arc::new(|_| {}), CancellationToken::new(), deadline)
    }

    async fn until(is_so: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < until, "in time");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_guest_stands_still_for_as_long_as_the_work_takes() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::new(Takes::Well);
        let freezer = guest.freezer(dir.path());
        let during = async { (guest.is_frozen(), freezer.mark.exists()) };
        assert_eq!(freezer.still(&job(), during).await, (true, true));
        assert!(!guest.is_frozen() && !freezer.mark.exists());
        let wanted = ["guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"];
        assert_eq!(guest.asked(), wanted);
    }

    #[tokio::test]
    async fn a_guest_goes_on_when_the_work_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::new(Takes::Well);
        let freezer = guest.freezer(dir.path());
        let job = job();
        {
            let work = freezer.still(&job, pending::<()>());
            tokio::pin!(work);
            let frozen = until(|| guest.is_frozen());
            tokio::select! {
                () = &mut work => panic!("it does not end"),
                () = frozen => {}
            }
        }
        until(|| !guest.is_frozen() && !freezer.mark.exists()).await;
    }

    #[tokio::test]
    async fn a_freeze_that_is_late_is_thawed_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::new(Takes::Late);
        let freezer = guest.freezer(dir.path());
        freezer.still(&job(), async {}).await;
        until(|| !guest.is_frozen() && !freezer.mark.exists()).await;
        assert_eq!(guest.asked().last().unwrap(), "guest-fsfreeze-thaw");
    }

    #[tokio::test]
    async fn what_an_earlier_process_froze_is_thawed_or_nothing_is_saved() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::new(Takes::Well);
        let freezer = guest.freezer(dir.path());
        guest.is_frozen.store(true, Ordering::SeqCst);
        fs::write(&freezer.mark, "").unwrap();
        guest.is_there.store(false, Ordering::SeqCst);
        let refused = freezer.settled().await.unwrap_err().to_string();
        assert!(refused.contains("may stand still"), "{refused}");
        freezer.thaw_later();
        guest.is_there.store(true, Ordering::SeqCst);
        until(|| !guest.is_frozen() && !freezer.mark.exists()).await;
        freezer.settled().await.unwrap();
    }

    #[tokio::test]
    async fn an_agent_that_can_not_freeze_leaves_no_mark() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::new(Takes::Never);
        let freezer = guest.freezer(dir.path());
        freezer.still(&job(), async {}).await;
        assert!(!freezer.mark.exists());
        fs::write(&freezer.mark, "").unwrap();
        freezer.settled().await.unwrap();
    }
}
