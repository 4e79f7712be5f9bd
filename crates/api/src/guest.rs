//! What a server and the agent in a twin say to each other, over the twin's virtio-serial port.
//!
//! One JSON object a line, each way; one request under way. The port keeps what was in it when
//! either end went away or the machine was put back into another moment, so a line may be the
//! rest of an older one: whatever does not parse, or answers another request, is passed over.
//! Each message begins a line of its own for that reason.
//!
//! A machine that was put back into a saved moment is asked to renew itself before anything else:
//!
//! ```text
//! Renew ─► Renewed    at once: entropy, clock, host name, machine id
//! Identity ─► Standing, pending … Standing, done    what takes longer, if it has a new identity
//! ```
//!
//! A plan is carried out while the port goes on answering, so that whoever asks can go away and
//! come back:
//!
//! ```text
//! Look ─► Facts          with the files that the host tracks, so that both can be compared
//! Contents ─► Kept       what the plan's files hold, in as many messages as it takes
//! Apply ─► Applying      it is under way; the same once more changes nothing
//! Progress ─► Progress   what happened since, and in the end what became of each step
//! Cancel ─► Applying     what is under way is cut off; Progress tells what that came to
//! ```

use model::entity::{Collector, Unit};
use model::plan::{Event, Outcome, Plan};
use model::spec::FilePath;
use model::{ContentId, Facts, Identity, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Where a guest has the port.
pub const PORT: &str = "/dev/virtio-ports/org.safetytwin.agent.0";

/// Bytes of one message: the facts of a large machine, as JSON.
pub const MAX_MESSAGE: u64 = 32 << 20;

/// What is asked of the guest's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Whether it is there.
    Hello,
    /// All it sees, looked at now.
    Facts,
    /// Whether the machine is well.
    Health,
    /// To go on from a saved moment as the machine it is to be now.
    Renew(Renew),
    /// Who it is, and how far it got in becoming so.
    Identity,
    /// All it sees, and these files, looked at now.
    Look(Look),
    /// To keep these texts for the next plan, by their hashes.
    Contents(Vec<String>),
    /// To carry out a plan.
    Apply(Apply),
    /// What happened of a plan.
    Progress(Since),
    /// To cut a plan off.
    Cancel(String),
}

/// Files to be looked at beside what the machine itself gives reason to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub files: Vec<FilePath>,
    /// What some of them should hold, as contents are named: a file that holds just that is told
    /// as it is, whatever of it the guest would hide. An older guest does not read this.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plain: BTreeMap<FilePath, ContentId>,
}

/// A plan, and the name by which it is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    pub run: String,
    pub plan: Plan,
    /// The port of its loopback at which apt is to ask for packages; absent where it reaches
    /// repositories itself. Whoever asks lends it until the plan is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<u16>,
}

/// What is wanted of a plan's events: those from this number on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    pub run: String,
    pub from: usize,
}

/// What happened of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    pub events: Vec<Event>,
    /// What became of each step; absent while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<Vec<Outcome>>,
}

/// What a machine can't know that was put back into a saved moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    pub now: Time,
    pub entropy: Entropy,
    /// For a clone. A machine in which its own moment is put back stays who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// 32 to 512 bytes that nobody else has. `Debug` keeps them to itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Entropy(Vec<u8>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("entropy is 32 to 512 bytes, each as two hexadecimal digits")]
pub struct EntropyError;

impl Entropy {
    /// # Errors
    /// When there are too few or too many bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, EntropyError> {
        if (32..=512).contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(EntropyError) }
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entropy({} bytes)", self.0.len())
    }
}

impl TryFrom<String> for Entropy {
    type Error = EntropyError;

    fn try_from(text: String) -> Result<Self, EntropyError> {
        let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        Self::new(bytes.ok_or(EntropyError)?)
    }
}

