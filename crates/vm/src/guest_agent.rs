//! QEMU's guest agent: what is asked of a guest whatever runs in it.

use crate::image::MachineName;
use crate::job::Job;
use crate::machine::{Error, Hypervisor, Line, State, Stream};
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::{Instant, timeout};

/// For one answer. An agent that is there answers within milliseconds.
const ANSWER: Duration = Duration::from_secs(10);
/// While it is not known whether it is there.
const TRY: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(10);
const LINE_BYTES: u64 = 4 << 20;
/// Of the console, to explain a guest that stays silent.
const CONSOLE_BYTES: u64 = 2000;

/// No two conversations begin with the same number.
static CONVERSATIONS: AtomicU32 = AtomicU32::new(0);

/// A conversation with it.
pub struct GuestAgent {
    stream: BufReader<Box<dyn Stream>>,
}

impl std::fmt::Debug for GuestAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestAgent").finish_non_exhaustive()
    }
}

impl GuestAgent {
    /// Begins anew: answers to whoever asked before are passed over.
    ///
    /// # Errors
    /// When nobody answers in time.
    pub async fn open(stream: Box<dyn Stream>, limit: Duration) -> io::Result<Self> {
        let mut agent = Self { stream: BufReader::new(stream) };
        // One that goes by the process as well: the answers of a server that was are still there.
        let count = u64::from(CONVERSATIONS.fetch_add(1, Ordering::Relaxed));
        let id = (u64::from(std::process::id()) << 20) + count;
        let greet = async {
            let hello = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
            // The byte that is no text ends what half a message there may be.
            let mut message = vec![0xff];
            message.extend(format!("{hello}\n").bytes());
            agent.stream.write_all(&message).await?;
            loop {
                let answer = agent.answer().await?;
                if answer.get("return") == Some(&json!(id)) {
                    return io::Result::Ok(());
                }
            }
        };
        timeout(limit, greet).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(agent)
    }

    /// # Errors
    /// When it does not answer in time, or says no: then in its words.
    pub async fn call(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let asked = async {
            let request = json!({ "execute": command, "arguments": arguments });
            self.stream.write_all(format!("{request}\n").as_bytes()).await?;
            self.answer().await
        };
        let answer = timeout(ANSWER, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(io::Error::other(answer.to_string())),
        }
    }

    async fn answer(&mut self) -> io::Result<Value> {
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut self.stream).take(LINE_BYTES);
            if limited.read_until(b'\n', &mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // A delimited answer begins with a byte that is no text.
            let begin = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
            if let Ok(answer) = serde_json::from_slice(line.get(begin..).unwrap_or_default()) {
                return Ok(answer);
            }
        }
    }
}

/// Waits until the guest's agent answers: then the guest has booted, or goes on.
///
/// # Errors
/// When the machine stops meanwhile, or the guest stays silent up to the limit; its console's
/// last lines are in the error.
pub async fn await_guest(
    hypervisor: &dyn Hypervisor,
    name: &MachineName,
    limit: Duration,
    job: &Job,
) -> Result<(), Error> {
    let until = Instant::now() + limit;
    let mut looked = Instant::now();
    job.within(async {
        loop {
            let stream = hypervisor.connect(name, Line::GuestAgent).await?;
            if GuestAgent::open(stream, TRY).await.is_ok() {
                return Ok(());
            }
            if looked.elapsed() > TRY {
                looked = Instant::now();
                let seen = hypervisor.show(name).await?;
                let doing = "answer";
                if seen.state == State::Stopped {
                    return Err(Error::Gone { name: name.clone(), doing });
                }
                if Instant::now() >= until {
                    let console = last_of(&seen.console_log);
                    return Err(Error::Silent { name: name.clone(), doing, limit, console });
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
}

/// The end of a console's log, without what a terminal would obey.
pub(crate) fn last_of(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_BYTES)))?;
        let mut text = Vec::new();
        file.take(CONSOLE_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.chars().filter(|c| *c == '\n' || !c.is_control()).collect()
}