impl From<Entropy> for String {
    fn from(entropy: Entropy) -> Self {
        entropy.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back with the answer; no two of a server's are alike.
    pub id: String,
    pub ask: Ask,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub id: String,
    pub answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// With the agent's version.
    Hello(String),
    Facts(Facts),
    Health(Health),
    Renewed(Renewed),
    Identity(Standing),
    /// So many contents are kept now.
    Kept(usize),
    /// The plan of this name is under way, or was.
    Applying(String),
    Progress(Happened),
    /// It could not do what was asked.
    Fault(String),
}

/// How a machine is, in its own eyes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Units that failed.
    pub failed: Vec<String>,
    /// Parts of the picture that could not be looked at, and why.
    pub faults: BTreeMap<String, String>,
}

impl Health {
    /// As facts tell it.
    #[must_use]
    pub fn of(facts: &Facts) -> Self {
        let failed = facts.entities::<Unit>().filter(|unit| unit.active_state == "failed");
        let faults = facts
            .entities::<Collector>()
            .filter_map(|collector| Some((collector.name, collector.fault?)));
        Self { failed: failed.map(|unit| unit.id).collect(), faults: faults.collect() }
    }
}

/// What was done at once. The rest goes on where there is a new identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    pub faults: Vec<Fault>,
}

/// A part of a machine's identity that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// `clock`, `entropy`, `hostname`, `machine_id`, `cloud_init`, `host_keys`, `network`,
    /// `journal`, `init`, `disk` or `all`.
    pub part: String,
    pub what: String,
}

/// Who a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub progress: Progress,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// The public SSH host keys, each in one line. Absent while they may be another machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_keys: Option<Vec<String>>,
    /// By interface, each with the length of its network's prefix. Absent while they may be
    /// another machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<BTreeMap<String, Vec<String>>>,
    /// Of what was done so far, beside those told at once.
    pub faults: Vec<Fault>,
}

/// How far a machine got in becoming another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Its agent, since it started, was not asked for that.
    Unasked,
    Pending,
    /// All was tried; what failed is a fault.
    Done,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the channel to the guest's agent broke")]
    Channel(#[from] io::Error),
    #[error("the guest's agent did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("the guest's agent: {0}")]
    Fault(String),
}

/// Asks, and waits for the answer to just that.
///
/// # Errors
/// When the channel breaks, nothing answers in time, or the agent says that it can't.
pub async fn ask(
    channel: &mut (impl AsyncBufRead + AsyncWrite + Unpin),
    id: String,
    ask: Ask,
    deadline: Duration,
) -> Result<Answer, Error> {
    let asked = async {
        send(channel, &Request { id: id.clone(), ask }).await?;
        replied(channel, &id).await
    };
    let asked = tokio::time::timeout(deadline, asked).await;
    judged(asked.map_err(|_late| deadline))
}

/// The answer to what was sent under this id; others are passed over.
///
/// # Errors
/// As those of [`ask`].
pub async fn await_answer(
    channel: &mut (impl AsyncBufRead + Unpin),
    id: &str,
    deadline: Duration,
) -> Result<Answer, Error> {
    let replied = tokio::time::timeout(deadline, replied(channel, id)).await;
    judged(replied.map_err(|_late| deadline))
}

async fn replied(channel: &mut (impl AsyncBufRead + Unpin), id: &str) -> io::Result<Answer> {
    loop {
        match receive::<Reply>(channel).await? {
            Some(reply) if reply.id == id => return Ok(reply.answer),
            Some(_) => {}
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// What came within a deadline.
fn judged(came: Result<io::Result<Answer>, Duration>) -> Result<Answer, Error> {
    match came {
        Ok(Ok(Answer::Fault(fault))) => Err(Error::Fault(fault)),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Error::Channel(error)),
        Err(deadline) => Err(Error::Deadline(deadline)),
    }
}

/// Writes a message as a line of its own.
///
/// # Errors
/// When it can't be written.
pub async fn send<T: Serialize>(
    channel: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, message)?;
    line.push(b'\n');
    channel.write_all(&line).await?;
    channel.flush().await
}

/// The next line that is such a message; `None` at the channel's end.
///
/// # Errors
/// When it can't be read.
pub async fn receive<T: for<'de> Deserialize<'de>>(
    channel: &mut (impl AsyncBufRead + Unpin),
) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut *channel).take(MAX_MESSAGE).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(None);
        }
        if let Ok(message) = serde_json::from_slice(&line) {
            return Ok(Some(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{BufStream, duplex};

    const DEADLINE: Duration = Duration::from_secs(5);

    /// An end that says `said` and then answers whatever is asked.
    async fn check(said: &'static [u8], expected: &str) {
        let (near, far) = duplex(64);
        let (mut near, mut far) = (BufStream::new(near), BufStream::new(far));
        let guest = async move {
            let request: Request = receive(&mut far).await.unwrap().unwrap();
            far.write_all(said).await.unwrap();
            let answer = Answer::Hello("1.2.3".to_owned());
            send(&mut far, &Reply { id: request.id, answer }).await.unwrap();
        };
        let asked = ask(&mut near, "now".to_owned(), Ask::Hello, DEADLINE);
        let (answer, ()) = tokio::join!(asked, guest);
        assert_eq!(format!("{answer:?}"), expected);
    }

    #[tokio::test]
    async fn answers_are_found_among_what_was_left() {
        let hello = "Ok(Hello(\"1.2.3\"))";
        check(b"", hello).await;
        check(b"\xff\xfe half of a line", hello).await;
        check(b"{\"id\":\"before\",\"answer\":{\"hello\":\"0\"}}\n", hello).await;
        check(b"{\"id\":\"now\",\"answer\":{\"fault\":\"no\"}}\n", "Err(Fault(\"no\"))").await;
    }

    #[test]
    fn looks_of_older_and_newer_servers() {
        let old = r#"{"look":{"files":["/etc/a"]}}"#;
        let Ask::Look(look) = serde_json::from_str(old).unwrap() else { unreachable!("a look") };
        assert!(look.plain.is_empty());
        assert_eq!(serde_json::to_string(&Ask::Look(look.clone())).unwrap(), old);
        let plain = [("/etc/a".parse().unwrap(), ContentId::of(b"x"))].into();
        let new = Ask::Look(Look { plain, ..look });
        let text = serde_json::to_string(&new).unwrap();
        assert_eq!(serde_json::from_str::<Ask>(&text).unwrap(), new);
    }

    #[test]
    fn a_renewal_on_the_wire() {
        let entropy = "0f".repeat(32);
        let identity = format!(r#"{{"hostname":"web02","machine_id":"{}"}}"#, "a".repeat(32));
        let line = |entropy: &str, identity: &str| {
            let now = "2026-11-21T07:00:00.000001Z";
            format!(
                r#"{{"id":"1","ask":{{"renew":{{"now":"{now}","entropy":"{entropy}"{identity}}}}}}}"#
            )
        };
        for identity in [String::new(), format!(r#","identity":{identity}"#)] {
            let line = line(&entropy, &identity);
            let request: Request = serde_json::from_str(&line).unwrap();
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
            let Ask::Renew(renew) = request.ask else { unreachable!("it was asked to renew") };
            assert_eq!(renew.entropy.bytes(), [0x0f; 32]);
            assert!(!format!("{renew:?}").contains("15, 15"), "{renew:?}");
        }
        for bad in ["", "0f", &"0f".repeat(513), &"0".repeat(65), &"xx".repeat(32)] {
            assert!(serde_json::from_str::<Request>(&line(bad, "")).is_err(), "{bad}");
        }
        let foreign = r#","identity":{"hostname":"../x","machine_id":"a"}"#;
        assert!(serde_json::from_str::<Request>(&line(&entropy, foreign)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_the_end_are_errors() {
        let (near, far) = duplex(4096);
        let mut near = BufStream::new(near);
        let silent = ask(&mut near, "a".to_owned(), Ask::Facts, DEADLINE).await;
        assert!(matches!(silent, Err(Error::Deadline(_))), "{silent:?}");
        drop(far);
        let ended = ask(&mut near, "b".to_owned(), Ask::Facts, DEADLINE).await;
        assert!(matches!(ended, Err(Error::Channel(_))), "{ended:?}");
    }
}
